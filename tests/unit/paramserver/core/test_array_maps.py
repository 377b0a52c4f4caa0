"""Mappings whose numbers are in arrays behave as dicts: in blocks, messages and snapshots."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load, save

from paramserver.core import array_maps, wire
from paramserver.core.array_maps import ArrayMap, NameIndex, as_dict, read_names
from paramserver.core.blocks import Block, Blocks, copy, from_wire, merge, put, select, size_bytes
from paramserver.core.server import Server
from paramserver.core.state import SnapshotState
from paramserver.errors import BlockError, SnapshotCorrupt
from paramserver.evidence.losses import LOSSES
from paramserver.filters.sources import TAKEN
from paramserver.snapshots import format as snapshot_format
from paramserver.snapshots.names import spans_of

NAMES = ["", "a", "b\0", "é" * 5, "eightchr", "eightchrs", "x" * 16, "x" * 17, "ü" * 900, "\0"]
"""Names of all lengths about a word, with characters of several bytes, and with zeros."""

new = st.sampled_from(["n1", "n2", "née"])
some = st.sampled_from(NAMES) | new
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "additive": st.sampled_from([0.0, -0.0, 0.5, 1e300, -1e300]),
    "count": st.sampled_from([0, 1, -3, 2**53 + 1, 2**62, 0.25]),
    "moments": st.tuples(*[st.sampled_from([0.0, 1.0, 2.5])] * 3),
    "extrema": st.sampled_from([(0.0, 1.0), (-2.0, -1.0), (-0.0, 0.0)]),
}


def index(names: list[str]) -> NameIndex:
    raw = [name.encode() for name in names]
    ends = np.cumsum([len(one) for one in raw]).astype(np.int64)
    return NameIndex(np.frombuffer(b"".join(raw), dtype=np.uint8), ends)


@pytest.fixture(autouse=True)
def _all_in_arrays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshot_format, "ARRAYS_LEAST", 1)


def state(values: Blocks) -> SnapshotState:
    return SnapshotState("m", "s", "t", (1, 2), values, {1: 5})


def in_arrays(values: Blocks) -> Blocks:
    """The values as a server restores them from a snapshot."""
    data = snapshot_format.encode(state(values))
    return snapshot_format.decode(data, in_arrays=True).values


def plain(values: Blocks) -> Blocks:
    return {name: Block(block.kind, as_dict(block.data)) for name, block in values.items()}


def same(a: Blocks, b: Blocks) -> bool:
    """Whether they are equal bit for bit, in the same order."""
    return repr([*plain(a).items()]) == repr([*plain(b).items()])


@st.composite
def blocks(draw: st.DrawFn, names: st.SearchStrategy[str], least: int = 0) -> Blocks:
    return {
        kind: Block(kind, draw(st.dictionaries(names, value, min_size=least)))
        for kind, value in VALUES.items()
    }


def test_names_are_found_by_their_place_whatever_their_length() -> None:
    every = [*NAMES, *(f"{'y' * (n % 40)}{n}" for n in range(20_000))]
    held = index(every)
    asked = [*every, "absent", "z" * 5_000, "a\0"]
    places = held.look_up(asked)
    assert [places[name] for name in asked] == [*range(len(every)), -1, -1, -1]
    assert held.part(0, len(every)) == every
    assert held.at(np.array([[3, 5], [2, 3]])) == [every[3], every[4], every[2]]
    assert held.chars(np.array([[1, 2], [3, 4]])) == 1 + 10


def test_two_names_with_one_hash_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    def short(padded: Any, ends: Any) -> Any:
        return np.diff(ends, prepend=0).astype(np.uint64)

    monkeypatch.setattr(array_maps, "_hashes", short)
    held = index(["one", "two", "four", "other"])
    assert held.look_up(["two", "one", "six", "four"]) == {"two": 1, "one": 0, "six": -1, "four": 2}


def test_hashes_of_names_that_differ_in_one_bit_differ() -> None:
    raw = np.zeros((64 * 8, 64), dtype=np.uint8)
    for bit in range(len(raw)):
        raw[bit, bit // 8] = 1 << bit % 8
    blob = np.append(raw.reshape(-1), np.zeros(8, dtype=np.uint8))
    hashes = array_maps._hashes(blob, np.arange(1, len(raw) + 1) * 64)
    assert len(np.unique(hashes)) == len(np.unique(hashes >> 32)) == len(raw)
    padded = np.zeros(64 + 8, dtype=np.uint8)
    lengths = array_maps._hashes(padded, np.array([1, 3, 6, 10, 20, 64]))
    assert len(np.unique(lengths)) == 6, "zeros of several lengths are different names"


@pytest.mark.parametrize(
    ("blob", "ends"),
    [
        (b"ab", [1, 3]),
        (b"ab", [2, 1]),
        (b"\xff", [1]),
        ("é".encode(), [1, 2]),
        (b"a" * 4_097, [4_097]),
    ],
)
def test_what_is_no_names_is_refused(blob: bytes, ends: list[int]) -> None:
    with pytest.raises(ValueError, match=r"keys overlap|decode|character|longer"):
        NameIndex(np.frombuffer(blob, dtype=np.uint8), np.array(ends))


@given(st.lists(st.integers(0, 30)))
def test_spans_contain_the_positions_in_order(positions: list[int]) -> None:
    spans = spans_of(np.array(positions, dtype=np.int64)).tolist()
    assert [p for first, end in spans for p in range(first, end)] == positions
    assert all(a[1] != b[0] for a, b in pairwise(spans))


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 6))))
def test_names_of_a_block_stand_at_any_places_but_none_twice(
    given_spans: list[tuple[int, int]],
) -> None:
    every = [f"name {n}" for n in range(40)]
    spans = np.array([(a, a + n) for a, n in given_spans], dtype=np.int64).reshape(-1, 2)
    places = [p for a, n in given_spans for p in range(a, a + n)]
    if len({*places}) < len(places):
        with pytest.raises(ValueError, match="stands twice"):
            ArrayMap(index(every), spans, np.arange(len(places)))
        return
    made = ArrayMap(index(every), spans, np.arange(len(places)))
    expected = {every[place]: i for i, place in enumerate(places)}
    assert {name: x for name in every if (x := made.get(name)) is not None} == expected
    assert [*made.items()] == [*expected.items()]
    for first in range(len(places)):
        end = min(first + 5, len(places))
        assert [*made.part(first, end)] == [*expected][first:end]
        stretch = made.stretch(first, end)
        if stretch is not None:
            assert places[first:end] == [*range(stretch[0], stretch[0] + end - first)]
    assert made.chars == sum(map(len, expected))


@given(
    st.dictionaries(
        st.sampled_from(NAMES), VALUES["count"].filter(lambda x: type(x) is int), min_size=1
    ),
    st.lists(st.tuples(st.booleans(), st.dictionaries(some, VALUES["count"]))),
)
def test_a_mapping_in_arrays_is_what_a_dict_is(
    first: dict[str, Any], steps: list[tuple[bool, dict[str, Any]]]
) -> None:
    made: Any = in_arrays({"c": Block("count", first)})["c"].data
    assert isinstance(made, ArrayMap)
    left: list[tuple[Mapping[str, Any], dict[str, Any]]] = []
    now = dict(first)
    for copied, more in steps:
        if copied:
            left.append((made, dict(now)))
            made = made.copy()
        made.update(more)
        now.update(more)
        for one, expected in [*left, (made, now)]:
            assert repr(dict(one)) == repr(as_dict(one)) == repr(expected)
            assert repr([*one.values()]) == repr([*expected.values()])
            assert [*one] == [*one.keys()] == [*expected]
            assert len(one) == len(expected)
            for name in (*NAMES, "n1", "absent"):
                assert repr(one.get(name)) == repr(expected.get(name))
                assert (name in one) is (name in expected)
    with pytest.raises(KeyError):
        made["absent"]
    for begin in range(len(now)):
        assert made.part(begin, begin + 2) == dict([*now.items()][begin : begin + 2])


@given(blocks(st.sampled_from(NAMES), 1), st.lists(blocks(some), max_size=4), st.booleans())
def test_blocks_in_arrays_merge_as_dicts_do(
    values: Blocks, deltas: list[Blocks], replaced: bool
) -> None:
    ours = in_arrays(values)
    assert any(isinstance(block.data, ArrayMap) for block in ours.values())
    for delta in deltas:
        held, before = copy(ours), plain(copy(values))
        try:
            touched = put(values, copy(delta)) if replaced else merge(values, delta, 0.5)
        except BlockError:
            with pytest.raises(BlockError):
                merge(ours, delta, 0.5)
        else:
            assert (put(ours, copy(delta)) if replaced else merge(ours, delta, 0.5)) == touched
            assert same(select(ours, touched), select(values, touched))
        assert same(ours, values)
        assert same(held, before), "a copy stays as it was"
        assert same(in_arrays(ours), values), "restored from a snapshot of what was restored"
        written = snapshot_format.encode(state(ours))
        assert same(snapshot_format.decode(written).values, values)
        assert size_bytes(values) <= size_bytes(ours) <= 2 * size_bytes(values)


def test_a_restored_server_is_read_in_parts_while_it_is_pushed_to() -> None:
    long = [*NAMES, *(f"name {i}" for i in range(200))]
    values = {
        "additive": Block("additive", {name: i / 7 for i, name in enumerate(long)}),
        "extrema": Block("extrema", dict.fromkeys(long[20:], (0.0, 1.0))),
        "count": Block("count", dict.fromkeys(long[::-1], 1)),
    }
    server = Server.restored(state(in_arrays(values)), "sum", 2, part_keys=70)
    oracle = Server.restored(state(values), "sum", 2)
    read, kinds, begun = Blocks(), list[str](), server.begin_snapshot(0.0, None, {})
    before, since, after = plain(copy(begun.values)), None, None
    while "changes" not in kinds:
        i = len(kinds) + 1
        data = {NAMES[i % len(NAMES)]: 0.5, f"new {i // 2}": 1.0}
        pushed = {"additive": wire.WireBlock("additive", data)}
        for one in (server, oracle):
            push = wire.Push(2, "s", 1, 5 + i, 5 + i, 1, one.version, pushed)
            assert one.push(push, lambda _: None).status == "applied"
        request = wire.SyncRequest(wire.FORMAT, "r", 1, [], since, True, [], after=after)
        reply = server.reply(request, [], [], 0.0)
        for piece in reply.pieces:
            put(read, from_wire(wire.decode_piece(piece)))
        put(read, from_wire(reply.blocks))
        kinds.append(reply.kind)
        since, after = reply.reached or reply.since, reply.after
    assert len(kinds) > 8
    assert same(server.values, oracle.values)
    assert {n: b.data for n, b in read.items()} == {n: b.data for n, b in oracle.values.items()}
    assert same(begun.values, before), "later pushes do not change a snapshot"


@pytest.mark.parametrize("oldest", [1, 6])
def test_a_restored_server_bounds_what_it_counts_of_sources(oldest: int) -> None:
    losses = {f"{7 if i > 3 else oldest}\nbin {i}\ntrue\ns": i for i in range(9)}
    values = {
        LOSSES: Block("count", losses),
        TAKEN: Block("count", {f"s{i}": i for i in range(9)}),
        "filter.evidence.norm": Block("count", {f"s{i}": 10**6 for i in range(9)}),
    }
    server = Server.restored(state(in_arrays(values)), "sum", 2)
    server.sources_max = 6
    for row in (6, 7):
        pushed = {LOSSES: wire.WireBlock("count", {f"7\nbin {row}0\ntrue\ns": 1})}
        push = wire.Push(2, "s", 1, row, row, 1, server.version, pushed)
        assert server.push(push, lambda _: None).status == "applied"
    more = [f"7\nbin {row}0\ntrue\ns" for row in (6, 7)]
    assert [*server.values[LOSSES].data] == [*list(losses)[4 if oldest == 1 else 0 :], *more]
    assert len(server.values[TAKEN].data) <= 6
    assert server.sources_left >= 3


def test_only_large_blocks_are_put_in_arrays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshot_format, "ARRAYS_LEAST", 3)
    values = {
        "a": Block("additive", dict.fromkeys("abc", 1.0)),
        "b": Block("additive", dict.fromkeys("cb", 2.0)),
        "mixed": Block("count", {"a": 1, "b": 1.0, "c": 2}),
    }
    held = in_arrays(values)
    assert [type(block.data) for block in held.values()] == [ArrayMap, dict, dict]
    assert same(held, values)
    long = {"a": Block("additive", dict.fromkeys(["a", "b", "c" * 4_097], 1.0))}
    assert type(in_arrays(long)["a"].data) is dict, "an older release took longer names"
    assert same(in_arrays(long), long)


@pytest.mark.parametrize("spans", [[[-1, 2]], [[0, 4]], [[2, 1]], [[0, 1]], [[0, 1], [0, 2]]])
def test_a_block_whose_places_are_no_names_is_corrupt(spans: list[list[int]]) -> None:
    values = {"w": Block("additive", {"a": 1.0, "b": 2.0, "c": 3.0})}
    whole = snapshot_format.encode(state(values))
    begin = snapshot_format.manifest_end(whole)
    arrays = load(whole[begin:-32])
    arrays["0.spans"] = np.array(spans, dtype=np.int64)
    manifest = whole[snapshot_format.FRAME_BYTES : begin]
    data = snapshot_format.frame(snapshot_format.SCHEMA, manifest, save(arrays))
    with pytest.raises(SnapshotCorrupt, match="payload"):
        snapshot_format.decode(data, in_arrays=True)


def test_names_are_read_in_one_piece_or_one_by_one() -> None:
    for names in (NAMES, ["a", "bc"], []):
        raw = [name.encode() for name in names]
        ends = np.cumsum([len(one) for one in raw]).astype(np.int64)
        assert read_names(np.frombuffer(b"".join(raw), dtype=np.uint8), ends) == names
