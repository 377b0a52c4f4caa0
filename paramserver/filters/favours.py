"""A test by action on sources that always, or never, reward one action.

Each reward of a choice is a likelihood ratio between an honest source and one that rewards the
action in 98 % of cases (or in 2 %).  An honest source rewards it at the rate that the model
expected, corrected by how far off rewards of trusted weight were lately.  So noisy rewards are
expected, and the test is not diluted by a source's rewards of other actions.

An action with few rewards is held to be hardly better than the others: where rewards are rare, the
first lie about it makes the model expect many, which would let the next ones pass.

How likely it is beforehand that a source is such a one is learned for each action from the other
sources: where nobody looks like that, a streak is luck; where some do, the next one is soon
noticed.  If more than two fifths look like that it is the model that is wrong, or the action that
is always good, and nobody is suspected.

The test never leads to quarantine, because a person who likes only one thing behaves the same way.
While it is likelier than not, the source's rewards of this action get a tenth of their weight, or
as much as the odds say: where rewards are rare, a tenth of a lie is still a lot.
"""

from __future__ import annotations

from collections import OrderedDict
from math import exp, inf, log
from typing import Final

from paramserver.filters.base import PASS, Event, Favour, Filter, Opinion, Source

SOURCES_MAX: Final = 4096
ACTIONS_MAX: Final = 256
"""Greatest number of sources, and of actions of each, with statistics."""

OFFERED_MAX: Final = 4096
"""Greatest number of actions with statistics over all sources."""

_ALWAYS: Final = 0.98
_LEAST: Final = 0.05
_MOST: Final = 0.9
"""Least honest rate (lower ones are raised to it), and rate above which there is no evidence."""

_CREDIT_MAX: Final = 3.0
_AGAINST_MAX: Final = 6.0
"""Most evidence in nats for a source, and against it."""

_PRIOR: Final = 0.05
_FIRST: Final = 4.0
_SHARE_MIN: Final = 0.02
"""Share of hostile sources before others are known, the number of sources that it counts as, and
the least share afterwards."""

_CROWD: Final = 0.4
_WEIGHT: Final = 0.1
_SOURCES_MIN: Final = 4
"""Least number of sources that must have rewarded an action for a comparison."""

_OTHERS_MAX: Final = 5.0
"""Most rewards that the mean over the other actions counts as, in what is expected of an action."""

_LATELY: Final = 40.0
_ROWS_FIRST: Final = 3.0
"""Rewards over which the model's error is averaged, and the number that its first value, 0, has."""

_REASON: Final = "favours: the source says the same of this action, whatever it brings"


class _Action:
    """Statistics of an action: sources, suspected ones, the model's error, trusted rewards."""

    __slots__ = ("high", "low", "n", "off", "seen", "total", "weight")

    def __init__(self) -> None:
        self.n, self.high, self.low, self.off, self.weight = 0, 0.0, 0.0, 0.0, 0.0
        self.seen, self.total = 0.0, 0.0

    def count(self, said: _Said, sign: int) -> None:
        """Add, or with -1 remove, a source."""
        self.n += sign
        self.high += sign * _suspicion(said.high)
        self.low += sign * _suspicion(said.low)

    def odds(self, nats: float, suspected: float, own: float, others: int) -> float:
        """Return the log odds that a source is honest; infinite if too many would not be."""
        share = max((_PRIOR * _FIRST + suspected - own) / (_FIRST + others), _SHARE_MIN)
        return inf if share > _CROWD else nats + log((1.0 - share) / share)

    def steps(self, favour: Favour, others: float) -> tuple[float, float]:
        """Return nats against the hypotheses "always rewards" and "never rewards".

        ``others``: mean reward of the other actions, above which the action is raised only by
        rewards of its own: beside as many as it takes for one that is 1 (or 0) among the others'.
        """
        first = min(1.0 / min(others, 1.0 - others), _OTHERS_MAX)
        rate = favour.expected + self.off / (self.weight + max(first, _ROWS_FIRST))
        at_most = rate + max(rate - others, 0.0) * (self.seen / (self.seen + first) - 1.0)
        return _says(favour.reward, at_most), _says(1.0 - favour.reward, 1.0 - rate)


