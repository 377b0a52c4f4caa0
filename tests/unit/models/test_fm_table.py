"""The factorization machine with a table: the same answers, and what it costs."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from replica_world import World, play, row, until

from online.learning.vocabulary import Vocabulary, words_of
from online.models.base import Mendable
from online.models.errors import StateNotFinite
from online.models.fm import Fm, FmModel, FmTable
from online.models.loading.checks import CheckFailed, check_model
from online.models.state import factors
from online.models.state.factors import TABLE, TableLines
from paramserver.core.blocks import Blocks, copy, merge, size_bytes, to_wire
from paramserver.core.tables.rows import Rows
from replay import codec
from replay.example import Example, Features, Label

Pairs = Sequence[tuple[Features, Label]]


def ratings(n: int = 400) -> Pairs:
    draw = random.Random(5)
    out: list[tuple[Features, Label]] = []
    for i in range(n):
        user, film, age = draw.randrange(30), draw.randrange(40), draw.gauss(40.0, 9.0)
        features: Features = {"user": f"u{user}", "film": film, "age": age, "new": i % 7 == 0}
        out.append((features, float(user % 3 - film % 4) + draw.gauss(0.0, 0.3)))
    return out


def both(recipe: Fm, task: Any) -> tuple[FmModel, FmModel]:
    return recipe.model_for(task), replace(recipe, table=True).model_for(task)


@pytest.mark.parametrize("task", ["regression", "binary"])
@pytest.mark.parametrize("hot", [0, 20, 16_384])
def test_a_table_answers_as_blocks_of_names_do(
    task: Any, hot: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(factors, "_HOT_MAX", hot)
    named, table = both(Fm(4, ["film"]), task)
    far = 0.0
    for i, (features, label) in enumerate(ratings()):
        answers = [model.predict(features) for model in (named, table)]
        first, second = (
            a.label if a.probabilities is None else a.probabilities[True] for a in answers
        )
        far = max(far, abs(float(first or 0.0) - float(second or 0.0)))
        for model in (named, table):
            model.learn(features, label if task == "regression" else float(label) > 0, 1.0)
        if i % 9 == 0:
            named.cut()
            table.cut()
    assert 0.0 < far < 2e-5, "float32 beside float64, and nothing else"


def replicas(make: Any, rows: Pairs) -> tuple[list[FmModel], Blocks]:
    """Three that exchange by a server, and its values."""
    models, values = [make() for _ in range(3)], Blocks()
    for begin in range(0, len(rows), 12):
        for i, (features, label) in enumerate(rows[begin : begin + 12]):
            models[i % 3].learn(features, label, 1.0)
        for model in models:
            merge(values, model.cut(), 1 / 3)
        for model in models:
            model.rebase(copy(values))
    return models, values


def test_three_replicas_with_a_table_end_as_three_with_names() -> None:
    recipe = Fm(3, ["film"])
    ends = []
    for one in (recipe, replace(recipe, table=True)):
        models, values = replicas(lambda one=one: one.model_for("regression"), ratings())
        fresh = one.model_for("regression")
        fresh.reset(values)
        answers = [[float(m.predict(x).label or 0) for x, _ in ratings(60)] for m in models]
        assert answers[0] == pytest.approx(answers[2], rel=1e-9)
        assert [fresh.predict(x).label for x, _ in ratings(60)] == pytest.approx(answers[0])
        ends.append(answers[0])
    assert ends[1] == pytest.approx(ends[0], abs=1e-4)


def lines_of(model: FmModel, rows: Pairs) -> list[Any]:
    keys = sorted({key for features, _ in rows for key in model.numbers(features)})
    return [one.tolist() for one in model._machine.lines.held(keys)]


def test_what_is_sent_is_what_was_learned_to_the_last_bit() -> None:
    model, other = (Fm(5, ["film"], table=True).model_for("regression") for _ in range(2))
    values, rows = Blocks(), ratings()
    for i, (features, label) in enumerate(rows):
        model.learn(features, label, 1.0)
        if i % 7 == 0:
            learned = lines_of(model, rows)
            merge(values, model.cut())
            other.reset(copy(values))
            assert learned == lines_of(model, rows) == lines_of(other, rows)


def test_an_event_of_thirty_features_is_some_bytes_a_row_on_the_wire() -> None:
    text = " ".join(f"word{i}" for i in range(28))
    sizes = []
    for table in (False, True):
        model = Fm(8, text=["text"], table=table).model_for("binary")
        model.learn({"text": text, "user": "u"}, True, 1.0)
        delta = model.cut()
        sizes.append(len(msgspec.msgpack.encode(to_wire(delta))))
        assert sizes[-1] / 2 < size_bytes(delta) < sizes[-1] * 2
        assert len(delta[TABLE if table else "z"].data) == 30
    assert sizes[1] < 4_000 / 2 < 4_000 < sizes[0]


def test_a_row_that_leaves_the_numbers_of_float32_changes_nothing() -> None:
    model = Fm(2, ["film"], table=True).model_for("regression")
    for features, label in ratings(40):
        model.learn(features, label, 1.0)
    table = model._machine.lines
    assert isinstance(table, TableLines)
    before, known = table.held(["bias", "7"])
    wrong = before.copy()
    wrong[1, 0] = 1e39
    with pytest.raises(StateNotFinite):
        table.put(["bias", "7"], wrong, before)
    after, still = table.held(["bias", "7"])
    assert after.tolist() == before.tolist()
    assert still.tolist() == known.tolist() == [True, False]


def test_one_bad_row_is_put_back_without_building_the_table_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build() -> FmModel:
        return Fm(3, ["film"], table=True).model_for("regression")

    async def scene(world: World) -> None:
        replica, twin = await world.replica("a", build=build), build()
        learner, step = replica.learner, FmTable._step

        def fails(self: FmTable, given: Any, label: Label, weight: float) -> None:
            step(self, given, label, weight)
            if label == 3.5:
                raise StateNotFinite(math.inf)

        monkeypatch.setattr(FmTable, "_step", fails)
        monkeypatch.setattr(FmTable, "reset", lambda *_: pytest.fail("built anew"))
        mendable: object = learner.serving
        assert isinstance(mendable, Mendable)
        rated = [x for x, _ in ratings(30)]
        for i, features in enumerate(rated):
            label = 3.5 if i in (9, 20) else float(i % 5)
            given = codec.encode(Example(features, label))
            new = msgspec.structs.replace(row(f"e{i}"), payload=given)
            await replica.writer.record([new])
            if label != 3.5:
                twin.learn(features, label, 1.0)
        await until(lambda: _counts(replica) == 28)
        for features in rated:
            ours = learner.serving.predict(features).label
            alone = twin.predict(features).label
            assert ours == pytest.approx(alone, rel=1e-5)
        await replica.stop(1.0)

    play(tmp_path, scene)


def _counts(replica: Any) -> float:
    return float(replica.learner.serving._targets.counts.get("", 0.0))


def test_places_of_a_table_are_no_names_and_columns_of_numbers_are() -> None:
    named, table = both(Fm(2, ["film"], text=["told"]), "binary")
    given: Features = {"user": "u1", "film": 3, "told": "two words", "age": 3.0, "none": None}
    found = [Vocabulary(words_of(model))._keys(given) for model in (named, table)]
    assert len(found[0]) == 6
    assert list(found[1]) == ["age"]
    assert words_of(table).keys("film", 3) == ()  # type: ignore[union-attr]


def test_a_model_without_a_table_is_the_spec_that_it_was() -> None:
    named, table = both(Fm(2), "binary")
    assert "table" not in named.structure
    assert table.structure == named.structure.removesuffix(")") + ", table=True)"


def test_a_table_of_another_origin_is_shared_until_somebody_writes() -> None:
    model = Fm(2, table=True).model_for("binary")
    values = Blocks()
    model.learn({"user": "a"}, True, 1.0)
    merge(values, model.cut())
    held: Rows = values[TABLE].data
    before = held.numbers.tolist()
    model.reset(values)
    assert held._pool.width == 5
    model.learn({"user": "a"}, False, 1.0)
    model.cut()
    assert held.numbers.tolist() == before
    assert np.isfinite(held.numbers).all()


def _leaves_what_is_in_use(self: TableLines, values: Blocks) -> None:
    if TABLE in values:
        self._table.update(values[TABLE].data)


def _keeps_what_is_in_use(self: TableLines, values: Blocks) -> None:
    self._table = values[TABLE].data.copy() if TABLE in values else Rows.empty(self._learned)


def _writes_to_what_was_given(self: TableLines, values: Blocks) -> None:
    self._table = values[TABLE].data if TABLE in values else Rows.empty(self._learned)
    self._forget_hot()


def _sends_twice(self: TableLines) -> Blocks:
    opened = dict(self._open)
    delta = CUT(self)
    self._open = opened
    self._moved[list(opened)] = 1.0
    return delta


def _loses_the_open_delta(self: TableLines, values: Blocks) -> None:
    REBASE(self, values)
    self._moved[:] = 0.0


def _sends_the_difference(self: TableLines) -> Blocks:
    """Sends what the rows are now less what they were, in float32."""
    before = self._table.copy()
    delta = CUT(self)
    if TABLE in delta:
        ids = delta[TABLE].data.ids.copy()
        delta[TABLE].data.put(ids, self._table.get(ids)[0] - before.get(ids)[0])
    return delta


CUT, REBASE = TableLines.cut, TableLines.rebase


@pytest.mark.parametrize(
    ("verb", "mutant"),
    [
        ("rebase", _leaves_what_is_in_use),
        ("reset", _keeps_what_is_in_use),
        ("reset", _writes_to_what_was_given),
        ("cut", _sends_twice),
        ("rebase", _loses_the_open_delta),
        ("cut", _sends_the_difference),
    ],
)
def test_the_checks_of_models_notice_a_table_that_breaks_a_promise(
    verb: str, mutant: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TableLines, verb, mutant)
    with pytest.raises(CheckFailed):
        check_model(lambda: Fm(3, ["film"], table=True).model_for("regression"), ratings(42))
