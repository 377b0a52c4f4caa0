"""Accuracy without labels, then against now by a classifier, and how detectors are scored."""

from __future__ import annotations

import math
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.isotonic import IsotonicRegression
from sklearn.metrics import roc_auc_score

from benchmarks.studies.drift.scoring import Episode, score
from evaluation.drift import domain
from evaluation.drift.domain import tell_apart
from evaluation.drift.errors import DriftSettingUnusable, ReferenceUnusable, ShareUnusable
from evaluation.drift.labelfree import BLIND, LabelFree, isotonic


def served(judge: LabelFree, n: int, seed: int, *, right: float | None = None) -> float:
    """Serve rows that are right as often as their confidence squared; the true accuracy."""
    draw, total = Random(seed), 0
    for _ in range(n):
        confidence = draw.uniform(0.5, 1.0)
        judge.served(confidence)
        total += draw.random() < (confidence**2 if right is None else right)
    return total / max(n, 1)


def calibrated(n: int = 20_000, **settings: Any) -> LabelFree:
    judge, draw = LabelFree(**settings), Random(5)
    for _ in range(n):
        confidence = draw.uniform(0.5, 1.0)
        judge.judged(confidence, draw.random() < confidence**2, was_open=False)
    return judge


def test_confidence_that_lies_is_corrected() -> None:
    judge = calibrated()
    true = served(judge, 5_000, 1)
    found = judge.estimate()
    assert found.state == "estimated"
    assert found.accuracy == pytest.approx(true, abs=0.02)
    assert found.n == 5_000
    assert found.note == BLIND
    plain = LabelFree()
    served(plain, 5_000, 1)
    assert plain.estimate().accuracy == pytest.approx(0.75, abs=0.01)
    assert plain.estimate().labelled == 0
    assert "not calibrated" in plain.estimate().why


def test_it_cannot_see_that_labels_changed() -> None:
    judge = calibrated()
    true = served(judge, 5_000, 1, right=0.1)
    assert abs((judge.estimate().accuracy or 0.0) - true) > 0.4


@pytest.mark.parametrize("n", [0, 8, 199])
def test_few_open_rows_are_not_enough(n: int) -> None:
    judge = calibrated()
    served(judge, n, 1)
    found = judge.estimate()
    assert (found.state, found.accuracy, found.n) == ("not enough data", None, n)


def test_labels_that_come_close_their_rows() -> None:
    judge = LabelFree()
    for i in range(300):
        judge.served(0.9)
        if i < 100:
            judge.judged(0.9, right=True)
    assert judge.estimate().n == 200


@pytest.mark.parametrize("always", [True, False])
def test_one_class_and_one_confidence(always: bool) -> None:
    judge = LabelFree()
    for _ in range(2_000):
        judge.judged(1.0, always, was_open=False)
    for _ in range(300):
        judge.served(1.0)
    assert judge.estimate().accuracy == pytest.approx(float(always), abs=0.01)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -0.1, 1.1, None, "1"])
def test_no_confidence_is_refused(bad: Any) -> None:
    judge = LabelFree()
    with pytest.raises(ShareUnusable):
        judge.served(bad)
    with pytest.raises(ShareUnusable):
        judge.judged(bad, True)
    assert judge.counters() == {}


def test_replicas_add_up() -> None:
    whole, parts = LabelFree(), [LabelFree(), LabelFree()]
    draw = Random(1)
    for i in range(4_000):
        confidence, right = draw.random(), draw.random() < 0.7
        for judge in (whole, parts[i % 2]):
            judge.served(confidence)
            if i % 3:
                judge.judged(confidence, right)
    merged = LabelFree()
    for part in parts:
        merged.merge(part.counters())
    assert merged.estimate().accuracy == pytest.approx(whole.estimate().accuracy, abs=1e-12)
    with pytest.raises(ReferenceUnusable, match="no counter of confidence"):
        merged.merge({"n/100": 1})


def test_old_labels_fade() -> None:
    judge = LabelFree(memory=2_000)
    for i in range(20_000):
        judge.judged(0.8, i >= 10_000, was_open=False)
    for _ in range(300):
        judge.served(0.8)
    assert (judge.estimate().accuracy or 0.0) > 0.9
    assert judge.estimate().labelled < 5_000


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0.1, 10)), min_size=1, max_size=40))
@settings(max_examples=100, deadline=None)
def test_isotonic_is_that_of_scikit_learn(points: list[tuple[float, float]]) -> None:
    values, weights = (np.array(v) for v in zip(*points, strict=True))
    theirs = IsotonicRegression().fit(range(len(values)), values, weights)
    assert isotonic(values, weights) == pytest.approx(theirs.predict(range(len(values))), abs=1e-9)


