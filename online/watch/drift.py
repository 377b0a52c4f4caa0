"""Drift detection for one model in one replica: drift of its inputs, scores and errors.

The judge sees the replica's own rows in the order in which they are learned, and the answers to
rows without labels.  Its state is disposable: it is lost with the process, and a new process starts
with the next rows.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import asdict
from itertools import accumulate
from typing import Any, Final, NamedTuple

from evaluation.drift.alarm import Alarm
from evaluation.drift.errors import ShareUnusable
from evaluation.drift.labelfree import LabelFree
from evaluation.drift.watch import Watch, WatchSettings
from evaluation.metrics import Task
from online.models.base import Prediction
from online.settings.model import Drift
from online.watch.canary import Canary
from replay.example import Example, Features, is_unlabelled, label_text
from replay.journal.base import Row

log = logging.getLogger(__name__)

STATES: Final = ("not enough data", "ok", "watch", "act")
"""The states; gauges have their indices."""

HEARD_S: Final = 30.0
"""Seconds without contact after which a replica's state no longer counts."""

TOGETHER: Final = 64
"""Rows in a batch for the watch, unless its state is read earlier."""

NUMBERS: Final = 1_000
"""Values in a batch: it blocks the event loop for a time proportional to them."""

_FEW: Final = 8  # smaller batches are not worth their cost, whatever their width

_WAITING_MAX: Final = 16 * TOGETHER  # rows at which a batch is forced

_TIMES_EVERY: Final = 32
_TIMES_MAX: Final = 4096
_EXAMPLE_NAMES: Final = 8  # features in the example request

_SHOWN: Final = 20
"""Newest alarms in a status."""

_SAMPLE: Final = 16


