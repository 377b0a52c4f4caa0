"""This module counts two things beside the parameters.

They are the digest of learned events and the prequential counters.

Labels are kept with the time of their newest event, so that every replica knows the newest label:
the no-change rule needs it.  All are blocks like the model's own, pushed with the same ranges, so
they are as exact as the parameters: an event is in them once, or not at all.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from evaluation.metrics import COUNTERS_MAX, is_label, label_counter, label_in
from paramserver.blocks import Block, Blocks, Touched
from replay.example import Label, label_of

DIGEST = "digest"
METRICS = "metrics"
NEWEST = "newest"
TALLIED: Touched = {DIGEST: None, METRICS: None, NEWEST: None}
"""The blocks, each as a whole."""
_MASK = 2**64 - 1

COSTS: Final = frozenset({"n", "abs_error", "mean_abs_error", "log_n", "log_loss"})
"""Counters of what answers have cost, and answers without a model."""

ANOTHERS: Final = "another/"
"""Begins the names of the same counters, of answers that another model gave before a promotion."""


def event_hash(key: bytes) -> int:
    """A row's share of the digest's sum: the first 64 bits of its key."""
    return int.from_bytes(key[:8], "big")


class Tally:
    """Counters with an open delta; the same verbs as a model's blocks.

    Attributes
    ----------
    answers_after
        Epoch above which answers are this model's own: up to it, another one served.
    """

    def __init__(self) -> None:
        self.counters: dict[str, float] = {}
        self.answers_after = 0
        self.digest = (0, 0)
        self.seen: dict[str, tuple[float, float]] = {}
        self._newest: str | None = None  # kept, because every prediction asks for it
        self._often: tuple[float, str] = (0.0, "")  # the most frequent label: every row asks
        self._open: dict[str, float] = {}
        self._open_digest = (0, 0)
        self._open_seen: dict[str, tuple[float, float]] = {}

    def add(
        self, key: bytes, increments: Mapping[str, float], label: str | None, at: float
    ) -> None:
        """Count one learned row; ``label`` is its JSON text (None in regression), taken ``at``."""
        if label is not None:
            _widen(self.seen, label, at)
            _widen(self._open_seen, label, at)
            if self._newest is None or at >= self.seen[self._newest][1]:
                self._newest = label
        share = event_hash(key)
        self.digest = (self.digest[0] + 1, (self.digest[1] + share) & _MASK)
        count, total = self._open_digest
        self._open_digest = (count + 1, (total + share) & _MASK)
        counters, opened = self.counters, self._open
        for name, value in increments.items():
            if name not in counters and len(counters) >= COUNTERS_MAX and not is_label(name):
                name, value = "folded", 1
            counters[name] = counters.get(name, 0) + value
            opened[name] = opened.get(name, 0) + value
        if label is not None:
            self._count(label)

    def _count(self, label: str) -> None:
        n = self.counters.get(label_counter(label), 0.0)
        most, often = self._often
        if n > most or (n == most and label < often):
            self._often = (n, label)

    def majority(self) -> Label | None:
        """The most frequent label; None before the first.

        Of equally frequent ones that whose JSON text comes first, in every replica.
        """
        return label_of(self._often[1]) if self._often[0] else None

    def cut(self) -> Blocks:
        """The open delta, and reset it."""
        blocks: Blocks = {}
        if self._open_digest[0]:
            count, total = self._open_digest
            blocks[DIGEST] = Block("digest", {"count": count, "sum": total})
        if self._open:
            blocks[METRICS] = Block("count", self._open)
        if self._open_seen:
            blocks[NEWEST] = Block("extrema", self._open_seen)
        self._open, self._open_digest, self._open_seen = {}, (0, 0), {}
        return blocks

    def newest(self) -> Label | None:
        """Label of the newest event learned; None before the first, and in regression."""
        return None if self._newest is None else label_of(self._newest)

    def rebase(self, values: Blocks) -> None:
        """Take new values for the keys given, with the open delta on top."""
        if METRICS in values:
            for name, value in values[METRICS].data.items():
                self.counters[name] = value + self._open.get(name, 0)
                if is_label(name):
                    self._count(label_in(name))
        if NEWEST in values:
            for label, span in values[NEWEST].data.items():
                self.seen[label] = _span(self._open_seen.get(label), span)
            self._newest = max(self.seen, key=lambda text: self.seen[text][1], default=None)
        if DIGEST in values:
            data = values[DIGEST].data
            self.digest = _plus((data["count"], data["sum"]), self._open_digest)

    def reset(self, values: Blocks) -> None:
        """Become exactly ``values``, with an empty open delta."""
        self.counters, self.digest, self.seen = {}, (0, 0), {}
        self._open, self._open_digest, self._open_seen = {}, (0, 0), {}
        self._newest, self._often = None, (0.0, "")
        self.rebase(values)


def _plus(a: tuple[int, int], b: tuple[int, int]) -> tuple[int, int]:
    return a[0] + b[0], (a[1] + b[1]) & _MASK


def _span(a: tuple[float, float] | None, b: tuple[float, float]) -> tuple[float, float]:
    return (b[0], b[1]) if a is None else (min(a[0], b[0]), max(a[1], b[1]))


def _widen(spans: dict[str, tuple[float, float]], label: str, at: float) -> None:
    """Let the label's span contain ``at``."""
    span = spans.get(label)
    if span is None:
        spans[label] = (at, at)
    elif at > span[1]:
        spans[label] = (span[0], at)
    elif at < span[0]:
        spans[label] = (at, span[1])
