"""A memory keeps what of a stream is learned again, and says what goes with each fresh row.

A memory offers every learned row to its buffer once, whatever is learned twice, and draws a
*lesson* for each fresh row: one :class:`Drawn` for each pass over it.  A lesson is a value: who
learns the row again after a failure learns the same lesson, so nothing of a model depends on how
often that happened.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Final

from replay.buffers.base import Buffer
from replay.buffers.item import Item, Logits
from replay.example import Example, Label, label_text
from replay.journal.base import Row
from replay.rehearsal import Rehearsal
from replay.retrieval import RecentShare, Retrieval, class_balanced, uniform

SHARE_DECAY: Final = 0.9
"""Of a class's share, at each pass; 0 is as good on Split-MNIST, .98 lost 2 points of its worst
case."""

CLASSES_MAX: Final = 10_000
"""Labels that are known by name; later ones are not noticed as new."""

_SHARE_MIN: Final = 1e-9
_PROBABILITY_MIN: Final = 1e-15


@dataclass(frozen=True, slots=True)
class Drawn:
    """Kept rows that one pass over a fresh row learns again.

    Attributes:
        items: Different ones, in no order; may be none.
        ages: Rows that were offered since each of them.
        shares: Of each class among the rows learned lately, fresh ones and drawn ones one half
            each; empty in regression.
        distil: Weight of the squared distance of the outputs from those kept, ≥ 0.
    """

    items: tuple[Item, ...]
    ages: tuple[int, ...]
    shares: Mapping[Label, float]
    distil: float


Lesson = tuple[Drawn, ...]


class Memory:
    """A buffer, the rule by which it is drawn from, and which rows were offered.

    Not safe to call from several threads.

    Parameters:
        make_buffer: Makes an empty buffer, each time the same.
        rule: How much is drawn, and how many passes are made.
        seed: Of the draws.
        balanced: Draw as many of each class.
        classes: Whether labels are classes.
        distil: See :class:`Drawn`; 0 keeps no outputs.

    Attributes:
        buffer: What is kept.
        seen: Rows offered.
        replayed: Items drawn, over all passes.
    """

    def __init__(
        self,
        make_buffer: Callable[[], Buffer],
        *,
        rule: Rehearsal,
        seed: int,
        balanced: bool = True,
        classes: bool = True,
        distil: float = 0.0,
    ) -> None:
        self.buffer, self.rule, self.distil = make_buffer(), rule, distil
        self.seen = self.replayed = 0
        self._make_buffer, self._seed = make_buffer, seed
        self._balanced, self._classes = balanced, classes
        self._rng = Random(seed)
        self._shares: dict[Label, float] = {}
        self._offered: dict[int, int] = {}  # last offset, by partition
        self._alarm_at: int | None = None
        self._known: set[Label] = set()
        self._class_at = -math.inf  # rows offered when a class came that was new

    def lesson(self, label: Label) -> Lesson:
        """Return what goes with the next fresh row; nothing while nothing is kept."""
        if not len(self.buffer):
            return ()
        n, capacity = max(self.seen, 1), self.buffer.capacity
        passes = self.rule.whole_passes(n, capacity, self._rng)
        return tuple(self._draw(label, n, capacity) for _ in range(passes))

    def _draw(self, label: Label, n: int, capacity: int) -> Drawn:
        k = self.rule.whole_rows(n, capacity, self._rng)
        items = tuple(self.buffer.sample(k, self._rng, self._retrieval()))
        self.replayed += len(items)
        if self._classes:
            self._count(label, items)
        ages = tuple(self.seen - item.at for item in items)
        return Drawn(items, ages, dict(self._shares), 0.0 if self._alarmed else self.distil)

    def _retrieval(self) -> Retrieval:
        long, recent = self.buffer.parts
        if len(long) and len(recent):
            since = None if self._alarm_at is None else self.seen - self._alarm_at
            return RecentShare(self.rule.recent_share(since), balanced=self._balanced)
        return class_balanced if self._balanced else uniform

    def _count(self, label: Label, items: Sequence[Item]) -> None:
        """Move the shares a step towards those of the rows at hand."""
        shares = {c: s * SHARE_DECAY for c, s in self._shares.items() if s > _SHARE_MIN}
        part = (1 - SHARE_DECAY) / (2 if items else 1)
        shares[label] = shares.get(label, 0.0) + part
        for item in items:
            shares[item.label] = shares.get(item.label, 0.0) + part / len(items)
        self._shares = shares

    def keep(self, row: Row, example: Example, score: Mapping[str, float] | None) -> None:
        """Offer a learned row to the buffer, unless it was offered before.

        ``score`` is what was answered to it, as of :class:`~replay.example.Example`.
        """
        if row.offset <= self._offered.get(row.partition, 0):
            return
        self._offered[row.partition] = row.offset
        logits = logits_of(score) if self.distil and score else None
        weight = example.weight * row.factor
        self.buffer.insert(
            Item(row.key, example.features, example.label, weight, row.source, logits, self.seen)
        )
        if self._classes and example.label not in self._known and len(self._known) < CLASSES_MAX:
            self._known.add(example.label)
            self._class_at = self.seen
        self.seen += 1

    def emptied(self) -> Memory:
        """One of the same settings that has nothing yet."""
        return Memory(
            self._make_buffer,
            rule=self.rule,
            seed=self._seed,
            balanced=self._balanced,
            classes=self._classes,
            distil=self.distil,
        )

    def purge(self, source: str) -> int:
        """Take out what a source has sent; how many items that were."""
        return self.buffer.purge(source)

    def alarm(self) -> None:
        """The stream has changed: for a while draw more of what is recent, and distil nothing.

        Not if a class is new: errors have risen because of it, and what was said of older rows is
        as true as before.
        """
        if self.seen - self._class_at >= self.rule.alarm_rows:
            self._alarm_at = self.seen

    @property
    def _alarmed(self) -> bool:
        return self._alarm_at is not None and self.seen - self._alarm_at < self.rule.alarm_rows

    def shares(self, most: int = 20) -> dict[str, dict[str, float]]:
        """Shares of the ``most`` largest classes (by JSON text) and sources among what is kept."""
        total = max(len(self.buffer), 1)
        classes, sources = Counter[str](), Counter[str]()
        for part in self.buffer.parts:
            for group in part.sources.ranked[:most]:
                sources[part.items[group.members[0]].source] += len(group.members)
            for group in part.classes.ranked[:most] if self._classes else ():
                classes[label_text(part.items[group.members[0]].label)] += len(group.members)
        return {
            name: {key: round(n / total, 4) for key, n in counts.most_common(most)}
            for name, counts in (("classes", classes), ("sources", sources))
        }


def logits_of(score: Mapping[str, float]) -> Logits:
    """Outputs that give these probabilities, with mean 0; a number in regression is its own.

    Softmax forgets a constant that is added to all outputs, so a distance of outputs is taken
    between those with mean 0.
    """
    if "" in score:
        return dict(score)
    logs = {label: math.log(max(p, _PROBABILITY_MIN)) for label, p in score.items()}
    mean = sum(logs.values()) / len(logs)
    return {label: value - mean for label, value in logs.items()}
