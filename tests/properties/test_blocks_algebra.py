"""The laws that let deltas arrive in any order."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paramserver.core.blocks import Block, Blocks, combine, copy, from_wire, merge, to_wire
from paramserver.core.state import SnapshotState
from paramserver.core.tables.rows import Rows
from paramserver.core.wire import WireBlock
from paramserver.snapshots.format import decode, encode, equal

KEYS = st.sampled_from(["a", "b", "c", "é"])
DYADIC = st.integers(-(2**20), 2**20).map(lambda i: i / 1024)  # sums of these are exact
WHOLE = st.integers(-(2**40), 2**40)


@st.composite
def exact_deltas(draw: st.DrawFn) -> Blocks:
    """Deltas whose kinds are exact in floats: dense and additive of dyadics, extrema, counts,
    digest."""
    extrema = st.tuples(DYADIC, DYADIC).map(lambda x: (min(x), max(x)))
    return {
        "w": Block("additive", draw(st.dictionaries(KEYS, DYADIC))),
        "m": Block("extrema", draw(st.dictionaries(KEYS, extrema))),
        "n": Block("count", draw(st.dictionaries(KEYS, WHOLE))),
        "d": Block(
            "digest", {"count": draw(st.integers(0, 2**40)), "sum": draw(st.integers(0, 2**64 - 1))}
        ),
        "t": Block("dense", np.array([draw(DYADIC), draw(DYADIC)]).tobytes()),
        "r": Block("rows", rows(draw(st.dictionaries(st.integers(0, 5), DYADIC)))),
    }


def rows(numbers: dict[int, float]) -> Rows:
    """Rows of one number each."""
    ids = np.array(list(numbers), dtype=np.uint64)
    return Rows(ids, np.array(list(numbers.values()), dtype=np.float32).reshape(-1, 1))


def merged(*deltas: Blocks, scale: float = 1.0) -> Blocks:
    values: Blocks = {}
    for delta in deltas:
        merge(values, delta, scale)
    return values


@settings(max_examples=100, deadline=None)
@given(exact_deltas(), exact_deltas(), exact_deltas())
def test_exact_kinds_are_commutative_and_associative(a: Blocks, b: Blocks, c: Blocks) -> None:
    assert equal(merged(a, b), merged(b, a))
    assert equal(merged(a, b, c), merged(a, combine(b, c)))
    assert equal(merged(a, b, c), merged(combine(a, b), c))


@settings(max_examples=50, deadline=None)
@given(exact_deltas(), exact_deltas())
def test_merge_leaves_the_delta_alone(a: Blocks, b: Blocks) -> None:
    values, before = copy(a), copy(b)
    merge(values, b, 0.5)
    merge(values, b, 1.0)
    assert equal(b, before)


@settings(max_examples=50, deadline=None)
@given(exact_deltas(), exact_deltas())
def test_only_additive_and_dense_blocks_and_rows_are_scaled(a: Blocks, b: Blocks) -> None:
    whole, half = merged(a, b), copy(a)
    merge(half, b, 0.5)
    for name in ("m", "n", "d"):
        assert half[name] == whole[name]
    for key, x in b["w"].data.items():
        assert half["w"].data[key] == a["w"].data.get(key, 0.0) + 0.5 * x
    expected = np.frombuffer(a["t"].data) + 0.5 * np.frombuffer(b["t"].data)
    assert half["t"].data == expected.tobytes()
    for i, x in zip(b["r"].data.ids.tolist(), b["r"].data.numbers.ravel().tolist(), strict=True):
        before, _ = a["r"].data.get(np.array([i], dtype=np.uint64))
        after, _ = half["r"].data.get(np.array([i], dtype=np.uint64))
        assert after.item() == np.float32(before.item() + 0.5 * x)


def moments_of(rows: list[float]) -> tuple[float, float, float]:
    """As a learner has them: one row after the other (Welford 1962)."""
    n, mean, m2 = 0.0, 0.0, 0.0
    for x in rows:
        n += 1
        gap = x - mean
        mean += gap / n
        m2 += gap * (x - mean)
    return (n, mean, m2)


ROWS = st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=30)


@settings(max_examples=100, deadline=None)
@given(st.lists(ROWS, min_size=1, max_size=6), st.sampled_from([0.0, 1e4, -1e6]), st.randoms())
def test_moments_agree_with_numpy_in_any_order(
    cuts: list[list[float]], offset: float, random: object
) -> None:
    shifted = [[x + offset for x in rows] for rows in cuts]
    getattr(random, "shuffle")(shifted)  # noqa: B009
    values: Blocks = {}
    for rows in shifted:
        merge(values, {"x": Block("moments", {"f": moments_of(rows)})})
    n, mean, m2 = values["x"].data["f"]
    every = np.array([x for rows in shifted for x in rows], dtype=np.longdouble)
    tolerance = 1e-10 * max(1.0, abs(offset))
    assert n == len(every)
    assert math.isclose(mean, float(every.mean()), rel_tol=1e-12, abs_tol=tolerance)
    assert math.isclose(
        m2, float(((every - every.mean()) ** 2).sum()), rel_tol=1e-9, abs_tol=tolerance
    )


def test_moments_by_subtraction_would_fail_that() -> None:
    """Control: M2 as a difference of sums of squares cancels; Chan's does not."""
    rng = np.random.default_rng(1)
    rows = 1e7 + rng.normal(size=64)
    halves = [moments_of(list(rows[:32])), moments_of(list(rows[32:]))]
    values: Blocks = {}
    for half in halves:
        merge(values, {"x": Block("moments", {"f": half})})
    true = float(((rows - rows.mean()) ** 2).sum())
    naive = float((rows**2).sum() - len(rows) * rows.mean() ** 2)
    assert values["x"].data["f"][2] == pytest.approx(true, rel=1e-6)
    assert naive != pytest.approx(true, rel=1e-6)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 2**64 - 1), max_size=20))
def test_digest_is_a_sum_modulo_2_to_64(hashes: list[int]) -> None:
    values: Blocks = {"d": Block("digest", {"count": 0, "sum": 0})}
    for h in hashes:
        merge(values, {"d": Block("digest", {"count": 1, "sum": h})}, scale=0.5)
    assert values["d"].data == {"count": len(hashes), "sum": sum(hashes) % 2**64}


@settings(max_examples=100, deadline=None)
@given(exact_deltas(), st.dictionaries(st.text(max_size=5), st.floats(-1e300, 1e300)))
def test_wire_and_snapshot_give_every_bit_back(blocks: Blocks, floats: dict[str, float]) -> None:
    import msgspec

    blocks["f"] = Block("additive", floats)
    blocks["c"] = Block("count", dict(floats))
    blocks["l"] = Block("local", np.array(list(floats.values())).tobytes())
    sent = msgspec.msgpack.decode(
        msgspec.msgpack.encode(to_wire(blocks)), type=dict[str, WireBlock]
    )
    assert equal(from_wire(sent), blocks)
    state = SnapshotState("m", "s", "", (1, 2), blocks, {1: 2})
    assert equal(decode(encode(state)).values, blocks)
