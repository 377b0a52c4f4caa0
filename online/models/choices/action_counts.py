"""How often each action was rewarded: sums that add up over replicas.

Of each action there are the rewards so far and their number, and the same of late: each reward
takes 1 / WINDOW of what there was of its action away.  Taking away is an addition, too: that of
two replicas is, up to the rows between two merges, what one would have taken away.  With many such
rows they take away more than there was: whoever asks is told none then, and the next rows mend it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import numpy as np

from online.models.experts.linear import Floats
from paramserver.core.blocks import Blocks
from paramserver.core.sums import Sums

WINDOW: Final = 50.0
PRIOR: Final = 2.0
"""Rewards of the mean over all actions that an action begins with."""

ARMS: Final = "arms"
_ALL: Final = ""
_PARTS: Final = "nrms"
_NONE: Final = (0.0, 0.0, 0.0, 0.0)
_KEPT: Final = 16  # sets of actions whose numbers are kept until one of them changes


@dataclass(frozen=True, slots=True, eq=False)
class Counted:
    """Rewards of some actions and their sums as shares of the range, so far and of late.

    ``prior`` is the mean over all actions.
    """

    n: Floats
    total: Floats
    late_n: Floats
    late_total: Floats
    prior: float
    means: Floats = field(init=False)
    """Mean reward of each action so far and of late: shape (2, actions)."""

    def __post_init__(self) -> None:
        n, means = np.array((self.n, self.late_n)), np.array((self.total, self.late_total))
        n += PRIOR
        means += PRIOR * self.prior
        means /= n
        object.__setattr__(self, "means", means)


class Arms(Sums):
    """Rewards by action, and of all actions together."""

    def __init__(self) -> None:
        super().__init__(ARMS)
        self._each: dict[int, list[float]] = {}  # the same of each action in one place
        self._kept: dict[tuple[int, ...], Counted] = {}  # since the last change

    def __getstate__(self) -> dict[str, object]:
        """The state without what is worked out again: a question leaves nothing in it."""
        return {**self.__dict__, "_kept": {}}

    def of(self, ids: tuple[int, ...]) -> Counted:
        """Return what is known of these actions: until that changes, the very same value."""
        if (kept := self._kept.get(ids)) is not None:
            return kept
        get, each = self.now.get, self._each.get
        sums = np.array([each(name, _NONE) for name in ids]).T
        np.maximum(sums[2:], 0.0, out=sums[2:])
        np.minimum(sums[3], sums[2], out=sums[3])
        prior = (get(f"r:{_ALL}", 0.0) + 1.0) / (get(f"n:{_ALL}", 0.0) + 2.0)
        found = Counted(sums[0], sums[1], sums[2], sums[3], prior)
        if len(self._kept) < _KEPT:
            self._kept[ids] = found
        return found

    def learn(self, action: int, y: float, weight: float) -> None:
        """Count a reward of an action."""
        now, add, fade = self.now, self.count, min(weight / WINDOW, 1.0)
        for key in (str(action), _ALL):
            add(f"n:{key}", weight)
            add(f"r:{key}", weight * y)
        for part, more in (("m", weight), ("s", weight * y)):
            name = f"{part}:{action}"
            add(name, more - fade * max(now.get(name, 0.0), 0.0))
        self._each[action] = [now[f"{part}:{action}"] for part in _PARTS]
        self._kept.clear()

    def rebase(self, values: Blocks) -> None:
        """Set new values with the open delta on top."""
        super().rebase(values)
        self._kept.clear()
        for name in values[ARMS].data if ARMS in values else ():
            part, _, action = name.partition(":")
            if action != _ALL:
                held = self._each.setdefault(int(action), list(_NONE))
                held[_PARTS.index(part)] = self.now[name]

    def reset(self, values: Blocks) -> None:
        """Set the whole state to ``values``, with an empty open delta."""
        self._each = {}
        self._kept.clear()
        super().reset(values)
