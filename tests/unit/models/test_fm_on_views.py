"""A factorization machine whose table rests on what a server published, at any earlier time."""

from __future__ import annotations

import random

import pytest

from online.models.fm import Fm, FmTable
from online.models.state import factors
from online.models.state.factors import TABLE
from paramserver.core.blocks import ROWS, Block, Blocks, Touched, add_touched, copy, merge, select
from paramserver.core.tables.layered import LayeredRows
from paramserver.core.tables.rows import Rows
from replay.example import Features


def event(draw: random.Random) -> Features:
    return {"user": f"u{draw.randrange(60)}", "film": f"f{draw.randrange(90)}"}


@pytest.mark.parametrize("hot", [0, 20, 16_384])
@pytest.mark.parametrize("rounds", [False, True])
def test_it_learns_and_answers_bit_for_bit_as_with_a_table_of_its_own(
    rounds: bool, hot: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(factors, "_HOT_MAX", hot)
    draw = random.Random(11)
    models = [Fm(4, table=True).model_for("regression") for _ in range(3)]
    own, resting, other = models
    assert isinstance(resting, FmTable)
    for model in models if rounds else ():
        assert isinstance(model, FmTable)
        model.round_deltas()
    values = Blocks()
    published: Rows | None = None
    steps, rested = iter(()), 0
    for turn in range(150):
        for _ in range(draw.randrange(1, 6)):
            features, label = event(draw), draw.gauss(0.0, 1.0)
            own.learn(features, label, 1.0)
            resting.learn(features, label, 1.0)
            other.learn(event(draw), draw.gauss(1.0, 1.0), 1.0)
        asked = [event(draw) for _ in range(10)]
        assert [own.predict(x) for x in asked] == [resting.predict(x) for x in asked]
        deltas = [model.cut() for model in models]
        assert deltas[0] == deltas[1]
        touched: Touched = {}
        for delta in (deltas[0], deltas[2]):
            add_touched(touched, merge(values, delta, 0.5))
        for model in models:
            model.rebase(copy(select(values, touched)))
        if TABLE in values and turn % 4 == 0:
            published = values[TABLE].data.copy()
        if published is not None and draw.random() < 0.3:
            steps = resting.rest_on({TABLE: published})
            rested += 1
        for _ in range(draw.randrange(3)):
            next(steps, None)
        assert [own.predict(x) for x in asked] == [resting.predict(x) for x in asked]
    assert rested > 20
    for _ in resting.rest_on({TABLE: values[TABLE].data.copy()}):
        pass
    table = resting._table._table
    assert isinstance(table, LayeredRows)
    assert table.own_rows == 0
    started = Fm(4, table=True).model_for("regression")
    started.reset(values | {TABLE: Block(ROWS, LayeredRows(values[TABLE].data.copy()))})
    again = [started.predict(x) for x in asked]
    own.reset(values)
    assert again == [own.predict(x) for x in asked]
