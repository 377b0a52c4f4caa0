"""The judge of one model in one replica: drift of what it is asked, and of how wrong it is.

It sees the replica's own rows as they are learned, in their order, and what was answered to rows
whose labels have not come.  Disposable: what it knows is lost with the process, and a new one
begins with the rows that come.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import asdict
from typing import Any, Final

from evaluation.drift.alarm import Alarm
from evaluation.drift.errors import ShareUnusable
from evaluation.drift.labelfree import LabelFree
from evaluation.drift.watch import Watch, WatchSettings
from evaluation.metrics import Task
from online.canary import Canary
from online.model_settings import Drift
from online.models.base import Prediction
from replay.example import Example, label_text

log = logging.getLogger("online.judging")

STATES: Final = ("not enough data", "ok", "watch", "act")
"""As numbers in the replica's gauges: their places."""

_TIMES_EVERY: Final = 32
_TIMES_MAX: Final = 4096
_SHOWN: Final = 20
"""Newest alarms that a status has."""


class Judge:
    """Watches errors, scores and features of one model.

    Parameters
    ----------
    on_rise
        Called when the error has risen: what the model learned is no longer so.  Given the alarm
        and when (POSIX seconds) a row was taken from before the rise.
    aside
        Where the reference of features is worked out; None: here, at once.
    canary
        Looks at rows that an operator vouches for; None: there are none.
    """

    def __init__(
        self,
        settings: Drift,
        task: Task,
        on_rise: Callable[[Alarm, float], None] = lambda alarm, since: None,
        aside: Executor | None = None,
        canary: Canary | None = None,
    ) -> None:
        self._task, self._on_rise, self._canary = task, on_rise, canary
        self._watch = Watch(
            WatchSettings(
                regression=task == "regression",
                reference_rows=settings.reference_rows,
                window_rows=settings.window_rows,
            ),
            aside=aside,
        )
        self._without = None if task == "regression" else LabelFree()
        self._judged: dict[int, int] = {}  # last offset, by partition
        self._taken: deque[tuple[int, float]] = deque(maxlen=_TIMES_MAX)  # of labelled rows
        self.unusable = 0

    def asked(self, answer: Prediction) -> None:
        """An answer went out, whose label may come or not."""
        if self._without is not None and answer.probabilities:
            share = answer.probabilities.get(answer.label)  # type: ignore[arg-type]
            if share is not None and 0.0 <= share <= 1.0:
                self._without.served(share)

    def learned(self, partition: int, offset: int, example: Example, at: float) -> None:
        """A row of this replica was learned; one that is learned again counts once."""
        if offset <= self._judged.get(partition, 0):
            return
        self._judged[partition] = offset
        if example.score and self._watch.judged_rows % _TIMES_EVERY == 0:
            self._taken.append((self._watch.judged_rows, at))
        try:
            alarms = self._look(example, example.event_time or at)
        except ShareUnusable:
            self.unusable += 1
            return
        if self._canary is not None:
            rung = self._canary.learned(self._watch.judged_rows, at)
            if rung is not None:
                self._watch.note(rung)
                alarms = [*alarms, rung]
        for alarm in alarms:
            log.warning("%s", alarm)
            if alarm.worse:
                self._on_rise(alarm, self._before(alarm.since))

    def rewritten(self) -> None:
        """The model's values were rewritten, by a rollback or a forget."""
        if self._canary is not None:
            self._canary.rewritten()

    def _before(self, row: int) -> float:
        """When a labelled row was taken that is older than this one; the oldest that is known."""
        older = [at for n, at in self._taken if n < row]
        return older[-1] if older else self._taken[0][1]

    def _look(self, example: Example, at: float) -> list[Alarm]:
        score = example.score
        if not score:
            return self._watch.served(example.features, at=at)
        if self._task == "regression":
            alarms = self._watch.served(example.features, at=at)
            error = abs(score[""] - float(example.label))
            return alarms + self._watch.judged(error, at=at)
        said = max(score, key=score.__getitem__)
        share, right = score[said], said == label_text(example.label)
        watched = score.get("true", share) if self._task == "binary" else share
        alarms = self._watch.served(example.features, watched, at=at)
        alarms += self._watch.judged(float(not right), at=at)
        if self._without is not None:
            self._without.judged(share, right, was_open=example.predicted_at is not None)
        return alarms

    @property
    def level(self) -> int:
        """The state as a number, see :data:`STATES`."""
        return STATES.index(self._watch.state().state)

    @property
    def alarms(self) -> int:
        """Alarms so far."""
        return self._watch.alarm_count

    def shown(self) -> dict[str, Any]:
        """For operators; plain data."""
        found = self._watch.state().data()
        shifts = found.pop("shifts")
        newest = [alarm.data() for alarm in list(self._watch.alarms)[-_SHOWN:]]
        without = None if self._without is None else asdict(self._without.estimate())
        return {
            **found,
            "shifts": shifts[:_SHOWN],
            "newest": newest[::-1],
            "without_labels": without,
            "canary_loss": None if self._canary is None else self._canary.loss,
        }
