"""Rates at which the currently active sources surprise, each source counted once.

A source that surprises more often than the others uses up an allowance; then its events get less
weight, long before there is enough evidence for quarantine.  The allowance is refilled as *other*
sources send events without surprise, so that a flood cannot refill its own.  A source that has
always sent more than the median source has a proportionally larger allowance.  A surprise with a
label that is hard for most sources costs nothing.  When the stream changes, all allowances are
reset.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Mapping
from itertools import islice
from math import fsum
from typing import Final

from paramserver.evidence.sums import SOURCES_MIN

_KNOWN: Final = 1024
_NOW: Final = 32
"""Number of last active sources that are compared, which saw the same period of the stream."""

_ARRIVALS: Final = 256
"""Number of events after which a source is no longer active.  If sources send one after the other,
none is compared; a flood of fifteen lies per row leaves sixteen events of the other sources."""

_LATELY: Final = 5.0
_JUST: Final = 2.0
_TURNING: Final = 0.4
_RATE_MIN: Final = 0.2
_TWICE_MAX: Final = 0.2
_FAR_RATE_MIN: Final = 0.05
_RUSH: Final = 1.5  # times twice the median rate
_RUSH_MIN: Final = 0.12
_DEPTH: Final = 2.0
_ROUND: Final = 0.4
"""Allowance of a source in surprises with full weight; and the least amount refilled whenever each
source has sent one event without surprise, more than honest sources use."""


class _Voice:
    """A source's moving averages over about nine and about three events, and its allowance."""

    __slots__ = ("allowed", "at", "calm_at", "far", "hard", "just", "just_far", "rate")

    def __init__(self) -> None:
        self.hard: str | None = None  # the label of its last event if it was a surprise
        self.rate = self.far = self.just = self.just_far = 0.0
        self.at, self.calm_at, self.allowed = 0, 0.0, _DEPTH


