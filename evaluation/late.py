"""A queue of predictions that wait for their delayed labels."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import Any

from evaluation.errors import StreamUnusable
from evaluation.learner import Answer
from replay.example import Features, Label

Delay = int | float | timedelta | str | Callable[[Features, Label], Any]
Moment = str | Callable[[Features], Any]


@dataclass(frozen=True, slots=True)
class Asked:
    """A row with its prediction, and with the baselines' predictions at the same time.

    ``shown`` are the features that the learner gets, without columns of times.
    """

    place: int
    features: Features
    shown: Features
    label: Label
    answer: Answer
    notes: object
    no_change: Label | None
    majority: Label | None


class LabelQueue:
    """Rows that wait for their labels, ordered by the times at which the labels come.

    Parameters:
        delay, moment, waiting_max: See :func:`evaluation.prequential.prequential`.
    """

    def __init__(self, delay: Delay, moment: Moment | None, waiting_max: int) -> None:
        self._delay = _delay(delay)
        self._moment = moment
        self._columns = tuple(name for name in (moment, delay) if isinstance(name, str))
        self._max = waiting_max
        self._last: Any = None
        self._heap: list[tuple[Any, int, Asked]] = []

    def __len__(self) -> int:
        return len(self._heap)

    def moment(self, place: int, features: Features) -> Any:
        """Return the row's time.  Raises StreamUnusable if it is before the previous row's."""
        if self._moment is None:
            return place
        now: Any
        if callable(self._moment):
            now = self._moment(features)
        else:
            now = features.get(self._moment)
        now = instant(now)
        try:
            good = self._last is None or bool(now >= self._last)
            good = good and now is not None and now == now
        except TypeError:
            good = False
        if not good:
            raise StreamUnusable(
                f"row {place}",
                f"its moment is {now!r:.80}, after {self._last!r:.80}",
                "Sort the rows by their moments, or give delays in rows",
            )
        self._last = now
        return now

    def without_times(self, features: Features) -> Features:
        """Return the features without columns of times; the same object if there are none."""
        times = [name for name in self._columns if is_time(features.get(name))]
        if not times:
            return features
        return {name: value for name, value in features.items() if name not in times}

    def put(self, now: Any, row: Asked) -> bool:
        """Queue the row until its label comes; return False if it never comes."""
        wait = instant(self._delay(row.features, row.label))
        if wait is None:
            return False
        try:
            at_once = isinstance(wait, int) and wait == 0  # 0 is valid for times of any type
            when = wait if isinstance(wait, datetime) else now if at_once else now + wait
            good = bool(when >= now)
        except TypeError:
            good = False
        if not good:
            raise StreamUnusable(
                f"row {row.place}",
                f"its label comes {wait!r:.80} after {now!r:.80}",
                "A delay is at least 0, in the unit of moments, and None if no label comes",
            )
        if len(self._heap) >= self._max:
            raise StreamUnusable(
                f"row {row.place}",
                f"{self._max} labels are awaited, and another one",
                "Shorten the delay, or raise waiting_max",
            )
        heapq.heappush(self._heap, (when, row.place, row))
        return True

    def until(self, now: Any) -> Iterable[tuple[Any, Asked]]:
        """Remove and yield the rows whose labels are known at ``now`` (None: all), in order.

        Each comes with the time of its label.
        """
        heap = self._heap
        while heap and (now is None or heap[0][0] <= now):
            when, _, row = heapq.heappop(heap)
            yield when, row


def _delay(delay: Delay) -> Callable[[Features, Label], Any]:
    if callable(delay):
        return delay
    if isinstance(delay, str):
        name = delay
        return lambda x, y: x.get(name)
    return lambda x, y: delay


def is_time(value: object) -> bool:
    """Return whether a value of a time column is a date, a duration or text, so no feature."""
    return isinstance(value, date | str | timedelta) or hasattr(value, "astype")


def instant(value: Any) -> Any:
    """Convert a value to a comparable time: dates to midnight, text by ISO 8601.

    Times of numpy and pandas are converted to Python's; other values are returned unchanged.
    """
    if isinstance(value, str):
        try:
            return datetime.fromisoformat(value.strip())
        except ValueError:
            return value
    if isinstance(value, date) and not isinstance(value, datetime):
        return datetime.combine(value, time())
    if hasattr(value, "astype") and getattr(getattr(value, "dtype", None), "kind", "") in "mM":
        return value.astype(f"{value.dtype.str[1:3]}[us]").item()
    return value


def seconds(when: Any) -> float | None:
    """Return a time as POSIX seconds, assuming UTC without a zone; None if it is no time."""
    if isinstance(when, datetime):
        return posix_seconds(when)
    return float(when) if isinstance(when, int | float) else None


def posix_seconds(when: datetime) -> float:
    """Return a date and time as POSIX seconds, assuming UTC without a zone."""
    return (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()
