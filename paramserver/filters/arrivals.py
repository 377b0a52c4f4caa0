"""Who sends now: the last arrivals, counted by source, in a window that no flood can fill.

A window of so many arrivals is whose who sends most: with fifteen lies a row nearly all of it is
lies, and each source that is looked for in it is a liar.  So the window is as long as it takes to
hear of each source about eight times: what a source sends beyond twice that doesn't shorten it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Final

from paramserver.filters.base import Source

EARNED: Final = 8
"""Taken events after which a source is established: it has its own budget, and others are compared
with it."""

_EACH: Final = 8
_LEAST: Final = 64
_MOST_EACH: Final = 64
_CHANCE: Final = 3.0
_NONE: Final = (0, 0.0)


class Arrivals:
    """The last arrivals.  ``len``: how many.

    Parameters:
        most: Arrivals looked back at; at most, and 64 for each source seen in them.

    Attributes:
        new: Weight of those of sources that were not established when they came.
        total: Weight of all: each counts as its weight, and at least as one.
        budget: Weight that a source may have among them: twice the median source's, and what is
            chance; None: fewer than ``EARNED`` sources send.
        established: Sources among them with a budget of their own.
        flooding: Those that send more than their budget, and than twice what they used to, until
            they send no more than that.  Who has always sent much is no flood.
    """

    def __init__(self, most: int = 4096) -> None:
        self._most = most
        self._window: deque[tuple[str, bool, float]] = deque()
        self._count: dict[str, tuple[int, float]] = {}  # in the order in which they were last seen
        self._held = 0  # arrivals, as far as they are no more than twice _EACH of a source
        self.new = self.total = 0.0
        self.budget: float | None = None
        self.established = 0
        self.flooding: frozenset[str] = frozenset()

    def __len__(self) -> int:
        return len(self._window)

    def __iter__(self) -> Iterator[str]:
        """The sources, last seen first."""
        return reversed(self._count)

    def lately(self, most: int) -> list[str]:
        """So many of them."""
        return list(islice(reversed(self._count), most))

    def count(self, source: str) -> float:
        """Weight of this source's arrivals."""
        return self._count.get(source, _NONE)[1]

    def add(self, source: str, *, new: bool, weight: float = 1.0) -> None:
        """One more, by a source that is established or ``new``."""
        count, weight = self._count, max(weight, 1.0)
        n, known = count.pop(source, _NONE)
        count[source] = n + 1, known + weight
        self._held += n < 2 * _EACH
        self._window.append((source, new, weight))
        self.total += weight
        if new:
            self.new += weight
        few, many = len(count) * _EACH, len(count) * _MOST_EACH
        while len(self._window) > max(min(many, self._most), _LEAST) or (
            self._held > few and len(self._window) > _LEAST
        ):
            self._leave()

    def _leave(self) -> None:
        source, new, weight = self._window.popleft()
        self.total -= weight
        if new:
            self.new -= weight
        n, known = self._count[source]
        self._held -= n <= 2 * _EACH
        if n > 1:
            self._count[source] = n - 1, known - weight
        else:
            del self._count[source]

    def refresh(self, sources: Iterable[Source]) -> None:
        """The budget anew, by the median source of those that are established, or of all."""
        known = list(sources)
        earned = [s.name for s in known if s.taken >= EARNED]
        self.established = len(earned)
        names = earned if len(earned) >= EARNED else [s.name for s in known]
        counts = sorted(self.count(name) for name in names)
        if len(counts) < EARNED:
            self.budget, self.flooding = None, frozenset()
            return
        twice = 2.0 * counts[len(counts) // 2]
        self.budget = twice + 2.0 * twice**0.5 + _CHANCE
        # what it used to send is by events before these: a flood that is taken does not become
        # usual; while there are few before, by all
        total = sum(s.taken for s in known)
        early = total < 2.0 * self.total
        used = 2.0 * self.total / max(total if early else total - self.total, 1.0)
        floods = self.flooding
        self.flooding = frozenset(
            s.name
            for s in known
            if (n := self.count(s.name)) > self.budget
            and (s.name in floods or n > used * (s.taken if early else s.taken - n))
        )
