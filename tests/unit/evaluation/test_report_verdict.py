"""The verdict: when it acts, when it watches, since when, and what it must not be moved by."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from evaluation.report.build import report_on
from evaluation.report.rows import Origin, Rows
from evaluation.report.values import Report

Step = Callable[[int, random.Random], tuple[bool | None, float, float]]
"""Label, score and feature of a row."""

ORIGIN = Origin("file", "f.csv", "binary", names={True: "yes", False: "no"}, delay=5)


def rows(step: Step, n: int, seed: int = 1, names: str = "x") -> Iterator[Rows]:
    rng = random.Random(seed)
    for first in range(0, n, 700):
        part = [step(i, rng) for i in range(first, min(first + 700, n))]
        none = np.full(len(part), np.nan)
        yield Rows(
            label=[label for label, _, _ in part],
            predicted=[p >= 0.5 for _, p, _ in part],
            probabilities=[{"true": p, "false": 1 - p} for _, p, _ in part],
            time=none,
            label_time=none,
            features={name: np.array([x for _, _, x in part]) for name in names},
        )


def judged(step: Step, n: int = 6000, seed: int = 1, origin: Origin = ORIGIN) -> Report:
    return report_on(origin, rows(step, n, seed), made_at=0.0)


def right(i: int, rng: random.Random, good: float) -> tuple[bool, float, float]:
    label = rng.random() < 0.5
    return label, good if (rng.random() < good) == label else 1 - good, rng.random()


@pytest.mark.parametrize("seed", range(4))
def test_a_good_model_is_ok(seed: int) -> None:
    report = judged(lambda i, r: right(i, r, 0.9), seed=seed)
    assert report.verdict.state == "ok", report.verdict
    assert report.verdict.exit_code == 0
    assert report.verdict.do == "Nothing."


def test_a_fall_is_acted_on_since_where_it_began() -> None:
    report = judged(lambda i, r: right(i, r, 0.9 if i < 4000 else 0.7))
    verdict = report.verdict
    assert (verdict.state, verdict.exit_code) == ("act", 1)
    assert verdict.since_row is not None
    assert abs(verdict.since_row - 4000) <= 6000 / 40 + report.performance.window_rows
    assert verdict.reasons[0].section == "performance"


def test_a_fall_that_is_over_is_told_and_not_acted_on() -> None:
    report = judged(lambda i, r: right(i, r, 0.6 if 3500 <= i < 4500 else 0.9))
    assert report.verdict.state == "ok", report.verdict
    assert any("it has come back" in r.text for r in report.verdict.reasons)


def test_a_bad_start_is_no_reason_for_lax_limits() -> None:
    """An online learner starts with many errors; the fall later is seen all the same."""
    report = judged(lambda i, r: right(i, r, 0.55 if i < 600 else 0.7 if i > 4500 else 0.92))
    assert report.verdict.state == "act"


@pytest.mark.parametrize("begins", [900, 2000, 4000])
def test_a_failure_in_the_half_that_was_taken_for_normal_is_acted_on(begins: int) -> None:
    """Six labels, of which a broken model knows the commonest a little better than the rules do.

    Median and spread of the first half were those of the failure: watch, exit code 0.
    """
    labels = "abcdef"
    rng = random.Random(1)
    truth = [rng.choice(labels) for _ in range(6000)]
    said = [
        y if rng.random() < (0.9 if i < begins else 0.1) else rng.choice(labels)
        for i, y in enumerate(truth)
    ]
    none = np.full(6000, np.nan)
    table = Rows(
        label=list(truth), predicted=list(said), probabilities=[None] * 6000, time=none,
        label_time=none, features={},
    )  # fmt: skip
    report = report_on(Origin("file", "f.csv", "multiclass", delay=5), [table], made_at=0.0)
    assert (report.verdict.state, report.verdict.exit_code) == ("act", 1), report.verdict
    assert report.performance.limits is not None
    assert report.performance.limits.act < 0.3
    assert report.verdict.since_row == pytest.approx(begins, abs=150)


def test_a_limit_is_never_above_what_no_model_at_all_gets_wrong() -> None:
    """Broken from its first row on: there is no good time that it could be measured against."""

    def step(i: int, rng: random.Random) -> tuple[bool, float, float]:
        label = rng.random() < 0.5
        return label, 0.9 if (rng.random() < 0.3) == label else 0.1, rng.random()

    report = judged(step)
    assert report.performance.limits is not None
    assert report.performance.limits.act < 0.7
    assert report.verdict.state == "act"


def test_a_window_that_is_cut_off_draws_no_fall() -> None:
    """Six rows, four of them wrong, after 6,016 right ones in whole windows."""
    report = judged(lambda i, r: (True, 0.9 if i < 6018 else 0.1, r.random()), n=6022)
    windows = report.performance.windows
    assert windows[-1].last_row == 6022
    assert windows[-1].rows == report.performance.window_rows + 6022 % 128
    assert min(w.scores.accuracy or 0.0 for w in windows) > 0.9
    assert sum(w.rows for w in windows) == 6022


def test_one_bad_window_is_none() -> None:
    report = judged(lambda i, r: right(i, r, 0.5 if i >= 5900 else 0.9))
    assert report.verdict.state in ("ok", "watch")


def test_inputs_that_move_while_the_score_holds_are_no_reason() -> None:
    def step(i: int, rng: random.Random) -> tuple[bool, float, float]:
        label, p, x = right(i, rng, 0.9)
        return label, p, x + (5 if i > 3000 else 0)

    report = judged(step)
    assert report.feature_drift is not None
    assert report.feature_drift.features[0].level == "large"
    assert report.verdict.state == "ok"
    assert any("but the score is as before" in r.text for r in report.verdict.reasons)


def test_inputs_that_move_where_no_label_is_in_are_watched() -> None:
    def step(i: int, rng: random.Random) -> tuple[bool | None, float, float]:
        label, p, x = right(i, rng, 0.9)
        return (label, p, x) if i < 4000 else (None, p, x + 5)

    report = judged(step)
    assert report.verdict.state == "watch"
    assert "no label of rows after" in report.verdict.sentence
    assert report.performance.estimate is not None
    assert report.performance.estimate.n == 2000
    assert report.performance.estimate.accuracy == pytest.approx(0.9, abs=0.03)


def test_a_feature_that_vanishes_is_acted_on() -> None:
    def step(i: int, rng: random.Random) -> tuple[bool, float, float]:
        label, p, x = right(i, rng, 0.9)
        return label, p, x if i < 4000 else float("nan")

    report = judged(step)
    assert report.verdict.state == "act"
    assert report.verdict.sentence.startswith("‘x’ is missing")
    assert "this column" in report.verdict.do
    two = report_on(ORIGIN, rows(step, 6000, names="xy"), made_at=0.0).verdict
    assert two.sentence.startswith("‘x’, ‘y’ are missing")
    assert "these columns" in two.do


def test_a_model_that_a_rule_beats_is_acted_on() -> None:
    """Labels come in long runs: the last one is right in 95 %, the model in 80 %."""
    runs = [bool((i // 20) % 2) for i in range(6000)]

    def step(i: int, rng: random.Random) -> tuple[bool, float, float]:
        good = rng.random() < 0.8
        return runs[i], 0.8 if good == runs[i] else 0.2, rng.random()

    at_once = Origin("file", "f.csv", "binary", names=ORIGIN.names)
    report = judged(step, origin=at_once)
    assert report.verdict.state == "act"
    assert report.verdict.reasons[0].section == "comparison"
    assert "--delay" in report.verdict.do  # that labels come at once was only taken to be so
    late = judged(step, origin=ORIGIN)
    assert late.performance.overall.no_change == pytest.approx(0.75, abs=0.01)


def test_a_model_that_is_as_good_as_chance_is_never_ok() -> None:
    report = judged(lambda i, r: (r.random() < 0.5, r.random(), r.random()))
    assert report.verdict.state in ("watch", "act")


@pytest.mark.parametrize("streams", [8, pytest.param(40, marks=pytest.mark.long)])
def test_a_steady_stream_is_rarely_alarmed(streams: int) -> None:
    """At most one of them is told to act or watch for a change that is none."""
    found = [
        judged(lambda i, r: right(i, r, 0.85), n=2500, seed=seed).verdict
        for seed in range(100, 100 + streams)
    ]
    wrong = [v.sentence for v in found if v.state != "ok"]
    assert len(wrong) <= 1, wrong


def test_a_change_is_split_into_its_parts() -> None:
    """Accuracy .9 for x < ½ and .6 above: only the mix changes, so all of it is the inputs'."""

    def step(i: int, rng: random.Random) -> tuple[bool, float, float]:
        x = rng.random() ** (1.0 if i < 4000 else 0.35)
        label, p, _ = right(i, rng, 0.9 if x < 0.5 else 0.6)
        return label, p, x

    causes = judged(step, 8000).causes
    assert causes is not None
    assert causes.covariate + causes.rest == pytest.approx(causes.change, abs=1e-12)
    assert causes.covariate < -0.05
    assert abs(causes.rest) < 0.05
