"""Detection of divergence by the loss of answers, as counted by all replicas.

The loss of labelled answers is averaged over windows of rows.  A model is suspected after two
consecutive windows whose mean loss is many times its own earlier one and many times that of an
answer without a model.  The parameter server then decides by the norm of the weights whether the
model diverged or the stream changed
(:meth:`paramserver.process.actor.ParameterServer.recover`).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from evaluation.metrics import Task
from online.learning.base import BaseLearner
from online.learning.counters import ANOTHERS
from paramserver.errors import ParamServerError

log = logging.getLogger(__name__)

WINDOW_ROWS: Final = 50
"""Least labelled answers in a window."""

TIMES_OWN: Final = 4.0
TIMES_NONE: Final = 4.0
"""Ratio of a suspect window's mean loss to the model's own, and to that without a model."""

_FOLLOWS: Final = 0.2  # weight of a good window in the mean of earlier ones


class DivergenceMonitor:
    """Watches the counters of :mod:`evaluation.metrics` for a suspicious rise of the loss."""

    def __init__(self, task: Task) -> None:
        self._task: Task = task
        self._seen: tuple[float, float, float] | None = None
        self._own: float | None = None
        self._good_at: float | None = None
        self._bad = 0

    def look(self, counters: Mapping[str, float], at_s: float) -> float | None:
        """Check the counters; if the model is suspected, return the time of the last good window.

        The time is in POSIX seconds.  Returns None if the model is not suspected.
        """
        now = self._totals(counters)
        if self._seen is None or now[0] < self._seen[0]:  # values were rewritten
            self._seen, self._bad = now, 0
            return None
        n, loss, none = (b - a for a, b in zip(self._seen, now, strict=True))
        if n < WINDOW_ROWS:
            return None
        self._seen = now
        loss, none = loss / n, none / n
        own = none if self._own is None else self._own
        if loss <= TIMES_OWN * own or loss <= TIMES_NONE * none:  # both are false for NaN
            self._own = loss if self._own is None else self._own + _FOLLOWS * (loss - self._own)
            self._good_at, self._bad = at_s, 0
            return None
        self._bad += 1
        return self._good_at if self._bad >= 2 else None

    def _totals(self, counters: Mapping[str, float]) -> tuple[float, float, float]:
        """Return the number of rows, their total loss, and that of answers without a model."""
        if self._task == "regression":
            names = ("n", "abs_error", "mean_abs_error")
            n, loss, none = (_own(counters, name) for name in names)
            return n, loss, none
        labels = sum(name.startswith("label/") for name in counters)
        n = _own(counters, "log_n")
        return n, _own(counters, "log_loss"), n * math.log(max(labels, 2))


def _own(counters: Mapping[str, float], name: str) -> float:
    """Return a counter without the answers of a model that served before this one."""
    return counters.get(name, 0.0) - counters.get(ANOTHERS + name, 0.0)


class Watch:
    """Checks one model in one replica, and requests recovery if it is suspected.

    Parameters:
        task: The model's task.
        learner: The replica's learner.
        recover: Requests recovery by the parameter server, given the number of the newest rewrite
            and the POSIX time of the last good window.
        now_s: Wall clock, POSIX seconds.

    Attributes:
        incident: What was done, or why nothing was done; None if the model was never suspected.
    """

    def __init__(
        self,
        task: Task,
        learner: BaseLearner,
        recover: Callable[[int, float], Awaitable[Mapping[str, Any]]],
        now_s: Callable[[], float],
    ) -> None:
        self._guard, self._learner = DivergenceMonitor(task), learner
        self._recover, self._now_s = recover, now_s
        self.incident: str | None = None

    async def look(self) -> None:
        """Check the counters, and request recovery if the model is suspected."""
        learner = self._learner
        good_at = self._guard.look(learner.tally.counters, self._now_s())
        if good_at is None or learner.frozen:
            return
        try:
            answer = await self._recover(learner.rewrite, good_at)
        except ParamServerError as error:
            if self.incident is None:
                self.incident = f"it answers worse than no model would; left as it is: {error}"
                log.warning("%s", self.incident)
            return
        if answer["snapshot"] is not None:
            self.incident = (
                f"it had diverged: back to snapshot {answer['snapshot']}, learning the rows since "
                "again at half the rate; give it a lower one"
            )
            log.error("%s", self.incident)
