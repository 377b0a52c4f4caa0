"""A sequential test by action on sources that always, or never, reward one action.

The reward of a choice is compared with three expectations for the chosen action: the model's
estimate, the estimate plus the median source's deviation from it, and plus the recent deviation of
all sources.  The highest is the rate at which an honest source may reward the action, against 98 %
for a source that promotes it.  The lowest is used against a source that never rewards it.  So noisy
rewards are expected, and the test is not diluted by a source's rewards of other actions.

The test never leads to quarantine, because a person who likes only one thing behaves the same way.
From two nats against it on, the source's rewards of this action get a tenth of their weight, until
other sources agree or the source behaves differently.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from math import log
from statistics import median
from typing import Final

from paramserver.filters.base import PASS, Event, Favour, Filter, Opinion, Source

SOURCES_MAX: Final = 4096
ACTIONS_MAX: Final = 256
"""Greatest number of sources, and of actions of each, with statistics."""

_ALWAYS: Final = 0.98
_LEAST: Final = 0.05
_MOST: Final = 0.8
"""Least honest rate (lower ones are raised to it), and rate above which there is no evidence."""

_STEP_MAX: Final = 1.5
_CREDIT_MAX: Final = 2.0
_AGAINST: Final = -2.0
_WEIGHT: Final = 0.1
_SOURCES_MIN: Final = 4
"""Least number of sources that must have rewarded an action for a comparison."""

TURN_MAX: Final = 16
"""Number of actions updated per refresh, those waiting longest first."""

USUAL_MAX: Final = 4096
"""Greatest number of actions with a median deviation, or waiting for one."""

_OWN: Final = 1.0 / 8.0
_ALL: Final = 1.0 / 32.0
"""Rates of the moving averages: of one source, and of all sources."""

_REASON: Final = "favours: the source says the same of this action, whatever it brings"


class _Said:
    """Deviation of a source's rewards of an action, and evidence against always/never rewarding."""

    __slots__ = ("high", "low", "off")

    def __init__(self, off: float) -> None:
        self.off, self.high, self.low = off, 0.0, 0.0


class Favours(Filter):
    """The test on rewards by action.  It ignores events that are not rewards of choices."""

    name = "favours"

    def __init__(self) -> None:
        self._said: OrderedDict[str, OrderedDict[int, _Said]] = OrderedDict()
        self._usual: OrderedDict[int, float] = OrderedDict()
        self._touched: OrderedDict[int, None] = OrderedDict()  # rewarded since their last update
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

    def refresh(self, sources: Sequence[Source]) -> None:
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
        """Return the statistics of the source and action, and mark them as most recent."""
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
        """Return nats against the hypotheses "always rewards" and "never rewards"."""
        usual = self._usual.get(favour.action)
        if usual is None:
            return 0.0, 0.0
        off = (0.0, usual, self._lately.get(favour.action, 0.0))
        most, least = favour.expected + max(off), favour.expected + min(off)
        return _says(favour.reward, most), _says(1.0 - favour.reward, 1.0 - least)


def _says(reward: float, rate: float) -> float:
    """Return nats for an honest source with this rate against one that always rewards."""
    if rate > _MOST:
        return 0.0
    rate = max(rate, _LEAST)
    nats = reward * log(rate / _ALWAYS) + (1.0 - reward) * log((1.0 - rate) / (1.0 - _ALWAYS))
    return min(max(nats, -_STEP_MAX), _CREDIT_MAX)
