"""Tables of ids: they hold what a dict would hold, copies stay as they were, and nothing stops."""

from __future__ import annotations

import pickle
import random
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from paramserver.core.blocks import (
    ROWS,
    Block,
    Blocks,
    add_touched,
    copy,
    from_wire,
    merge,
    put,
    select,
)
from paramserver.core.parts import Parts
from paramserver.core.tables import ids as ids_module
from paramserver.core.tables import rows as rows_module
from paramserver.core.tables.ids import Ids, distinct
from paramserver.core.tables.pages import PAGE_ROWS, Pool
from paramserver.core.tables.rows import Rows
from paramserver.core.wire import WireBlock, decode_piece
from paramserver.errors import BlockError

Plain = dict[int, list[float]]


def rows_of(plain: Plain, width: int = 2) -> Rows:
    ids = np.array(list(plain), dtype=np.uint64)
    numbers = np.array(list(plain.values()), dtype=np.float32).reshape(len(plain), width)
    return Rows(ids, numbers)


def plain_of(rows: Rows) -> Plain:
    return dict(zip(rows.ids.tolist(), rows.numbers.tolist(), strict=True))


def walk(seed: int, steps: int = 60) -> int:
    """Tables and their copies beside dicts, whatever is written to which of them."""
    draw = random.Random(seed)
    held: list[tuple[Rows, Plain]] = [(Rows.empty(2), {})]
    apart = 0
    for _ in range(steps):
        rows, plain = draw.choice(held)
        many = draw.choice((0, 1, 30, 400))
        some = {draw.randrange(2_000) << draw.choice((0, 40)): [draw.random(), 1.0]
                for _ in range(many)}  # fmt: skip
        part = rows_of(some)
        match draw.randrange(5):
            case 4:
                gone = [*draw.sample(list(plain), min(len(plain) * 2 // 3, 500)), 1 << 60]
                rows.drop(np.array(gone, dtype=np.uint64))
                for i in gone:
                    plain.pop(i, None)
            case 0 | 1:
                rows.update(part)
                plain.update(plain_of(part))
            case 2:
                held.append((rows.copy(), dict(plain)))
                if len(held) > 4:
                    held.pop(draw.randrange(4))
            case _:
                found, known = rows.get(part.ids)
                expected = [plain.get(i, [0.0, 0.0]) for i in part.ids.tolist()]
                assert found.tolist() == expected
                assert known.tolist() == [i in plain for i in part.ids.tolist()]
        for each, expected_rows in held:
            assert plain_of(each) == expected_rows
            assert len(each) == len(expected_rows)
        apart += sum(each._older is not None for each, _ in held)
    return apart


def walks() -> int:
    """How often a table was met that is being packed."""
    return sum(walk(seed) for seed in range(12))


@pytest.fixture(autouse=True)
def packs_early(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows_module, "_PACKED_LEAST", 64)
    monkeypatch.setattr(rows_module, "_MOVED", 3)
    monkeypatch.setattr(rows_module, "_MOVED_LEAST", 4)


def test_tables_and_their_copies_hold_what_dicts_would() -> None:
    assert walks() > 0, "some were packed"


def test_what_leaves_while_parts_are_read_is_read_again_or_gone() -> None:
    """Whoever has read up to a place reads all rows that are packed behind it."""
    rows = rows_of({i: [float(i), 0.0] for i in range(400)})
    read, place, gone = dict[int, list[float]](), 0, set[int]()
    draw = random.Random(4)
    while place < rows.end:
        end = min(max(place, rows.begin) + 30, rows.end)
        read |= plain_of(rows.part(place, end))
        place = end
        leave = draw.sample([*plain_of(rows)], 40 if len(gone) < 360 else 0)
        rows.drop(np.array(leave, dtype=np.uint64))
        gone.update(leave)
    assert rows.begin > 0
    assert {i: x for i, x in read.items() if i not in gone} == plain_of(rows)


def test_a_message_says_which_rows_are_gone() -> None:
    values: Blocks = {"t": Block(ROWS, rows_of({1: [1.0, 2.0], 2: [3.0, 4.0], 3: [5.0, 6.0]}))}
    mine = copy(values)
    values["t"].data.drop(np.array([2], dtype=np.uint64))
    touched = [np.array([2, 3, 9], dtype=np.uint64)]
    told = select(values, {"t": touched})
    read = from_wire({name: WireBlock(b.kind, b.data.as_message()) for name, b in told.items()})
    assert sorted(read["t"].data.gone.tolist()) == [2, 9]
    assert "gone" not in rows_of({1: [1.0, 2.0]}).as_message(), (
        "as it was before anything could leave"
    )
    found = put(mine, read)["t"]
    assert isinstance(found, list)
    assert sorted(np.concatenate(found).tolist()) == [2, 3, 9], "touched, whoever is told next"
    assert mine == values
    merge(read, {"t": Block(ROWS, rows_of({9: [1.0, 1.0]}))})
    assert read["t"].data.gone.tolist() == [2], "what was put is not gone"


def packed_in_steps() -> int:
    """Rows that one write moves at most, while a table that has lost half is packed."""
    rows, most, kept = rows_of({i: [float(i), 1.0] for i in range(9_000)}), 0, 3_000
    for begin in range(0, 6_000, 30):
        rows.drop(np.arange(begin, begin + 30, dtype=np.uint64))
    for i in range(400):
        before = len(rows._older) if rows._older is not None else 0
        rows.put(np.arange(9_000 + i * 5, 9_005 + i * 5, dtype=np.uint64), np.ones((5, 2), "f4"))
        most = max(most, before - (len(rows._older) if rows._older is not None else 0))
    assert rows.begin > 0, "it is packed in the end"
    assert len(rows) == kept + 2_000
    return most


def test_a_table_that_has_lost_half_is_packed_in_steps_by_what_is_written() -> None:
    assert 0 < packed_in_steps() <= 20, "rows for five that are written, of thousands"


def test_a_table_that_is_packed_at_once_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows_module, "_MOVED", 10_000)
    assert packed_in_steps() == 0, "all had moved with the row that left last"


def _shrinks_in_place(self: Rows) -> None:
    """Packs without telling readers that all stands elsewhere now."""
    _set_apart(self)
    self._begin = 0


_set_apart = Rows._set_apart


def test_reading_notices_that_what_is_packed_does_not_come_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Rows, "_set_apart", _shrinks_in_place)
    with pytest.raises(AssertionError):
        test_what_leaves_while_parts_are_read_is_read_again_or_gone()


_find = Ids.find


@pytest.mark.parametrize(
    ("owner", "name", "mutant"),
    [
        (Pool, "own", lambda self, pages, places: None),
        (Pool, "share", lambda self, pages: None),
        (Ids, "find", lambda self, ids, below: _find(self, ids, self.count)),
        (Ids, "_move", lambda self, into, old, n: _forgets(self, into)),
    ],
)
def test_the_walk_notices_a_rule_that_is_gone(
    owner: Any, name: str, mutant: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owner, name, mutant)
    with pytest.raises((AssertionError, IndexError, ValueError)):
        walks()


def _forgets(self: Ids, into: Any) -> None:
    """Goes over to the new slots without what is in the old ones."""
    self._slots, self._next, self._moved = into, None, 0


def test_a_table_grows_in_steps_and_finds_every_id_meanwhile() -> None:
    ids, seen = Ids(np.empty(0, dtype=np.uint64)), 0
    every = np.random.default_rng(1).permutation(40_000).astype(np.uint64)
    most = 0
    for begin in range(0, len(every), 50):
        before = ids._moved
        ids.add(every[begin : begin + 50])
        most = max(most, ids._moved - before)
        seen += ids._next is not None
        if begin % 1_000 == 0:
            numbers = ids.find(every[: begin + 150], ids.count)
            assert numbers[: begin + 50].tolist() == list(range(begin + 50))
            assert set(numbers[begin + 50 :].tolist()) <= {-1}
    assert seen > 50, "it was growing at many of the steps"
    assert most < 600, "slots that one batch moves, whatever the size of the table"


def diverge(monkeypatch: pytest.MonkeyPatch) -> int:
    """Tables and copies that take ids of their own; ids that were laid out anew at once."""
    laid_out, most = ids_module._laid_out, [0]

    def counted(ids: Any) -> Any:
        most[0] = max(most[0], len(ids))
        return laid_out(ids)

    every = np.random.default_rng(2).permutation(9_000).astype(np.uint64)
    begun, more = every[:5_000], every[5_000:]
    rows = Rows(begun, np.ones((len(begun), 1), dtype=np.float32))
    rows.get(begun[:1])
    held = [(rows, plain_of(rows))]
    monkeypatch.setattr(ids_module, "_laid_out", counted)
    draw = random.Random(3)
    for step in range(60):
        table, plain = draw.choice(held)
        some = draw.sample(more[: 300 * (1 + step // 5)].tolist(), 40)
        part = rows_of({i: [draw.random()] for i in some}, 1)
        table.update(part)
        plain.update(plain_of(part))
        if step % 6 == 0:
            held = [*held[-3:], (table.copy(), dict(plain))]
    for table, plain in held:  # told as booleans: pytest's comparison of such takes minutes
        same = plain_of(table) == plain and [*plain_of(table)] == table.ids.tolist()
        assert same
        assert sum(map(len, table.pieces())) == len(table) == len(plain)
        parts = [plain_of(table.part(i, i + 777)) for i in range(0, table.end, 777)]
        same = {i: x for part in parts for i, x in part.items()} == plain
        assert same
        assert sum(map(len, parts)) == len(plain)
        found, known = table.get(more)
        assert np.array_equal(known, [i in plain for i in more.tolist()])
        assert not found[~known].any()
    assert sum(table._marks.gone > 0 for table, _ in held) >= 2, (
        "they have rows that others have not"
    )
    return most[0]


def test_a_copy_that_takes_ids_of_its_own_lays_out_none_anew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Else whoever meets the first new name after a copy would stop for a second or two."""
    assert diverge(monkeypatch) <= 100, "of what came with one batch, if any"


def _keeps_gaps(self: Rows, at: Any) -> None:
    gaps = np.flatnonzero(~self._marks.there(slice(0, self._n), self._n))
    _have(self, at)
    self._marks.let_go(gaps[self._marks.there(gaps, self._n)])


def _sees_gaps(self: Rows, ids: Any) -> Any:
    return self._ids.find(ids, self._n)


def _begins_anew(self: Rows, at: Any) -> None:
    """As it was: whoever is not the first to add has numbers of its own."""
    ids = self._ids.first(self._ids.count).copy()
    self._ids = Ids(ids)
    _have(self, at)


_have = Rows._have


@pytest.mark.parametrize(
    ("name", "mutant"), [("_have", _keeps_gaps), ("_places", _sees_gaps), ("_have", _begins_anew)]
)
def test_divergence_notices_a_rule_that_is_gone(
    name: str, mutant: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Rows, name, mutant)
    with pytest.raises(AssertionError):
        assert diverge(monkeypatch) <= 100


def test_ids_that_follow_one_another_or_share_their_low_bits_are_spread() -> None:
    for every in (np.arange(20_000), np.arange(20_000) << 32, np.arange(20_000) * 2**44):
        ids = Ids(every.astype(np.uint64))
        slots = ids._built()
        taken = np.flatnonzero(slots)
        runs = np.split(taken, np.flatnonzero(np.diff(taken) > 1) + 1)
        assert max(map(len, runs)) < 1024, "no run reaches the end of the last slots"
        assert ids.find(every.astype(np.uint64), len(every)).tolist() == list(range(len(every)))


@pytest.mark.parametrize("crowded", [1, 2])
def test_ids_that_are_laid_out_part_by_part_are_found_also_where_a_part_overflows(
    crowded: int,
) -> None:
    n, shift = 100_000, 64 - 18  # of 2^18 homes
    back = pow(int(ids_module._FACTOR), -1, 2**64)
    homes = np.random.default_rng(4).integers(0, 2**18 // crowded, n).astype(np.uint64)
    below = np.arange(n, dtype=np.uint64)
    every = ((homes << np.uint64(shift)) | below) * np.uint64(back)
    ids = Ids(every)
    ids.lay_out()
    assert np.array_equal(ids.find(every, n), np.arange(n))
    assert set(ids.find(every + np.uint64(back) * np.uint64(n), n).tolist()) == {-1}
    ids.add(every[:1] + np.uint64(back) * np.uint64(n))
    assert ids.find(every[:1] + np.uint64(back) * np.uint64(n), n + 1).tolist() == [n]


@pytest.mark.parametrize("kind", [np.uint64, np.int64])
def test_distinct_numbers_are_those_of_numpy(kind: type[Any]) -> None:
    draw = np.random.default_rng(5)
    for n in (0, 1, 2, 50, 3_000):
        some = draw.integers(0, max(n, 1), n).astype(kind) * kind(2**40)
        assert np.array_equal(distinct(some), np.unique(some))


def test_a_copy_costs_the_pages_that_are_written_and_gives_them_back() -> None:
    ids = np.arange(400 * PAGE_ROWS, dtype=np.uint64)
    rows = Rows(ids, np.ones((len(ids), 3), dtype=np.float32))
    pool = rows._pool
    assert pool._used == 400
    for _ in range(3):
        kept = rows.copy()
        rows.put(ids[:2], np.zeros((2, 3), dtype=np.float32))
        assert kept.numbers.min() == 1.0
        assert rows.numbers[:2].max() == 0.0
        del kept
        rows.put(ids[:2], np.ones((2, 3), dtype=np.float32))
    assert pool._used == 401, "one page more, taken again and again"
    assert sorted([*pool._free, *rows._pages.tolist()]) == list(range(401))


@pytest.mark.parametrize("n", [0, 1, 31, 32, 100])
def test_a_table_stays_where_it_was_read_if_it_can_be_written_there(n: int) -> None:
    ids, numbers = np.arange(n, dtype=np.uint64), np.ones((n, 2), dtype=np.float32)
    for given in (numbers.copy(), numbers.copy()[:, :]):
        given.flags.writeable = given.base is None
        rows = Rows.in_place(Ids(ids), given)
        kept = rows.copy()
        some = np.arange(0, n + 40, 3, dtype=np.uint64)
        rows.put(some, np.zeros((len(some), 2), dtype=np.float32))
        assert plain_of(kept) == {i: [1.0, 1.0] for i in range(n)}
        assert plain_of(rows) == plain_of(kept) | {i: [0.0, 0.0] for i in some.tolist()}
        assert not n or given.min() == 1.0, "a copy has the pages: they are left"
    mine = numbers.copy()
    rows = Rows.in_place(Ids(ids), mine)
    rows.put(ids, np.zeros((n, 2), dtype=np.float32))
    whole = n // PAGE_ROWS * PAGE_ROWS
    assert not mine[:whole].any()
    assert mine[whole:].all(), "the last ones, which are no page, have one of their own"


def test_a_table_that_is_collected_while_pages_are_taken_stops_nobody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = rows_of({1: [1.0, 2.0]})
    pool, gone = rows._pool, [rows.copy()]
    before = Pool._take_back

    def collects(self: Pool) -> None:
        gone.clear()  # as a collection of garbage would, in the thread that holds the lock
        before(self)

    monkeypatch.setattr(Pool, "_take_back", collects)
    finished = threading.Thread(target=pool.take, args=(1,), daemon=True)
    finished.start()
    finished.join(240)
    assert not finished.is_alive()
    assert pool._held.tolist()[0] == 1


def test_a_table_is_equal_to_itself_in_any_order_and_survives_a_pickle() -> None:
    rows = rows_of({5: [1.0, 2.0], 2**64 - 1: [3.0, 4.0]})
    assert (
        rows == rows_of({2**64 - 1: [3.0, 4.0], 5: [1.0, 2.0]}) == pickle.loads(pickle.dumps(rows))
    )
    assert rows != rows_of({5: [1.0, 2.0]})
    assert rows != rows_of({5: [1.0, 2.5], 2**64 - 1: [3.0, 4.0]})
    assert rows != rows_of({5: [1.0], 2**64 - 1: [3.0]}, width=1)
    assert rows != "rows"


def test_blocks_of_rows_add_up_and_say_which_rows_were_touched() -> None:
    values: Blocks = {"t": Block(ROWS, rows_of({1: [1.0, 2.0], 2: [3.0, 4.0]}))}
    kept = copy(values)
    delta = {"t": Block(ROWS, rows_of({2: [10.0, 0.0], 9: [8.0, 8.0]}))}
    touched = merge(values, delta, 0.5)
    assert plain_of(values["t"].data) == {1: [1.0, 2.0], 2: [8.0, 4.0], 9: [4.0, 4.0]}
    assert plain_of(kept["t"].data) == {1: [1.0, 2.0], 2: [3.0, 4.0]}
    assert plain_of(delta["t"].data) == {2: [10.0, 0.0], 9: [8.0, 8.0]}, "it is left alone"
    assert plain_of(select(values, touched)["t"].data) == {2: [8.0, 4.0], 9: [4.0, 4.0]}
    add_touched(touched, put(values, {"t": Block(ROWS, rows_of({1: [7.0, 7.0]}))}))
    assert sorted(plain_of(select(values, touched)["t"].data)) == [1, 2, 9]
    for _ in range(200):
        add_touched(touched, {"t": [np.array([1, 2], dtype=np.uint64)]})
    assert isinstance(arrays := touched["t"], list)
    assert len(arrays) < 100, "what was touched again and again is held once"
    add_touched(touched, {"t": None})
    add_touched(touched, {"t": [np.array([1], dtype=np.uint64)]})
    assert touched["t"] is None


@pytest.mark.parametrize("plain", [{1: [1.0]}, {2: [3.4e38, 3.4e38]}])
def test_a_merge_that_is_refused_changes_no_row(plain: Plain) -> None:
    values: Blocks = {"t": Block(ROWS, rows_of({1: [1.0, 2.0], 2: [3e38, 0.0]}))}
    before = copy(values)
    delta = {"t": Block(ROWS, rows_of(plain, len(next(iter(plain.values())))))}
    with pytest.raises(BlockError, match="block 't'"):
        merge(values, delta)
    assert values == before


def test_a_table_is_cut_into_parts_that_hold_each_row_once() -> None:
    many = {i: [float(i)] * 12 for i in range(1_000)}
    values: Blocks = {
        "a": Block("additive", {"x": 1.0}),
        "t": Block(ROWS, rows_of(many, 12)),
        "z": Block("additive", {"y": 1.0}),
    }
    parts, place, found, sizes = Parts(960), None, Blocks(), []
    while True:
        pieces, place = parts.cut(values, place)
        for piece in map(decode_piece, pieces):
            blocks = from_wire(piece)
            sizes.append(len(blocks["t"].data) if "t" in blocks else 0)
            put(found, blocks)
        if place is None:
            break
    assert found == values
    assert sum(sizes) == len(many)
    assert max(sizes) == 10, "a row of twelve numbers counts as three keys of thirty"


def test_too_many_rows_are_refused_before_anything_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ids_module, "ROWS_MAX", 4)
    rows = rows_of({1: [1.0, 2.0]})
    with pytest.raises(MemoryError, match="at most 4"):
        rows.update(rows_of({i: [0.0, 0.0] for i in range(2, 6)}))
    assert plain_of(rows) == {1: [1.0, 2.0]}


def test_what_was_just_written_is_not_searched_again(monkeypatch: pytest.MonkeyPatch) -> None:
    table, rng, searched, find = Rows.empty(2), np.random.default_rng(1), [0], Ids.find

    def counted(self: Ids, ids: Any, below: int) -> Any:
        searched[0] += 1
        return find(self, ids, below)

    monkeypatch.setattr(Ids, "find", counted)
    for n in range(1, 30):
        ids = distinct(rng.integers(0, 60 * n, 40).astype(np.uint64))
        numbers = rng.normal(size=(len(ids), 2)).astype(np.float32)
        before = searched[0]
        table.put(ids, numbers)
        held, known = table.look_up(ids)
        assert searched[0] == before + 1
        assert known.all()
        np.testing.assert_array_equal(held, numbers)
        table.drop(ids[:3])  # which makes gaps, so the numbers are looked for again
        assert table.look_up(ids)[1].tolist() == [False] * 3 + [True] * (len(ids) - 3)
        assert searched[0] > before + 1
