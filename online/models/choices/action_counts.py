"""Reward counts by action: sums that merge over replicas by addition.

Each action has the sum and the number of its rewards, over all time and discounted: each reward of
an action first removes 1 / WINDOW of the action's discounted sums.  The removal is an addition of a
negative number, so deltas of several replicas add up to about what one replica would have removed.
With many rows between two merges they can remove more than there was: a negative sum then reads as
0, and the next rows correct it.
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
"""Number of pseudo-rewards, at the mean over all actions, that each action begins with."""

ARMS: Final = "arms"
_ALL: Final = ""
_PARTS: Final = "nrms"
_NONE: Final = (0.0, 0.0, 0.0, 0.0)
_KEPT: Final = 16  # sets of actions whose counts are cached until a count changes


@dataclass(frozen=True, slots=True, eq=False)
class Counted:
    """Numbers and sums of the rewards of some actions, over all time and discounted.

    Each array has one entry for each action; rewards are scaled to [0, 1].  ``prior`` is the mean
    reward over all actions.
    """

    n: Floats
    total: Floats
    late_n: Floats
    late_total: Floats
    prior: float
    means: Floats = field(init=False)
    """Smoothed mean reward of each action, over all time and discounted: shape (2, actions)."""

    def __post_init__(self) -> None:
        n, means = np.array((self.n, self.late_n)), np.array((self.total, self.late_total))
        n += PRIOR
        means += PRIOR * self.prior
        means /= n
        object.__setattr__(self, "means", means)


class Arms(Sums):
    """Reward counts by action and over all actions, as a block that merges."""

    def __init__(self) -> None:
        super().__init__(ARMS)
        self._each: dict[int, list[float]] = {}  # action → its four sums, for fast look-up
        self._kept: dict[tuple[int, ...], Counted] = {}  # cache of `of`, until the next change

    def __getstate__(self) -> dict[str, object]:
        """Return the state without the cache, so that a query does not change it."""
        return {**self.__dict__, "_kept": {}}

    def of(self, ids: tuple[int, ...]) -> Counted:
        """Return the counts of these actions; the same object until a count changes."""
        if (cached := self._kept.get(ids)) is not None:
            return cached
        each = self._each.get
        sums = np.array([each(name, _NONE) for name in ids]).T
        np.maximum(sums[2:], 0.0, out=sums[2:])
        np.minimum(sums[3], sums[2], out=sums[3])
        counted = Counted(sums[0], sums[1], sums[2], sums[3], self._prior())
        if len(self._kept) < _KEPT:
            self._kept[ids] = counted
        return counted

    def means_of(self, action: int) -> tuple[float, float]:
        """Return the smoothed means of one action, as :meth:`of` has them."""
        n, total, late_n, late_total = self._each.get(action, _NONE)
        late_n = max(late_n, 0.0)
        late_total = min(max(late_total, 0.0), late_n)
        more = PRIOR * self._prior()
        return (total + more) / (n + PRIOR), (late_total + more) / (late_n + PRIOR)

    def _prior(self) -> float:
        get = self.now.get
        return (get(f"r:{_ALL}", 0.0) + 1.0) / (get(f"n:{_ALL}", 0.0) + 2.0)

    def learn(self, action: int, y: float, weight: float) -> None:
        """Count a reward ``y`` in [0, 1] of an action."""
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
