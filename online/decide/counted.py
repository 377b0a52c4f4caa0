"""Sums over the rewarded choices of a model say what came of them, and add up over replicas.

Beside the mean reward stands what rules that learn nothing would have earned on the same choices:
always one action, all actions evenly, the caller's own.  Each is estimated doubly robust: what was
expected of the rule's action when it was asked, and where that action was taken, how far off the
expectation was, divided by the action's probability, at most :data:`CLIP` times.  Intervals are for
:mod:`online.decide.judging`, which reads the log.

Of an apprentice nobody knows what it would have earned where it differs from the caller.  So it is
judged by what it is sure to keep: the rewards of the choices about which both agree, nothing for
the others.  Whether that is at least the share :data:`KEPT` of what the caller earns, both counted
from the least reward on, says a confidence sequence (:mod:`evaluation.comparison`), which may be
looked at after every row.
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
"""The block: sums over the learned rows."""

OTHERS: Final = "others"
"""All actions that are one too many to be counted by themselves."""

CLIP: Final = 20.0
"""The most that one reward weighs in an estimate."""

KEPT: Final = 0.8
"""Share of the caller's reward that an apprentice has to be sure to keep."""

ROWS_MIN: Final = 100
"""Rewarded choices below which nothing is said of an apprentice."""

_CHARS: Final = 64  # of an action's id
_COMPARED: Final = ("pairs", "sum", "squares")


@dataclass(frozen=True, slots=True)
class Standing:
    """How an apprentice stands against the caller whose choices it learns from.

    Attributes:
        n: Rewarded choices that were the caller's.
        agreed: Share of them that the apprentice would have made, too.
        kept: Share of the caller's reward that came of these.
        sure: The least that this share is over all choices so far, at any time with probability 1 −
            alpha; None: not even that it is above 0.
        ready: Whether ``sure`` is at least :data:`KEPT`, and there are enough rows.
    """

    n: int
    agreed: float
    kept: float | None
    sure: bool
    ready: bool


class Choices(Sums):
    """Sums over the rewarded choices of one model, with an open delta; a view of the rows.

    Parameters:
        low, high: The least and the greatest reward.
        most: Actions that are counted by themselves; others are counted together.
    """

    def __init__(self, low: float, high: float, most: int, alpha: float = 0.05) -> None:
        self._low, self._range, self._most, self._alpha = low, high - low, most, alpha
        super().__init__(CHOICES)
        self._actions: set[str] = set()
        self._known: dict[str, tuple[str, str]] = {}  # keys of actions that are counted

    def add(self, example: Example, at: float = 0.0, source: str = "") -> None:
        """Count one learned row, if it is the reward of a choice."""
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
        """Count a choice of the caller's: what the apprentice keeps of its reward."""
        share = min(max((reward - self._low) / self._range, 0.0), 1.0)
        kept = share if agreed else 0.0
        for name, more in self._comparison().add(kept, KEPT * share).items():
            self.count(f"compared_{name}", more)
        self.count("apprentice_agreed", int(agreed))
        self.count("earned", share)
        self.count("kept", kept)

    def _comparison(self) -> Comparison:
        made = Comparison(self._alpha, KEPT)
        made.merge({name: self.now.get(f"compared_{name}", 0) for name in _COMPARED})
        return made

    def _name(self, action: str) -> str:
        """An action as it stands in keys: its JSON text, so that a tab ends it."""
        text = label_text(action[:_CHARS])
        if text not in self._actions:
            if len(self._actions) >= self._most:
                return OTHERS
            self._actions.add(text)
        return text

    def _keys(self, action: str) -> tuple[str, str]:
        """Return under which keys an action was offered, and what that was worth."""
        if (found := self._known.get(action)) is None:
            name = self._name(action)
            found = f"{name}\toffered", f"{name}\tworth"
            if name != OTHERS and len(action) <= _CHARS:
                self._known[action] = found
        return found

    def rebase(self, values: Blocks) -> None:
        """Take new values for the keys given, with the open delta on top."""
        super().rebase(values)
        for name in values[CHOICES].data if CHOICES in values else ():
            action, tab, _ = name.partition("\t")
            if tab and action != OTHERS:
                self._actions.add(action)

    def reset(self, values: Blocks) -> None:
        """Become exactly ``values``, with an empty open delta."""
        self._actions, self._known = set(), {}
        super().reset(values)

    # -- what is told ------------------------------------------------------------------------

    def standing(self) -> Standing | None:
        """How the apprentice stands; None: no choice of the caller's was rewarded."""
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
        """The mean reward of the choices, and what rules that learn nothing would have earned."""
        constant = self._constant()
        return {
            "reward": self._mean("reward", "n"),
            "constant": None if constant is None else constant[1],
            "evenly": self._estimate("evenly", "n"),
        }

    def summary(self) -> dict[str, Any]:
        """Return what came of the choices, as the status has it; most frequent actions first."""
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
        """The estimate as people are shown it: after few choices it may be beyond any reward."""
        return min(max(estimate, self._low), self._low + self._range)

    def _each(self) -> list[str]:
        """All actions' names in keys, those first that were chosen most often."""
        names = {name.partition("\t")[0] for name in self.now if "\t" in name}
        return sorted(names, key=lambda name: (-self.now.get(f"{name}\tn", 0), name))

    def _constant(self) -> tuple[str, float] | None:
        """The action that always alone would have earned most, of those that were mostly there."""
        half, found = self.now.get("n", 0) / 2.0, list[tuple[float, str]]()
        for name in self._each():
            if name != OTHERS and self.now.get(f"{name}\toffered", 0) > half:
                mean = self._mean(f"{name}\tworth", f"{name}\toffered")
                assert mean is not None
                found.append((mean, name))
        if not found:
            return None
        worth, name = max(found, key=lambda one: (one[0], one[1]))
        return _plain(name), self._ranged(worth)

    def _shares(self) -> dict[str, dict[str, Any]]:
        total, found = max(self.now.get("n", 0), 1), dict[str, dict[str, Any]]()
        for name in self._each():
            n = int(self.now.get(f"{name}\tn", 0))
            found[_plain(name)] = {
                "n": n, "share": n / total, "reward": self._mean(f"{name}\treward", f"{name}\tn"),
                "alone": self._estimate(f"{name}\tworth", f"{name}\toffered"),
            }  # fmt: skip
        return found


def _worth(choice: Choice, reward: float, allowed: Sequence[int]) -> list[float]:
    """Return what each allowed action is estimated to have earned, had it been taken."""
    found = [choice.estimates[i] for i in allowed]
    if choice.chosen in allowed:
        place = allowed.index(choice.chosen)
        weight = min(1.0 / choice.propensity, CLIP) if choice.propensity > 0.0 else CLIP
        found[place] += weight * (reward - found[place])
    return found


def _plain(name: str) -> str:
    """An action as people are shown it: its id, but not one that is taken for the others."""
    if name == OTHERS:
        return name
    meant = label_of(name)
    return meant if isinstance(meant, str) and meant != OTHERS else name
