"""Does a source reward one action whatever it brings, or never?  A sequential test by action.

A reward of a choice is compared with what was to be expected of the chosen action: the model's own
answer, and that as far off as it is for the median source, or was for all of them lately.  The
highest of the three is the rate at which an honest source may reward it; one that sells the action
rewards it in 98 % of cases.  The lowest of them stands against one that never does.  So noisy
rewards are no surprise, and nobody is drowned in what it says of other actions.

Nobody is condemned by it: a person who likes one thing only says the same.  Rewards of this one
action by this source weigh a tenth, from two nats against it on, until others say so, too, or the
source says something else.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from math import log
from statistics import median
from typing import Final

import numpy as np

from paramserver.filters.base import PASS, Event, Favour, Filter, Opinion, Source

SOURCES_MAX: Final = 4096
ACTIONS_MAX: Final = 256
"""Sources, and actions of each, of which something is kept."""

_ALWAYS: Final = 0.98
_LEAST: Final = 0.05
_MOST: Final = 0.8
"""Rates that are taken as they are; above, a source that always rewards tells little apart."""

_STEP_MAX: Final = 1.5
_CREDIT_MAX: Final = 2.0
_AGAINST: Final = -2.0
_WEIGHT: Final = 0.1
_SOURCES_MIN: Final = 4
"""Sources that have rewarded an action before anybody is compared with them."""

TURN_MAX: Final = 16
"""Actions that are compared anew at a refresh, those rewarded longest ago first."""

USUAL_MAX: Final = 4096
"""Actions of which it is known how far off the median source finds them, or that are to be."""

_OWN: Final = 1.0 / 8.0
_ALL: Final = 1.0 / 32.0
"""Shares by which moving means follow: of one source, and of all."""

_REASON: Final = "favours: the source says the same of this action, whatever it brings"


class _Said:
    """How far off a source finds an action, and nats for its not always, or never, rewarding it."""

    __slots__ = ("high", "low", "off")

    def __init__(self, off: float) -> None:
        self.off, self.high, self.low = off, 0.0, 0.0


class Favours(Filter):
    """The test on rewards by action.  Says nothing of events that are no rewards of choices."""

    name = "favours"

    def __init__(self) -> None:
        self._said: OrderedDict[str, OrderedDict[int, _Said]] = OrderedDict()
        self._usual: OrderedDict[int, float] = OrderedDict()
        self._touched: OrderedDict[int, None] = OrderedDict()  # rewarded since they were compared
        self._lately: OrderedDict[int, float] = OrderedDict()

    def judge(self, event: Event, source: Source) -> Opinion:
        favour = event.favour
        if favour is None or favour.action not in self._usual:
            return PASS
        actions = self._said.get(event.source)
        said = None if actions is None else actions.get(favour.action)
        high, low = self._steps(favour)
        if said is not None:
            high, low = said.high + high, said.low + low
        worst = min(high, low)
        if worst > _AGAINST:
            return Opinion(score=worst)
        return Opinion(_WEIGHT, 0.0, worst, _REASON)

    def learn(self, event: Event, opinion: Opinion, source: Source, *, taken: bool) -> None:
        if (favour := event.favour) is None:
            return
        said = self._of(event.source, favour)
        high, low = self._steps(favour)
        said.high = min(max(said.high + high, -_STEP_MAX + _AGAINST), _CREDIT_MAX)
        said.low = min(max(said.low + low, -_STEP_MAX + _AGAINST), _CREDIT_MAX)
        off = favour.reward - favour.expected
        said.off += (off - said.off) * _OWN
        before = self._lately.pop(favour.action, 0.0)
        self._lately[favour.action] = before + (off - before) * _ALL
        if len(self._lately) > ACTIONS_MAX:
            self._lately.popitem(last=False)
        if len(self._touched) < USUAL_MAX:
            self._touched.setdefault(favour.action)

    def refresh(self, rng: np.random.Generator, sources: Sequence[Source]) -> None:
        known = [of for s in sources if (of := self._said.get(s.name)) is not None]
        for _ in range(min(len(self._touched), TURN_MAX)):
            action, _ = self._touched.popitem(last=False)
            self._usual.pop(action, None)
            off = [said.off for actions in known if (said := actions.get(action)) is not None]
            if len(off) >= _SOURCES_MIN:
                self._usual[action] = median(off)
        while len(self._usual) > USUAL_MAX:
            self._usual.popitem(last=False)

    def _of(self, source: str, favour: Favour) -> _Said:
        """Return what is kept of the source and the action; it is the newest from now on."""
        actions = self._said.pop(source, None)
        self._said[source] = actions = OrderedDict() if actions is None else actions
        said = actions.pop(favour.action, None)
        actions[favour.action] = said = (
            _Said(favour.reward - favour.expected) if said is None else said
        )
        if len(self._said) > SOURCES_MAX:
            self._said.popitem(last=False)
        if len(actions) > ACTIONS_MAX:
            actions.popitem(last=False)
        return said

    def _steps(self, favour: Favour) -> tuple[float, float]:
        """Nats for who does not always reward the action, and for who does at all."""
        usual = self._usual.get(favour.action)
        if usual is None:
            return 0.0, 0.0
        off = (0.0, usual, self._lately.get(favour.action, 0.0))
        most, least = favour.expected + max(off), favour.expected + min(off)
        return _says(favour.reward, most), _says(1.0 - favour.reward, 1.0 - least)


def _says(reward: float, rate: float) -> float:
    """Nats for an honest source, which rewards at this rate, and against one that always does."""
    if rate > _MOST:
        return 0.0
    rate = max(rate, _LEAST)
    nats = reward * log(rate / _ALWAYS) + (1.0 - reward) * log((1.0 - rate) / (1.0 - _ALWAYS))
    return min(max(nats, -_STEP_MAX), _CREDIT_MAX)