class Rates:
    """The established sources with their rates of *hits*, events of the kind that is counted.

    Attributes:
        usual: Number of taken events of the median source.
        flooding: Sources that send far more than usual, which are left out of medians.
        sizes: Their sizes before they did.
    """

    def __init__(self) -> None:
        self.usual = 1
        self.flooding: frozenset[str] = frozenset()
        self.sizes: Mapping[str, float] = {}
        self._voices: dict[str, _Voice] = {}  # last active at the end
        self._events = 0
        self._now: dict[str, _Voice] = {}  # the active sources
        self._looked: frozenset[str] | None = None  # the sources that were left out then
        self._oldest = 0
        self._rates: list[float] = []  # of the active sources, in order
        self._stale = True  # a source was heard since they were looked at
        self._usual_rate = 0.0
        self._last, self._run = "", 0

    def pass_by(self, source: str) -> None:
        """Count an event of a source that is not established."""
        self._events += 1
        if source == self._last:
            self._run += 1
        else:
            self._last, self._run = source, 1

    def note(self, source: str, *, hit: bool) -> None:
        """Count an event of an established source."""
        self._count(source, self._voices.get(source) or _Voice(), hit)

    def _count(self, source: str, voice: _Voice, hit: bool) -> None:
        """Count an event of a source, which is then the last active one, by its voice."""
        self._events = voice.at = self._events + 1
        if source == self._last:
            self._run += 1
        else:
            self._last, self._run = source, 1
        voices = self._voices
        if voices.pop(source, None) is None and len(voices) >= _KNOWN:
            self._forget(next(iter(voices)))
        voices[source] = voice
        rate = voice.rate
        new = voice.rate = rate + (hit - rate) / _LATELY
        self._stale = True
        if source not in self._now:
            self._looked = None  # the next look is at all of them
        elif new != rate:  # put it in its place
            rates = self._rates
            del rates[bisect_left(rates, rate)]
            insort(rates, new)

    def _forget(self, source: str) -> None:
        del self._voices[source]

    def size(self, taken: int) -> float:
        """Return the source's size relative to the median source's events, at least 1."""
        return taken / self.usual if taken > self.usual else 1.0

    def _look(self) -> dict[str, _Voice]:
        """Return the sources that were active at the last event.

        All are looked for only if they may be others than before.
        """
        if self._stale:
            if not self._are_the_same():
                self._look_at_all()
            rates, n = self._rates, len(self._rates)
            middle = (rates[(n - 1) // 2] + rates[n // 2]) / 2.0 if n else 0.0
            self._usual_rate = middle + (middle if middle < _TWICE_MAX else _TWICE_MAX)
            self._stale = False
        return self._now

    def _are_the_same(self) -> bool:
        return self.flooding is self._looked and self._oldest > self._events - _ARRIVALS

    def _look_at_all(self) -> None:
        self._looked, self._oldest, self._now = self.flooding, self._events, {}
        since = self._events - _ARRIVALS
        for name, voice in islice(reversed(self._voices.items()), _NOW):
            if voice.at <= since:
                break
            if name not in self.flooding:
                self._now[name] = voice
                self._oldest = voice.at
        self._rates = sorted([voice.rate for voice in self._now.values()])

    def middle(self, source: str) -> float | None:
        """Return the median rate of the other sources' hits; None if too few."""
        own = (self._look() if self._stale else self._now).get(source)
        rates, n = self._rates, len(self._rates)
        if own is None:
            return (rates[(n - 1) // 2] + rates[n // 2]) / 2.0 if n >= SOURCES_MIN else None
        if (n := n - 1) < SOURCES_MIN:
            return None
        at, low, high = bisect_left(rates, own.rate), (n - 1) // 2, n // 2
        return (rates[low + (low >= at)] + rates[high + (high >= at)]) / 2.0

    def gap(self, source: str) -> int:
        """Return the number of events since the source's last one, including the next."""
        voice = self._voices.get(source)
        return _ARRIVALS if voice is None else self._events + 1 - voice.at

    def run(self, source: str) -> int:
        """Return the number of consecutive events of this source, including the next one."""
        return self._run + 1 if source == self._last else 1


class Voices(Rates):
    """The rates of surprises, of those far off, and the allowances.

    Attributes:
        many: Number of active established sources.
    """

    def __init__(self) -> None:
        super().__init__()
        self.many = 1
        self._calm = 0.0  # events without surprise, divided by the number of sources
        self._hard: dict[str | None, int] = {}  # how many sources' last event was such a surprise

    def hear(
        self, source: str, taken: int, *, hit: bool, far: bool, label: str | None = None
    ) -> None:
        """Count an event: ``hit``, a surprise; ``far``, far off; ``taken``: its source's events."""
        voice = self._voices.get(source) or _Voice()
        allowed = voice.allowed
        if allowed != _DEPTH or taken > self.usual or source in self.flooding:
            allowed = self._allowed(source, voice, taken)
        if voice.hard != (label if hit else None):
            self._surprised(voice, label if hit else None)
        if hit:
            if not self.is_hard(label):
                allowed = allowed - 1.0 if allowed > 1.0 else 0.0
        elif allowed >= 1.0 or voice.rate <= self._usual():  # not from suspicious ones
            self._calm += 1.0 / self.many
        voice.allowed, voice.calm_at = allowed, self._calm
        self._count(source, voice, hit)
        voice.just += (hit - voice.just) / _JUST
        if far or voice.far:
            voice.far += (far - voice.far) / _LATELY
            voice.just_far += (far - voice.just_far) / _JUST

    def _surprised(self, voice: _Voice, label: str | None) -> None:
        """Set the label of a source's last event if it was a surprise."""
        hard = self._hard
        hard[voice.hard], voice.hard = hard.get(voice.hard, 0) - 1, label
        hard[label] = hard.get(label, 0) + 1
        if len(hard) > 2 * _KNOWN:
            self._hard = {one: n for one, n in hard.items() if n > 0}

    def _forget(self, source: str) -> None:
        self._surprised(self._voices[source], None)
        super()._forget(source)

    def _allowed(self, source: str, voice: _Voice, taken: int) -> float:
        size = 1.0
        if source in self.flooding:
            size = self.sizes.get(source, 1.0)
        elif taken > self.usual:
            size = taken / self.usual
        rounds, most = self._calm - voice.calm_at, _DEPTH * size
        if voice.allowed + size * (_ROUND * rounds) >= most:  # most of the time
            return most
        usual = self._usual()
        allowed = voice.allowed + size * ((usual if usual > _ROUND else _ROUND) * rounds)
        return most if allowed > most else allowed

    def _usual(self) -> float:
        """Return twice the median rate of the active sources before the event that is heard."""
        if self._stale:
            self._look()
        return self._usual_rate

    def is_hard(self, label: str | None) -> bool:
        """Return whether the last events of most active sources were surprises with this label."""
        if label is None or self._hard.get(label, 0) < SOURCES_MIN:
            return False
        now = self._look()
        hard = [voice.hard for voice in now.values()].count(label)
        return 2 * hard >= len(now) >= 2 * SOURCES_MIN

    def weight(self, source: str, taken: int) -> float:
        """Return the weight of a source's events from its remaining allowance."""
        voice = self._voices.get(source)
        if voice is None or voice.allowed >= 1.0:
            return 1.0
        return min(self._allowed(source, voice, taken), 1.0)

    def _rushing(self, now: dict[str, _Voice]) -> float:
        """Return the mean recent rate of events that are far off."""
        return fsum([voice.just_far for voice in now.values()]) / max(len(now), 1)

    def rate(self, source: str) -> float | None:
        """Return twice the median rate of the other sources' surprises; None if too few."""
        if (middle := self.middle(source)) is None:
            return None
        rate = middle + (middle if middle < _TWICE_MAX else _TWICE_MAX)
        return rate if rate > _RATE_MIN else _RATE_MIN

    def far(self, source: str) -> tuple[float, bool]:
        """Return twice the median rate of far-off events, and whether all exceed it recently.

        Call it only if :meth:`rate` is not None.
        """
        now = self._look()
        own = now.get(source)
        fars = sorted([voice.far for voice in now.values()])
        far = max(2.0 * _median(fars, None if own is None else own.far), _FAR_RATE_MIN)
        return far, self._rushing(now) > max(_RUSH * far, _RUSH_MIN)

    def forgive(self) -> None:
        """Reset all allowances, because the stream has changed."""
        for voice in self._voices.values():
            voice.allowed = _DEPTH

    def turning(self) -> bool:
        """Return whether even the two thirds of the sources that surprise least often surprise."""
        order = sorted(v.just for v in self._look().values())
        calm = order[: len(order) - len(order) // 3]
        return len(calm) >= SOURCES_MIN and sum(calm) >= _TURNING * len(calm)


def _median(order: list[float], without: float | None) -> float:
    """Return the median of sorted numbers, leaving one of them out."""
    if without is None:
        n = len(order)
        return (order[(n - 1) // 2] + order[n // 2]) / 2.0
    at, n = bisect_left(order, without), len(order) - 1
    low, high = (n - 1) // 2, n // 2
    return (order[low + (low >= at)] + order[high + (high >= at)]) / 2.0
