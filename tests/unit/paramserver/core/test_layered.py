"""A table on top of one that never changes: the same rows as a table of its own, always."""

from __future__ import annotations

import numpy as np
import pytest

from paramserver.core.blocks import ROWS, Block, Blocks, copy, from_wire, merge, put, select
from paramserver.core.parts import Parts
from paramserver.core.tables.layered import LayeredRows, on_top_of
from paramserver.core.tables.rows import Rows
from paramserver.core.wire import decode_piece

WIDTH = 3


def ids_of(*ids: int) -> np.ndarray:
    return np.array(ids, dtype=np.uint64)


def table(rows: dict[int, float]) -> Rows:
    made = Rows.empty(WIDTH)
    made.put(ids_of(*rows), np.repeat(np.array([*rows.values()], np.float32)[:, None], WIDTH, 1))
    return made


def as_dict(rows: Rows | LayeredRows) -> dict[int, float]:
    ids = rows.ids
    numbers, known = rows.get(ids)
    assert known.all()
    assert len(rows) == len(ids)
    assert (numbers == rows.numbers).all()
    return dict(zip(ids.tolist(), numbers[:, 0].tolist(), strict=True))


@pytest.mark.parametrize("seed", range(8))
def test_it_has_the_rows_of_a_table_of_its_own_whatever_is_published(seed: int) -> None:
    draw = np.random.default_rng(seed)
    truth = {i: float(i) for i in range(200)}
    mine, copies = LayeredRows(table(truth)), list[tuple[LayeredRows, dict[int, float]]]()
    steps = iter(())
    for _ in range(60):
        some = draw.choice(400, 20, replace=False)
        values = draw.integers(0, 3, 20).astype(np.float32)
        mine.put(some.astype(np.uint64), np.repeat(values[:, None], WIDTH, 1))
        truth |= dict(zip(some.tolist(), values.tolist(), strict=True))
        if draw.random() < 0.3:  # a publication is not newer than what this one has
            steps = mine.rest_on(table(truth))
        if draw.random() < 0.2:
            copies.append((mine.copy(), dict(truth)))
        for _ in range(int(draw.integers(0, 3))):
            next(steps, None)
        assert as_dict(mine) == truth
    for _ in mine.rest_on(table(truth)):
        pass
    assert mine.own_rows == 0, "all of it is published"
    assert as_dict(mine) == truth
    for one, then in copies:
        assert as_dict(one) == then


def test_a_publication_that_is_replaced_drops_nothing_more() -> None:
    first = {i: 1.0 for i in range(2000)}
    mine = LayeredRows(table({}), table(first))
    steps = mine.rest_on(table(first))
    next(steps)
    left = mine.own_rows
    newest = mine.rest_on(table({i: 2.0 for i in first} | {7: 1.0}))
    assert list(steps) == []
    assert mine.own_rows == left
    mine = LayeredRows(table({}), table(first))
    for _ in mine.rest_on(table({i: 2.0 for i in first} | {7: 1.0})):
        pass
    assert mine.own_rows == 1999, "rows that differ stay"
    del newest


def test_blocks_of_rows_merge_and_select_and_travel_with_either() -> None:
    below, change = {i: 1.0 for i in range(500)}, table({3: 0.5, 900: 2.0})
    values: list[Blocks] = [
        {"t": Block(ROWS, table(below))},
        {"t": Block(ROWS, on_top_of(table(below), Rows.empty(WIDTH))[0])},
    ]
    for one in values:
        merge(one, {"t": Block(ROWS, change)})
        put(one, {"t": Block(ROWS, table({5: 9.0}))})
    own, layered = (as_dict(one["t"].data) for one in values)
    assert own == layered
    assert layered[3] == 1.5
    some = [select(one, {"t": [ids_of(3, 4, 5, 7_000)]})["t"].data for one in values]
    assert as_dict(some[0]) == as_dict(some[1])
    assert some[1].gone.tolist() == [7_000]
    assert copy(values[1])["t"].data.own_rows == 3
    walked: Blocks = {}
    for piece in Parts(320).pieces(values[1]):
        put(walked, from_wire(decode_piece(piece)))
    assert as_dict(walked["t"].data) == own


def test_a_row_that_is_gone_counts_as_not_learned() -> None:
    mine, new = LayeredRows(table({1: 5.0, 2: 6.0})), table({3: 7.0})
    new.gone = ids_of(1)
    mine.update(new)
    assert mine.get(ids_of(1, 2, 3))[0][:, 0].tolist() == [0.0, 6.0, 7.0]
    assert mine.has(ids_of(2, 3, 4)).tolist() == [True, True, False]
