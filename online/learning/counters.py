"""Counts learned events beside the parameters: their digest, and the prequential counters.

Labels are kept with the time of their newest event, so that every replica knows the newest label,
which the no-change baseline needs.  All of these are blocks like the model's own, pushed with the
same ranges, so they are as exact as the parameters: an event is in them once, or not at all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import log
from operator import le
from typing import Final, Protocol

from evaluation import light_rows
from evaluation.metrics import (
    COUNTERS_MAX,
    LOG_CLIP,
    PAIR,
    is_label,
    label_counter,
    label_in,
    pair_counter,
    place_of_score,
)
from paramserver.core.blocks import Block, Blocks, Touched
from replay.example import Example, Label, label_of, label_text
from replay.journal.base import Row

DIGEST = "digest"
METRICS = "metrics"
NEWEST = "newest"
TALLIED: Touched = {DIGEST: None, METRICS: None, NEWEST: None}
"""The blocks of a tally; all keys of each."""
_MASK = 2**64 - 1

COSTS: Final = frozenset({"n", "abs_error", "mean_abs_error", "log_n", "log_loss"})
"""Counters of the cost of answers, and of answers given without a model."""

ANOTHERS: Final = "another/"
"""Prefix of the same counters for answers that another model gave before a promotion."""

_NAMES_A_ROW: Final = 16
"""Largest number of new counters that a row of a binary task can add."""

_PAIRS: Final = tuple(
    tuple(pair_counter(label_text(label), label_text(predicted)) for predicted in (False, True))
    for label in (False, True)
)
_NO, _YES = label_counter("false"), label_counter("true")


def event_hash(key: bytes) -> int:
    """The row's contribution to the digest's sum: the first 64 bits of its key."""
    return int.from_bytes(key[:8], "big")


def digest_of(values: Blocks) -> tuple[int, int]:
    """Count and hash sum of the events in a state's values."""
    data = values[DIGEST].data if DIGEST in values else {"count": 0, "sum": 0}
    return data["count"], data["sum"]


class View(Protocol):
    """Another sum over the learned rows, with the methods of a tally."""

    @property
    def scores(self) -> bool:
        """Whether it scores answers: then rows that do not count are not added."""

    @property
    def named(self) -> Touched:
        """Its blocks, all keys of each."""

    def add(self, example: Example, at: float, source: str) -> None:
        """Count one learned row, received ``at`` (POSIX seconds), if it is relevant."""

    def cut(self) -> Blocks:
        """Return the open delta, and reset it."""

    def rebase(self, values: Blocks) -> None:
        """Replace the values of the given keys, and apply the open delta on top."""

    def reset(self, values: Blocks) -> None:
        """Replace the state by exactly ``values``, with an empty open delta."""