class DriftMonitor:
    """Watches errors, scores and features of one model.

    Parameters:
        settings: Sizes of windows.
        task: The model's task.
        on_rise: Called when the error has risen, with the alarm and the time (POSIX seconds) at
            which a row from before the rise was received.
        aside: Executor for computing the reference of features; None: computed in this thread.
        canary: Watches the loss on trusted rows; None: there are none.
        rewards: Least and greatest reward of a model that chooses; its error is the distance of a
            reward from the greatest, as a share of the range.  None: the model predicts.
        share: Returns how much of a row an example counts, at most 1.

    Attributes:
        unusable: Number of rows whose answer could not be used.
        sample: Recently learned rows; not for display.
    """

    def __init__(
        self,
        settings: Drift,
        task: Task,
        on_rise: Callable[[Alarm, float], None] = lambda alarm, since: None,
        aside: Executor | None = None,
        canary: Canary | None = None,
        rewards: tuple[float, float] | None = None,
        share: Callable[[Example], float] = lambda example: 1.0,
    ) -> None:
        self._task, self._on_rise, self._canary = task, on_rise, canary
        self._rewards, self._share = rewards, share
        self._left = 0.0  # share of a row that has not counted yet
        self._watch = Watch(
            WatchSettings(
                regression=task == "regression" and rewards is None,
                reference_rows=settings.reference_rows,
                window_rows=settings.window_rows,
            ),
            aside=aside,
        )
        self._without = None if task == "regression" else LabelFree()
        self._judged: dict[int, int] = {}  # partition → last offset
        self._waiting = _Columns([], [], [], [], [])
        # (number of a labelled row, time at which it was received)
        self._taken: deque[tuple[int, float]] = deque(maxlen=_TIMES_MAX)
        self._at = -math.inf  # the latest time of a row, as its sender gave it
        self.unusable = 0
        self._newest: Example | None = None
        self.sample: deque[Features] = deque(maxlen=_SAMPLE)

    def asked(self, answer: Prediction) -> None:
        """Record an answer, whose label may or may not follow."""
        if self._without is not None and answer.probabilities:
            share = answer.probabilities.get(answer.label)  # type: ignore[arg-type]
            if share is not None and 0.0 <= share <= 1.0:
                self._without.served(share)

    def learned(self, partition: int, offset: int, example: Example, at: float) -> None:
        """Record a learned row of this replica; a replayed row counts once."""
        self.look()
        if offset <= self._judged.get(partition, 0):
            return
        self._judged[partition] = offset
        if self._counts(example):
            self._judge(example, at)

    def _counts(self, example: Example) -> bool:
        """Return whether the row counts, after those before it."""
        if (share := self._share(example)) >= 1.0:
            return True
        self._left += share
        whole = self._left >= 1.0
        self._left -= whole
        return whole

    def _judge(self, example: Example, at: float) -> None:
        self._newest = example
        self.sample.append(example.features)
        if not self._taken or (example.score and self._watch.judged_rows % _TIMES_EVERY == 0):
            self._taken.append((self._watch.judged_rows, at))
        try:
            self._at = max(self._at, _time_of(example, at))
            alarms = self._look(example, self._at)
        except ShareUnusable:
            self.unusable += 1
            return
        if self._canary is not None:
            rung = self._canary.learned(self._watch.judged_rows, at)
            if rung is not None:
                self._watch.note(rung)
                alarms = [*alarms, rung]
        for alarm in alarms:
            self._say(alarm)

    def learned_all(self, rows: Sequence[Row], examples: Sequence[Example]) -> None:
        """Record learned rows of this replica, none of them replayed.

        :meth:`look` passes them to the watch in batches, or when its state is read: a batch has a
        fixed cost of about twenty rows.
        """
        partition, both = rows[0].partition, zip(rows, examples, strict=True)
        if self._canary is not None or rows[0].offset <= self._judged.get(partition, 0):
            for row, example in both:
                self.learned(partition, row.offset, example, row.at)
            return
        self._judged[partition] = rows[-1].offset
        counted = [(row, one) for row, one in both if self._counts(one)]
        if counted:
            self._learned_together([row for row, _ in counted], [one for _, one in counted])

    def _learned_together(self, rows: Sequence[Row], examples: Sequence[Example]) -> None:
        looked = _looked(rows, examples, binary=self._task == "binary")
        if looked is None or self._without is None:
            self.look()
            for row, example in zip(rows, examples, strict=True):
                self._judge(example, row.at)
            return
        self._newest = examples[-1]
        self.sample.append(examples[-1].features)
        first = self._watch.judged_rows + len(self._waiting.features)
        for n in range(-(-first // _TIMES_EVERY) * _TIMES_EVERY, first + len(rows), _TIMES_EVERY):
            self._taken.append((n, rows[n - first].at))
        self._without.judged_all(looked.answers)
        self._waiting.extend(looked.columns._replace(at=self._ordered(looked.columns.at)))
        if len(self._waiting.features) >= _WAITING_MAX:
            self.look()

    def _ordered(self, times: Sequence[float]) -> list[float]:
        """Return the times, each at least that of any row before: labels may come late."""
        ordered = list(accumulate(times, max, initial=self._at))[1:]
        self._at = ordered[-1]
        return ordered

    @property
    def due(self) -> bool:
        """Return whether enough rows wait for :meth:`look`, in its own turn of the event loop."""
        rows = self._waiting.features
        if (n := len(rows)) < _FEW:
            return False
        return n >= TOGETHER or n * len(rows[-1]) >= NUMBERS or n >= self._watch.cheap

    def look(self) -> None:
        """Pass the waiting rows to the watch, with the same alarms as one by one."""
        if not self._waiting.features:
            return
        waiting, self._waiting = self._waiting, _Columns([], [], [], [], [])
        for _, alarm in self._watch.learned(*waiting):
            self._say(alarm)

    def _say(self, alarm: Alarm) -> None:
        log.warning("%s", alarm)
        if alarm.worse:
            self._on_rise(alarm, self._before(alarm.since))

    @property
    def example(self) -> dict[str, Any] | None:
        """Return an example request with names and types of the newest row, but not its values."""
        if (newest := self._newest) is None:
            return None
        names = sorted(name for name, value in newest.features.items() if value is not None)
        features = {name: _like(newest.features[name]) for name in names[:_EXAMPLE_NAMES]}
        return {"features": features, "label": newest.label if self._task == "multiclass" else None}

    def rewritten(self) -> None:
        """Reset after the model's values were rewritten, by a rollback or a forget."""
        if self._canary is not None:
            self._canary.rewritten()

    def _before(self, row: int) -> float:
        """Return when a labelled row before number ``row`` was received, or the oldest one."""
        older = [at for n, at in self._taken if n < row]
        return older[-1] if older else self._taken[0][1]

    def _look(self, example: Example, at: float) -> list[Alarm]:
        score = example.score
        if not score or ("" in score) != (self._task == "regression"):  # or of another task
            return self._watch.served(example.features, at=at)
        if self._task == "regression":
            alarms = self._watch.served(example.features, at=at)
            return alarms + self._watch.judged(self._off(score[""], example), at=at)
        label = max(score, key=score.__getitem__)
        share, right = score[label], label == label_text(example.label)
        watched = score.get("true", share) if self._task == "binary" else share
        if is_unlabelled(self._task, example.label):  # its score is a rank, which has no drift
            return self._watch.served(example.features, at=at)
        seen = example.taught  # it was recorded when it came without its label
        alarms = [] if seen else self._watch.served(example.features, watched, at=at)
        same = example.no_change
        rule = None if same is None else float(same != example.label)
        alarms += self._watch.judged(float(not right), rule=rule, at=at)
        if self._without is not None:
            self._without.judged(share, right, was_open=example.predicted_at is not None)
        return alarms

    def _off(self, expected: float, example: Example) -> float:
        """Return the absolute error of a number, or a choice's distance from the greatest reward.

        For choices the error of the expectation is not used: it can stay the same while rewards
        become rare.
        """
        label = float(example.label)
        if self._rewards is None:
            return abs(expected - label)
        low, high = self._rewards
        return min(max((high - label) / (high - low), 0.0), 1.0)

    def report(self) -> dict[str, float]:
        """Return the gauges that are sent to other replicas; see :func:`of_all`."""
        self.look()
        state = self._watch.state()
        out: dict[str, float] = {"drift_state": STATES.index(state.state)}
        out |= {
            "drift_alarms": state.alarms,
            "drift_served": state.served,
            "drift_judged": state.judged,
        }
        alarm = state.since
        if alarm is None or not alarm.worse or alarm.before is None or alarm.after is None:
            return out
        return out | {"drift_before": alarm.before, "drift_after": alarm.after}

    def newest(self, n: int) -> list[dict[str, Any]]:
        """Return at most ``n`` alarms, the newest first."""
        self.look()
        return [alarm.data() for alarm in list(self._watch.alarms)[-n:]][::-1]

    def summary(self) -> dict[str, Any]:
        """Return a summary for operators, as plain data."""
        self.look()
        state = self._watch.state().data()
        shifts = state.pop("shifts")
        newest = self.newest(_SHOWN)
        without = None if self._without is None else asdict(self._without.estimate())
        return {
            **state,
            "shifts": shifts[:_SHOWN],
            "newest": newest,
            "without_labels": without,
            "canary_loss": None if self._canary is None else self._canary.loss,
        }


class _Columns(NamedTuple):
    """Answered and labelled rows by column, the input of the watch."""

    features: list[Features]
    scores: list[float]
    errors: list[float]
    rules: list[float | None]
    at: list[float]

    def extend(self, more: _Columns) -> None:
        """Append rows to the columns."""
        self.features.extend(more.features)
        self.scores.extend(more.scores)
        self.errors.extend(more.errors)
        self.rules.extend(more.rules)
        self.at.extend(more.at)


_BINARY: Final = {label: label_text(label) for label in (False, True)}


class _Looked(NamedTuple):
    """Rows by column, and for each (probability of the answer, correct, label was pending)."""

    columns: _Columns
    answers: list[tuple[float, bool, bool]]


def _looked(rows: Sequence[Row], examples: Sequence[Example], *, binary: bool) -> _Looked | None:
    """Convert a classifier's rows to columns; None if one has no answer or an invalid one."""
    scores, errors, at = list[float](), list[float](), list[float]()
    rules: list[float | None] = []
    answers: list[tuple[float, bool, bool]] = []
    for row, example in zip(rows, examples, strict=True):
        if not (score := example.score) or "" in score:
            return None
        if len(score) == 2:
            (answered, share), (other, of_other) = score.items()
            if of_other > share:
                answered, share = other, of_other
        else:
            answered = max(score, key=score.__getitem__)
            share = score[answered]
        label, same = example.label, example.no_change
        watched = score.get("true", share) if binary else share
        if not (0.0 <= share <= 1.0 and 0.0 <= watched <= 1.0):
            return None
        text = _BINARY.get(label) if type(label) is bool else label_text(label)
        right = answered == text
        scores.append(watched)
        errors.append(0.0 if right else 1.0)
        rules.append(None if same is None else float(same != label))
        at.append(_time_of(example, row.at))
        answers.append((share, right, example.predicted_at is not None))
    columns = _Columns([example.features for example in examples], scores, errors, rules, at)
    return _Looked(columns, answers)


def _time_of(example: Example, received: float) -> float:
    """Return the event's time, in POSIX seconds: what senders give is not later than now."""
    return received if example.event_time is None else min(example.event_time, received)


def _like(value: object) -> Any:
    """Return an example value of the same type, which does not reveal the value."""
    if isinstance(value, bool):
        return True
    return "text" if isinstance(value, str) else 1 if isinstance(value, int) else 1.0


def of_all(
    here: str, shown: Mapping[str, Any], reports: Mapping[str, Mapping[str, float]]
) -> dict[str, Any]:
    """Combine the drift reports of all replicas; the state is that of the worst one.

    Parameters:
        here, shown: Name of this replica, and its judge's :meth:`DriftMonitor.summary`.
        reports: Newest gauges of every replica, by name; those without a judge's, or without
            contact for ``HEARD_S``, are left out.

    Returns:
        ``shown`` with the sums of rows and alarms over all replicas; ``of`` is the replica with the
        worst state, ``replicas`` has the numbers of each.  Alarms and features are those of this
        replica.
    """
    known = {
        name: report
        for name, report in reports.items()
        if "drift_judged" in report and report.get("contact_age_s", 0.0) <= HEARD_S
    }
    if len(known) < 2:
        return {**shown, "of": here, "replicas": {}}
    worst = max(known, key=lambda name: (known[name]["drift_state"], name == here))
    each = {
        name: {
            "state": STATES[int(report["drift_state"])],
            **{key: int(report[f"drift_{key}"]) for key in ("served", "judged", "alarms")},
        }
        for name, report in sorted(known.items())
    }
    combined = dict(shown)
    if worst != here:
        state, before = each[worst]["state"], known[worst].get("drift_before")
        why = f"replica {worst} says so of its {each[worst]['judged']:,} labelled rows"
        if before is not None:
            after = known[worst]["drift_after"]
            why = f"the error rose from {before:.3f} to {after:.3f} in the rows of replica {worst}"
        combined |= {"state": state, "why": why, "since": None}
    for key in ("served", "judged", "alarms"):
        combined[key] = sum(one[key] for one in each.values())
    if combined["state"] == STATES[0]:
        combined["why"] = (
            f"{combined['judged']} labelled rows, of {len(each)} replicas; each needs some"
        )
    return {**combined, "of": worst, "replicas": each}