class _Said:
    """Evidence on a source's rewards of an action, and the action in which it is counted."""

    __slots__ = ("high", "low", "of")

    def __init__(self) -> None:
        self.high, self.low = 0.0, 0.0
        self.of: _Action | None = None


class Favours(Filter):
    """The test on rewards by action.  It ignores events that are not rewards of choices."""

    name = "favours"

    def __init__(self) -> None:
        self._said: OrderedDict[str, OrderedDict[int, _Said]] = OrderedDict()
        self._actions: OrderedDict[int, _Action] = OrderedDict()
        self._seen, self._total = 0.0, 0.0  # weight and sum of the trusted rewards of all actions

    def judge(self, event: Event, source: Source) -> Opinion:
        favour = event.favour
        if favour is None or (action := self._actions.get(favour.action)) is None:
            return PASS
        if action.n < _SOURCES_MIN:
            return PASS
        high, low = action.steps(favour, self._others(action))
        own_high = own_low = 0.0
        others, actions = action.n, self._said.get(event.source)
        said = None if actions is None else actions.get(favour.action)
        if said is not None:
            high, low = _bounded(said.high + high), _bounded(said.low + low)
            if said.of is action:
                others -= 1
                own_high, own_low = _suspicion(said.high), _suspicion(said.low)
        worst = min(
            action.odds(high, action.high, own_high, others),
            action.odds(low, action.low, own_low, others),
        )
        if worst == inf:
            return PASS
        if worst > 0.0:
            return Opinion(score=worst)
        return Opinion(min(_WEIGHT, exp(worst)), 0.0, worst, _REASON)

    def learn(self, event: Event, opinion: Opinion, source: Source, *, taken: bool) -> None:
        if (favour := event.favour) is None:
            return
        action = self._actions.pop(favour.action, None) or _Action()
        self._actions[favour.action] = action
        if len(self._actions) > OFFERED_MAX:
            _, dropped = self._actions.popitem(last=False)
            self._take(dropped, -dropped.seen, -dropped.total)
        said = self._of(event.source, favour.action)
        if said.of is action:
            action.count(said, -1)
        high, low = action.steps(favour, self._others(action))
        said.high, said.low, said.of = _bounded(said.high + high), _bounded(said.low + low), action
        action.count(said, 1)
        off = opinion.factor * (favour.reward - favour.expected)
        action.off += off - action.off / _LATELY
        action.weight += opinion.factor - action.weight / _LATELY
        self._take(action, opinion.factor, opinion.factor * favour.reward)

    def _others(self, action: _Action) -> float:
        """Return the mean of the trusted rewards of all other actions, above 0 and below 1."""
        return (self._total - action.total + 1.0) / (self._seen - action.seen + 2.0)

    def _take(self, action: _Action, weight: float, total: float) -> None:
        action.seen, action.total = action.seen + weight, action.total + total
        self._seen, self._total = self._seen + weight, self._total + total

    def _of(self, source: str, action: int) -> _Said:
        """Return the statistics of the source and action, and mark them as most recent."""
        actions = self._said.pop(source, None)
        self._said[source] = actions = OrderedDict() if actions is None else actions
        actions[action] = said = actions.pop(action, None) or _Said()
        if len(self._said) > SOURCES_MAX:
            for gone in self._said.popitem(last=False)[1].values():
                _leave(gone)
        if len(actions) > ACTIONS_MAX:
            _leave(actions.popitem(last=False)[1])
        return said


def _leave(said: _Said) -> None:
    """Remove a source whose statistics are dropped from its action's."""
    if said.of is not None:
        said.of.count(said, -1)


def _suspicion(nats: float) -> float:
    """Return the probability that a source is hostile if a share of ``_PRIOR`` is."""
    return 1.0 / (1.0 + (1.0 - _PRIOR) / _PRIOR * exp(nats))


def _bounded(nats: float) -> float:
    return min(max(nats, -_AGAINST_MAX), _CREDIT_MAX)


def _says(reward: float, rate: float) -> float:
    """Return nats for an honest source with this rate against one that always rewards."""
    if rate > _MOST:
        return 0.0
    rate = max(rate, _LEAST)
    return reward * log(rate / _ALWAYS) + (1.0 - reward) * log((1.0 - rate) / (1.0 - _ALWAYS))
