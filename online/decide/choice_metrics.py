"""Metrics of the rewarded choices of a model: sums over rows that merge by addition.

Beside the mean reward they estimate what fixed rules would have earned on the same choices: always
one action, all actions uniformly, and the caller's own.  The estimates are doubly robust: the
expected reward of the rule's action at the time of the choice, plus, where that action was chosen,
the difference of the reward from the expectation, divided by the action's probability (a factor of
at most :data:`CLIP`).  Intervals are computed from the log: :mod:`online.decide.policy_evaluation`.

What an apprentice would have earned where it disagrees with the caller is unknown.  So it is judged
by a lower bound: the rewards of the choices on which both agree, and nothing for the others.  A
confidence sequence (:mod:`evaluation.comparison`), valid after every row, tests whether that is at
least the share :data:`KEPT` of the caller's rewards, both measured from the least reward.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from evaluation.comparison import Compared, Comparison
from online.decide.record import Choice, RecordInvalid, unpack
from paramserver.core.blocks import Blocks
from paramserver.core.sums import Sums
from replay.example import Example, label_of, label_text

CHOICES: Final = "choices"
"""Name of the block with the sums over the learned rows."""

OTHERS: Final = "others"
"""The name under which actions beyond the bound are counted together."""

CLIP: Final = 20.0
"""Bound on the importance weight of a reward in an estimate."""

KEPT: Final = 0.8
"""Share of the caller's reward that an apprentice must keep with confidence."""

ROWS_MIN: Final = 100
"""Least rewarded choices before an apprentice can be ready."""

_CHARS: Final = 64  # longer ids of actions are truncated
_COMPARED: Final = ("pairs", "sum", "squares")


@dataclass(frozen=True, slots=True)
class Standing:
    """The comparison of an apprentice with the caller whose choices it learns from.

    Attributes:
        n: Rewarded choices of the caller.
        agreed: Share of them in which the apprentice would have made the same choice.
        kept: Share of the caller's reward from these choices; None if there was no reward.
        sure: Whether, with probability 1 − alpha at any time, the apprentice keeps at least the
            share :data:`KEPT`.
        ready: Whether ``sure`` is true and there are at least :data:`ROWS_MIN` rows.
    """

    n: int
    agreed: float
    kept: float | None
    sure: bool
    ready: bool


