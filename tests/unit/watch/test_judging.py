"""The judge of a served model: what it sees, once, and what it tells."""

from __future__ import annotations

from concurrent.futures import Executor, Future
from random import Random
from typing import Any

import pytest

from evaluation.drift.alarm import Alarm
from evaluation.metrics import Task
from online.models.base import Prediction
from online.settings.model import Drift
from online.watch.drift import STATES, DriftMonitor
from replay.example import Example, Label
from replay.journal.base import Row, Verdict

SETTINGS = Drift(reference_rows=200, window_rows=200)


def example(draw: Random, right: float, shift: float = 0.0, **more: Any) -> Example:
    """A row of a binary model that answers True with .8 and is right so often."""
    label: Label = draw.random() < right
    score = {"true": 0.8, "false": 0.2}
    return Example({"x": draw.gauss(shift, 1.0)}, label, score=score, predicted_at=1.0, **more)


def teach(
    judge: DriftMonitor, rows: int, right: float, *, first: int = 1, shift: float = 0.0
) -> int:
    draw = Random(first)
    for i in range(first, first + rows):
        judge.learned(1, i, example(draw, right, shift), float(i))
    return first + rows


def test_an_error_that_rises_is_told_once_and_is_a_state() -> None:
    seen: list[Alarm] = []
    since: list[float] = []

    def risen(alarm: Alarm, before: float) -> None:
        seen.append(alarm)
        since.append(before)

    judge = DriftMonitor(SETTINGS, "binary", risen)
    assert judge.summary()["state"] == "not enough data"
    assert judge.report()["drift_state"] == 0
    n = teach(judge, 1_000, 0.85)
    assert judge.summary()["state"] == "ok"
    teach(judge, 1_000, 0.4, first=n)
    shown = judge.summary()
    assert shown["state"] == "act"
    assert STATES[int(judge.report()["drift_state"])] == "act"
    assert [alarm.signal for alarm in seen] == ["error"]
    assert n <= seen[0].row <= n + 200
    assert seen[0].since - 33 <= since[0] < seen[0].since, "rows are taken at their numbers"
    assert shown["newest"][0]["signal"] == "error"


def test_a_row_that_is_learned_again_is_judged_once() -> None:
    judge = DriftMonitor(SETTINGS, "binary")
    draw = Random(1)
    for _ in range(3):
        for i in range(1, 11):
            judge.learned(1, i, example(draw, 0.8), float(i))
            judge.learned(2, i, example(draw, 0.8), float(i))
    assert judge.summary()["judged"] == 20


@pytest.mark.parametrize(
    ("task", "label", "answer"),
    [("regression", 2.5, {"true": 0.5, "false": 0.5}), ("multiclass", "a", {"": 0.5})],
)
def test_an_answer_from_before_a_change_of_the_task_is_no_error(
    task: Task, label: Label, answer: dict[str, float]
) -> None:
    judge = DriftMonitor(SETTINGS, task)
    judge.learned(1, 1, Example({"x": 1.0}, label, score=answer), 1.0)
    row = Row(2, 1, 2, b"k" * 16, "e", "s", Verdict.ACCEPTED, 1.0, b"", 2.0)
    judge.learned_all([row], [Example({"x": 1.0}, label, score=answer)])
    assert (judge.summary()["served"], judge.summary()["judged"]) == (2, 0)


def test_features_that_move_are_named() -> None:
    judge = DriftMonitor(SETTINGS, "binary")
    n = teach(judge, 600, 0.8)
    teach(judge, 600, 0.8, first=n, shift=2.0)
    shown = judge.summary()
    assert shown["shifts"][0]["name"] == "x"
    assert shown["shifts"][0]["state"] == "act"


def test_answers_without_labels_have_an_expected_accuracy() -> None:
    judge = DriftMonitor(SETTINGS, "binary")
    for _ in range(300):
        judge.asked(Prediction(True, {True: 0.8, False: 0.2}))
    estimate = judge.summary()["without_labels"]
    assert estimate["accuracy"] == pytest.approx(0.8)
    assert estimate["n"] == 300
    assert "concept drift" in estimate["note"]
    teach(judge, 200, 0.8)
    assert judge.summary()["without_labels"]["n"] == 100


