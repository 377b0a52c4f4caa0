"""The loss on rows that an operator vouches for rises when a model is taught lies, and rings."""

from __future__ import annotations

import math
from itertools import islice
from typing import Any

import pytest

from benchmarks.attacks.honest import Loop
from evaluation.drift.alarm import Alarm
from evaluation.streams import open_stream
from online.models.base import Prediction, by_probability
from online.settings.model import Drift, ModelSettings
from online.watch.canary import ROWS_MAX, WARM, Canary
from online.watch.drift import DriftMonitor
from replay.example import Example

ROWS = list(islice(iter(open_stream("phishing", None).rows), 1_000))
ROOT = [row for row in ROWS[:60] if row[1]][:10] + [row for row in ROWS[:60] if not row[1]][:10]
LIES = range(500, 700)


def rung(lies: range, canary: Any = None) -> list[tuple[int, int]]:
    """When it rings, and since when it says the loss has risen."""
    loop = Loop(
        ModelSettings(name="m", task="binary", learner="logreg", filters="none"), vouched=False
    )
    canary = canary or Canary(ROOT, lambda: loop.model)
    found = []
    for n, (features, label) in enumerate(ROWS):
        loop.step("s", features, label is not True if n in lies else label)
        if (alarm := canary.learned(n, float(n))) is not None:
            found.append((n, alarm.since))
    return found


def test_lies_ring_within_a_hundred_of_them_and_nothing_else_does() -> None:
    assert rung(range(0)) == []
    (alarm,) = rung(LIES)
    assert LIES.start < alarm[0] <= LIES.start + 100
    assert LIES.start - 2 * ROWS_MAX <= alarm[1] <= alarm[0], "from before the lies, or nearly"


def test_a_canary_that_looks_at_another_model_notices_nothing() -> None:
    other = Loop(
        ModelSettings(name="m", task="binary", learner="logreg", filters="none"), vouched=False
    )
    assert rung(LIES, Canary(ROOT, lambda: other.model)) == []


class Says:
    """Answers what it is told to; counts how often it is asked."""

    def __init__(self, p: float | None) -> None:
        self.p, self.asked = p, 0

    def predict(self, features: Any) -> Prediction:
        self.asked += 1
        return Prediction(0.5, None) if self.p is None else by_probability(self.p)


def test_no_learned_row_waits_for_more_than_two_answers() -> None:
    model: Any = Says(0.9)
    canary = Canary(ROWS, lambda: model)  # a thousand
    for n in range(100):
        canary.learned(n, 0.0)
        assert model.asked <= 2 * (n + 1)


@pytest.mark.parametrize("p", [None, 0.0, math.nan])
def test_whatever_is_answered_is_a_loss(p: float | None) -> None:
    model: Any = Says(p)
    canary = Canary(ROOT, lambda: model)
    for n in range(50 * ROWS_MAX):
        assert canary.learned(n, 0.0) is None
    assert canary.loss is not None
    assert math.isfinite(canary.loss)


def test_an_answer_that_is_no_number_is_the_worst_and_is_forgotten_when_it_is_over() -> None:
    model: Any = Says(None)
    model.predict = lambda features: Prediction(model.p, None)
    canary = Canary([({"a": 1.0}, 0.0)], lambda: model)
    rung = list[int]()
    for n in range(8 * WARM):
        model.p = math.nan if 2 * WARM <= n < 3 * WARM else 1e9 if n >= 6 * WARM else 0.5
        if canary.learned(n, 0.0) is not None:
            rung.append(n)
            canary.rewritten()
    first, *later = rung
    assert 2 * WARM <= first < 3 * WARM
    assert any(n >= 6 * WARM for n in later), "it goes on watching"


def test_the_judge_acts_on_it() -> None:
    seen: list[tuple[Alarm, float]] = []
    model: Any = Says(0.9)
    judge = DriftMonitor(
        Drift(), "binary", lambda alarm, since: seen.append((alarm, since)),
        canary=Canary([({"a": 1.0}, True)], lambda: model),
    )  # fmt: skip
    for offset in range(1, 3 * WARM):
        model.p = 0.9 if offset < 2 * WARM else 0.001
        example = Example({"a": 1.0}, True, score={"true": 0.9, "false": 0.1})
        judge.learned(1, offset, example, float(offset))
    ((alarm, since),) = seen
    assert alarm.detector == "canary"
    assert alarm.worse
    assert since <= 2 * WARM
    assert judge.summary()["newest"][0]["detector"] == "canary"
    assert judge.summary()["canary_loss"] > 1


def test_it_rings_where_no_row_had_an_answer() -> None:
    seen: list[float] = []
    model: Any = Says(0.9)
    judge = DriftMonitor(
        Drift(), "binary", lambda alarm, since: seen.append(since),
        canary=Canary([({"a": 1.0}, True)], lambda: model),
    )  # fmt: skip
    for offset in range(1, 3 * WARM):
        model.p = 0.9 if offset < 2 * WARM else 0.001
        judge.learned(1, offset, Example({"a": 1.0}, True), float(offset))
    assert seen == [1.0]


@pytest.mark.parametrize("rewritten", [True, False])
def test_after_a_rollback_it_knows_what_was_usual_and_rings_again(rewritten: bool) -> None:
    model: Any = Says(0.9)
    canary = Canary([({"a": 1.0}, True)], lambda: model)
    rung = list[int]()
    for n in range(6 * WARM):
        back = 0 if not rung else n - rung[0]
        model.p = 0.9 if n < 2 * WARM or 0 < back < 4 else 0.01  # rolled back, and lies go on
        if back == 1 and rewritten:
            canary.rewritten()
        if canary.learned(n, 0.0) is not None:
            rung.append(n)
    assert rung[0] <= 3 * WARM
    assert len(rung) == (2 if rewritten else 1), "what lies have made is not usual"


def test_a_rewrite_without_an_alarm_before_it_changes_no_baseline() -> None:
    model: Any = Says(0.9)
    canary = Canary([({"a": 1.0}, True)], lambda: model)
    for n in range(2 * WARM):
        assert canary.learned(n, 0.0) is None
    canary.rewritten()
    model.p = 0.01
    assert any(canary.learned(n, 0.0) for n in range(WARM))