class Choices(Sums):
    """Sums over the rewarded choices of one model: a view of the rows, with an open delta.

    Parameters:
        low, high: Least and greatest reward.
        most: Most actions that are counted separately; others are counted together.
        alpha: Error probability of the confidence sequence.
    """

    scores: Final = True

    def __init__(self, low: float, high: float, most: int, alpha: float = 0.05) -> None:
        self._low, self._range, self._most, self._alpha = low, high - low, most, alpha
        super().__init__(CHOICES)
        self._actions: set[str] = set()
        self._known: dict[str, tuple[str, str]] = {}  # cache of `_keys`

    def add(self, example: Example, at: float = 0.0, source: str = "") -> None:
        """Count one learned row, if it is a rewarded choice."""
        if example.choice is None:
            return
        try:
            choice = unpack(example.choice, described=False)
        except RecordInvalid:
            return
        reward = float(example.label)
        self.count("n", 1)
        self.count("reward", reward)
        self.count("defaulted", int(choice.defaulted))
        allowed = [i for i in range(len(choice.actions)) if i not in choice.excluded]
        worth = _worth(choice, reward, allowed)
        self.count("evenly", sum(worth) / len(allowed))
        sums, opened = self.now, self._open
        for place, value in zip(allowed, worth, strict=True):
            offered, worths = self._keys(choice.actions[place][0])
            sums[offered] = sums.get(offered, 0) + 1
            opened[offered] = opened.get(offered, 0) + 1
            sums[worths] = sums.get(worths, 0) + value
            opened[worths] = opened.get(worths, 0) + value
        name = self._name(choice.action)
        self.count(f"{name}\tn", 1)
        self.count(f"{name}\treward", reward)
        best = max(choice.estimates[i] for i in allowed)
        if choice.drawn is None:
            self.count("answered", 1)
            self.count("explored", int(choice.estimates[choice.chosen] < best))
        if choice.baseline is not None:
            would = choice.chosen if choice.drawn is None else choice.drawn
            self.count("based", 1)
            self.count("agreed", int(would == choice.baseline))
            if choice.baseline in allowed:
                self.count("based_allowed", 1)
                self.count("baseline", worth[allowed.index(choice.baseline)])
        if choice.drawn is not None:
            self._compare(choice.drawn == choice.chosen, reward)

    def _compare(self, agreed: bool, reward: float) -> None:
        """Count a choice of the caller: the reward, and the part that the apprentice keeps."""
        share = min(max((reward - self._low) / self._range, 0.0), 1.0)
        kept_share = share if agreed else 0.0
        for name, more in self._comparison().add(kept_share, KEPT * share).items():
            self.count(f"compared_{name}", more)
        self.count("apprentice_agreed", int(agreed))
        self.count("earned", share)
        self.count("kept", kept_share)

    def _comparison(self) -> Comparison:
        made = Comparison(self._alpha, KEPT)
        made.merge({name: self.now.get(f"compared_{name}", 0) for name in _COMPARED})
        return made

    def _name(self, action: str) -> str:
        """Return an action's name in keys: JSON text, which can't contain a tab."""
        text = label_text(action[:_CHARS])
        if text not in self._actions:
            if len(self._actions) >= self._most:
                return OTHERS
            self._actions.add(text)
        return text

    def _keys(self, action: str) -> tuple[str, str]:
        """Return the keys of an action's count of offers and of its estimated rewards."""
        if (keys := self._known.get(action)) is None:
            name = self._name(action)
            keys = f"{name}\toffered", f"{name}\tworth"
            if name != OTHERS and len(action) <= _CHARS:
                self._known[action] = keys
        return keys

    def rebase(self, values: Blocks) -> None:
        """Set new values of the given keys with the open delta on top."""
        super().rebase(values)
        for name in values[CHOICES].data if CHOICES in values else ():
            action, tab, _ = name.partition("\t")
            if tab and action != OTHERS:
                self._actions.add(action)

    def reset(self, values: Blocks) -> None:
        """Set the whole state to ``values``, with an empty open delta."""
        self._actions, self._known = set(), {}
        super().reset(values)

    # -- reports -----------------------------------------------------------------------------

    def standing(self) -> Standing | None:
        """Compare the apprentice with the caller; None before a choice of the caller's."""
        compared: Compared = self._comparison().now()
        if not compared.n:
            return None
        earned = self.now.get("earned", 0.0)
        sure = compared.interval is not None and compared.interval.low > 0.0
        return Standing(
            n=compared.n,
            agreed=self.now.get("apprentice_agreed", 0) / compared.n,
            kept=self.now.get("kept", 0.0) / earned if earned else None,
            sure=sure,
            ready=sure and compared.n >= ROWS_MIN,
        )

    def rules(self) -> dict[str, float | None]:
        """Return the mean reward of the choices, and the estimates for fixed rules."""
        constant = self._constant()
        return {
            "reward": self._mean("reward", "n"),
            "constant": None if constant is None else constant[1],
            "evenly": self._estimate("evenly", "n"),
        }

    def summary(self) -> dict[str, Any]:
        """Return the metrics for the status, with the most frequent actions first."""
        constant, standing = self._constant(), self.standing()
        based = None
        if n := self.now.get("based", 0):
            reward = self._estimate("baseline", "based_allowed")
            based = {"n": int(n), "agreed": self._mean("agreed", "based"), "reward": reward}
        apprentice = None
        if standing is not None:
            apprentice = {
                "n": standing.n, "agreed": standing.agreed, "kept": standing.kept,
                "asked": KEPT, "ready": standing.ready,
            }  # fmt: skip
        return {
            "n": int(self.now.get("n", 0)),
            "reward": self._mean("reward", "n"),
            "explored": self._mean("explored", "answered"),
            "defaulted": int(self.now.get("defaulted", 0)),
            "constant": constant and {"action": constant[0], "reward": constant[1]},
            "evenly": self._estimate("evenly", "n"),
            "baseline": based,
            "apprentice": apprentice,
            "actions": self._shares(),
        }  # fmt: skip

    def _mean(self, name: str, by: str) -> float | None:
        n = self.now.get(by, 0)
        return self.now.get(name, 0.0) / n if n else None

    def _estimate(self, name: str, by: str) -> float | None:
        mean = self._mean(name, by)
        return None if mean is None else self._ranged(mean)

    def _ranged(self, estimate: float) -> float:
        """Clip an estimate to the range of rewards, which it may leave after few choices."""
        return min(max(estimate, self._low), self._low + self._range)

    def _each(self) -> list[str]:
        """Return all actions' names in keys, the most frequently chosen first."""
        names = {name.partition("\t")[0] for name in self.now if "\t" in name}
        return sorted(names, key=lambda name: (-self.now.get(f"{name}\tn", 0), name))

    def _constant(self) -> tuple[str, float] | None:
        """Return the best constant action and its estimate, if offered in half of the choices."""
        half, worths = self.now.get("n", 0) / 2.0, list[tuple[float, str]]()
        for name in self._each():
            if name != OTHERS and self.now.get(f"{name}\toffered", 0) > half:
                mean = self._mean(f"{name}\tworth", f"{name}\toffered")
                assert mean is not None
                worths.append((mean, name))
        if not worths:
            return None
        worth, name = max(worths, key=lambda one: (one[0], one[1]))
        return _plain(name), self._ranged(worth)

    def _shares(self) -> dict[str, dict[str, Any]]:
        total, shares = max(self.now.get("n", 0), 1), dict[str, dict[str, Any]]()
        for name in self._each():
            n = int(self.now.get(f"{name}\tn", 0))
            shares[_plain(name)] = {
                "n": n, "share": n / total, "reward": self._mean(f"{name}\treward", f"{name}\tn"),
                "alone": self._estimate(f"{name}\tworth", f"{name}\toffered"),
            }  # fmt: skip
        return shares


def _worth(choice: Choice, reward: float, allowed: Sequence[int]) -> list[float]:
    """Return the doubly robust estimate of each allowed action's reward."""
    worths = [choice.estimates[i] for i in allowed]
    if choice.chosen in allowed:
        place = allowed.index(choice.chosen)
        weight = min(1.0 / choice.propensity, CLIP) if choice.propensity > 0.0 else CLIP
        worths[place] += weight * (reward - worths[place])
    return worths


def _plain(name: str) -> str:
    """Return an action's id for display; an id equal to OTHERS keeps its quotes."""
    if name == OTHERS:
        return name
    meant = label_of(name)
    return meant if isinstance(meant, str) and meant != OTHERS else name
