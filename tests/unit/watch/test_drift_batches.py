"""A judge that is shown many rows at a time notices what it notices row by row."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from evaluation.drift.alarm import Alarm
from online.learning.counters import Tally
from online.settings.model import Drift
from online.watch.drift import _WAITING_MAX, TOGETHER, DriftMonitor
from replay.example import Example
from replay.journal.base import Row, Verdict

SETTINGS = Drift(reference_rows=200, window_rows=300)
LABELS: dict[str, tuple[Any, ...]] = {
    "binary": (False, True),
    "multiclass": ("a", "b", 3),
    "regression": (),
}
TEXTS = {False: "false", True: "true", "a": '"a"', "b": '"b"', 3: "3"}


def example(rng: random.Random, task: str, turned: bool) -> Example:
    """A row with its answer, now and then an odd one, or none."""
    features: Any = {name: rng.gauss(2.0 if turned else 0.0, 1.0) for name in "abc"}
    no_change = rng.choice([None, True, "a"])
    weight = rng.choice([1.0, 1.0, 1.0, 2.0, 0.25, 1e-9])
    event_time = rng.choice([None, rng.uniform(0.0, 400.0), 1e18])
    times = {"predicted_at": rng.choice([None, 1.0]), "event_time": event_time}
    if task == "regression":
        target = rng.gauss(0, 1)
        said = target + rng.gauss(0, 5.0 if turned else 1.0)
        return Example(features, target, weight, {"": said}, None, no_change=no_change, **times)
    labels = LABELS[task]
    label = rng.choice(labels)
    wrong = rng.random() < (0.7 if turned else 0.1)
    others = [other for other in labels if other != label]
    said = rng.choice(others) if wrong else label
    p = 0.5 + rng.random() / 2
    rest = {TEXTS[other]: (1.0 - p) / (len(labels) - 1) for other in labels if other != said}
    score: Any = {**rest, TEXTS[said]: p}
    if rng.random() < 0.01:
        score = rng.choice([None, {}, {TEXTS[said]: 1.5}, {TEXTS[said]: float("nan")}])
    return Example(features, label, weight, score, None, no_change=no_change, **times)


def by_itself(example: Example) -> float:
    """Rows count as they weigh, whatever others weigh."""
    return min(example.weight, 1.0)


def watched(
    task: Any, said: list[tuple[Alarm, float]], share: Callable[[Example], float] = by_itself
) -> DriftMonitor:
    def rises(alarm: Alarm, since: float) -> None:
        said.append((alarm, since))

    return DriftMonitor(SETTINGS, task, rises, share=share)


def told(judge: DriftMonitor) -> list[Any]:
    without = judge._without and vars(judge._without)
    shown = repr((judge.summary(), judge.report(), judge.newest(50), judge.example))
    return [shown, judge.unusable, list(judge._taken), judge._judged, without]


def play(task: str, seed: int) -> int:
    rng = random.Random(seed)
    said: list[list[tuple[Alarm, float]]] = [[], []]
    one, many = watched(task, said[0]), watched(task, said[1])
    offset = 1
    while offset < 3000:
        turned, n = 1000 < offset < 2000, rng.randint(1, 80)
        examples = [example(rng, task, turned) for _ in range(n)]
        rows = [
            Row(i, 1, i, bytes(16), str(i), "s", Verdict.ACCEPTED, 1.0, b"", float(i // 7))
            for i in range(offset, offset + n)
        ]
        offset += n
        again = rng.random() < 0.2  # another copy learns them again: they count once
        for _ in range(1 + again):
            for row, shown in zip(rows, examples, strict=True):
                one.learned(1, row.offset, shown, row.at)
            many.learned_all(rows, examples)
        if rng.random() < 0.3:  # the others wait for those that come
            assert told(one) == told(many)
    assert told(one) == told(many)
    assert said[0] == said[1]
    return len(said[0])


@pytest.mark.parametrize("task", list(LABELS))
def test_many_rows_are_judged_as_one_after_the_other(task: str) -> None:
    assert play(task, 1) > 0, "nothing was to be noticed"


def forget_what_was_judged(patch: pytest.MonkeyPatch) -> None:
    real = DriftMonitor.learned_all

    def forgets(self: DriftMonitor, rows: Any, examples: Any) -> None:
        self._judged.clear()
        real(self, rows, examples)

    patch.setattr(DriftMonitor, "learned_all", forgets)


def look_only_when_there_are_many(patch: pytest.MonkeyPatch) -> None:
    real = DriftMonitor.look

    def looks(self: DriftMonitor) -> None:
        if len(self._waiting.features) >= TOGETHER:
            real(self)

    patch.setattr(DriftMonitor, "look", looks)


@pytest.mark.parametrize("change", [forget_what_was_judged, look_only_when_there_are_many])
def test_a_difference_is_noticed(
    change: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    change(monkeypatch)
    with pytest.raises(AssertionError):
        play("binary", 1)


def looks(rows: int, *, asked: bool, wide: int = 3) -> list[int]:
    """How many rows of so many features the watch was shown at each look."""
    rng, judge, seen = random.Random(3), watched("binary", []), list[int]()
    real = judge._watch.learned

    def noted(features: Any, *columns: Any) -> Any:
        seen.append(len(features))
        return real(features, *columns)

    judge._watch.learned = noted  # type: ignore[method-assign]
    usual = example(random.Random(4), "binary", False)
    usual = msgspec.structs.replace(usual, features={f"f{i}": 1.0 for i in range(wide)})
    for i in range(1, rows + 1):
        one = msgspec.structs.replace(usual, label=rng.random() < 0.5)
        row = Row(i, 1, i, bytes(16), str(i), "s", Verdict.ACCEPTED, 1.0, b"", float(i))
        judge.learned_all([row], [one])
        if asked and judge.due:
            judge.look()
    assert judge.report()["drift_judged"] == rows
    return seen


def test_rows_are_due_when_some_dozens_wait() -> None:
    half = TOGETHER // 2
    assert looks(2 * TOGETHER + half, asked=True) == [TOGETHER, TOGETHER, half]


@pytest.mark.parametrize(("wide", "rows"), [(30, 34), (60, 17), (200, 8)])
def test_the_wider_rows_are_the_fewer_are_looked_at_at_once(wide: int, rows: int) -> None:
    assert looks(3 * rows + 1, asked=True, wide=wide) == [rows, rows, rows, 1]


def test_a_window_ends_with_a_look_and_its_comparisons_are_shared_out() -> None:
    """Behind it each row compares a feature, which takes longer than the row."""
    reference, window, wide = SETTINGS.reference_rows, SETTINGS.window_rows, 30
    seen = looks(reference + window + wide + 60, asked=True, wide=wide)
    ends = list(itertools.accumulate(seen))
    assert reference + window in ends, ends
    behind = ends.index(reference + window) + 1
    assert set(seen[behind : behind + 3]) == {8}, seen


def test_no_more_wait_than_the_bound_if_nobody_looks() -> None:
    assert looks(_WAITING_MAX + 5, asked=False) == [_WAITING_MAX, 5]


@pytest.mark.parametrize("odd", ["late", "ahead"])
@pytest.mark.parametrize("together", [False, True])
def test_times_that_a_sender_makes_up_do_not_blind_the_judge(odd: str, together: bool) -> None:
    """A third of the labels come late, or with times in milliseconds; then the world turns."""
    rng, judge = random.Random(5), watched("binary", [])
    for offset in range(1, 2400, 24):
        rows = [
            Row(i, 1, i, bytes(16), str(i), "s", Verdict.ACCEPTED, 1.0, b"", 1.7e9 + i)
            for i in range(offset, offset + 24)
        ]
        examples = [
            msgspec.structs.replace(
                example(rng, "binary", offset > 1200),
                event_time=None if i % 3 else row.at * 1000 if odd == "ahead" else row.at - 86_400,
            )
            for i, row in enumerate(rows)
        ]
        if together:
            judge.learned_all(rows, examples)
        else:
            for row, shown in zip(rows, examples, strict=True):
                judge.learned(1, row.offset, shown, row.at)
    found = judge.summary()
    assert found["state"] == "act"
    assert 1.7e9 - 86_400 <= found["newest"][0]["at"] <= 1.7e9 + 2400


@pytest.mark.parametrize(("weight", "state"), [(1e-9, "ok"), (0.01, "ok"), (1.0, "act")])
@pytest.mark.parametrize("unit", [1.0, 0.05])
@pytest.mark.parametrize("together", [False, True])
def test_rows_count_as_they_weigh(weight: float, state: str, unit: float, together: bool) -> None:
    """Whoever sends errors that teach nothing is blamed for none, and so may raise no alarm."""
    tally = Tally()
    rng, judge = random.Random(7), watched("binary", [], tally.share)
    for offset in range(1, 3000, 24):
        examples = []
        for i in range(24):
            wrong = offset > 1500 and i % 4 == 0
            label = rng.random() < 0.5
            share = {"true": 0.9 if label != wrong else 0.1}
            score = {**share, "false": 1.0 - share["true"]}
            examples.append(Example({"a": 1.0}, label, unit * (weight if wrong else 1.0), score))
        rows = [
            Row(offset + i, 1, offset + i, bytes(16), "", "s", Verdict.ACCEPTED, 1.0, b"", 1.7e9)
            for i in range(24)
        ]
        for row, shown in zip(rows, examples, strict=True):
            tally.weigh(shown)
            tally.add(row.offset.to_bytes(16, "big"), {}, None, row.at)
            if not together:
                judge.learned(1, row.offset, shown, row.at)
        if together:
            judge.learned_all(rows, examples)
    assert judge.summary()["state"] == state
    assert judge.summary()["judged"] >= 2250 - 24
