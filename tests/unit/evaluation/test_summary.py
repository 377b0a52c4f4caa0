"""All metrics of a span beside scikit-learn's, and the histogram's error beside the exact area."""

from __future__ import annotations

import math
import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from evaluation.metrics import COUNTERS_MAX, EDGES, Majority, Task, add, details, increments
from evaluation.metrics import majority as majority_of
from evaluation.summary import ROWS_MIN, summary, wilson
from evaluation.windows import Windows
from replay.example import Label, label_text

Scored = list[tuple[Label, dict[Label, float]]]


def counters_of(task: Task, rows: Scored) -> dict[str, float]:
    counters: dict[str, float] = {}
    for label, shares in rows:
        what: dict[str, Any] = {
            "label": label,
            "predicted": max(shares, key=shares.__getitem__) if shares else None,
            "probabilities": {label_text(k): p for k, p in shares.items()},
        }
        add(counters, increments(task, **what, no_change=None, majority=None, asked=True))
        add(counters, details(task, **what))
    return counters


def binary(scores: list[float], labels: list[bool]) -> Scored:
    return [(y, {False: 1 - p, True: p}) for p, y in zip(scores, labels, strict=True)]


@pytest.mark.parametrize("shape", [(1, 1), (0.3, 0.4), (8, 2), (0.05, 3)])
def test_a_binary_span_as_scikit_learn(shape: tuple[float, float]) -> None:
    rng = np.random.default_rng(7)
    p = rng.beta(*shape, 3_000)
    y = rng.random(3_000) < 0.15 + 0.7 * p
    got = summary("binary", counters_of("binary", binary(p.tolist(), y.tolist())))
    said = p > 0.5
    assert got.n == 3_000
    assert got.accuracy == pytest.approx(sk.accuracy_score(y, said))
    assert got.balanced_accuracy == pytest.approx(sk.balanced_accuracy_score(y, said))
    assert got.f1 == pytest.approx(sk.f1_score(y, said))
    assert got.brier == pytest.approx(sk.brier_score_loss(y, p))
    own = np.clip(np.where(y, p, 1 - p), 1e-15, 1)  # scikit-learn clips somewhere else
    assert got.log_loss == pytest.approx(-np.log(own).mean())
    assert got.auc is not None
    assert got.auc_error is not None
    exact = sk.roc_auc_score(y, p)
    assert abs(got.auc - exact) <= got.auc_error + 1e-12
    assert abs(got.auc - exact) < (0.001 if shape[0] > 0.1 else 0.01)  # the last: half below 1e-6
    at = np.minimum((p * 10).astype(int), 9)
    parts = [(at == k) for k in range(10) if (at == k).any()]
    ece = sum(k.sum() * abs(p[k].mean() - y[k].mean()) for k in parts) / 3_000
    assert got.ece == pytest.approx(ece)


def test_scores_on_the_edges_of_tenths_fall_into_the_upper_one() -> None:
    rows = binary([k / 10 for k in range(11)], [True] * 11)
    got = summary("binary", counters_of("binary", rows))
    assert [t.n for t in got.reliability] == [1] * 9 + [2]


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=2, max_size=60))
@settings(max_examples=200, deadline=None)
def test_the_exact_area_is_within_the_error(rows: list[tuple[float, bool]]) -> None:
    got = summary("binary", counters_of("binary", [(y, {False: 1 - p, True: p}) for p, y in rows]))
    ones = [p for p, y in rows if y]
    zeros = [p for p, y in rows if not y]
    if not ones or not zeros:
        assert got.auc is None
        return
    wins = sum((a > b) + (a == b) / 2 for a in ones for b in zeros)
    assert got.auc is not None
    assert got.auc_error is not None
    assert abs(got.auc - wins / (len(ones) * len(zeros))) <= got.auc_error + 1e-9


def test_a_multiclass_span_as_scikit_learn() -> None:
    rng = np.random.default_rng(3)
    shares = rng.dirichlet([0.5] * 4, 2_000)
    y = np.array([rng.choice(4, p=0.3 * np.full(4, 0.25) + 0.7 * s) for s in shares])
    names = ["a", "b", "c", "d"]
    rows: Scored = [
        (names[k], dict(zip(names, s.tolist(), strict=True)))
        for k, s in zip(y, shares, strict=True)
    ]
    got = summary("multiclass", counters_of("multiclass", rows))
    said = shares.argmax(1)
    assert got.balanced_accuracy == pytest.approx(sk.balanced_accuracy_score(y, said))
    assert got.f1 == pytest.approx(sk.f1_score(y, said, average="macro"))
    onehot = np.eye(4)[y]
    assert got.brier == pytest.approx(((shares - onehot) ** 2).sum(1).mean())
    assert got.log_loss == pytest.approx(sk.log_loss(y, shares), rel=1e-6)
    matrix = sk.confusion_matrix(y, said)
    for k, one in enumerate(got.classes):
        assert (one.n, one.said) == (matrix[k].sum(), matrix[:, k].sum())
        assert one.recall == pytest.approx(matrix[k, k] / matrix[k].sum())
        assert one.precision == pytest.approx(matrix[k, k] / matrix[:, k].sum())
    confidence, right = shares.max(1), said == y
    at = np.minimum((confidence * 10).astype(int), 9)
    parts = [(at == k) for k in range(10) if (at == k).any()]
    ece = sum(k.sum() * abs(confidence[k].mean() - right[k].mean()) for k in parts) / 2_000
    assert got.ece == pytest.approx(ece)


