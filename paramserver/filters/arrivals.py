"""The last arrivals counted by source, in a window that a flood cannot fill.

A window of a fixed number of arrivals is dominated by the sources that send most: with fifteen
poisoned events per honest one it would contain almost only the attackers.  So the window is as long
as it takes to receive about eight events from each source; events of a source beyond sixteen do not
shorten it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Final

from paramserver.filters.base import Source

if TYPE_CHECKING:
    from paramserver.filters.newcomers import Newcomers

EARNED: Final = 8
"""Number of taken events after which a source is established: it has its own budget, and others are
compared with it."""

DOUBTFUL: Final = 2 * EARNED
"""Number of taken events after which a source is established even if a test is against it."""

_EACH: Final = 8
_LEAST: Final = 64
_MOST_EACH: Final = 64
_CHANCE: Final = 3.0
_NONE: Final = (0, 0.0)


def is_new(source: Source) -> bool:
    """Return whether a source is weighted together with all new ones.

    One with a test against it is so for twice as long as others: a name that has sent eight lies
    has earned nothing by them.
    """
    return source.taken < EARNED or (source.taken < DOUBTFUL and not source.unblamed)


class Arrivals:
    """The window of the last arrivals; ``len`` is their number.

    Parameters:
        most: Greatest number of arrivals; also at most 64 for each source in the window.

    Attributes:
        new: Weight of arrivals whose source was not established at that time.
        total: Weight of all arrivals; each counts as its weight, but at least as 1.
        budget: Weight that one source may have in the window: twice the median source's plus a
            margin for chance; None: fewer than ``EARNED`` sources send.
        established: Number of sources in the window with their own budget.
        flooding: Sources that send more than their budget and more than twice their usual rate,
            until they are within the budget again.  A source that has always sent much is not
            flooding.
        sizes: Their sizes before that, relative to the median source, at least 1.
        weight: Mean weight of an event of the median source.
        shift: Ratio of what the median source's last events weigh to ``weight``: not 1 where all
            have changed their weights, or where the weights of earlier events are not known.
        large: Number of sources over the budget that are established and not in quarantine.
        denied: Rate at which the model lately found other labels likelier than those of small and
            new sources.
        newcomers: The new sources together, as each test that counts their hits knows them.
        denied_long: The same over some 128 of their rows if there are two labels; None: unknown.
    """

    def __init__(self, most: int = 4096) -> None:
        self._most = most
        self._window: deque[tuple[str, bool, float]] = deque()
        self._count: dict[str, tuple[int, float]] = {}  # in the order in which they were last seen
        self._held = 0  # arrivals, counting at most 2 * _EACH of a source
        self.new = self.total = 0.0
        self.budget: float | None = None
        self.established = 0
        self.flooding: frozenset[str] = frozenset()
        self.sizes: dict[str, float] = {}
        self.weight = self.shift = 1.0
        self.large = 0
        self.denied = 0.5
        self.denied_long: float | None = None
        self.newcomers: list[Newcomers] = []

    def __len__(self) -> int:
        return len(self._window)

    @property
    def compares(self) -> bool:
        """Whether enough sources are established to judge all events of new ones by them."""
        return self.established >= EARNED

    @property
    def agrees_with_new(self) -> bool:
        """Whether tests know that new sources have hardly more hits than established ones."""
        return bool(self.newcomers) and all([new.agree for new in self.newcomers])

    def shares(self, source: Source, weight: float) -> tuple[float, float]:
        """Return how much an event of this weight counts for and against its source, at most 2."""
        return source.shares(weight / self.shift, self.weight)

    def __iter__(self) -> Iterator[str]:
        """Iterate over the sources, last seen first."""
        return reversed(self._count)

    def lately(self, most: int) -> list[str]:
        """Return at most ``most`` sources, last seen first."""
        return list(islice(reversed(self._count), most))

    def count(self, source: str) -> float:
        """Return the weight of a source's arrivals."""
        return self._count.get(source, _NONE)[1]

    def own_budget(self, source: str) -> float | None:
        """Return the budget of one source, which is larger if it floods and was large before."""
        return self.budget and self.budget * self.sizes.get(source, 1.0)

    def add(self, source: str, *, new: bool, weight: float = 1.0) -> None:
        """Add an arrival; ``new``: its source is not established."""
        count, weight = self._count, weight if weight > 1.0 else 1.0
        n, known = count.pop(source, _NONE)
        count[source] = n + 1, known + weight
        self._held += n < 2 * _EACH
        self._window.append((source, new, weight))
        self.total += weight
        if new:
            self.new += weight
        if len(self._window) <= _LEAST:
            return
        few, most = len(count) * _EACH, max(min(len(count) * _MOST_EACH, self._most), _LEAST)
        while len(self._window) > most or (self._held > few and len(self._window) > _LEAST):
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
        """Recompute the budget from the median of the established sources, or of all."""
        known = list(sources)
        earned = [s.name for s in known if s.taken >= EARNED]
        self.established = len(earned)
        weights = sorted([s.weight for s in known if s.taken >= EARNED])
        self.weight = weights[len(weights) // 2] if weights else 1.0
        lately = sorted([s.lately or s.weight for s in known if s.taken >= EARNED])
        self.shift = lately[len(lately) // 2] / self.weight if lately else 1.0
        names = earned if len(earned) >= EARNED else [s.name for s in known]
        counts = sorted(self.count(name) for name in names)
        if len(counts) < EARNED:
            self.budget, self.flooding, self.sizes, self.large = None, frozenset(), {}, 0
            return
        twice = 2.0 * counts[len(counts) // 2]
        self.budget = twice + 2.0 * twice**0.5 + _CHANCE
        able = [s.name for s in known if s.taken >= EARNED and not s.quarantined]
        self.large = sum([self.count(name) > self.budget for name in able])
        # The usual rate is taken from events before the window, so that a flood does not become
        # usual; if there are few of these, from all events.
        total = sum(s.sent for s in known)
        early = total < 2.0 * self.total
        used = 2.0 * self.total / max(total if early else total - self.total, 1.0)
        before = {s.name: s.sent if early else s.sent - self.count(s.name) for s in known}
        usual = sorted(before[name] for name in names)[len(names) // 2]
        floods = self.sizes
        self.sizes = {
            name: floods.get(name) or max(n / max(usual, 1.0), 1.0)
            for name, n in before.items()
            if (now := self.count(name)) > self.budget and (name in floods or now > used * n)
        }
        self.flooding = frozenset(self.sizes)
