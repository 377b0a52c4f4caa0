"""Retrieval functions, which choose the buffer's items to replay.

A retrieval is any callable of the type below.  It reads the buffer's two compartments (one is empty
if the policy does not have it) and draws with the generator that it is given.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from replay.buffers.item import Item
from replay.buffers.slots import Slots
from replay.errors import SettingInvalid

Retrieval = Callable[[Slots, Slots, int, Random], list[Item]]
"""``retrieval(long, recent, k, rng)``: min(k, n) distinct items of the n, in any order."""


def uniform(long: Slots, recent: Slots, k: int, rng: Random) -> list[Item]:
    """Draw ``k`` items so that all sets are equally likely."""
    n_recent = _proportional(long, recent, k, rng)
    return long.sample(k - n_recent, rng) + recent.sample(n_recent, rng)


def class_balanced(long: Slots, recent: Slots, k: int, rng: Random) -> list[Item]:
    """Draw equally many items of each class within each compartment.

    The numbers of items from the compartments are in proportion to their sizes.
    """
    n_recent = _proportional(long, recent, k, rng)
    return long.sample_balanced(k - n_recent, rng) + recent.sample_balanced(n_recent, rng)


@dataclass(frozen=True, slots=True)
class RecentShare:
    """Draws a share of the items from the recent compartment, the rest from the long-term one.

    On Elec2 and gas sensors one half was the best of the shares tried; a larger share adapts faster
    and forgets more.  :class:`replay.rehearsal.Rehearsal` sets the share.

    Attributes:
        share: Share in [0, 1].  ``share · k`` is rounded up or down at random, so that the mean is
            exact for small ``k``.  If one compartment has too few items, the other one supplies the
            rest.
        balanced: Draw equally many items of each class within each compartment.
    """

    share: float
    balanced: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise SettingInvalid("share", repr(self.share), "give a share from 0 to 1")

    def __call__(self, long: Slots, recent: Slots, k: int, rng: Random) -> list[Item]:
        wanted = min(int(self.share * k + rng.random()), len(recent))
        n_long = min(k - wanted, len(long))
        n_recent = k - n_long
        if self.balanced:
            return long.sample_balanced(n_long, rng) + recent.sample_balanced(n_recent, rng)
        return long.sample(n_long, rng) + recent.sample(n_recent, rng)


def _proportional(long: Slots, recent: Slots, k: int, rng: Random) -> int:
    """Draw how many of ``k`` items, chosen at random from both, come from ``recent``."""
    if not len(recent):
        return 0
    n, n_long = len(long) + len(recent), len(long)
    return sum(i >= n_long for i in rng.sample(range(n), min(k, n)))
