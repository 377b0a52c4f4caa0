"""Rehearsal memory: keeps a sample of the stream, and draws rows to learn with each fresh row.

A memory offers every learned row to its buffer once, even if the row is learned twice.  For each
fresh row it draws a *lesson*: one :class:`Drawn` for each pass over the row.  A lesson is a value,
so a row that is learned again after a failure is learned with the same lesson, and the model does
not depend on how often that happened.
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
"""Decay of a class's share at each pass.  On Split-MNIST 0 is as good, and 0.98 lost 2 points in
the worst case."""

CLASSES_MAX: Final = 10_000
"""Greatest number of labels that are remembered; later ones are not recognised as new classes."""

_SHARE_MIN: Final = 1e-9
_PROBABILITY_MIN: Final = 1e-15


@dataclass(frozen=True, slots=True)
class Drawn:
    """Items from the buffer that one pass over a fresh row learns again.

    Attributes:
        items: Distinct items in arbitrary order; may be empty.
        ages: For each item, the number of rows offered since it.
        shares: Share of each class among the rows learned recently, with equal weight for fresh and
            drawn rows; empty in regression.
        distil: Weight of the squared distance of the outputs from the stored logits, ≥ 0.
    """

    items: tuple[Item, ...]
    ages: tuple[int, ...]
    shares: Mapping[Label, float]
    distil: float


Lesson = tuple[Drawn, ...]


class Memory:
    """A buffer, the rule for drawing from it, and the offsets of the rows offered to it.

    Not thread-safe.

    Parameters:
        make_buffer: Returns an empty buffer, each time an equal one.
        rule: Decides how many items are drawn and how many passes are made.
        seed: Seed of the draws.
        balanced: Draw equally many items of each class.
        classes: Whether labels are classes (false in regression).
        distil: See :class:`Drawn`; with 0 no logits are stored.

    Attributes:
        buffer: The buffer.
        seen: Number of rows offered.
        replayed: Number of items drawn, over all passes.
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
        self._class_at = -math.inf  # value of ``seen`` when the newest class appeared

    def lesson(self, label: Label) -> Lesson:
        """Return the lesson for the next fresh row; empty while the buffer is empty."""
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
        """Update the moving average of class shares with the fresh row and the items drawn."""
        shares = {c: s * SHARE_DECAY for c, s in self._shares.items() if s > _SHARE_MIN}
        part = (1 - SHARE_DECAY) / (2 if items else 1)
        shares[label] = shares.get(label, 0.0) + part
        for item in items:
            shares[item.label] = shares.get(item.label, 0.0) + part / len(items)
        self._shares = shares

    def keep(self, row: Row, example: Example, score: Mapping[str, float] | None) -> None:
        """Offer a learned row to the buffer, unless it was offered before.

        Parameters:
            score: The prediction for the row, as in :class:`~replay.example.Example`.
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
        """Return a new, empty memory with the same settings."""
        return Memory(
            self._make_buffer,
            rule=self.rule,
            seed=self._seed,
            balanced=self._balanced,
            classes=self._classes,
            distil=self.distil,
        )

    def purge(self, source: str) -> int:
        """Remove all items of a source; return how many."""
        return self.buffer.purge(source)

    def alarm(self) -> None:
        """React to a drift alarm: for a while draw more recent items, and do not distil.

        It is ignored if a class is new: then the errors have risen because of the new class, and
        the stored outputs of older rows are still valid.
        """
        if self.seen - self._class_at >= self.rule.alarm_rows:
            self._alarm_at = self.seen

    @property
    def _alarmed(self) -> bool:
        return self._alarm_at is not None and self.seen - self._alarm_at < self.rule.alarm_rows

    def shares(self, most: int = 20) -> dict[str, dict[str, float]]:
        """Return the buffer's shares of the ``most`` largest classes (JSON text) and sources."""
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
    """Return logits with mean 0 for these probabilities; in regression the value itself.

    Softmax is invariant to a constant added to all logits, so distances are computed between logits
    with mean 0.
    """
    if "" in score:
        return dict(score)
    logs = {label: math.log(max(p, _PROBABILITY_MIN)) for label, p in score.items()}
    mean = sum(logs.values()) / len(logs)
    return {label: value - mean for label, value in logs.items()}
