"""What the rule ``compensated`` makes of a late delta, whatever the numbers are."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paramserver.core import wire
from paramserver.core.compensation import effective_learners
from paramserver.core.server import MergeRule, Server
from paramserver.snapshots.format import equal

SPEC = "s" * 64
NUMBERS = st.floats(-1e3, 1e3)
CURVATURES = st.floats(0, 1e3)
ROWS = st.integers(1, 1000)


class Info:
    id, end, sealed, replica, trimmed = 1, 10_000, False, "r", 0


def pushed(
    rule: MergeRule, others: list[tuple[int, float]], x: float, rows: int, curved: wire.Curved
) -> Server:
    """A server on which others have pushed, and then one whose base is the start."""
    server = Server("m", SPEC, "", rule, 1)
    for partition, (n, step) in enumerate(others, 2):
        applied(server, partition, n, step, {"w": {"k": (0.0, 0.0)}})
    applied(server, 1, rows, x, curved)
    return server


def applied(server: Server, partition: int, n: int, x: float, curved: wire.Curved) -> None:
    blocks: dict[str, Any] = {
        "w": wire.WireBlock("additive", {"k": x}),
        "d": wire.WireBlock("digest", {"count": n, "sum": n}),
    }
    push = wire.Push(1, SPEC, partition, 1, n, n, (1, 0), blocks, curved)
    assert server.push(push, lambda _: Info).status == "applied"  # type: ignore[arg-type,return-value]


def value(server: Server) -> float:
    number: float = server.values["w"].data["k"]
    return number


@settings(max_examples=100, deadline=None)
@given(x=NUMBERS, rows=ROWS, start=NUMBERS, curvature=CURVATURES)
def test_who_is_alone_is_added_as_it_is(
    x: float, rows: int, start: float, curvature: float
) -> None:
    alone = pushed("compensated", [], x, rows, {"w": {"k": (start, curvature)}})
    assert equal(alone.values, pushed("sum", [], x, rows, {}).values)


@settings(max_examples=100, deadline=None)
@given(others=st.lists(st.tuples(ROWS, NUMBERS), min_size=1, max_size=5), x=NUMBERS, rows=ROWS)
def test_without_curvature_left_to_use_deltas_add_up(
    others: list[tuple[int, float]], x: float, rows: int
) -> None:
    late = pushed("compensated", others, x, rows, {"w": {"k": (0.0, 0.0)}})
    assert value(late) == pytest.approx(sum(step for _, step in others) + x, abs=1e-6)


@settings(max_examples=100, deadline=None)
@given(others=st.lists(st.tuples(ROWS, NUMBERS), min_size=1, max_size=5), x=NUMBERS, rows=ROWS)
def test_a_push_without_curvature_is_averaged(
    others: list[tuple[int, float]], x: float, rows: int
) -> None:
    late = pushed("compensated", others, x, rows, {})
    before = sum(step for _, step in others)
    assert value(late) == pytest.approx(before + x / (1 + len(others)), abs=1e-6)


@settings(max_examples=200, deadline=None)
@given(
    others=st.lists(st.tuples(ROWS, NUMBERS), min_size=1, max_size=5),
    x=NUMBERS, rows=ROWS, curvature=CURVATURES,
)  # fmt: skip
def test_it_is_between_the_sum_and_half_of_the_way_back(
    others: list[tuple[int, float]], x: float, rows: int, curvature: float
) -> None:
    """At least half of the delta is kept, and at most half of what others did is taken back."""
    late = pushed("compensated", others, x, rows, {"w": {"k": (0.0, curvature)}})
    moved = sum(step for _, step in others)
    used = 1 - math.exp(-4 * curvature)
    kept = value(late) - moved + used / 2 * moved
    assert min(x / 2, x) - 1e-6 <= kept <= max(x / 2, x) + 1e-6
    assert late.values["d"].data["count"] == rows + sum(n for n, _ in others)


@settings(max_examples=100, deadline=None)
@given(rows=st.lists(ROWS, min_size=1, max_size=9), factor=st.integers(1, 50))
def test_effective_learners(rows: list[int], factor: int) -> None:
    k = effective_learners(rows)
    assert 1.0 <= k <= len(rows) + 1e-9
    assert effective_learners(reversed(rows)) == pytest.approx(k)
    assert effective_learners([n * factor for n in rows]) == pytest.approx(k)
    assert effective_learners([*rows, 0]) == k
    assert effective_learners([rows[0]] * len(rows)) == pytest.approx(len(rows))
