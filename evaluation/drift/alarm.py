"""Changes found by detectors, and alarms, as values on which actions can be based."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from evaluation.drift.errors import DriftSettingUnusable, ShareUnusable

Direction = Literal["up", "down", "other"]
"""``other``: the distribution changed, but not its mean."""

Signal = Literal["error", "score", "feature", "missing", "new"]


@dataclass(frozen=True, slots=True)
class Change:
    """A change that a detector found at the newest value.

    Attributes:
        direction: Whether the mean rose or fell.
        before, after: Means of the values on both sides of the estimated change point, in [0, 1].
        n_before, n_after: Numbers of values in these means.  The estimated change point is
            ``n_after`` values ago.
    """

    direction: Direction
    before: float
    after: float
    n_before: int
    n_after: int


@dataclass(frozen=True, slots=True)
class Alarm:
    """One alarm, which is evidence of a change at a time, not a decision.

    Attributes:
        row: Number of the row of this signal at which it was raised, from 1.  Labelled rows for
            ``error``, served rows for the others; the window's last row for ``window``.
        at: Time given with that row (POSIX seconds), or None.
        signal: The monitored signal.
        name: Feature; ``""`` for ``error`` and ``score``.
        detector: The detector: a name in :data:`evaluation.drift.detectors.DETECTORS`, or
            ``window``.
        direction: Direction of the change.  A *falling* error is an improvement.
        since: Estimated row of the change.
        before, after: The compared means.  For detectors, of the numbers in [0, 1] (error, score,
            rank among the reference values, or whether a value is missing or new); for ``window``,
            the share of missing or new values, or the mean in the feature's own unit.  None for
            categories.
        n_before, n_after: Numbers of rows in these means.
        effect: The PSI of a feature, for ``window``.  None for detectors.
    """

    row: int
    at: float | None
    signal: Signal
    name: str
    detector: str
    direction: Direction
    since: int
    before: float | None
    after: float | None
    n_before: int
    n_after: int
    effect: float | None = None

    @property
    def worse(self) -> bool:
        """Whether the error rose, for which actions are taken."""
        return self.signal == "error" and self.direction == "up"

    def __str__(self) -> str:
        """Return a line for a log, with the feature's name quoted because callers choose it."""
        what = f"{self.signal} {self.name!r}" if self.name else self.signal
        course = ""
        if self.before is not None and self.after is not None:
            course = f" from {self.before:.3g} to {self.after:.3g}"
        where = f"since row {self.since}, seen at row {self.row} by {self.detector}"
        return f"drift: {what} changed ({self.direction}){course}, {where}"

    def data(self) -> dict[str, Any]:
        """Return the alarm as data for JSON."""
        return asdict(self)


def alarm_of(
    change: Change, row: int, at: float | None, signal: Signal, name: str, who: str, since: int
) -> Alarm:
    """Return the alarm for a change that a detector found at a row."""
    return Alarm(
        row, at, signal, name, who, change.direction, since,
        change.before, change.after, change.n_before, change.n_after,
    )  # fmt: skip


def share(x: float) -> float:
    """Return ``x`` if it is a number in [0, 1].

    Raises:
        ShareUnusable: It is not, for example NaN.
    """
    try:
        if 0.0 <= x <= 1.0:
            return float(x)
    except TypeError:
        pass
    raise ShareUnusable(f"{x!r:.60}")


def within(name: str, value: float, least: float, most: float) -> None:
    """Check that a setting is in its range.

    Raises:
        DriftSettingUnusable: It is not in [``least``, ``most``].
    """
    if not least <= value <= most:
        raise DriftSettingUnusable(name, repr(value), f"{least:g} to {most:g}")


def change(sum_before: float, n_before: int, sum_after: float, n_after: int) -> Change:
    """Return the change between two means; sums may have rounding errors."""
    before = min(max(sum_before / n_before, 0.0), 1.0)
    after = min(max(sum_after / n_after, 0.0), 1.0)
    direction = "up" if after > before else "down" if after < before else "other"
    return Change(direction, before, after, n_before, n_after)  # type: ignore[arg-type]
