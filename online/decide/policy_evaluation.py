"""Off-policy evaluation: candidate policies are judged on the log of the served policy.

What a candidate would have done is computed from the record of each choice alone: the actions and
their expected rewards at that time.  So no candidate uses a reward before it is judged by it, and
the intervals of :mod:`evaluation.offpolicy` hold after every row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from evaluation.offpolicy import Estimated, OffPolicy
from online.decide.record import Choice
from online.errors import OnlineError

SERVED: Final = "served"
_PROMOTE: Final = (
    "your own choices are answered, without chance. See `online promote`, or let a model without "
    "`apprentice` answer a part of the traffic, with a floor"
)
Target = Callable[[Choice], Sequence[float] | None]
"""Returns a policy's probability of each action; None if it has no answer to the choice."""


class PolicyUnknown(OnlineError):
    """A name of no policy that a log can judge."""

    name: str
    text = (
        "{name!r} is no policy that a log can judge. Give greedy, uniform, baseline, epsilon:0.1, "
        "or always:ACTION"
    )


def target(name: str) -> Target:
    """Return the policy of this name as a function.  Raises PolicyUnknown."""
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
    """The evaluation of several policies on one log.

    Parameters:
        names: Names for :func:`target`; the served policy is always judged, too.
        alpha, low, high: As for :class:`evaluation.offpolicy.OffPolicy`.
        apprentice: Whether the caller's own choices are answered, in which no floor has a part.

    Attributes:
        unanswered: Number of choices without an answer, by policy; they do not count for it.
    """

    def __init__(
        self,
        names: Sequence[str],
        alpha: float,
        low: float,
        high: float,
        *,
        apprentice: bool = False,
    ) -> None:
        self._targets = {name: target(name) for name in (SERVED, *names)}
        given = {"exploring": _PROMOTE} if apprentice else {}
        self._judged = {name: OffPolicy(alpha, low, high, **given) for name in self._targets}
        self.unanswered = dict.fromkeys(self._targets, 0)

    def add(self, choice: Choice, reward: float) -> None:
        """Count one choice with its reward."""
        for name, target in self._targets.items():
            answer = target(choice)
            if answer is None:
                self.unanswered[name] += 1
                continue
            logged = choice.probabilities
            self._judged[name].add(reward, choice.chosen, logged, answer, choice.estimates)

    def now(self) -> dict[str, Estimated]:
        """Return the present estimate of each policy."""
        return {name: judged.now() for name, judged in self._judged.items()}


def _allowed(choice: Choice) -> list[int]:
    return [i for i in range(len(choice.actions)) if i not in choice.excluded]


def _mixed(choice: Choice, epsilon: float) -> list[float]:
    """Return the epsilon-greedy distribution, uniform over ties."""
    allowed = _allowed(choice)
    most = max(choice.estimates[i] for i in allowed)
    best = [i for i in allowed if choice.estimates[i] >= most]
    probabilities = [0.0] * len(choice.actions)
    for i in allowed:
        probabilities[i] = epsilon / len(allowed)
    for i in best:
        probabilities[i] += (1.0 - epsilon) / len(best)
    return probabilities


def _baseline(choice: Choice) -> list[float] | None:
    return None if choice.baseline is None else _alone(choice, choice.baseline)


def _always(choice: Choice, action: str) -> list[float] | None:
    places = (i for i in _allowed(choice) if choice.actions[i][0] == action)
    place = next(places, None)
    return None if place is None else _alone(choice, place)


def _alone(choice: Choice, place: int) -> list[float]:
    return [float(i == place) for i in range(len(choice.actions))]