def test_r2_does_not_cancel_at_a_great_mean() -> None:
    rng = random.Random(2)
    for mean in (0.0, 1e3, 1e12):
        counters: dict[str, float] = {}
        ys, ps = [], []
        for _ in range(200):
            y = mean + rng.gauss(0, 1)
            p = y + rng.gauss(0, 0.5)
            ys.append(y)
            ps.append(p)
            what: dict[str, Any] = {"label": y, "predicted": p, "probabilities": None}
            add(counters, increments("regression", **what, no_change=None, majority=None))
            add(counters, details("regression", **what))
        got = summary("regression", counters)
        if mean == 1e12:
            assert got.r2 is None
        else:
            assert got.r2 == pytest.approx(sk.r2_score(ys, ps), abs=1e-6)
        assert got.mae == pytest.approx(sk.mean_absolute_error(ys, ps))


def test_overflow_is_no_score() -> None:
    what: dict[str, Any] = {"label": 1e200, "predicted": -1e200, "probabilities": None}
    counters = increments("regression", **what, no_change=None, majority=None)
    add(counters, details("regression", **what))
    got = summary("regression", counters)
    assert (got.rmse, got.r2) == (None, None)
    assert got.mae == 2e200


@pytest.mark.parametrize(("right", "n"), [(0, 8), (8, 8), (45, 60), (1, 1_000_000)])
def test_wilson_solves_its_equation(right: int, n: int) -> None:
    """Its ends are the shares from which the one seen is just 1.96 standard deviations away."""
    got, p = wilson(right, n), right / n
    for end in (got.low, got.high):
        if 0 < end < 1:
            assert abs(p - end) == pytest.approx(1.959964 * math.sqrt(end * (1 - end) / n))
    assert got.low <= p <= got.high


def test_few_rows_lack_something() -> None:
    rows = binary([0.4, 0.6] * (ROWS_MIN // 2), [True, False] * (ROWS_MIN // 2))
    assert summary("binary", counters_of("binary", rows)).lacking == ()
    assert summary("binary", counters_of("binary", rows[1:])).lacking != ()


def test_too_many_labels_are_said_to_be() -> None:
    counters: dict[str, float] = {}
    for i in range(COUNTERS_MAX):
        what: dict[str, Any] = {"label": i, "predicted": 0, "probabilities": None}
        add(counters, increments("multiclass", **what, no_change=None, majority=None))
        add(counters, details("multiclass", **what))
    assert len(counters) == COUNTERS_MAX + 1
    got = summary("multiclass", counters)
    assert (got.n, got.accuracy, got.f1) == (COUNTERS_MAX, 1 / COUNTERS_MAX, None)
    assert "too many labels" in got.lacking[0]


@given(st.lists(st.sampled_from(["a", "b", "c", "aa"]), max_size=30))
def test_the_running_majority_is_that_of_the_counters(labels: list[str]) -> None:
    running, counters = Majority(), dict[str, float]()
    for label in labels:
        assert running.label() == majority_of("multiclass", counters)
        running.add(label)
        add(counters, {"label/" + label_text(label): 1})


def test_edges_rise() -> None:
    assert list(EDGES) == sorted(set(EDGES))


@given(st.lists(st.integers(0, 500), max_size=80), st.integers(2, 9))
def test_windows_hold_every_row_once(places: list[int], limit: int) -> None:
    windows = Windows(1, limit)
    for place in places:
        windows.add(place, {"n": 1})
    spans = windows.spans()
    assert len(spans) <= limit
    for span in spans:
        inside = [p for p in places if span.start <= p < span.end]
        assert span.counters["n"] == len(inside)
    assert sum(s.counters["n"] for s in spans) == len(places)


def test_windows_of_other_widths_do_not_merge() -> None:
    with pytest.raises(ValueError, match="add up"):
        Windows(10).merge(Windows(15))
    with pytest.raises(ValueError, match="wider than 0"):
        Windows(math.nan)
    with pytest.raises(ValueError, match="two windows"):
        Windows(1, 1)
