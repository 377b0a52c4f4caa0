"""How often those sources surprise that send now, each counted once however much it sends.

Whoever surprises more often than the others has used up an allowance: what it sends weighs less
from then on, long before there is evidence enough to set it aside.  It comes back as *others* send
what is no surprise, so a flood does not earn it; who used to send more than the median source has
so many times more of it; and when the world turns everybody has the whole of it again.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from itertools import islice
from typing import Final

from paramserver.filters.losses import SOURCES_MIN

_KNOWN: Final = 1024
_NOW: Final = 32
"""Sources that were heard last: what one saw, the others saw."""

_ARRIVALS: Final = 256
"""Events after which a source doesn't send now any more.  Where one sends after the other, nobody
is compared; a flood of fifteen lies a row leaves sixteen events of the others."""

_LATELY: Final = 5.0
_JUST: Final = 2.0
_TURNING: Final = 0.4
_RATE_MIN: Final = 0.2
_TWICE_MAX: Final = 0.2
_FAR_RATE_MIN: Final = 0.05
_RUSH: Final = 1.5  # of twice the median's
_RUSH_MIN: Final = 0.12
_DEPTH: Final = 2.0
_ROUND: Final = 0.4
"""Allowance of a source: surprises that are learned whole, and what it gets back when each source
has sent once what is no surprise, at least: more than honest ones use."""

_FEW: Final = 4  # that are put in their places one by one


class _Voice:
    """Moving means of a source, over about nine events and over about three; and its allowance."""

    __slots__ = ("allowed", "at", "calm_at", "far", "just", "just_far", "rate")

    def __init__(self) -> None:
        self.rate = self.far = self.just = self.just_far = 0.0
        self.at, self.calm_at, self.allowed = 0, 0.0, _DEPTH


class Voices:
    """The established sources, each with how often it surprises.

    Attributes:
        many: How many of them send.
        usual: Events that were taken of the median one.
        flooding: Those that send far more than they used to: they have no say.
    """

    def __init__(self) -> None:
        self.many, self.usual = 1, 1
        self.flooding: frozenset[str] = frozenset()
        self._usual_rate = 0.0
        self._calm = 0.0  # rounds of events that were no surprise
        self._voices: dict[str, _Voice] = {}  # last heard at the end
        self._events = 0
        self._now: dict[str, _Voice] | None = None  # last heard at the end
        self._moved: dict[str, tuple[float, float]] = {}  # heard since, and their rates before
        self._looked = self.flooding  # those that were left out then
        self._oldest = 0
        self._rates: list[float] = []
        self._fars: list[float] = []
        self._rush: float | None = None
        self._last, self._run = "", 0

    def pass_by(self, source: str) -> None:
        """An event of a source that is not heard."""
        self._events += 1
        self._run = self._run + 1 if source == self._last else 1
        self._last = source

    def hear(self, source: str, taken: int, *, hit: bool, far: bool) -> None:
        """An event that was a surprise or not, far off or not; ``taken``: those of its source."""
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
        elif voice.rate <= self._usual_rate or voice.allowed >= 1.0:  # not who often does
            self._calm += 1.0 / self.many
        voice.calm_at = self._calm
        self._moved[source] = self._moved.pop(source, (voice.rate, voice.far))
        voice.rate += (hit - voice.rate) / _LATELY
        voice.far += (far - voice.far) / _LATELY
        voice.just += (hit - voice.just) / _JUST
        voice.just_far += (far - voice.just_far) / _JUST
        voice.at = self._events

    def size(self, taken: int) -> float:
        """How many times the median source's events this is: some have always sent more."""
        return max(taken / self.usual, 1.0)

    def _allowed(self, source: str, voice: _Voice, taken: int) -> float:
        size = 1.0 if source in self.flooding else self.size(taken)
        back = max(self._usual_rate, _ROUND) * (self._calm - voice.calm_at)
        return min(voice.allowed + size * back, _DEPTH * size)

    def weight(self, source: str, taken: int) -> float:
        """Weight of this source's events, by how often it has surprised of late."""
        voice = self._voices.get(source)
        return 1.0 if voice is None else min(self._allowed(source, voice, taken), 1.0)

    def _look(self) -> dict[str, _Voice]:
        """Those that send now, with their rates in order.

        A few of them that were heard are put where they belong now; all are looked at anew only
        when others may have come or gone.
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
                if far != voice.far:  # hardly anything is far off
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
        """How often all of them are far off just now."""
        if self._rush is None:
            just = [voice.just_far for voice in reversed(now.values())]
            self._rush = sum(just) / max(len(just), 1)
        return self._rush

    def rate(self, source: str) -> float | None:
        """Twice the median rate of the others' surprises; None: there are too few of them."""
        middle = self.middle(source)
        return None if middle is None else max(middle + min(middle, _TWICE_MAX), _RATE_MIN)

    def far(self, source: str) -> tuple[float, bool]:
        """Twice the median rate of what is far off, and whether all are far off more often.

        Only whoever judges what is far off asks, where :meth:`rate` has an answer.
        """
        now = self._look()
        own = now.get(source)
        far = max(2.0 * _median(self._fars, None if own is None else own.far), _FAR_RATE_MIN)
        return far, self._rushing(now) > max(_RUSH * far, _RUSH_MIN)

    def middle(self, source: str) -> float | None:
        """Median rate of the others' surprises; None: there are too few of them."""
        now = self._look()
        own = now.get(source)
        if len(now) - (own is not None) < SOURCES_MIN:
            return None
        return _median(self._rates, None if own is None else own.rate)

    def gap(self, source: str) -> int:
        """Events since this source's last one, counting the next."""
        voice = self._voices.get(source)
        return _ARRIVALS if voice is None else self._events + 1 - voice.at

    def run(self, source: str) -> int:
        """How many events in a row this source has sent with the next, nobody else among them."""
        return self._run + 1 if source == self._last else 1

    def forgive(self) -> None:
        """All have their whole allowance again: it is the world that surprises."""
        for voice in self._voices.values():
            voice.allowed = _DEPTH

    def turning(self) -> bool:
        """Whether even those two thirds of the sources surprise that do it least."""
        order = sorted(v.just for v in self._look().values())
        calm = order[: len(order) - len(order) // 3]
        return len(calm) >= SOURCES_MIN and sum(calm) >= _TURNING * len(calm)


def _replace(order: list[float], old: float, new: float) -> None:
    """Put a number of a sorted list where another one belongs."""
    del order[bisect_left(order, old)]
    insort(order, new)


def _median(order: list[float], without: float | None) -> float:
    """The median of sorted numbers, one of them left out."""
    if without is None:
        n = len(order)
        return (order[(n - 1) // 2] + order[n // 2]) / 2.0
    at, n = bisect_left(order, without), len(order) - 1
    low, high = (n - 1) // 2, n // 2
    return (order[low + (low >= at)] + order[high + (high >= at)]) / 2.0