class Tally:
    """Counters with an open delta; has the same methods as a model's blocks.

    Attributes:
        views: Further sums over the same rows.
        others: Spans of epochs (after, up to) in which another model has served, and answered.
    """

    def __init__(self) -> None:
        self.views: Sequence[View] = ()
        self.counters: dict[str, float] = {}
        self.others: Sequence[tuple[int, int]] = ()
        self.digest = (0, 0)
        self.seen: dict[str, tuple[float, float]] = {}
        self._newest: str | None = None  # cached: every prediction needs it
        self._often: tuple[float, str] = (0.0, "")  # most frequent label, cached for every row
        self._open: dict[str, float] = {}
        self._open_digest = (0, 0)
        self._open_seen: dict[str, tuple[float, float]] = {}

    def weigh(self, example: Example) -> bool:
        """Take note of a learned row's weight; return whether the row counts in scores."""
        counts, more = light_rows.weigh(example, self.counters, self.digest[0])
        for name, value in more.items():
            self.counters[name] = self.counters.get(name, 0) + value
            self._open[name] = self._open.get(name, 0) + value
        return counts

    def share(self, example: Example) -> float:
        """Return how much of a row the example counts in scores, at most 1."""
        return light_rows.share(example, self.counters)

    def is_anothers(self, example: Example) -> bool:
        """Return whether another model has answered the row."""
        if not self.others or example.version is None:
            return False
        return any(after < example.version[0] <= upto for after, upto in self.others)

    def add(
        self, key: bytes, increments: Mapping[str, float], label: str | None, at: float
    ) -> None:
        """Count one learned row, received ``at``; ``label``: its JSON text, None in regression."""
        if label is not None:
            self._see(label, at)
        self._add_digest(1, event_hash(key))
        counters, opened = self.counters, self._open
        for name, value in increments.items():
            if name not in counters and len(counters) >= COUNTERS_MAX and name.startswith(PAIR):
                name, value = "folded", 1
            counters[name] = counters.get(name, 0) + value
            opened[name] = opened.get(name, 0) + value
        if label is not None:
            self._count(label)

    def add_binary(self, rows: Sequence[Row], examples: Sequence[Example]) -> bool:
        """Count learned rows of a binary task in one pass, with the answers given before.

        All counters end up as after :meth:`weigh` and :meth:`add` row by row.  False: some row is
        not an ordinary one, or is light, and nothing was counted.
        """
        if self.others and any(map(self.is_anothers, examples)):
            return False
        answered = _answered(examples)
        if answered is None or len(self.counters) + _NAMES_A_ROW * len(rows) > COUNTERS_MAX:
            return False
        if light_rows.begun(self.counters):
            for example in examples:
                self.weigh(example)
        counters, opened = self.counters, self._open
        counts: dict[str, int] = {}
        pairs = ([0, 0], [0, 0])
        right = by_majority = by_last = 0
        no, yes = counters.get(_NO, 0), counters.get(_YES, 0)
        lost, own_lost = counters.get("log_loss", 0), opened.get("log_loss", 0)
        squared, own_squared = counters.get("brier", 0), opened.get("brier", 0)
        for label, p, q, predicted, same in answered:
            if no or yes:
                by_majority += (yes > no) is label
            if label:
                yes += 1
            else:
                no += 1
            right += predicted is label
            by_last += same == label
            pairs[label][predicted] += 1
            negative, positive, tenth = place_of_score(p)
            outcome = positive if label else negative
            counts[outcome] = counts.get(outcome, 0) + 1
            share = p if label else q
            loss, square = -log(share if share > LOG_CLIP else LOG_CLIP), (p - label) ** 2
            lost += loss
            own_lost += loss
            squared += square
            own_squared += square
            counters[tenth] = counters.get(tenth, 0) + p
            opened[tenth] = opened.get(tenth, 0) + p
        counters["log_loss"], opened["log_loss"] = lost, own_lost
        counters["brier"], opened["brier"] = squared, own_squared
        for names, numbers in zip(_PAIRS, pairs, strict=True):
            counts |= {name: more for name, more in zip(names, numbers, strict=True) if more}
        n = len(rows)
        counts |= {"n": n, "asked": n, "log_n": n, "correct": right}
        counts |= {"majority_correct": by_majority, "no_change_correct": by_last}
        came = {_NO: int(no - counters.get(_NO, 0)), _YES: int(yes - counters.get(_YES, 0))}
        for name, more in {**counts, **{name: more for name, more in came.items() if more}}.items():
            counters[name] = counters.get(name, 0) + more
            opened[name] = opened.get(name, 0) + more
        self._see_all(["true" if one[0] else "false" for one in answered], [r.at for r in rows])
        for name, more in came.items():
            if more:
                self._count(label_in(name))
        self._add_digest(n, sum([event_hash(row.key) for row in rows]))
        return True

    def meet(self, label: str) -> None:
        """Record that a provisional label was learned; it counts as older than any other."""
        self._see(label, 0.0)

    def _see_all(self, labels: Sequence[str], at: Sequence[float]) -> None:
        """Record rows with these labels, received at these times, in order."""
        newest = self._newest
        later = newest is None or at[0] >= self.seen[newest][1]
        if not (later and all(map(le, at, at[1:]))):
            for label, taken in zip(labels, at, strict=True):
                self._see(label, taken)
            return
        for label in dict.fromkeys(labels):  # times ascend, so each is the newest on arrival
            first, last = labels.index(label), len(labels) - 1 - labels[::-1].index(label)
            for taken in (at[first], at[last]):
                _widen(self.seen, label, taken)
                _widen(self._open_seen, label, taken)
        self._newest = labels[-1]

    def _see(self, label: str, at: float) -> None:
        """Record a row with the label, received ``at``."""
        _widen(self.seen, label, at)
        _widen(self._open_seen, label, at)
        if self._newest is None or at >= self.seen[self._newest][1]:
            self._newest = label

    def _add_digest(self, n: int, share: int) -> None:
        self.digest = _plus(self.digest, (n, share))
        self._open_digest = _plus(self._open_digest, (n, share))

    def _count(self, label: str) -> None:
        n = self.counters.get(label_counter(label), 0.0)
        most, often = self._often
        if n > most or (n == most and label < often):
            self._often = (n, label)

    def majority(self) -> Label | None:
        """The most frequent label; None before the first.

        Ties go to the label whose JSON text sorts first, in every replica.
        """
        return label_of(self._often[1]) if self._often[0] else None

    @property
    def tallied(self) -> Touched:
        """All blocks of the tally and its views, all keys of each."""
        views: Touched = {name: keys for view in self.views for name, keys in view.named.items()}
        return TALLIED | views

    def note(self, example: Example, at: float, source: str = "", *, counts: bool = True) -> None:
        """Pass one learned row to the views, unless another model answered it.

        ``counts``: what :meth:`weigh` has returned for it.
        """
        if self.is_anothers(example):
            return
        for view in self.views:
            if counts or not view.scores:
                view.add(example, at, source)

    def cut(self) -> Blocks:
        """Return the open delta, and reset it."""
        blocks: Blocks = {}
        if self._open_digest[0]:
            count, total = self._open_digest
            blocks[DIGEST] = Block("digest", {"count": count, "sum": total})
        if self._open:
            blocks[METRICS] = Block("count", self._open)
        if self._open_seen:
            blocks[NEWEST] = Block("extrema", self._open_seen)
        for view in self.views:
            blocks |= view.cut()
        self._open, self._open_digest, self._open_seen = {}, (0, 0), {}
        return blocks

    def newest(self) -> Label | None:
        """Label of the newest event learned; None before the first, and in regression."""
        return None if self._newest is None else label_of(self._newest)

    def rebase(self, values: Blocks) -> None:
        """Replace the values of the given keys, and apply the open delta on top."""
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
        for view in self.views:
            view.rebase(values)

    def reset(self, values: Blocks) -> None:
        """Replace the state by exactly ``values``, with an empty open delta."""
        self.counters, self.digest, self.seen = {}, (0, 0), {}
        self._open, self._open_digest, self._open_seen = {}, (0, 0), {}
        self._newest, self._often = None, (0.0, "")
        for view in self.views:
            view.reset(values)
        self.rebase(values)


