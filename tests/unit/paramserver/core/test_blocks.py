"""Block by block: what a merge does, and what a message may not contain."""

from __future__ import annotations

import random
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paramserver.core.blocks import (
    COUNT,
    EXTREMA,
    Block,
    Blocks,
    Limits,
    Touched,
    add_touched,
    combine,
    copy,
    from_wire,
    merge,
    select,
    size_bytes,
    to_wire,
)
from paramserver.core.names import Names
from paramserver.core.sums import add_counts
from paramserver.core.wire import WireBlock
from paramserver.errors import BlockError
from paramserver.snapshots.format import equal


def floats(*numbers: float) -> bytes:
    """As a dense block holds them."""
    return struct.pack(f"<{len(numbers)}d", *numbers)


def every_kind() -> Blocks:
    return {
        "w": Block("additive", {"a": 1.0, "b": -2.5}),
        "x": Block("moments", {"a": (2.0, 1.5, 0.5)}),
        "m": Block("extrema", {"a": (-1.0, 3.0)}),
        "n": Block("count", {"rows": 5, "loss": 0.25}),
        "d": Block("digest", {"count": 2, "sum": 2**64 - 1}),
        "o": Block("opaque", b"state"),
        "t": Block("dense", floats(1.0, -2.5)),
        "l": Block("local", floats(8.0)),
    }


def test_merge_into_nothing_copies_and_names_what_it_touched() -> None:
    values: Blocks = {}
    delta = every_kind()
    touched = merge(values, delta)
    assert touched == {
        "w": {"a": None, "b": None},
        "x": {"a": None},
        "m": {"a": None},
        "n": {"rows": None, "loss": None},
        "d": None,
        "o": None,
        "t": None,
        "l": None,
    }
    assert equal(values, delta)
    for name, block in values.items():
        assert name in "otl" or block.data is not delta[name].data


def test_merge_by_kind() -> None:
    values = every_kind()
    merge(
        values,
        {
            "w": Block("additive", {"b": 1.0, "c": 4.0}),
            "x": Block("moments", {"a": (1.0, 3.0, 0.0), "b": (1.0, 7.0, 0.0)}),
            "m": Block("extrema", {"a": (-5.0, 2.0), "b": (0.0, 0.0)}),
            "n": Block("count", {"rows": 3, "new": 1}),
            "d": Block("digest", {"count": 1, "sum": 2}),
            "o": Block("opaque", b"next"),
            "t": Block("dense", floats(0.0, 1.0)),
            "u": Block("dense", floats(4.0)),
            "l": Block("local", floats(4.0)),
        },
        scale=0.5,
    )
    assert values["w"].data == {"a": 1.0, "b": -2.0, "c": 2.0}
    assert values["x"].data == {"a": (3.0, 2.0, 2.0), "b": (1.0, 7.0, 0.0)}
    assert values["m"].data == {"a": (-5.0, 3.0), "b": (0.0, 0.0)}
    assert values["n"].data == {"rows": 8, "loss": 0.25, "new": 1}
    assert values["d"].data == {"count": 3, "sum": 1}
    assert values["o"].data == b"next"
    assert values["t"].data == floats(1.0, -2.0)
    assert values["u"].data == floats(2.0)
    assert values["l"].data == floats(6.0)
    merge(values, {"l": Block("local", floats(9.0))})
    assert values["l"].data == floats(9.0)


def test_moments_of_no_rows_change_nothing() -> None:
    values = every_kind()
    merge(values, {"x": Block("moments", {"a": (0.0, 99.0, 0.0)})})
    assert values["x"].data["a"] == (2.0, 1.5, 0.5)


@pytest.mark.parametrize(
    ("name", "block"),
    [
        ("w", Block("count", {"a": 1})),
        ("w", Block("additive", {"a": 1.7e308})),
        ("n", Block("count", {"rows": 2**63 - 1})),
        ("n", Block("count", {"loss": 1.7e308, "rows": 0})),
        ("x", Block("moments", {"a": (1.0, 1.7e308, 0.0)})),
        ("d", Block("digest", {"count": 2**63 - 1, "sum": 0})),
        ("z", Block("median", {"a": 1.0})),
        ("t", Block("dense", floats(1.0))),
        ("t", Block("local", floats(1.0, 1.0))),
        ("t", Block("dense", floats(1.7e308, 0.0))),
        ("l", Block("local", floats(1.0, 2.0))),
    ],
)
def test_refused_merge_changes_nothing(name: str, block: Block) -> None:
    values = every_kind()
    values["w"].data["a"] = 1.7e308
    values["n"].data["loss"] = 1.7e308
    values["t"].data = floats(1.7e308, 0.0)
    before = copy(values)
    delta = {"m": Block("extrema", {"a": (-99.0, 99.0)}), name: block}
    with pytest.raises(BlockError, match=f"block '{name}'"):
        merge(values, delta)
    assert equal(values, before)


