"""Rows that are watched many at a time leave what one by one leaves: counts, alarms, state."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from evaluation.drift.alarm import Alarm
from evaluation.drift.detectors import DETECTORS, detector, updates
from evaluation.drift.error_history import ErrorHistory
from evaluation.drift.glr import Glr
from evaluation.drift.labelfree import LabelFree
from evaluation.drift.profile import Window
from evaluation.drift.watch import Watch, WatchSettings

SETTINGS = WatchSettings(reference_rows=200, window_rows=300)


def number(rng: random.Random, turned: bool) -> float:
    return rng.gauss(3.0 if turned else 0.0, 1.0)


def table(rng: random.Random, turned: bool) -> dict[str, Any]:
    """A row of numbers, whole ones and truths among them; now and then one is missing, or text."""
    row: dict[str, Any] = {name: number(rng, turned) for name in "abcd"}
    row["whole"], row["truth"] = rng.randint(0, 5), rng.random() < 0.5
    if rng.random() < 0.01:
        row["a"] = rng.choice([None, "text", float("nan"), 10**40])
    if rng.random() < 0.01:
        del row["b"]
    if rng.random() < 0.01:
        row["more"] = 1.0
    return row


def stream(seed: int, n: int) -> list[tuple[Any, ...]]:
    """Rows, scores, errors, rules and times of a stream that turns twice."""
    rng, out, at = random.Random(seed), [], 0.0
    odd = seed % 3 == 2  # not in the order of their times
    for i in range(n):
        turned = n // 3 < i < n // 2
        wrong = rng.random() < (0.6 if turned else 0.1)
        rule = rng.choice([None, float(rng.random() < 0.3)])
        at += rng.choice([0.0, 1.0, -2.0 if odd and rng.random() < 0.1 else 0.5])
        score = min(max(rng.gauss(0.8 if turned else 0.3, 0.1), 0.0), 1.0)
        out.append((table(rng, turned), score, float(wrong), rule, at))
    return out


def told(watch: Watch) -> list[Any]:
    """All that a watch knows, and how its detectors go on."""
    window = None if watch.window is None else (watch.window.counters(), watch.window.unknown)
    rising = watch._rising
    scores: list[Any] = [one for _, one in watch._score]
    return [
        watch.state(), list(watch.alarms), window, watch.alarm_count, rising.raised, rising._level,
        rising._history.__dict__, [_plain(one) for _, one in rising._detectors],
        vars(watch._order), [(one._n, one._sum) for one in scores],
    ]  # fmt: skip


def _plain(one: Any) -> dict[str, Any]:
    return {name: value for name, value in vars(one).items() if name != "_river"}


def play(seed: int, settings: WatchSettings = SETTINGS) -> int:
    """Show the same rows to two watches, to one of them many at a time; the alarms."""
    one, many = Watch(settings), Watch(settings)
    rng, rows = random.Random(seed), stream(seed, 4000)
    first: list[tuple[int, Alarm]] = []
    second: list[tuple[int, Alarm]] = []
    start = 0
    while start < len(rows):
        some = rows[start : start + rng.randint(1, 400)]
        for i, (features, score, error, rule, at) in enumerate(some, start):
            alarms = one.served(features, score, at=at) + one.judged(error, rule=rule, at=at)
            first += [(i, alarm) for alarm in alarms]
        columns = [list(column) for column in zip(*some, strict=True)]
        second += [(start + i, alarm) for i, alarm in many.learned(*columns)]
        start += len(some)
        assert told(one) == told(many)
    assert first == second
    return len(first)


@pytest.mark.parametrize("seed", range(3))
def test_many_rows_leave_what_one_by_one_leaves(seed: int) -> None:
    assert play(seed) > 0 or seed == 2, "nothing was to be noticed"


def test_nor_do_features_with_detectors_or_hardly_any_labels_differ() -> None:
    settings = WatchSettings(
        features=("adwin",), error=("glr", "ddm"), reference_rows=200, window_rows=300
    )
    play(0, settings)


CHANGES: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "windows that never end": lambda patch: patch.setattr(
        Watch, "_by_column", lambda self, start, at: len(at) if self.window else start
    ),
    "counts of one row less": lambda patch: patch.setattr(
        Window, "add_all", lambda self, rows: [self.add(x) for x in rows[1:]]
    ),
    "a past of errors alone": lambda patch: patch.setattr(
        ErrorHistory, "add_all", lambda self, errors, rules: [self.add(e) for e in errors]
    ),
    "a block that is left open": lambda patch: patch.setattr(
        Glr, "update_all", lambda self, xs: [self.update(x) for x in xs] and []
    ),
}


@pytest.mark.parametrize("change", list(CHANGES))
def test_a_difference_is_noticed(change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    CHANGES[change](monkeypatch)
    with pytest.raises(AssertionError):
        play(0)


@pytest.mark.parametrize("name", list(DETECTORS))
def test_a_detector_takes_many_as_one_after_the_other(name: str) -> None:
    rng = random.Random(name)
    one, many = detector(name), detector(name)
    for chunk in range(60):
        high = 0.8 if chunk // 20 % 2 else 0.2
        xs = [float(rng.random() < high) for _ in range(rng.randint(1, 50))]
        found = [(i, c) for i, x in enumerate(xs) if (c := one.update(x)) is not None]
        assert updates(many, xs) == found


def test_labels_of_many_leave_what_one_by_one_leave() -> None:
    rng = random.Random(1)
    one, many = LabelFree(memory=50), LabelFree(memory=50)
    for _ in range(20):
        for _ in range(30):
            share = rng.random()
            one.served(share)
            many.served(share)
        answers = [(rng.random(), rng.random() < 0.7, rng.random() < 0.5) for _ in range(40)]
        for share, right, was_open in answers:
            one.judged(share, right, was_open=was_open)
        many.judged_all(answers)
        assert one.__dict__ == many.__dict__
