"""Losses of taken events by source and label: what a surprise is compared with, by all replicas.

Counts in bins of 4 %, so that they add up over replicas; of a thousand newest events and some more.
Counts do not age, generations of them do: each event is counted in the newest one, which is full
after 256; the oldest leaves.  Whoever counts an event says in which, and that is written with it,
so the event says the same whenever it is learned, by whomever.

Each source has its share of a generation, twice an equal one: beyond it an event is not counted, or
a flood would leave nothing of what the others send.  Sixty-four such events make a generation older
by one, lest it last for ever where few send nearly everything.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from paramserver.core.blocks import COUNT, Block, Blocks
from paramserver.evidence.generations import GENERATIONS, generation_of
from paramserver.evidence.odds import key_of
from paramserver.evidence.sums import NAMELESS, Sums, bin_of, end_of

LOSSES: Final = "filter.losses"
NUMBER_LOSSES: Final = "filter.losses.numbers"
UNSAID_LOSSES: Final = "filter.losses.unsaid"
LOSS_BLOCKS: Final = frozenset((LOSSES, NUMBER_LOSSES, UNSAID_LOSSES))
"""The blocks: events by ``generation ⏎ bin ⏎ label's JSON text ⏎ source``.  The second is of labels
that are numbers: the first may hold such of earlier versions, without side and in other units.  The
third is of labels that their source, which has a mark there, did not say: earlier versions would
take such for events.  Theirs stand in the first, and there no source does."""

_UNSAID: Final = "\1"
"""Marks the source of a label that was not said; no caller can have it either."""

_GENERATION: Final = 256
_SHARE_MIN: Final = 8
_PASSED: Final = 1.0 / 64.0
_HEARD_MAX: Final = 512

Other = tuple[str, float]
"""A label that was not said, and the loss that it would have had."""

Heard = tuple[str, str | None, float]
"""Source, label, loss (upper end of its bin)."""


class Losses:
    """Counts of one model's taken events.  ``len`` is that of the keys.

    Parameters:
        numbers, answers: As of :class:`~paramserver.evidence.sums.Sums`.

    Attributes:
        sums: Their sums, of which bounds and odds are drawn.
        blocks: Names of the blocks that they stand in.
        heard: What other replicas have counted and nobody has looked at here, the newest 512.
    """

    def __init__(self, *, numbers: bool = False, answers: Sequence[str] = ()) -> None:
        self.sums = Sums(numbers=numbers, answers=answers)
        self.blocks = (NUMBER_LOSSES,) if numbers else (LOSSES, UNSAID_LOSSES)
        self._counts: dict[int, dict[str, int]] = {}
        self._sizes: dict[int, int] = {}
        self._open: dict[str, float] = {}
        self._open_unsaid: dict[str, float] = {}
        self._in: dict[str, int] = {}  # of each source, in the newest generation
        self._passed = 0.0
        self.heard: list[Heard] = []

    def __len__(self) -> int:
        return sum(map(len, self._counts.values()))

    @property
    def events(self) -> int:
        """How many are counted."""
        return sum(self._sizes.values())

    def count(self, key: str) -> int:
        """Return how many events one key counts."""
        return self._counts.get(generation_of(key), {}).get(key, 0)

    def add(self, source: str, label: str | None, loss: float, other: Other | None = None) -> bool:
        """Count one more event; False: its source has had its share of the generation.

        ``other``: one of several labels that it does not say.
        """
        newest, source = max(self._counts, default=1), source or NAMELESS
        if self._sizes.get(newest, 0) + self._passed >= _GENERATION:
            newest += 1
        elif self._in.get(source, 0) >= max(
            2 * _GENERATION // max(len(self.sums.of_sources), 1), _SHARE_MIN
        ):
            self._passed += _PASSED
            return False
        bin_, label = bin_of(loss), key_of(label or "")
        key = f"{newest}\n{bin_}\n{label}\n{source}"
        counts = self._counts.get(newest)
        if counts is None:
            self._set(key, 1)
        else:  # what :meth:`_set` does, without reading the key
            counts[key] = counts.get(key, 0) + 1
            self._sizes[newest] += 1
            if self.sums.has(label, source):  # else there is one more to compare with
                self.sums.waiting.append((newest, bin_, label, source))
            else:
                self.sums.add(newest, bin_, label, source, 1)
            self._in[source] = self._in.get(source, 0) + 1
        self._open[key] = self._open.get(key, 0) + 1
        if other is not None:
            bin_, label, source = bin_of(other[1]), key_of(other[0]), f"{_UNSAID}{source}"
            key, counts = f"{newest}\n{bin_}\n{label}\n{source}", self._counts[newest]
            counts[key] = counts.get(key, 0) + 1
            self.sums.waiting_unsaid.append((newest, bin_, label, source))
            self._open_unsaid[key] = self._open_unsaid.get(key, 0) + 1
        return True

    def cut(self) -> Blocks:
        """Return what was counted since the last cut."""
        out: Blocks = {}
        if self._open:
            out[self.blocks[0]], self._open = Block(COUNT, self._open), {}
        if self._open_unsaid:
            out[UNSAID_LOSSES], self._open_unsaid = Block(COUNT, self._open_unsaid), {}
        return out

    def rebase(self, values: Mapping[str, float]) -> None:
        """Take new counts of the keys named, with what is open on top."""
        fresh = []
        for key, n in values.items():
            opened = self._open.get(key) or self._open_unsaid.get(key) or 0
            more = self._set(key, int(n + opened))
            if more > 0 and not _is_unsaid(key.split("\n", 3)[3]):  # else it is not heard
                fresh.append((key, more))
        if fresh:
            self._hear(fresh)

    def _hear(self, fresh: list[tuple[str, int]]) -> None:
        for key, more in sorted(fresh, key=lambda f: generation_of(f[0]))[-_HEARD_MAX:]:
            _, bin_, label, source = key.split("\n", 3)
            source = "" if source == NAMELESS else source
            self.heard += [(source, label or None, end_of(int(bin_)))] * min(more, _GENERATION)
        del self.heard[:-_HEARD_MAX]

    def reset(self) -> None:
        """Forget everything that has been counted."""
        self.sums.reset()
        self._counts, self._sizes, self.heard = {}, {}, []
        self._open, self._open_unsaid = {}, {}
        self._in, self._passed = {}, 0.0

    def _set(self, key: str, n: int) -> int:
        """Make it count ``n``; how many more those are."""
        generation = generation_of(key)
        newest = max(self._counts, default=0)
        if generation <= newest - GENERATIONS:
            return 0
        if generation not in self._counts:
            self._counts[generation], self._sizes[generation] = {}, 0
            if generation > newest:
                self._in, self._passed, newest = {}, 0.0, generation
            for old in [g for g in self._counts if g <= newest - GENERATIONS]:
                self._leave(old)
        counts = self._counts[generation]
        more = n - counts.pop(key, 0)
        if n > 0:
            counts[key] = n
        if more:
            _, bin_, label, source = key.split("\n", 3)
            if _is_unsaid(source):
                self.sums.add_unsaid(generation, int(bin_), label, source, more)
                return more  # nor is it an event
            self.sums.add(generation, int(bin_), label, source, more)
            self._sizes[generation] += more
            if generation == newest:
                self._in[source] = self._in.get(source, 0) + more
        return more

    def _leave(self, generation: int) -> None:
        self.sums.settle()
        for key, n in self._counts.pop(generation).items():
            _, bin_, label, source = key.split("\n", 3)
            add = self.sums.add_unsaid if _is_unsaid(source) else self.sums.add
            add(generation, int(bin_), label, source, -n)
            self._open.pop(key, None)
            self._open_unsaid.pop(key, None)
        self.sums.leave(generation)
        del self._sizes[generation]


def _is_unsaid(source: str) -> bool:
    """Whether a key with this source counts a label that it did not say."""
    return source[:1] in ("", _UNSAID)