def test_combine_leaves_both_alone() -> None:
    a, b = every_kind(), every_kind()
    both = combine(a, b)
    assert both["w"].data == {"a": 2.0, "b": -5.0}
    assert both["n"].data["rows"] == 10
    assert equal(a, every_kind())
    assert equal(b, every_kind())


def test_select_gives_the_touched_part() -> None:
    values = every_kind()
    part = select(values, {"w": dict.fromkeys(("b", "gone")), "o": None, "absent": None})
    assert equal(part, {"w": Block("additive", {"b": -2.5}), "o": Block("opaque", b"state")})


def test_add_touched_is_a_union_where_whole_blocks_win() -> None:
    into: Touched = {"a": {"x": None}, "b": {"x": None}, "c": None}
    more: Touched = {"a": {"y": None}, "b": None, "c": {"y": None}, "d": {"z": None}}
    add_touched(into, more)
    assert into == {"a": {"x": None, "y": None}, "b": None, "c": None, "d": {"z": None}}
    assert into["d"] is not more["d"]


def test_wire_round_trip_shares_nothing() -> None:
    blocks = every_kind()
    back = from_wire(to_wire(blocks))
    assert equal(back, blocks)
    back["w"].data["a"] = 99.0
    assert blocks["w"].data["a"] == 1.0


@pytest.mark.parametrize(
    ("kind", "data", "key"),
    [
        ("additive", {"a": float("nan")}, "a"),
        ("additive", {"a": float("inf")}, "a"),
        ("additive", {"a": "1"}, "a"),
        ("additive", {"a": True}, "a"),
        ("additive", {"a": 2**53 + 1}, "a"),
        ("additive", {1: 1.0}, "1"),
        ("additive", [1.0], None),
        ("count", {"a": 2**63}, "a"),
        ("count", {"a": -(2**63) - 1}, "a"),
        ("count", {"a": True}, "a"),
        ("moments", {"a": [1.0, 2.0]}, "a"),
        ("moments", {"a": [-1.0, 2.0, 0.0]}, "a"),
        ("moments", {"a": [1.0, 2.0, -1e-9]}, "a"),
        ("moments", {"a": 1.0}, "a"),
        ("extrema", {"a": [2.0, 1.0]}, "a"),
        ("extrema", {"a": [1.0]}, "a"),
        ("digest", {"count": 1}, None),
        ("digest", {"count": -1, "sum": 0}, "count"),
        ("digest", {"count": 1, "sum": 2**64}, "sum"),
        ("digest", {"count": 1, "sum": 1.0}, "sum"),
        ("opaque", "text", None),
        ("dense", "text", None),
        ("dense", bytes(9), None),
        ("dense", floats(float("nan")), None),
        ("local", floats(1.0, float("inf")), None),
        ("median", {"a": 1.0}, None),
    ],
)
def test_malformed_block_is_named(kind: str, data: Any, key: str | None) -> None:
    with pytest.raises(BlockError) as raised:
        from_wire({"fine": WireBlock("additive", {"a": 1.0}), "bad": WireBlock(kind, data)})
    assert raised.value.block == "bad"
    assert raised.value.key == key


def test_numbers_at_the_bounds_are_taken() -> None:
    blocks = from_wire(
        {
            "n": WireBlock("count", {"low": -(2**63), "high": 2**63 - 1}),
            "d": WireBlock("digest", {"count": 2**63 - 1, "sum": 2**64 - 1}),
            "w": WireBlock("additive", {"i": 2**53}),
        }
    )
    assert blocks["w"].data == {"i": float(2**53)}


@pytest.mark.parametrize(
    "limits", [Limits(blocks=7), Limits(keys=7), Limits(name_chars=3), Limits(opaque_bytes=15)]
)
def test_sizes_are_bounded(limits: Limits) -> None:
    blocks = to_wire(every_kind())  # 8 blocks, 8 keys with the digest's, names up to 4, 16 bytes
    with pytest.raises(BlockError):
        from_wire(blocks, limits)
    from_wire(blocks, Limits(blocks=8, keys=8, name_chars=4, opaque_bytes=16))


