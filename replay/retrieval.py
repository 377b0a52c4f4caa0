"""Which of the kept items are learned again: plug points between a buffer and a learner.

A retrieval is any callable of this form; more are made by writing one.  It reads the two
compartments (a policy without one of them has it empty) and draws from the generator it is given.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from replay.buffers.item import Item
from replay.buffers.slots import Slots
from replay.errors import SettingInvalid

Retrieval = Callable[[Slots, Slots, int, Random], list[Item]]
"""``retrieval(long, recent, k, rng)``: min(k, n) different items of the n, in any order."""


def uniform(long: Slots, recent: Slots, k: int, rng: Random) -> list[Item]:
    """Every set of ``k`` items is equally likely."""
    n_recent = _proportional(long, recent, k, rng)
    return long.sample(k - n_recent, rng) + recent.sample(n_recent, rng)


def class_balanced(long: Slots, recent: Slots, k: int, rng: Random) -> list[Item]:
    """Draw equally many items of each class, within each compartment.

    The compartments give items in proportion to their sizes.
    """
    n_recent = _proportional(long, recent, k, rng)
    return long.sample_balanced(k - n_recent, rng) + recent.sample_balanced(n_recent, rng)


@dataclass(frozen=True, slots=True)
class RecentShare:
    """A share of each draw from the recent compartment, the rest from the long-term one.

    Half of each was best on Elec2 and on gas sensors of the shares tried; more of recent items
    adapts faster and forgets more.  :class:`replay.rehearsal.Rehearsal` moves the share.

    Attributes:
        share: In [0, 1].  ``share · k`` is rounded up or down by chance, so that it holds on
            average for small ``k``.  What one compartment can't give is taken from the other.
        balanced: As many of each class, within each compartment.
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
    """How many of ``k`` different items of both, drawn at random, are in ``recent``."""
    if not len(recent):
        return 0
    n, n_long = len(long) + len(recent), len(long)
    return sum(i >= n_long for i in rng.sample(range(n), min(k, n)))
