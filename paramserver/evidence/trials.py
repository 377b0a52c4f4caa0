"""Compares a label's losses on rows that were sent with it and on rows sent with another label.

If a source sends a label with arbitrary rows, the model finds it no likelier on those rows than on
others.  But once the model has learned such labels, it finds them likelier on all rows.  So losses
are compared within the same and the next generation of events.  Compared with earlier losses, a
label that nobody had sent before looked plausible as soon as some lies were learned.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from math import sqrt
from typing import Final

TRIAL: Final = 8
"""Labels of one source that are believed before they are tested."""

TRIALS: Final = 64
"""Labels of a minority of sources together that are believed before they are tested."""

_APART: Final = 0.65
_CHANCE: Final = 2.0
"""A source passes if this share of its labels is likelier than wrong ones, or so many standard
deviations above one half, whichever is less.  For arbitrary rows the share is one half."""

Bins = dict[int, int]
"""Events by bin of their loss."""

Scores = dict[str, tuple[int, float]]
"""By source, how many of its labels were compared, and how many were likelier than wrong ones."""


class Trials:
    """Counts losses by generation, label and source.

    Parameters:
        other: With two labels, the other one of each; rows without one have the other.
        turned: Returns the bin of the loss that the other of two labels would have had.
    """

    def __init__(self, other: Mapping[str, str], turned: Callable[[int], int]) -> None:
        self._other, self._turned = other, turned
        self._said: dict[int, dict[str, dict[str, Bins]]] = {}
        self._unsaid: dict[int, dict[str, Bins]] = {}

    def add(self, generation: int, label: str, source: str, bin_: int, more: int) -> None:
        """Count ``more`` events with the label in this bin of losses."""
        try:
            bins = self._said[generation][label][source]
        except KeyError:
            of_source = self._said.setdefault(generation, {}).setdefault(label, {})
            bins = of_source[source] = {}
        bins[bin_] = bins.get(bin_, 0) + more

    def add_each(self, events: Iterable[tuple[int, int, str, str]]) -> None:
        """Count one event for each generation, bin, label and source."""
        said = self._said
        for generation, bin_, label, source in events:
            try:
                bins = said[generation][label][source]
            except KeyError:
                self.add(generation, label, source, bin_, 1)
                continue
            bins[bin_] = bins.get(bin_, 0) + 1

    def add_unsaid(self, generation: int, label: str, bin_: int, more: int) -> None:
        """Count ``more`` events without the label, which would have had such a loss."""
        bins = self._unsaid.setdefault(generation, {}).setdefault(label, {})
        bins[bin_] = bins.get(bin_, 0) + more

    def leave(self, generation: int) -> None:
        """Forget the counts of a generation."""
        self._said.pop(generation, None)
        self._unsaid.pop(generation, None)

    def scores(self, label: str) -> Scores:
        """Compare each source's losses of a label with those where it was not said."""
        said: list[list[tuple[str, Bins]]] = [[]]
        wrong: list[Bins] = [{}]
        for generation in sorted(self._said.keys() | self._unsaid.keys()):
            said[-1] += self._said.get(generation, {}).get(label, {}).items()
            for bin_, n in self._wrong(generation, label):
                wrong[-1][bin_] = wrong[-1].get(bin_, 0) + n
            if sum(wrong[-1].values()) >= TRIAL:
                said.append([])
                wrong.append({})
        middles = [_middle(bins) for bins in wrong[:-1]]
        out: Scores = {}
        for i, (middle, later) in enumerate(
            zip(middles, [*middles[1:], *middles[-1:]], strict=True)
        ):
            for source, bins in said[i]:
                n, likelier = out.get(source, (0, 0.0))
                least = min(middle, later)
                more = sum(x for bin_, x in bins.items() if bin_ < least)
                half = bins.get(least, 0) / 2.0
                out[source] = n + sum(bins.values()), likelier + more + half
        return out

    def _wrong(self, generation: int, label: str) -> Iterable[tuple[int, int]]:
        if (other := self._other.get(label)) is None:
            return self._unsaid.get(generation, {}).get(label, {}).items()
        of_source = self._said.get(generation, {}).get(other, {})
        return ((self._turned(b), n) for bins in of_source.values() for b, n in bins.items())


def together(scores: Iterable[Scores]) -> Scores:
    """Add up the scores of several labels."""
    out: Scores = {}
    for one in scores:
        for source, (n, likelier) in one.items():
            known, more = out.get(source, (0, 0.0))
            out[source] = known + n, more + likelier
    return out


def total(scores: Scores) -> tuple[int, float]:
    """Add up the scores of all sources."""
    return sum(n for n, _ in scores.values()), sum(more for _, more in scores.values())


def is_unproven(n: int, likelier: float) -> bool:
    """Whether so few of ``n`` labels are likelier than wrong ones, after some of them."""
    return n >= TRIAL and likelier < min(_APART * n, (n + _CHANCE * sqrt(n)) / 2.0)


def unproven(scores: Scores) -> set[str]:
    """Return the sources whose labels fail the test."""
    return {source for source, (n, likelier) in scores.items() if is_unproven(n, likelier)}


def of_few(asked: Mapping[str, Scores], many: int) -> tuple[dict[str, set[str]], set[str]]:
    """Return the sources that fail with each of these labels, or with all, and those that pass.

    If more than half of at least ``many`` fail with all together, the model knows none of the
    labels yet.
    """
    all_labels = together(asked.values())  # they may be many
    tried = {source for source, (n, _) in all_labels.items() if n >= TRIAL}
    failed = unproven(all_labels)
    passed = tried - failed
    if len(tried) >= many and 2 * len(failed) > len(tried):
        failed = set()
    of_each = {label: unproven(scores) for label, scores in asked.items()}
    passed.difference_update(*of_each.values())
    return {label: failed | sources for label, sources in of_each.items()}, passed


def _middle(bins: Bins) -> int:
    """Return the bin of the median event."""
    at, passed, many = iter(sorted(bins)), 0, sum(bins.values())
    while 2 * passed < many:
        middle = next(at)
        passed += bins[middle]
    return middle