def test_size_estimate_is_near_the_truth() -> None:
    import msgspec

    for width in (1, 40):
        blocks = {
            "w": Block("additive", {f"{i:0{width}}": i / 7 for i in range(500)}),
            "x": Block("moments", {f"{i:0{width}}": (1.0, 2.0, 3.0) for i in range(500)}),
            "o": Block("opaque", bytes(1000)),
        }
        true = len(msgspec.msgpack.encode(to_wire(blocks)))
        assert true / 2 < size_bytes(blocks) < true * 2


COUNTS = st.dictionaries(
    st.sampled_from("ab"),
    st.dictionaries(st.sampled_from("xyz"), st.integers(-50, 50), max_size=3),
    max_size=2,
)


@given(COUNTS, COUNTS, st.booleans())
def test_counts_that_a_process_keeps_add_as_merged_ones_do(
    first: dict[str, dict[str, int]], second: dict[str, dict[str, int]], back: bool
) -> None:
    def made(data: dict[str, dict[str, int]], sign: int = 1) -> Blocks:
        blocks = {n: Block(COUNT, {k: sign * x for k, x in d.items()}) for n, d in data.items()}
        return blocks | {"high": Block(EXTREMA, {"x": (0.0, 1.0)})}

    ours, merged = made(first), made(first)
    added = made(second)
    add_counts(ours, added, -1 if back else 1)
    merge(merged, made(second, -1 if back else 1))
    assert ours == merged
    added["a"] = Block(COUNT, {})
    for block in ours.values():
        block.data.clear()
    assert added["high"].data, "it shares what was added"


MANY = [f"key {n}" for n in range(500)]


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        ("additive", 0.5, [float("nan"), float("inf"), "1", None, True, 2**53 + 1]),
        ("count", 7, [2**63, -(2**63) - 1, float("nan"), "1", True]),
        ("count", 0.25, [float("inf"), None]),
        ("extrema", [1.0, 2.0],
         [[2.0, 1.0], [1.0], [1.0, 2.0, 3.0], "ab", [0.0, float("inf")], [True, 2.0], 1.0]),
    ],
)  # fmt: skip
def test_many_numbers_are_checked_as_one_by_one(kind: str, good: Any, bad: list[Any]) -> None:
    data = dict.fromkeys(MANY, good)
    taken = from_wire({"b": WireBlock(kind, data)})["b"].data
    few = from_wire({"b": WireBlock(kind, {"a": good})})["b"].data["a"]
    assert repr(taken) == repr(dict.fromkeys(MANY, few))
    for x in bad:
        with pytest.raises(BlockError) as raised:
            from_wire({"b": WireBlock(kind, {**data, "key 300": x})})
        assert (raised.value.block, raised.value.key) == ("b", "key 300")
    with pytest.raises(BlockError, match="characters"):
        from_wire({"b": WireBlock(kind, {**data, "k" * 1025: good})})


def test_mixed_numbers_keep_their_kinds() -> None:
    sent = {key: i if i % 2 else i / 2 for i, key in enumerate(MANY)}
    assert repr(from_wire({"b": WireBlock("count", sent)})["b"].data) == repr(sent)
    pairs = {key: [i, i + 0.5] for i, key in enumerate(MANY)}
    taken = from_wire({"b": WireBlock("extrema", pairs)})["b"].data
    assert taken == {key: (float(i), i + 0.5) for i, key in enumerate(MANY)}


@pytest.mark.parametrize("n", [3, 500])
def test_a_name_in_several_blocks_is_one_string(n: int) -> None:
    wires = [
        {
            "w": WireBlock("additive", {f"key {i}": 1.0 for i in range(n)}),
            "r": WireBlock("extrema", {f"key {i}": [1.0, 1.0] for i in range(n)}),
        }
        for _ in range(2)
    ]
    names = Names()
    first, second = (from_wire(sent, names=names) for sent in wires)
    blocks = [block.data for taken in (first, second) for block in taken.values()]
    for keys in zip(*blocks, strict=True):
        assert len({id(key) for key in keys}) == 1


def test_names_in_any_order_are_one_string_each() -> None:
    draw, names = random.Random(3), Names()
    first: dict[str, str] = {}
    for _ in range(300):
        keys = [f"k {n}" for n in range(draw.randrange(9), draw.randint(0, 60))]
        if draw.random() < 0.3:
            draw.shuffle(keys)
        for key, shared in zip(keys, names.shared(keys), strict=True):
            assert key == shared
            assert first.setdefault(key, shared) is shared
