"""The selector: its rule written down again, what it ends up with, and who it does without."""

from __future__ import annotations

import math
import random
from typing import Any

import numpy as np
import pytest
from river import linear_model, naive_bayes, optim, preprocessing, tree

from benchmarks.studies.selector import LEARNERS_MAX, PER_LATE, WINDOW, Selector
from evaluation.prequential import prequential
from evaluation.streams import open_stream
from replay.example import Features, Label


def learners() -> dict[str, Any]:
    return {
        "lr": preprocessing.StandardScaler() | linear_model.LogisticRegression(optim.SGD(0.05)),
        "nb": naive_bayes.GaussianNB(),
        "tree": tree.HoeffdingTreeClassifier(),
    }


class Played:
    """Answers in turn, whatever the row."""

    def __init__(self, answers: list[Any]) -> None:
        self._answers = iter(answers)

    def predict_proba_one(self, x: Features) -> Any:
        return next(self._answers)

    predict_one = predict_proba_one

    def learn_one(self, x: Features, y: Label) -> None:
        pass


@pytest.mark.parametrize("delay", [1, 30, 100])
def test_as_the_rule_in_arrays(delay: int) -> None:
    """The oracle has the learners' answers as arrays; losses are those at the time of asking."""
    rng = np.random.default_rng(1)
    n, k, c = 400, 3, 3
    shares = rng.dirichlet([0.5] * c, (n, k))
    y = rng.integers(0, c, n)
    shares[np.arange(n), 1, y] += 1  # the second one knows more
    shares /= shares.sum(2, keepdims=True)
    wrong = shares.argmax(2) != y[:, None]
    losses, windows, late = [np.zeros(k)], [WINDOW], 0.0  # after so many labels
    for j in range(n):
        late = 0.99 * late + 0.01 * min(j, delay - 1)  # labels since row j was asked
        windows.append(WINDOW + PER_LATE * late)
        losses.append((1 - 1 / windows[-1]) * losses[-1] + wrong[j])
    right = 0
    for i in range(n):
        known = max(i - delay + 1, 0)
        votes = np.exp(-WINDOW / windows[known] * losses[known])
        right += (votes @ shares[i]).argmax() == y[i]
    played = {
        str(m): Played([dict(enumerate(row)) for row in shares[:, m].tolist()]) for m in range(k)
    }
    rows: Any = [({}, int(label)) for label in y]
    judged = prequential(Selector(played, "multiclass"), rows, "multiclass", delay=delay)
    assert judged.total.accuracy == right / n


def test_its_learners_learn_as_they_would_alone() -> None:
    """What they answered alone, played to it, is answered as by live ones."""
    rows = list(open_stream("phishing").rows)
    alone: dict[str, list[Any]] = {}
    for name, learner in learners().items():
        alone[name] = []
        for x, y in rows:
            alone[name].append(learner.predict_proba_one(x))
            learner.learn_one(x, y)
    live = prequential(Selector(learners(), "binary"), rows, "binary")
    played = {name: Played(answers) for name, answers in alone.items()}
    assert prequential(Selector(played, "binary"), rows, "binary").total == live.total


def test_it_goes_over_to_the_better_one_and_back() -> None:
    rng = random.Random(3)
    truth = [rng.random() < 0.5 for _ in range(3_000)]

    def noisy(y: bool, error: float) -> dict[bool, float]:
        return {True: 1.0, False: 0.0} if (rng.random() < error) != y else {True: 0.0, False: 1.0}

    first, second = [], []
    for i, y in enumerate(truth):
        good = 1_000 <= i < 2_000
        first.append(noisy(y, 0.3 if good else 0.1))
        second.append(noisy(y, 0.1 if good else 0.3))
    selector = Selector({"first": Played(first), "second": Played(second)}, "binary")
    seen = []
    rows: Any = [({"i": i}, y) for i, y in enumerate(truth)]
    judged = prequential(
        selector, rows, "binary", each=lambda *_: seen.append(selector.votes()["first"])
    )
    assert seen[900] > 0.99
    assert seen[1_900] < 0.01
    assert seen[2_900] > 0.99
    assert judged.total.accuracy is not None
    assert judged.total.accuracy > 0.86  # the better one all the time: .9, one of them: .83


def test_a_learner_that_answers_nan_or_nothing_has_no_say() -> None:
    n = 200
    rows: Any = [({}, i % 2 == 0) for i in range(n)]
    right = [{True: 0.9, False: 0.1} if i % 2 == 0 else {True: 0.1, False: 0.9} for i in range(n)]
    broken = {
        "nan": Played([{True: math.nan, False: math.nan}] * n),
        "mute": Played([{}] * n),
        "right": Played(right),
    }
    judged = prequential(Selector(broken, "binary"), rows, "binary")
    assert (judged.total.accuracy, judged.total.unusable) == (1.0, 0)
    mute = prequential(Selector({"mute": Played([{}] * n)}, "binary"), rows, "binary")
    assert (mute.total.accuracy, mute.total.unanswered) == (0.0, n)


def test_regression_goes_to_the_nearer_one() -> None:
    rng = random.Random(2)
    rows: Any = [({}, rng.gauss(50, 10)) for _ in range(500)]
    played: dict[str, Any] = {
        "near": Played([y + rng.gauss(0, 1) for _, y in rows]),
        "far": Played([y + rng.gauss(0, 9) for _, y in rows]),
        "nan": Played([math.nan] * 500),
    }
    selector = Selector(played, "regression")
    judged = prequential(selector, rows, "regression")
    assert selector.votes()["near"] > 0.99
    assert judged.total.mae is not None
    assert judged.total.mae < 1.2
    same = Selector({"a": Played([1.0] * 9), "b": Played([1.0] * 9)}, "regression")
    assert prequential(same, [({}, 1.0)] * 9, "regression").total.mae == 0.0


def test_rivers_own_verbs() -> None:
    selector = Selector(learners(), "binary")
    rows = list(open_stream("phishing").rows)
    right = 0
    for x, y in rows:
        right += selector.predict_one(x) == y
        selector.learn_one(x, y)
    assert right / len(rows) > 0.88
    assert sum(selector.predict_proba_one(rows[0][0]).values()) == pytest.approx(1)


@pytest.mark.parametrize("n", [0, LEARNERS_MAX + 1])
def test_the_number_of_learners_is_bounded(n: int) -> None:
    with pytest.raises(ValueError, match=f"1 to {LEARNERS_MAX} learners, got {n}"):
        Selector({str(i): Played([]) for i in range(n)}, "binary")
