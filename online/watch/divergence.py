"""Has a model diverged?  Judged by what its answers cost, as counted by all replicas.

The loss of answers that labels have come for is looked at in windows of rows.  A model is
suspected after two windows in a row whose mean loss is many times its own of before, and many times
what an answer without a model costs.  Whether it has diverged, or its stream has changed, is
decided by the length of its weights (:meth:`paramserver.process.actor.ParameterServer.recover`).
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
"""Answers with labels that a window has at least."""

TIMES_OWN: Final = 4.0
TIMES_NONE: Final = 4.0
"""Mean loss of a suspected window over the model's own, and over that of an answer without one."""

_FOLLOWS: Final = 0.2  # how much of a good window goes into the mean of before


class Guard:
    """Looks at the counters of :mod:`evaluation.metrics`, now and then."""

    def __init__(self, task: Task) -> None:
        self._task: Task = task
        self._seen: tuple[float, float, float] | None = None
        self._own: float | None = None
        self._good_at: float | None = None
        self._bad = 0

    def look(self, counters: Mapping[str, float], at_s: float) -> float | None:
        """POSIX seconds until which all was well, if the model is suspected now."""
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
        if loss <= TIMES_OWN * own or loss <= TIMES_NONE * none:  # NaN is neither
            self._own = loss if self._own is None else self._own + _FOLLOWS * (loss - self._own)
            self._good_at, self._bad = at_s, 0
            return None
        self._bad += 1
        return self._good_at if self._bad >= 2 else None

    def _totals(self, counters: Mapping[str, float]) -> tuple[float, float, float]:
        """Rows, their loss, and the loss of answers without a model."""
        if self._task == "regression":
            names = ("n", "abs_error", "mean_abs_error")
            n, loss, none = (_own(counters, name) for name in names)
            return n, loss, none
        labels = sum(name.startswith("label/") for name in counters)
        n = _own(counters, "log_n")
        return n, _own(counters, "log_loss"), n * math.log(max(labels, 2))


def _own(counters: Mapping[str, float], name: str) -> float:
    """The counter without answers of a model that served before: they say nothing of this one."""
    return counters.get(name, 0.0) - counters.get(ANOTHERS + name, 0.0)


class Watch:
    """The guard of a model in one replica, and what it does.

    Parameters:
        learner: Of the replica.
        recover: Asks the server to go back: of the newest rewrite seen, and POSIX seconds until
            which all was well.
        now_s: Wall clock, POSIX seconds.

    Attributes:
        incident: What was done, or why nothing was; None if the model was never suspected.
    """

    def __init__(
        self,
        task: Task,
        learner: BaseLearner,
        recover: Callable[[int, float], Awaitable[Mapping[str, Any]]],
        now_s: Callable[[], float],
    ) -> None:
        self._guard, self._learner = Guard(task), learner
        self._recover, self._now_s = recover, now_s
        self.incident: str | None = None

    async def look(self) -> None:
        """Look at the counters, and act."""
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
