"""All new sources of a model as one group, since names are free.

A single new source has sent too little to be judged, so the group is: by how often its events are
*hits* (surprises, or labels that suggest a lie) beside those of established sources *at the same
time*.  What each of these did lately is known from too few events each: when a stream becomes hard,
new sources have more hits at once, the median source only after several events of every source.
"""

from __future__ import annotations

from typing import Final

from paramserver.filters.arrivals import EARNED

DENIED_LATELY: Final = 16.0
DENIED_MIN: Final = 0.1
"""Events over which the rate of contradictions of new and small sources is averaged, and what it is
at least."""

_LATELY: Final = 32.0
_SHARE: Final = 0.05
_FADE: Final = 1.0 - 1.0 / 64.0

_USUAL: Final = 0.2
_MORE: Final = 0.1
_MORE_MAX: Final = 0.25
_CLEARLY: Final = 0.1
"""A rate of hits that is always usual; how much more often than established sources new ones may
have hits; how far this may exceed the bound by the median source, so that hostile established
sources hide little; and how much greater the rate has to be if an event is no hit itself."""


class Newcomers:
    """The rate of hits of all new sources together, and of the established ones.

    Each event counts as it weighs.  Weights are summed over some 64 events, or a twentieth of them
    would be a dozen lies of names that come all at once.

    Attributes:
        denied: Rate at which the model lately found another label likelier than that of a new or
            small source.
    """

    def __init__(self) -> None:
        self.denied = 0.5
        self._rate = 0.0
        self._others = 0.0
        self._surprises = 0.0  # weight of theirs, lately
        self._established = 0.0  # weight of the others' events, lately
        self._usual = 1.0  # weight of one of those

    def count(self, *, new: bool, hit: bool, weight: float = 1.0, blamed: bool = False) -> None:
        """Count one event of a new or an established source.

        Parameters:
            new: Its source is new.
            blamed: Its source is in doubt or floods, so that new ones are not compared with it.
        """
        self._surprises = self._surprises * _FADE + weight * (new and hit)
        self._established = self._established * _FADE + weight * (not new)
        if new:
            share = min(weight / self._usual, 2.0)
            self._rate += (hit - self._rate) * share / _LATELY
            return
        self._usual += (weight - self._usual) / _LATELY
        if not blamed:
            self._others += (hit - self._others) / _LATELY

    @property
    def agree(self) -> bool:
        """Whether they hardly have more hits than enough others; False if that is unknown."""
        known = self._established >= EARNED * self._usual
        return known and self._rate <= max(self._others, _USUAL) + _CLEARLY

    def most(self, weight: float) -> float:
        """Return the factor by which one of their events weighs no more than is usual."""
        few = self._established < EARNED * self._usual
        return 1.0 if few else min(self._usual / weight, 1.0)

    def note(self, *, denied: bool) -> None:
        """Count whether the model found another label likelier than that of one such event."""
        self.denied += (max(denied, DENIED_MIN) - self.denied) / DENIED_LATELY

    def weight(self, rate: float, *, hit: bool = True, compared: bool = True) -> float:
        """Return the weight of one of their events, given the greatest rate of a usual source.

        ``compared``: whether enough sources are established to judge what is no hit, too.
        """
        most = max(rate, min(self._others + _MORE, rate + _MORE_MAX))
        if self._rate <= most + (0.0 if hit else _CLEARLY) or not (hit or compared):
            return 1.0
        return min(_SHARE * self._established / (self._surprises + self._usual), 1.0)