_Answered = tuple[bool, float, float, bool, Label | None]


def _answered(examples: Sequence[Example]) -> list[_Answered] | None:
    """Label, probabilities of true and false, prediction and previous label of binary rows.

    Returns None if some row is not an ordinary one.
    """
    out = []
    for example in examples:
        label, score = example.label, example.score
        if score is None or len(score) != 2 or type(label) is not bool or example.weight < 1.0:
            return None
        p, q = score.get("true", -1.0), score.get("false", -1.0)
        if not (0.0 <= p <= 1.0 and 0.0 <= q <= 1.0):
            return None
        predicted = p > q if p != q else next(iter(score)) == "true"
        out.append((label, p, q, predicted, example.no_change))
    return out


def _plus(a: tuple[int, int], b: tuple[int, int]) -> tuple[int, int]:
    return a[0] + b[0], (a[1] + b[1]) & _MASK


def _span(a: tuple[float, float] | None, b: tuple[float, float]) -> tuple[float, float]:
    return (b[0], b[1]) if a is None else (min(a[0], b[0]), max(a[1], b[1]))


def _widen(spans: dict[str, tuple[float, float]], label: str, at: float) -> None:
    """Extend the label's time span to contain ``at``."""
    span = spans.get(label)
    if span is None:
        spans[label] = (at, at)
    elif at > span[1]:
        spans[label] = (span[0], at)
    elif at < span[0]:
        spans[label] = (at, span[1])
