"""A detector's finding, and the alarm that it becomes, are values that actions can be hung on."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from evaluation.drift.errors import DriftSettingUnusable, ShareUnusable

Direction = Literal["up", "down", "other"]
"""``other``: the distribution changed, and its mean did not."""

Signal = Literal["error", "score", "feature", "missing", "new"]


@dataclass(frozen=True, slots=True)
class Change:
    """A detector's finding, at the value just given.

    Attributes:
        direction: Whether the mean rose or fell.
        before, after: Means of the values on both sides of the estimated change point, from 0 to 1.
        n_before, n_after: How many values these are means of.  The estimated change point is
            ``n_after`` values ago.
    """

    direction: Direction
    before: float
    after: float
    n_before: int
    n_after: int


@dataclass(frozen=True, slots=True)
class Alarm:
    """One alarm: evidence with a date, no verdict.

    Attributes:
        row: Number of the row of this signal at which it was raised, from 1.  Labelled rows for
            ``error``, served rows for the others; the window's last row for ``window``.
        at: Time of that row as it was given (POSIX seconds); None if none was.
        signal: What was watched.
        name: Feature; ``""`` for ``error`` and ``score``.
        detector: Who raised it: a name in :data:`evaluation.drift.detectors.DETECTORS`, or
            ``window``.
        direction: Up, down, or neither.  An error that went *down* is an improvement.
        since: Estimated row of the change.
        before, after: What was compared: means of shares for detectors (of the error, the score,
            the rank among the reference's values, the missing or new rows); the share that is
            missing or new, or the mean in the feature's own unit, for ``window``.  None for
            categories.
        n_before, n_after: Number of rows of each.
        effect: What ``window`` measured: PSI of a feature.  None for detectors.
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
        """Whether it is an error that rose: what actions are for."""
        return self.signal == "error" and self.direction == "up"

    def __str__(self) -> str:
        """Tell it in a line of a log; a feature's name in quotes, as others chose it."""
        what = f"{self.signal} {self.name!r}" if self.name else self.signal
        course = ""
        if self.before is not None and self.after is not None:
            course = f" from {self.before:.3g} to {self.after:.3g}"
        where = f"since row {self.since}, seen at row {self.row} by {self.detector}"
        return f"drift: {what} changed ({self.direction}){course}, {where}"

    def data(self) -> dict[str, Any]:
        """Return the alarm as JSON takes it."""
        return asdict(self)


def alarm_of(
    found: Change, row: int, at: float | None, signal: Signal, name: str, who: str, since: int
) -> Alarm:
    """The alarm that a detector's finding at a row becomes."""
    return Alarm(
        row, at, signal, name, who, found.direction, since,
        found.before, found.after, found.n_before, found.n_after,
    )  # fmt: skip


def share(x: float) -> float:
    """``x``, a number from 0 to 1.

    Raises:
        ShareUnusable: Anything else; NaN too.
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
        DriftSettingUnusable: Not from ``least`` to ``most``.
    """
    if not least <= value <= most:
        raise DriftSettingUnusable(name, repr(value), f"{least:g} to {most:g}")


def change(sum_before: float, n_before: int, sum_after: float, n_after: int) -> Change:
    """The change from one mean to another; sums may be off by what rounding left."""
    before = min(max(sum_before / n_before, 0.0), 1.0)
    after = min(max(sum_after / n_after, 0.0), 1.0)
    direction = "up" if after > before else "down" if after < before else "other"
    return Change(direction, before, after, n_before, n_after)  # type: ignore[arg-type]