# -- then and now ------------------------------------------------------------------------------


def rows(seed: int, n: int = 600, **moved: float) -> list[Any]:
    draw = Random(seed)
    return [
        {
            "x": draw.gauss(moved.get("x", 0.0), moved.get("spread", 1.0)),
            "y": draw.gauss(0.0, 1.0),
            "colour": draw.choices(("red", "green"), (1.0, 1.0 + moved.get("colour", 0.0)))[0],
            "gone": None if draw.random() < moved.get("gone", 0.0) else 1.0,
        }
        for _ in range(n)
    ]


def test_the_same_law_lies_in_the_band() -> None:
    inside = 0
    for seed in range(20):
        found = tell_apart(rows(seed), rows(seed + 100), seed=seed, permutations=50)
        assert found.auc is not None
        inside += found.state == "alike"
    assert inside >= 17


@pytest.mark.parametrize(
    ("moved", "name"),
    [
        ({"x": 1.0}, "x"),
        ({"spread": 2.5}, "x"),
        ({"colour": 4.0}, "colour"),
        ({"gone": 0.4}, "gone"),
    ],
)
def test_what_moved_is_told_and_named(moved: dict[str, float], name: str) -> None:
    found = tell_apart(rows(1), rows(2, **moved), permutations=50)
    assert found.state == "different"
    assert found.auc is not None
    assert found.high is not None
    assert found.auc > found.high
    assert found.p == pytest.approx(1 / 51)
    assert found.drivers[0] == (name, 1.0)


def test_auc_is_that_of_scikit_learn() -> None:
    rng = np.random.default_rng(1)
    scores = rng.integers(0, 5, size=(80, 6)).astype(float)  # many ties
    labels = (rng.random((80, 6)) < 0.3).astype(float)
    theirs = [roc_auc_score(labels[:, i], scores[:, i]) for i in range(6)]
    assert domain._aucs(scores, labels) == pytest.approx(theirs)


def test_what_cannot_be_told_is_said() -> None:
    assert tell_apart([], []).state == "not enough data"
    assert tell_apart(rows(1, 8), rows(2, 8)).state == "not enough data"
    assert tell_apart([{"x": 1.0}] * 200, [{"x": 1.0}] * 200).why == "no feature varies"
    odd = [math.nan, None, math.inf, -math.inf, 1e308, 5]
    found = tell_apart([{"x": odd[i % 6]} for i in range(300)], [{"x": 1e12}] * 300)
    assert found.state == "different"


def test_what_alternates_is_no_change() -> None:
    then = [{"x": float(i % 2)} for i in range(4_000)]
    assert tell_apart(then, then[:1_000], permutations=50).state == "alike"


def test_the_same_seed_gives_the_same_answer() -> None:
    assert tell_apart(rows(1), rows(2), seed=3) == tell_apart(rows(1), rows(2), seed=3)


# -- how detectors are scored ------------------------------------------------------------------


def test_figures_of_three_episodes() -> None:
    found = score(
        [
            Episode(5_000, [100, 3_050, 3_060], 3_000, 3_999),
            Episode(5_000, [4_500], 3_000, 3_999),
            Episode(10_000, []),
        ]
    )
    assert found.mtd == 50
    assert found.mdr == 0.5
    assert found.in_control == 4_000 + 4_000 + 10_000
    assert found.mtfa == 9_000
    assert found.false_per_1k == pytest.approx(1000 * 2 / 18_000)
    precision, recall = 2 / 4, 2 / 3
    assert found.f1 == pytest.approx(2 * precision * recall / (precision + recall))
    assert found.mtr == pytest.approx(9_000 / 50 * 0.5)


def test_no_alarm_and_no_change() -> None:
    found = score([Episode(1_000, [])])
    assert (found.mtd, found.mdr, found.mtfa, found.f1) == (None, None, None, 0.0)
    with pytest.raises(DriftSettingUnusable, match="last = None"):
        score([Episode(10, [], 5)])
