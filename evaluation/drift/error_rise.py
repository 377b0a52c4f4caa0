"""Monitors the errors of one model: whether their mean has risen, and whether it is back."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from evaluation.drift.alarm import Alarm, Change, alarm_of
from evaluation.drift.bins import Bins, fit
from evaluation.drift.detectors import named, updates
from evaluation.drift.error_history import ErrorHistory
from evaluation.drift.errors import ShareUnusable

LEVEL_ROWS: Final = 32
"""Least number of rows of the moving average that decides whether a risen error has fallen back by
half of the rise; it has at least as many rows as the rise."""


class ErrorRise:
    """Monitors errors in the order in which their labels come.

    Parameters:
        detectors: Names of the detectors.
        reference_rows: In regression, the number of first errors by which later ones are ranked.

    Attributes:
        rows: Number of errors so far.
        raised: The alarm of a rise that has not fallen back, or None.
    """

    def __init__(self, detectors: Sequence[str], reference_rows: int) -> None:
        self.rows = 0
        self.raised: Alarm | None = None
        self._detectors = named(detectors)
        self._level = 0.0
        self._history = ErrorHistory()
        self._reference_rows = reference_rows
        self._first: list[float] = []
        self._bins: Bins | None = None

    def ranked(self, error: float) -> float | None:
        """Return the rank of an absolute error among the first ones; None if it is one of these.

        Raises:
            ShareUnusable: It is not a valid absolute error; nothing was counted.
        """
        if not isinstance(error, int | float) or not math.isfinite(error) or error < 0:
            raise ShareUnusable(f"the absolute error {error!r:.40}")
        if self._bins is not None:
            return self._bins.ranks[self._bins.place(error)]
        self.rows += 1
        self._first.append(float(error))
        if len(self._first) >= self._reference_rows:
            self._bins, self._first = fit(self._first, bins=100), []
        return None

    def add(self, error: float, rule: float | None, at: float | None) -> list[Alarm]:
        """Add one error in [0, 1] and the no-change baseline's; return alarms for rises.

        Only rises that exceed the error's usual fluctuations are returned.

        Raises:
            ShareUnusable: The error is not in [0, 1]; nothing was counted.
        """
        changes = []
        for who, one in self._detectors:
            if (change := one.update(error)) is not None and change.direction == "up":
                changes.append((who, change))
        self._pass(error, rule)
        return [
            self._alarm(who, change, at)
            for who, change in changes
            if self._history.surpassed(change)
        ]

    def add_all(
        self, errors: Sequence[float], rules: Sequence[float | None], at: Sequence[float | None]
    ) -> list[tuple[int, Alarm]]:
        """Add errors in [0, 1], with the same result as :meth:`add` and :meth:`accept` for each.

        Returns the index and the alarm of each rise.
        """
        changes: dict[int, list[tuple[str, Change]]] = {}
        for who, one in self._detectors:
            for i, change in updates(one, errors):
                if change.direction == "up":
                    changes.setdefault(i, []).append((who, change))
        if not changes and self.raised is None:
            self._history.add_all(errors, rules)
            self.rows += len(errors)
            return []
        out: list[tuple[int, Alarm]] = []
        for i, (error, rule) in enumerate(zip(errors, rules, strict=True)):
            self._pass(error, rule)
            for who, change in changes.get(i, ()):
                if self._history.surpassed(change):
                    out.append((i, self._alarm(who, change, at[i])))
                    self.accept(out[-1][1])
        return out

    def accept(self, alarm: Alarm) -> None:
        """Make a rise the current one until the error is back, unless there is one already."""
        if self.raised is None:
            self.raised, self._level = alarm, alarm.after or 0.0

    def _pass(self, error: float, rule: float | None) -> None:
        self._history.add(error, rule)
        self.rows += 1
        if (raised := self.raised) is not None:
            self._level += (error - self._level) / max(LEVEL_ROWS, raised.n_after)
            back = (raised.before or 0.0) + (raised.after or 0.0)
            if self._level < back / 2.0:
                self.raised = None

    def _alarm(self, who: str, change: Change, at: float | None) -> Alarm:
        since = max(self.rows - change.n_after + 1, 1)
        return alarm_of(change, self.rows, at, "error", "", who, since)
