"""Policies judged on the log of the one that was served, without an answer of their own.

What a judged policy would have done is worked out from the record of each choice alone: which
actions there were, and what was expected of each when it was asked.  So no policy knows a reward
before it is judged by it, and the intervals of :mod:`evaluation.offpolicy` hold at every row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from evaluation.offpolicy import Estimated, OffPolicy
from online.decide.record import Choice
from online.errors import OnlineError

SERVED: Final = "served"
Target = Callable[[Choice], Sequence[float] | None]
"""The probability of each action; None: the policy has no answer to this choice."""


class PolicyUnknown(OnlineError):
    """No policy that can be judged by its name."""

    name: str
    text = (
        "{name!r} is no policy that a log can judge. Give greedy, uniform, baseline, epsilon:0.1, "
        "or always:ACTION"
    )


def target(name: str) -> Target:
    """How a policy answers, by its name.  Raises PolicyUnknown."""
    kind, _, word = name.partition(":")
    if name == SERVED:
        return lambda choice: choice.probabilities
    if name == "greedy":
        return lambda choice: _mixed(choice, 0.0)
    if name == "uniform":
        return lambda choice: _mixed(choice, 1.0)
    if name == "baseline":
        return _baseline
    if kind == "always" and word:
        return lambda choice: _always(choice, word)
    try:
        epsilon = float(word) if kind == "epsilon" else -1.0
    except ValueError:
        epsilon = -1.0
    if not 0.0 <= epsilon <= 1.0:
        raise PolicyUnknown(name)
    return lambda choice: _mixed(choice, epsilon)


class Judging:
    """Judges policies on one log.

    Parameters:
        names: See :func:`target`; the served one is judged beside them.
        alpha, low, high: As for :class:`evaluation.offpolicy.OffPolicy`.

    Attributes:
        unanswered: By policy, choices that it has no answer to: they are in the others' rows only.
    """

    def __init__(self, names: Sequence[str], alpha: float, low: float, high: float) -> None:
        self._targets = {name: target(name) for name in (SERVED, *names)}
        self._judged = {name: OffPolicy(alpha, low, high) for name in self._targets}
        self.unanswered = dict.fromkeys(self._targets, 0)

    def add(self, choice: Choice, reward: float) -> None:
        """Count one choice with its reward."""
        for name, asked in self._targets.items():
            given = asked(choice)
            if given is None:
                self.unanswered[name] += 1
                continue
            logged = choice.probabilities
            self._judged[name].add(reward, choice.chosen, logged, given, choice.estimates)

    def now(self) -> dict[str, Estimated]:
        """Return what can be said of each policy."""
        return {name: judged.now() for name, judged in self._judged.items()}


def _allowed(choice: Choice) -> list[int]:
    return [i for i in range(len(choice.actions)) if i not in choice.excluded]


def _mixed(choice: Choice, epsilon: float) -> list[float]:
    """The best of what was expected, the best ones evenly, and a share of all."""
    allowed = _allowed(choice)
    most = max(choice.estimates[i] for i in allowed)
    best = [i for i in allowed if choice.estimates[i] >= most]
    found = [0.0] * len(choice.actions)
    for i in allowed:
        found[i] = epsilon / len(allowed)
    for i in best:
        found[i] += (1.0 - epsilon) / len(best)
    return found


def _baseline(choice: Choice) -> list[float] | None:
    return None if choice.baseline is None else _alone(choice, choice.baseline)


def _always(choice: Choice, action: str) -> list[float] | None:
    places = (i for i in _allowed(choice) if choice.actions[i][0] == action)
    place = next(places, None)
    return None if place is None else _alone(choice, place)


def _alone(choice: Choice, place: int) -> list[float]:
    return [float(i == place) for i in range(len(choice.actions))]
