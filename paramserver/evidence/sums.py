"""Sums of counted losses by source and label, and the bounds and odds that are drawn from them.

A label that is a number is hardly ever said twice, so a loss is compared with those of the same
*fifth* of the numbers that were sent lately, and of the same side: large numbers are harder than
usual ones, and so is one side of the answer.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import cache
from math import ceil, expm1, log, log2
from statistics import median
from typing import Final, NamedTuple, TypeVar

from paramserver.evidence.odds import LABEL_CHARS, NONE, Odds, Votes, held_by_few, key_of, odds_of
from paramserver.evidence.trials import (
    TRIAL,
    TRIALS,
    Bins,
    Trials,
    is_unproven,
    of_few,
    together,
    total,
    unproven,
)

NAMELESS: Final = "\0"
"""Stands in keys for the source whose name is empty; no caller can have this one."""

_OF_AN_OCTAVE: Final = 16
_LEAST: Final = 2.0**-20

LEVEL: Final = 0.9
MILD: Final = 0.8
"""Levels of high and of unlikely losses."""

FAR: Final = 4.0
FAR_LABEL: Final = 1.5
OF_A_SOURCE: Final = 8
OF_A_LABEL: Final = 3
SOURCES_MIN: Final = 4
FIFTHS: Final = 5

_Inner = TypeVar("_Inner", Bins, dict[str, Bins])

Counted = tuple[int, int, str, str]
"""Generation, bin, label and source of an event."""


class Null(NamedTuple):
    """The sizes of honest losses with one label.

    ``high``: nine of ten are not above it; ``far``: what is far off; ``unlikely``: four of five are
    not above it.  ``against``: what speaks against its source is above it, too: nobody is held to
    know a label better than the model does before enough have sent it.
    """

    high: float
    far: float
    unlikely: float
    against: float = 0.0


class Sums:
    """Sums of counted losses.  Events may wait until somebody asks for what is drawn from them.

    Parameters:
        numbers: Whether labels are numbers, each behind its side of the answer (+ or -).
        answers: The two labels, if there are two: whoever does not say one says the other.

    Attributes:
        numbers: As given.
        answers, two: As given, and whether there are two labels.
        of_sources: All that is counted of each source.
        waiting, waiting_unsaid: Events that no sum has yet; of the first ones each sum has others
            of the same label and source.
    """

    def __init__(self, *, numbers: bool = False, answers: Sequence[str] = ()) -> None:
        self.numbers = numbers
        self.answers, self.two = tuple(answers), len(answers) == 2
        self._other = dict(zip(answers, reversed(answers), strict=True))
        self.reset()

    def reset(self) -> None:
        """Set all sums to nothing."""
        self._edges: list[float] = []  # between the fifths of the numbers
        self._bins: dict[str, dict[str, Bins]] = {}  # of each source, by label
        self._all: dict[str, Bins] = {}  # and of all labels together
        self._unsaid: dict[str, Bins] = {}  # what labels that were not said would have lost
        self.of_sources: dict[str, int] = {}
        self._votes, self._trials = Votes(), Trials(self._other, _turned)
        self._odds: Odds | None = NONE
        self._nulls: dict[str | None, Null] | None = {}
        self.waiting: list[Counted] = []
        self.waiting_unsaid: list[Counted] = []

    def settle(self) -> None:
        """Add the waiting events to the sums, each sum by itself."""
        said, self.waiting = self.waiting, []
        unsaid, self.waiting_unsaid = self.waiting_unsaid, []
        if said:
            self._nulls = self._odds = None
            of_all, of_source = self._all, self.of_sources
            for _, bin_, label, source in said:
                bins = self._bins[label][source]
                bins[bin_] = bins.get(bin_, 0) + 1
                bins = of_all[source]
                bins[bin_] = bins.get(bin_, 0) + 1
                of_source[source] += 1
            if not self.numbers:
                told = [event for event in said if event[2]]
                self._trials.add_each(told)
                self._votes.add_each(told, said=True)
                other = self._other
                self._votes.add_each(
                    [(g, _turned(b), other[x], s) for g, b, x, s in told if x in other], said=False
                )
        for event in unsaid:
            self.add_unsaid(*event, 1)

    def add(self, generation: int, bin_: int, label: str, source: str, more: int) -> None:
        """Count as many more events; subtract them if ``more`` is negative."""
        if self.waiting or self.waiting_unsaid:
            self.settle()
        self._nulls = self._odds = None
        if label and not self.numbers:
            self._votes.add(label, source, bin_, more, said=True)
            self._trials.add(generation, label, source, bin_, more)
            if (other := self._other.get(label)) is not None:
                self._votes.add(other, source, _turned(bin_), more, said=False)
        of_label = _within(self._bins, label)
        _count(of_label, source, bin_, more)
        if not of_label:
            del self._bins[label]
        _count(self._all, source, bin_, more)
        if total := self.of_sources.get(source, 0) + more:
            self.of_sources[source] = total
        else:
            self.of_sources.pop(source, None)

    def add_unsaid(self, generation: int, bin_: int, label: str, source: str, more: int) -> None:
        """Count a label that its source, whose name is marked, did not say."""
        if self.waiting or self.waiting_unsaid:
            self.settle()
        self._nulls = self._odds = None
        self._trials.add_unsaid(generation, label, bin_, more)
        self._votes.add(label, source[1:], bin_, more, said=False)
        _count(self._unsaid, label, bin_, more)

    def has(self, label: str, source: str) -> bool:
        """Return whether events of this label and source are counted."""
        return source in self._bins.get(label, ())

    def leave(self, generation: int) -> None:
        """End a generation whose events were subtracted."""
        self._trials.leave(generation)

    def nulls(self) -> dict[str | None, Null]:
        """By label, what nine of ten losses of honest sources are not above, and what is far off.

        Never below those of all labels together: a lie that was learned makes the easy labels
        surprise first, whoever sends them.  Only sources that have sent enough have a say, of a
        label too: made-up names are many.  Empty: too few have.
        """
        self.settle()
        if self._nulls is None:
            self._nulls = self._drawn()
        return self._nulls

    def odds(self) -> Odds:
        """How often honest labels, and wrong ones, have such a loss."""
        self.settle()
        if self._odds is None:
            known = {source for source, n in self.of_sources.items() if n >= OF_A_SOURCE}
            held = held_by_few(self._bins, known)
            unknown = () if self.two else self._votes.denied_by_few(known)
            alone, proven = self._alone()
            self._odds = odds_of(
                self._votes.shown(), alone, held, self._unlearned(held), unknown, proven
            )
        return self._odds

    def _unlearned(self, held: Collection[str]) -> dict[str, frozenset[str]]:
        """Labels of a minority that the model does not know after many, and who is unproven.

        Many of all of them together: a lie may be any of several labels.
        """
        several = [label for label in held if len(self._bins[label]) >= SOURCES_MIN]
        asked = {label: self._trials.scores(label) for label in several}
        all_in_all = together(asked.values())
        if (of_all := total(all_in_all))[0] < TRIALS or not is_unproven(*of_all):
            return {}
        found = _named(unproven(all_in_all))
        alike = {label: total(scores) for label, scores in asked.items()}
        return {x: found for x, (n, more) in alike.items() if n < TRIAL or is_unproven(n, more)}

    def _alone(self) -> tuple[dict[str, frozenset[str]], frozenset[str]]:
        """Labels with too few senders to compare, who of these is unproven, and who is proven."""
        labels = self._votes.labels
        few = [label for label in labels if len(self._bins.get(label, {})) < SOURCES_MIN]
        doubtful, proven = of_few({x: self._trials.scores(x) for x in few}, SOURCES_MIN)
        return {label: _named(sources) for label, sources in doubtful.items()}, _named(proven)

    def is_shared(self, label: str | None) -> bool:
        """Return whether enough sources send a label to compare them."""
        return len(self._bins.get(key_of(label or ""), ())) >= SOURCES_MIN

    def _at_random(self, label: str) -> float:
        """Return what nine of ten losses of a label sent with any row are not above."""
        wrong = {} if self.numbers else self._wrong(label)
        return _quantiles(wrong, n)[0] if (n := sum(wrong.values())) >= TRIAL else 0.0

    def _wrong(self, label: str) -> Bins:
        """The losses of a label where another one was said."""
        out: Bins = {}
        if (other := self._other.get(label)) is None:
            return self._unsaid.get(label, out)
        for bins in self._bins.get(other, {}).values():
            _sum_into(out, {_turned(bin_): n for bin_, n in bins.items()})
        return out

    def kind(self, label: str | None) -> str | None:
        """Return what an event with this label is compared with: a key of the nulls.

        A number without its side, as of a row that the model had not answered, is no label.
        """
        if not self.numbers or not label:
            return label if label is None or len(label) <= LABEL_CHARS else key_of(label)
        if label[0] not in "+-":
            return None
        return f"{bisect_right(self._edges, float(label[1:]))}{label[0]}"

    def _by_kind(self) -> dict[str, dict[str, Bins]]:
        """The bins of each source by label; by fifth and side if labels are numbers."""
        if not self.numbers:
            return self._bins
        said = sorted(
            (float(label[1:]), sum(map(sum, map(dict.values, of_source.values()))))
            for label, of_source in self._bins.items()
            if label[:1] in ("+", "-")
        )
        total, passed, edges = sum(n for _, n in said), 0, list[float]()
        for value, n in said:  # an edge is the least number of the next fifth
            if passed * FIFTHS >= total * (len(edges) + 1) and len(edges) < FIFTHS - 1:
                edges.append(value)
            passed += n
        self._edges = edges
        out: dict[str, dict[str, Bins]] = {}
        for label, of_source in self._bins.items():
            kind = out.setdefault(self.kind(label) or "", {})
            for source, bins in of_source.items():
                of_kind = kind.setdefault(source, {})
                for bin_, n in bins.items():
                    of_kind[bin_] = of_kind.get(bin_, 0) + n
        return out

    def _drawn(self) -> dict[str | None, Null]:
        known = {source for source, n in self.of_sources.items() if n >= OF_A_SOURCE}
        least = _null({source: self._all[source] for source in known}, OF_A_SOURCE)
        if least is None:
            return {}
        high, mild = least
        out: dict[str | None, Null] = {}
        for label, of_source in self._by_kind().items():
            if len(of_source) < SOURCES_MIN:
                continue  # only some send it: there is nobody to compare them with
            of_known = {s: x for s, x in of_source.items() if s in known}
            own = _null(of_known, OF_A_LABEL)
            if own is None:  # few have sent it yet: until then it is as hard as the others
                out[label or None] = Null(high, FAR * high, mild, self._at_random(label))
                continue
            far = max(FAR_LABEL * own[0], FAR * high)
            out[label or None] = Null(max(own[0], high), far, max(own[1], mild))
        return out


def _null(of_source: Mapping[str, Bins], least: int) -> tuple[float, float] | None:
    """Return the medians over sources of two quantiles of their losses; None: too few."""
    found = [_quantiles(x, n) for x in of_source.values() if (n := sum(x.values())) >= least]
    if len(found) < SOURCES_MIN:
        return None
    return median([nine for nine, _ in found]), median([mild for _, mild in found])


def _quantiles(bins: Bins, n: int) -> tuple[float, float]:
    """Return what nine and four of five of ``n`` losses are not above: ends of bins."""
    above_nine, above_mild = n - 1 - round(LEVEL * (n - 1)), n - 1 - round(MILD * (n - 1))
    at, passed = iter(sorted(bins, reverse=True)), 0  # the fifth that is above is found first
    bin_ = next(at)
    while above_nine >= (passed := passed + bins[bin_]):
        bin_ = next(at)
    high = bin_
    while above_mild >= passed:
        bin_ = next(at)
        passed += bins[bin_]
    return end_of(high), end_of(bin_)


def _named(sources: Iterable[str]) -> frozenset[str]:
    """Return the sources by the names that they have themselves."""
    return frozenset("" if s == NAMELESS else s for s in sources)


@cache
def end_of(bin_: int) -> float:
    return float(2.0 ** (bin_ / _OF_AN_OCTAVE)) * (1.0 + 1e-9)


def bin_of(loss: float) -> int:
    """Return the bin that counts a loss: it ends where the bin's losses are at most."""
    return ceil(_OF_AN_OCTAVE * log2(loss if loss > _LEAST else _LEAST))


def _sum_into(out: Bins, bins: Mapping[int, int]) -> None:
    for bin_, n in bins.items():
        out[bin_] = out.get(bin_, 0) + n


@cache
def _turned(bin_: int) -> int:
    """Return the bin of what the other of two labels would have lost on the same row."""
    middle = 2.0 ** ((bin_ - 0.5) / _OF_AN_OCTAVE)
    return bin_of(-log(-expm1(-middle)))


def _within(of: dict[str, _Inner], key: str) -> _Inner:
    """Return the dictionary at this key, which is added if there is none."""
    return of.setdefault(key, {})


def _count(of: dict[str, Bins], key: str, bin_: int, more: int) -> None:
    """Count ``more`` events in a bin; bins and keys that count nothing are dropped."""
    bins = _within(of, key)
    if n := bins.get(bin_, 0) + more:
        bins[bin_] = n
        return
    bins.pop(bin_, None)
    if not bins:
        del of[key]
