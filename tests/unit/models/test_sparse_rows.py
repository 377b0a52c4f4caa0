"""Rows that contain only what is not zero: words with counts, columns of a one-hot encoding."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from river import linear_model, optim

from online.edge.lowering.evaluate import evaluate
from online.edge.lowering.lower import lower
from online.models.adapters.linear import Linear
from online.models.limited import Limited, LimitedScaler
from online.models.loading.load import load
from online.rescore.sparse import weights_of
from paramserver.core.blocks import Blocks, merge

Row = tuple[dict[str, float], bool]


def words(n: int, seed: int = 1, *, counted: bool = True) -> list[Row]:
    """Texts of eight words from 200; the label decides which half of them is likely."""
    rng, rows = random.Random(seed), []
    for _ in range(n):
        y = rng.random() < 0.5
        x: dict[str, float] = {}
        for _ in range(8):
            word = f"w{2 * rng.randrange(100) + (y != (rng.random() < 0.25))}"
            x[word] = x.get(word, 0.0) + 1.0 if counted else 1.0
        rows.append((x, y))
    return rows


def built(learner: str) -> Any:
    return load(learner, {}, task="binary", classes=None, key=b"\0" * 32, base_dir=Path()).model


@pytest.mark.parametrize("counted", [True, False], ids=["counts", "ones"])
@pytest.mark.parametrize("learner", ["auto", "linear", "ftrl", "logreg"])
def test_which_numbers_a_row_has_is_learned(learner: str, counted: bool) -> None:
    model, right = built(learner), 0
    rows = words(1_200, counted=counted)
    for i, (x, y) in enumerate(rows):
        right += i >= 600 and model.predict(x).label == y
        model.learn(x, y, 1.0)
    assert right / 600 > 0.85, "half are right by chance; the best possible is about .89"


def test_a_number_of_one_kind_of_row_keeps_its_slope() -> None:
    rng, model, right = random.Random(4), built("linear"), 0
    for i in range(3_000):
        kind, deviation = rng.randrange(14), rng.gauss(0.0, 1.0)
        x, y = {f"sensor {kind}": 300.0 + deviation}, deviation > 0.0
        right += i >= 1_500 and model.predict(x).label == y
        model.learn(x, y, 1.0)
    assert right / 1_500 > 0.85, "half are right by chance"


def test_a_number_that_is_missing_now_and_then_is_standardised() -> None:
    rng, scaler = random.Random(2), Limited("scaler")
    for _ in range(500):
        x = {name: rng.gauss(50.0, 2.0) for name in "abcdef" if rng.random() < 0.8}
        scaler.learn(x)
    center, factor = scaler.affine("a")
    assert center == pytest.approx(50.0, abs=0.5)
    assert 1.0 / factor == pytest.approx(2.0, abs=0.3)


def test_complete_rows_leave_no_trace() -> None:
    scaler = Limited("scaler")
    for i in range(20):
        scaler.learn({"a": float(i), "b": 1.0})
    assert scaler.transform({"b": 1.0}) == {"b": 0.0}, "a constant says nothing"
    assert scaler.cut()["scaler"].data.keys() == {"a", "b"}


def test_replicas_agree_on_which_numbers_are_rare() -> None:
    rows = [x for x, _ in words(400)]
    alone, state = Limited("scaler"), Blocks()
    replicas = [Limited("scaler"), Limited("scaler")]
    for i, x in enumerate(rows):
        alone.learn(x)
        replicas[i % 2].learn(x)
        if i % 10 == 9:
            for replica in replicas:
                merge(state, replica.cut())
            for replica in replicas:
                replica.rebase(state)
    again = Limited("scaler")
    again.learn({"another": 1.0})
    again.reset(state)
    for scaler in (*replicas, again):
        assert scaler.known == alone.known
        # Who has met fewer names has counted some rows fewer that lacked one.
        assert scaler.transform(rows[0]) == pytest.approx(alone.transform(rows[0]), rel=1e-3)
    again.forget(state)
    assert not again.known
    assert again._scaler.lacking == 0.0
    again.mend(state, [*alone.known])
    assert again.transform(rows[0]) == pytest.approx(replicas[0].transform(rows[0]))


class Counted(float):
    """A number that counts how often something is subtracted from it."""

    taken = 0

    def __sub__(self, other: float) -> float:
        Counted.taken += 1
        return float(self) - other


@pytest.mark.parametrize("others", [{}, {"c": 1.0}], ids=["complete", "sparse"])
def test_a_row_is_standardised_once_while_it_is_learned(others: dict[str, float]) -> None:
    scaler = Limited("scaler")
    for i in range(9):
        scaler.learn({"a": float(i), "b": 2.0 * i, **others})
    Counted.taken = 0
    scaler.learn({"a": Counted(3.0), "b": Counted(4.0)})
    assert Counted.taken == 2 * 2, "each number once for its moments, once to be standardised"


def test_columns_are_scaled_as_rows_are() -> None:
    scaler = Limited("scaler")
    for x, _ in words(300):
        scaler.learn(x)
    names = ["w1", "unknown", "w2", "w3"]
    known, z = scaler.transform_many(names, np.array([[1.0, 1.0, 2.0, 3.0]]))
    assert dict(zip(known, z[0].tolist(), strict=True)) == scaler.transform(
        dict(zip(names, [1.0, 1.0, 2.0, 3.0], strict=True))
    )


@pytest.mark.parametrize("learner", ["auto", "linear", "ftrl", "logreg"])
def test_an_export_answers_as_the_model_does(learner: str) -> None:
    model, rows = built(learner), words(400)
    for x, y in rows[:300]:
        model.learn(x, y, 1.0)
    asked = [x for x, _ in rows[300:]]
    expected = [model.predict(x).probabilities[True] for x in asked]
    assert evaluate(lower(model, "binary"), asked)[:, 0] == pytest.approx(expected)


def test_scores_by_key_are_all_made_again_when_a_number_becomes_rare() -> None:
    estimator = LimitedScaler() | linear_model.LogisticRegression(optim.SGD(0.05))
    model = Linear(estimator)
    model.learn({"a": 1.0, "b": 2.0}, True, 1.0)
    before = weights_of(model)
    estimator["LimitedScaler"].lacking += 1.0
    after = weights_of(model)
    assert before is not None
    assert after is not None
    assert before.dense != after.dense


@pytest.mark.parametrize("learner", ["auto", "linear", "ftrl", "logreg"])
@pytest.mark.parametrize("mean", [30.0, 2_015.0])
def test_a_number_far_from_0_is_learned_however_few_rows_have_it(learner: str, mean: float) -> None:
    assert share_right(learner, mean) > 0.75


def share_right(learner: str, mean: float) -> float:
    """How often a label is predicted that a number tells, in the rows that have the number."""
    rng, model, right, told = random.Random(3), built(learner), 0, 0
    for i in range(4_000):
        x = {"a": rng.gauss(0.0, 1.0)}
        y = x["a"] + rng.gauss(0.0, 0.5) > 0.0
        if rng.random() < 0.25:
            z = rng.gauss(0.0, 1.0)
            x["year"], y = mean + 10.0 * z, z + rng.gauss(0.0, 0.3) > 0.0
            if i >= 2_000:
                told, right = told + 1, right + (model.predict(x).label == y)
        model.learn(x, y, 1.0)
    return right / told