def test_rows_without_an_answer_and_odd_answers_stop_nothing() -> None:
    judge = DriftMonitor(SETTINGS, "binary")
    judge.learned(1, 1, Example({"x": 1.0}, True), 1.0)
    judge.learned(1, 2, Example({"x": None, "y": "text"}, True, score={"true": 7.0}), 2.0)
    judge.asked(Prediction(None, {}))
    judge.asked(Prediction(True, None))
    assert judge.unusable == 1
    assert judge.summary()["served"] == 1


def test_regression_is_judged_by_its_errors() -> None:
    seen: list[Alarm] = []
    judge = DriftMonitor(SETTINGS, "regression", lambda alarm, _: seen.append(alarm))
    draw = Random(2)
    for i in range(1, 1_601):
        off = draw.gauss(0.0, 1.0 if i < 900 else 6.0)
        judge.learned(1, i, Example({"x": 1.0}, 5.0, score={"": 5.0 + off}), float(i))
    assert seen
    assert judge.summary()["state"] == "act"
    assert judge.summary()["without_labels"] is None


@pytest.mark.parametrize(("rewards", "state"), [((0.0, 10.0), "act"), (None, "ok")])
def test_choices_are_judged_by_what_rewards_are_short_of(
    rewards: tuple[float, float] | None, state: str
) -> None:
    """What is expected follows the rewards, so that its own error tells nothing."""
    seen: list[Alarm] = []
    judge = DriftMonitor(
        SETTINGS, "regression", lambda alarm, _: seen.append(alarm), rewards=rewards
    )
    draw, n = Random(3), 0
    for share in (0.9, 0.5):
        for _ in range(1_000):
            n += 1
            reward = min(max(draw.gauss(10 * share, 1.0), -1.0), 11.0)  # a model may be told more
            off = draw.gauss(0.0, 1.0)
            judge.learned(1, n, Example({"x": 1.0}, reward, score={"": reward + off}), float(n))
        shown = judge.summary()
        assert shown["state"] == ("ok" if share == 0.9 else state), shown["why"]
    assert len(seen) == (rewards is not None)
    if seen:
        assert 1_001 <= seen[0].row <= 1_100
        assert seen[0].before == pytest.approx(0.1, abs=0.05)


def test_the_reference_is_worked_out_aside() -> None:
    asked: list[Any] = []

    class Aside(Executor):
        def submit(self, call: Any, /, *args: Any, **kwargs: Any) -> Any:
            asked.append((call, future := Future[Any]()))
            return future

    judge = DriftMonitor(SETTINGS, "binary", aside=Aside())
    n = teach(judge, 600, 0.8)
    ((call, future),) = asked
    assert not judge.summary()["shifts"]
    future.set_result(call())
    teach(judge, 600, 0.8, first=n, shift=2.0)
    assert judge.summary()["shifts"][0]["name"] == "x"
    assert len(asked) == 1


def test_a_request_to_copy_has_the_models_names_and_none_of_its_values() -> None:
    judge = DriftMonitor(SETTINGS, "multiclass")
    assert judge.example is None
    row = {"price": 17.25, "n": 3, "city": "Oslo", "new": False, "gone": None}
    judge.learned(1, 1, Example({**row, **{f"z{i}": 1.0 for i in range(9)}}, "red"), 1.0)
    assert judge.example is not None
    features = judge.example["features"]
    assert len(features) == 8
    assert features["price"] == 1.0
    assert (features["n"], features["city"], features["new"]) == (1, "text", True)
    assert judge.example["label"] == "red"
    assert "gone" not in features
    binary = DriftMonitor(SETTINGS, "binary")
    binary.learned(1, 1, Example({"x": 1.0}, True), 1.0)
    assert binary.example == {"features": {"x": 1.0}, "label": None}, "the status has its labels"
