"""Rates at which the currently active sources surprise, each source counted once.

A source that surprises more often than the others uses up an allowance; then its events get less
weight, long before there is enough evidence for quarantine.  The allowance is refilled as *other*
sources send events without surprise, so that a flood cannot refill its own.  A source that has
always sent more than the median source has a proportionally larger allowance.  When the stream
changes, all allowances are reset.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Mapping
from itertools import islice
from typing import Final

from paramserver.filters.losses import SOURCES_MIN

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

_FEW: Final = 4  # up to so many changes are applied one by one to the sorted rates


class _Voice:
    """A source's moving averages over about nine and about three events, and its allowance."""

    __slots__ = ("allowed", "at", "calm_at", "far", "just", "just_far", "rate")

    def __init__(self) -> None:
        self.rate = self.far = self.just = self.just_far = 0.0
        self.at, self.calm_at, self.allowed = 0, 0.0, _DEPTH


class Voices:
    """The established sources with their rates of surprises.

    Attributes:
        many: Number of active established sources.
        usual: Number of taken events of the median source.
        flooding: Sources that send far more than usual, which are left out of medians.
        sizes: Their sizes before they did.
    """

    def __init__(self) -> None:
        self.many, self.usual = 1, 1
        self.flooding: frozenset[str] = frozenset()
        self.sizes: Mapping[str, float] = {}
        self._usual_rate = 0.0
        self._calm = 0.0  # events without surprise, divided by the number of sources
        self._voices: dict[str, _Voice] = {}  # last active at the end
        self._events = 0
        self._now: dict[str, _Voice] | None = None  # active sources, last active at the end
        self._moved: dict[str, tuple[float, float]] = {}  # changed since, with their old rates
        self._looked = self.flooding  # the sources that were left out then
        self._oldest = 0
        self._rates: list[float] = []
        self._fars: list[float] = []
        self._rush: float | None = None
        self._last, self._run = "", 0

    def pass_by(self, source: str) -> None:
        """Count an event of a source that is not established."""
        self._events += 1
        self._run = self._run + 1 if source == self._last else 1
        self._last = source

    def hear(self, source: str, taken: int, *, hit: bool, far: bool) -> None:
        """Count an event: ``hit``, a surprise; ``far``, far off; ``taken``: its source's events."""
        self.pass_by(source)
        voice = self._voices.pop(source, None)
        if voice is None:
            voice = _Voice()
            if len(self._voices) >= _KNOWN:
                del self._voices[next(iter(self._voices))]
        self._voices[source] = voice
        voice.allowed = self._allowed(source, voice, taken)
        if hit:
            voice.allowed -= min(voice.allowed, 1.0)
        elif voice.rate <= self._usual_rate or voice.allowed >= 1.0:  # not from suspicious ones
            self._calm += 1.0 / self.many
        voice.calm_at = self._calm
        self._moved[source] = self._moved.pop(source, (voice.rate, voice.far))
        voice.rate += (hit - voice.rate) / _LATELY
        voice.far += (far - voice.far) / _LATELY
        voice.just += (hit - voice.just) / _JUST
        voice.just_far += (far - voice.just_far) / _JUST
        voice.at = self._events

    def size(self, taken: int) -> float:
        """Return the source's size relative to the median source's events, at least 1."""
        return max(taken / self.usual, 1.0)

    def _allowed(self, source: str, voice: _Voice, taken: int) -> float:
        flooding = source in self.flooding
        size = self.sizes.get(source, 1.0) if flooding else self.size(taken)
        back = max(self._usual_rate, _ROUND) * (self._calm - voice.calm_at)
        return min(voice.allowed + size * back, _DEPTH * size)

    def weight(self, source: str, taken: int) -> float:
        """Return the weight of a source's events from its remaining allowance."""
        voice = self._voices.get(source)
        return 1.0 if voice is None else min(self._allowed(source, voice, taken), 1.0)

    def _look(self) -> dict[str, _Voice]:
        """Return the active sources, and update their sorted rates.

        A few changed rates are moved to their new positions; everything is recomputed only if the
        set of active sources may have changed.
        """
        now, moved = self._now, self._moved
        if now is not None and not moved:
            return now
        if now is None or not self._are_the_same(now):
            now = self._now = self._anew()
            self._rates = sorted([v.rate for v in now.values()])
            self._fars = sorted([v.far for v in now.values()])
        else:
            for name, (rate, far) in moved.items():
                voice = now[name] = now.pop(name)
                if rate != voice.rate:
                    _replace(self._rates, rate, voice.rate)
                if far != voice.far:  # rarely changes
                    _replace(self._fars, far, voice.far)
        self._moved, self._rush = {}, None
        middle = _median(self._rates, None) if now else 0.0
        self._usual_rate = middle + min(middle, _TWICE_MAX)
        return now

    def _are_the_same(self, now: dict[str, _Voice]) -> bool:
        if len(self._moved) > _FEW or self.flooding is not self._looked:
            return False
        return self._oldest > self._events - _ARRIVALS and self._moved.keys() <= now.keys()

    def _anew(self) -> dict[str, _Voice]:
        self._looked, self._oldest = self.flooding, self._events
        since, now = self._events - _ARRIVALS, {}
        for name, voice in islice(reversed(self._voices.items()), _NOW):
            if voice.at <= since:
                break
            if name not in self.flooding:
                now[name] = voice
                self._oldest = voice.at
        return dict(reversed(now.items()))

    def _rushing(self, now: dict[str, _Voice]) -> float:
        """Return the mean recent rate of events that are far off."""
        if self._rush is None:
            just = [voice.just_far for voice in reversed(now.values())]
            self._rush = sum(just) / max(len(just), 1)
        return self._rush

    def rate(self, source: str) -> float | None:
        """Return twice the median rate of the other sources' surprises; None if too few."""
        middle = self.middle(source)
        return None if middle is None else max(middle + min(middle, _TWICE_MAX), _RATE_MIN)

    def far(self, source: str) -> tuple[float, bool]:
        """Return twice the median rate of far-off events, and whether all exceed it recently.

        Call it only if :meth:`rate` is not None.
        """
        now = self._look()
        own = now.get(source)
        far = max(2.0 * _median(self._fars, None if own is None else own.far), _FAR_RATE_MIN)
        return far, self._rushing(now) > max(_RUSH * far, _RUSH_MIN)

    def middle(self, source: str) -> float | None:
        """Return the median rate of the other sources' surprises; None if too few."""
        now = self._look()
        own = now.get(source)
        if len(now) - (own is not None) < SOURCES_MIN:
            return None
        return _median(self._rates, None if own is None else own.rate)

    def gap(self, source: str) -> int:
        """Return the number of events since the source's last one, including the next."""
        voice = self._voices.get(source)
        return _ARRIVALS if voice is None else self._events + 1 - voice.at

    def run(self, source: str) -> int:
        """Return the number of consecutive events of this source, including the next one."""
        return self._run + 1 if source == self._last else 1

    def forgive(self) -> None:
        """Reset all allowances, because the stream has changed."""
        for voice in self._voices.values():
            voice.allowed = _DEPTH

    def turning(self) -> bool:
        """Return whether even the two thirds of the sources that surprise least often surprise."""
        order = sorted(v.just for v in self._look().values())
        calm = order[: len(order) - len(order) // 3]
        return len(calm) >= SOURCES_MIN and sum(calm) >= _TURNING * len(calm)


def _replace(order: list[float], old: float, new: float) -> None:
    """Replace a number in a sorted list by another one."""
    del order[bisect_left(order, old)]
    insort(order, new)


def _median(order: list[float], without: float | None) -> float:
    """Return the median of sorted numbers, leaving one of them out."""
    if without is None:
        n = len(order)
        return (order[(n - 1) // 2] + order[n // 2]) / 2.0
    at, n = bisect_left(order, without), len(order) - 1
    low, high = (n - 1) // 2, n // 2
    return (order[low + (low >= at)] + order[high + (high >= at)]) / 2.0
