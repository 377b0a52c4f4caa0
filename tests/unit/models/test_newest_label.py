"""The newest label is mixed into the answers of a regression, as far as that pays."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from online.edge.lowering.lower import lower
from online.edge.targets.golden import golden
from online.learning.counters import TALLIED
from online.models.auto import Auto
from online.models.base import learn_example
from online.models.errors import StateNotFinite
from online.models.experts import newest_label
from online.models.experts.newest_label import FAR, NewestLabel
from online.models.selfrate import SelfRate
from online.sure.contributions import added_up
from paramserver.core.blocks import Blocks, copy, merge
from replay.example import Example, Features

ROWS = 1_200
RECIPES = pytest.mark.parametrize("recipe", [SelfRate(), Auto()], ids=["linear", "auto"])


def wandering() -> Iterator[tuple[Features, float]]:
    """A level that moves little from row to row, and features that say little of it."""
    rng, level = random.Random(3), 100.0
    for _ in range(ROWS):
        level += rng.gauss(0.0, 1.0)
        yield {name: 0.1 * level + rng.gauss(0.0, 8.0) for name in "abcd"}, level


def told() -> Iterator[tuple[Features, float]]:
    """A target that the features tell, and that has nothing to do with the one before."""
    rng = random.Random(4)
    for _ in range(ROWS):
        x: dict[str, float] = {name: rng.gauss(0.0, 1.0) for name in "ab"}
        yield {**x}, 3.0 * x["a"] - x["b"] + rng.gauss(0.0, 0.1)


def played(recipe: SelfRate, rows: Iterator[tuple[Features, float]], late: int = 0) -> Any:
    """The model after the rows; its mean error in the second half, and that of no change."""
    model: Any = recipe.model_for("regression")
    waiting, errors, unchanged, newest = deque[Example](), 0.0, 0.0, 0.0
    for i, (x, y) in enumerate(rows):
        found = model.predict(x)
        if i >= ROWS // 2:
            errors, unchanged = errors + abs(found.label - y), unchanged + abs(newest - y)
        waiting.append(Example(x, y, score={"": found.label}, notes=found.notes))
        if len(waiting) > late:
            newest = waiting[0].label
            learn_example(model, waiting.popleft())
    return model, errors / (ROWS - ROWS // 2), unchanged / (ROWS - ROWS // 2)


@RECIPES
@pytest.mark.parametrize("late", [0, 20])
def test_a_target_that_changes_little_is_answered_better_than_by_no_change(
    recipe: SelfRate, late: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, error, unchanged = played(recipe, wandering(), late)
    assert error < 1.05 * unchanged
    monkeypatch.setattr(newest_label, "RIDGE", float("inf"))
    _, alone, _ = played(recipe, wandering(), late)
    assert error < 0.95 * alone


@RECIPES
def test_where_it_does_not_pay_answers_stay_as_they_are(recipe: SelfRate) -> None:
    model, *_ = played(recipe, told())
    assert model._newest.share < 0.02
    plain, x = model.plain({"a": 1.0, "b": 2.0}), model.predict({"a": 1.0, "b": 2.0})
    assert x.label == pytest.approx(plain.label, abs=0.1)


def taught() -> NewestLabel:
    """Labels around 10 that experts answer with an error of about 1."""
    newest, rng = NewestLabel(), random.Random(5)
    for _ in range(100):
        newest.learn(10.0 + rng.gauss(0.0, 0.1), newest.note(10.0 + rng.gauss(0.0, 1.0)), 1.0)
    return newest


def test_a_false_label_moves_it_no_farther_than_a_few_usual_errors() -> None:
    newest = taught()
    assert newest.share > 0.7
    newest.learn(1e9, newest.note(10.0), 1.0)
    assert newest.level is not None
    assert 10.0 < newest.level < 10.0 + 1.5 * FAR
    assert newest.mixed_in(10.0) < 10.0 + 1.5 * FAR
    newest.learn(10.0, newest.note(10.0), 1.0)
    assert newest.level == pytest.approx(10.0), "the next one takes it back"


def test_a_light_label_moves_it_as_it_weighs() -> None:
    newest = taught()
    before = newest.level
    assert before is not None
    newest.learn(before + 1.0, (), 0.1)
    assert newest.level == pytest.approx(before + 0.1)


def test_a_target_that_jumps_for_good_is_followed_in_a_few_rows() -> None:
    newest = taught()
    for _ in range(12):
        newest.learn(5_000.0, newest.note(10.0), 1.0)
    assert newest.level == pytest.approx(5_000.0)


def test_differences_whose_squares_are_infinite_are_refused() -> None:
    model: Any = SelfRate().model_for("regression")
    model.learn({"a": 1.0}, 1e154, 1.0)
    notes = model.predict({"a": 1.0}).notes
    with pytest.raises(StateNotFinite):
        learn_example(model, Example({"a": 1.0}, -1e154, score={"": 0.0}, notes=notes))


def test_it_travels_with_the_state() -> None:
    model, *_ = played(SelfRate(), wandering())
    values = Blocks()
    merge(values, model.cut())
    other: Any = SelfRate().model_for("regression")
    other.rebase(values)
    x = {"a": 9.0, "b": 9.0, "c": 9.0, "d": 9.0}
    assert other.predict(x).label == pytest.approx(model.predict(x).label)
    assert other._newest.share == pytest.approx(model._newest.share)
    other.learn(x, 50.0, 1.0)
    mine = other._newest.level
    other.rebase(values)
    assert other._newest.level == mine, "a replica keeps its own newest label while it learns"
    other.reset(values)
    assert other._newest.level == model._newest.level
    other.reset(Blocks())
    assert other._newest.level is None


def test_a_replica_that_learned_nothing_takes_the_label_of_the_last_push() -> None:
    values = Blocks()
    for label in (10.0, 12.0):
        busy = taught()
        busy.learn(label, (), 1.0)
        merge(values, busy.cut(), 0.5)
    idle = NewestLabel()
    idle.rebase(values)
    assert idle.level == busy.level, "no mean of both"
    assert idle.share == busy.share


def test_two_replicas_follow_a_level_as_one_whose_labels_come_a_row_late() -> None:
    """They are asked in turns and exchange after every own row; deltas are averaged."""
    replicas: list[Any] = [SelfRate().model_for("regression") for _ in range(2)]
    values, errors = Blocks(), 0.0
    for i, (x, y) in enumerate(wandering()):
        model = replicas[i % 2]
        found = model.predict(x)
        errors += abs(found.label - y) * (i >= ROWS // 2)
        learn_example(model, Example(x, y, score={"": found.label}, notes=found.notes))
        merge(values, model.cut(), 0.5)
        model.rebase(copy(values))
    _, late, _ = played(SelfRate(), wandering(), late=1)
    assert errors / (ROWS - ROWS // 2) < 1.05 * late


def test_its_block_has_a_name_of_its_own() -> None:
    """The learner counts events, labels and their times in blocks beside those of the model."""
    model: Any = SelfRate().model_for("regression")
    model.learn({"a": 1.0}, 2.0, 1.0)
    assert not TALLIED.keys() & model.cut().keys()


def test_rows_without_notes_are_learned_as_before() -> None:
    model: Any = SelfRate().model_for("regression")
    for x, y in wandering():
        model.learn(x, y, 1.0)
    assert model._newest.share == 0.0


@RECIPES
def test_contributions_add_up_and_files_are_without_it(recipe: SelfRate) -> None:
    model, *_ = played(recipe, wandering())
    assert model._newest.share > 0.3
    x: Features = {"a": 9.0, "b": 12.0, "c": 7.0, "d": 10.0, "e": 1.0}
    added = added_up(model, x)
    assert added is not None
    answer, terms = added
    assert answer == model.predict(x)
    assert terms.output == answer.label
    assert terms.base + sum(terms.added.values()) == pytest.approx(terms.output, abs=1e-9)


def test_files_answer_without_it() -> None:
    model, *_ = played(SelfRate(), wandering())
    x: Features = {"a": 9.0, "b": 12.0, "c": 7.0, "d": 10.0}
    edge = lower(model, "regression")
    rows = golden(model, edge, [x], "float64", np.random.default_rng(1))
    assert rows.expected[0] == pytest.approx(model.plain(x).label)
    assert rows.expected[0] != pytest.approx(model.predict(x).label)
