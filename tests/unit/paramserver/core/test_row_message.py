"""Rows of a message are passed on as they came, and what was found is not searched again."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from paramserver.core.blocks import ROWS, Block, Blocks, from_wire, merge, select, to_wire
from paramserver.core.shards import Cut
from paramserver.core.tables import ids as ids_module
from paramserver.core.tables.rows import Rows
from paramserver.core.wire import WireBlock
from paramserver.errors import BlockError

N = 3_000


def table_of(n: int, number: float = 1.0) -> Rows:
    return Rows(np.arange(n, dtype=np.uint64), np.full((n, 2), number, dtype=np.float32))


def laid_out(rows: Rows) -> bool:
    return "_pool" in vars(rows)


def test_what_is_pushed_and_answered_has_no_pages_of_its_own() -> None:
    values: Blocks = {"t": Block(ROWS, table_of(N))}
    some = np.array([7, 5, 9], dtype=np.uint64)
    sent = to_wire({"t": Block(ROWS, Rows(some, np.ones((3, 2), dtype=np.float32)))})
    delta = from_wire(sent)
    touched = merge(values, delta)
    told = select(values, touched)["t"].data
    assert not laid_out(delta["t"].data)
    assert not laid_out(told)
    assert to_wire({"t": Block(ROWS, told)})["t"].data["ids"] == some.tobytes(), "in their order"
    assert (told.ids.tolist(), told.numbers.tolist()) == ([7, 5, 9], [[2.0, 2.0]] * 3)
    assert told.get(some)[0].tolist() == [[2.0, 2.0]] * 3
    assert laid_out(told), "now it was asked for"
    numbers = told.numbers
    numbers += 1.0
    assert told.numbers.max() == 2.0
    assert len(told) == len(told.copy()) == 3


def test_a_push_is_searched_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    values: Blocks = {"t": Block(ROWS, table_of(N))}
    searched: list[int] = []
    find = ids_module.Ids.find

    def found(self: ids_module.Ids, ids: ids_module.IdArray, below: int) -> ids_module.Numbers:
        searched.append(len(ids))
        return find(self, ids, below)

    monkeypatch.setattr(ids_module.Ids, "find", found)
    some = np.arange(0, N, 7, dtype=np.uint64)
    touched = merge(values, {"t": Block(ROWS, Rows(some, np.ones((len(some), 2), np.float32)))})
    select(values, touched)
    assert searched == [len(some)]


@pytest.mark.parametrize("remembers", [False, True])
def test_what_was_found_is_forgotten_with_its_row(
    monkeypatch: pytest.MonkeyPatch, remembers: bool
) -> None:
    """The negative control: who remembers gives a row that has left, and writes into its gap."""
    rows, ids = table_of(N), np.arange(20, dtype=np.uint64)
    kept = rows.copy()
    assert rows.look_up(ids)[1].all()
    at = rows._remembered(ids)
    rows.drop(ids[:5])
    if remembers:
        monkeypatch.setattr(Rows, "_remembered", lambda self, _: at)
    assert rows.look_up(ids)[1].all() == remembers
    rows.put(ids, np.zeros((20, 2), dtype=np.float32))
    rows.drop(np.arange(20, N, dtype=np.uint64))  # it is packed now
    rows.put(np.array([N + 1], dtype=np.uint64), np.ones((1, 2), dtype=np.float32))
    if not remembers:
        assert rows.look_up(ids)[0].max() == 0.0
        assert sorted(rows.ids.tolist()) == [*range(20), N + 1]
        assert kept.look_up(ids)[0].min() == 1.0


def test_ids_that_are_new_to_a_table_are_searched_again() -> None:
    rows, ids = table_of(N), np.arange(N - 3, N + 3, dtype=np.uint64)
    assert rows.look_up(ids)[1].tolist() == [True] * 3 + [False] * 3
    rows.put(ids, np.full((6, 2), 4.0, dtype=np.float32))
    assert rows.look_up(ids)[0].min() == 4.0
    assert len(rows) == N + 3


def halves() -> Rows:
    """Rows of three numbers, the last two of which are sent as float16."""
    numbers = np.arange(120, dtype=np.float32).reshape(40, 3) / 4
    numbers[:, 0] += np.float32(0.1)
    rows = Rows(np.arange(40, dtype=np.uint64), numbers)
    rows.rounded = 2
    return rows


def test_rounded_columns_are_half_as_long_and_the_same_numbers() -> None:
    rows = halves()
    sent = to_wire({"t": Block(ROWS, rows)})
    data = sent["t"].data
    assert sum(map(len, (data["ids"], data["numbers"], data["halves"]))) == rows.size_bytes
    assert rows.size_bytes == 40 * (8 + 4 + 2 * 2)
    assert from_wire(sent)["t"].data == rows
    rows.get(rows.ids)
    assert laid_out(rows)
    assert to_wire({"t": Block(ROWS, rows)}) == sent, "a repeat is equal"
    assert rows.copy().rounded == 0, "a sum of two has more digits"


def test_rounded_columns_are_cut_by_shard() -> None:
    parts = Cut(2).wire(to_wire({"t": Block(ROWS, halves())}))
    assert all("halves" in part["t"].data for part in parts)
    whole: Blocks = {}
    for part in parts:
        merge(whole, from_wire(part))
    assert whole["t"].data == halves()


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"halves": bytes(6)}, None),
        ({"halves": b""}, None),
        ({"halves": "text"}, None),
        ({"width": 4}, None),
        ({"halves": np.full(80, np.inf, dtype="<f2").tobytes()}, "numbers"),
        ({"ids": b"", "numbers": b""}, None),
    ],
)
def test_malformed_rounded_rows_are_named(changes: dict[str, Any], key: str | None) -> None:
    data = halves().as_message() | changes
    with pytest.raises(BlockError) as raised:
        from_wire({"bad": WireBlock(ROWS, data)})
    assert (raised.value.block, raised.value.key) == ("bad", key)


def message(**changes: Any) -> dict[str, Any]:
    numbers = np.array([[1.0, 2.0], [3.0, 4.0]], dtype=np.float32)
    return Rows(np.array([1, 2], dtype=np.uint64), numbers).as_message() | changes


@pytest.mark.parametrize(
    ("data", "key"),
    [
        (message(width=0), "width"),
        (message(width=True), "width"),
        (message(width=1025), "width"),
        (message(width=3), None),
        (message(ids="text"), None),
        (message(gone=bytes(9)), "gone"),
        (message(gone=[1]), "gone"),
        (message(gone=b"", more=1), None),
        (message(ids=bytes(15)), None),
        (message(numbers=bytes(17)), None),
        (message(ids=bytes(16)), "ids"),
        (message(numbers=np.full(4, np.nan, dtype="<f4").tobytes()), "numbers"),
        ({}, "width"),
        (b"bytes", None),
    ],
)
def test_malformed_rows_are_named(data: Any, key: str | None) -> None:
    with pytest.raises(BlockError) as raised:
        from_wire({"bad": WireBlock(ROWS, data)})
    assert (raised.value.block, raised.value.key) == ("bad", key)
