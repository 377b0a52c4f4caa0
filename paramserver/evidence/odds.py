"""How much more often a loss is that of an honest label than that of a wrong one.

A loss says little by itself: where the model is wrong in two of five, honest labels are denied as
often as not.  What tells a lie there is how often a *wrong* label of such rows would have had such
a loss, and that is known, for a model that answers gives every label its share: labels that were
not said are the wrong ones.  So losses of a label are counted where it was said and where it was
not, and their ratio is what one event says of its source (Neyman and Pearson 1933).  Where a model
knows nothing both are alike, and nothing is said.

At each size of a loss no source counts more than the median one of those that are seen there and
have said enough: lies about rows of which the model is not sure came to be usual there, so few
honest ones are.  New names have no say in that: they are cheap, and with a few lies each they made
the bound so low that theirs were most of what counted.

A label that few sources send has nobody to be compared with.  Whoever sends it is *unproven* until
the model finds the label likelier on its rows than on rows of which others said another one: that
is so of true labels once some were learned, and not of a label that is sent with any row.  The same
is asked of a label that several send whom nearly nobody else joins, all of it together, after many:
beside each other liars are as honest as their median.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from math import ceil, inf, log2
from operator import add
from typing import Final, NamedTuple
from zlib import crc32

from paramserver.evidence.trials import TRIAL

_PLACES: Final = 14
_FIRST: Final = -6
"""Half octaves of losses, from an eighth (a share of .88) to eight (.0003), and what is beyond."""

_BINS_EACH: Final = 8
_LEAST: Final = 2.0**-20

_POOLED: Final = 20.0
"""Events for which those of all labels stand where a label was wrong; and where it was said those
where it was wrong, for the model need not know a label that few have said.
"""

_FAMILIAR: Final = 256.0
"""Labels after which those at random begin to leave; after twice as many they are gone."""

_NEARLY_ALL: Final = 0.9
_OTHERS: Final = 0.2
"""Of a label that fewer than half of the sources have to themselves; and how much less of a label's
wrong ones the others may have than of all labels."""

_KNOWN: Final = 2 * TRIAL
_KNOWN_MIN: Final = 4
"""Labels that a source has said before it has a say in how much others count; and how many such are
needed where a loss is of that size, or nobody is bounded."""

LABEL_CHARS: Final = 64

Shares = tuple[float, ...]
"""Of a label's losses, by place."""


class Odds(NamedTuple):
    """The shares of losses by label, where it was said and where it was wrong; and of all events.

    ``said``, ``unsaid``: by label; ``usual``: where it was said, if few have said it, as of all
    labels.  ``honest``, ``wrong``: share of all labels that were said, and
    that were not, whose loss speaks for a lie.  ``alone``: labels that few or none have sent, of
    which nothing is said, and the sources that are unproven.  ``held``: labels of which fewer
    than half of the sources send nearly all; ``unlearned``: those of them that the model still
    doesn't know, and the same.  ``proven``: sources whose labels of the first kind fit their rows.
    """

    said: dict[str, Shares]
    unsaid: dict[str, Shares]
    usual: dict[str, Shares]
    honest: float
    wrong: float
    alone: Mapping[str, Collection[str]]
    held: Collection[str]
    unlearned: Mapping[str, Collection[str]]
    proven: Collection[str] = ()

    def of(self, label: str | None, loss: float) -> tuple[float, float] | None:
        """How often honest and wrong ones of this label lose so much; None: not known."""
        said = self.said.get(label := key_of(label or ""))
        if said is None:
            return None
        at = _place_of(loss)
        return said[at], self.unsaid[label][at]

    def is_new(self, label: str | None, loss: float) -> bool:
        """Whether such a loss would speak for a lie if this label were as well known as others."""
        usual, at = self.usual.get(label := key_of(label or "")), _place_of(loss)
        return usual is not None and usual[at] < self.unsaid[label][at]


NONE: Final = Odds({}, {}, {}, 0.0, 0.0, {}, (), {})
"""Nothing is known of any label."""


class Votes:
    """Events of each source by label and place of the loss, where it said the label or did not."""

    def __init__(self) -> None:
        self._counts: dict[str, dict[int, dict[str, list[int]]]] = {}
        self._said: dict[str, int] = {}  # of all labels, by source
        self._shown: dict[tuple[str, int], tuple[float, float]] = {}  # of cells as they are
        self._known_then: set[str] = set()

    @property
    def labels(self) -> list[str]:
        """Labels for which there are counts."""
        return list(self._counts)

    def add(self, label: str, source: str, bin_: int, more: int, *, said: bool) -> None:
        """Count so many ``more`` events with a loss in this bin, of sixteen an octave."""
        at = _place(-(-bin_ // _BINS_EACH))
        try:
            counts = self._counts[label][at][source]
        except KeyError:
            of_source = self._counts.setdefault(label, {}).setdefault(at, {})
            counts = of_source[source] = [0, 0]
        counts[not said] += more
        if said:
            if n := self._said.get(source, 0) + more:
                self._said[source] = n
            else:
                del self._said[source]
        self._shown.pop((label, at), None)
        if more < 0 and not any(counts):
            of_source = self._counts[label][at]
            del of_source[source]
            if not of_source:
                del self._counts[label][at]
                if not self._counts[label]:
                    del self._counts[label]

    def add_each(self, events: Iterable[tuple[int, int, str, str]], *, said: bool) -> None:
        """Count one event for each generation (which does not matter), bin, label and source."""
        counts, which, changed = self._counts, int(not said), set()
        for _, bin_, label, source in events:
            at = _place(-(-bin_ // _BINS_EACH))
            try:
                counts[label][at][source][which] += 1
            except KeyError:
                self.add(label, source, bin_, 1, said=said)
                continue
            if said:
                self._said[source] = self._said.get(source, 0) + 1
            changed.add((label, at))
        for cell in changed:
            self._shown.pop(cell, None)

    def shown(self) -> dict[str, tuple[list[float], list[float]]]:
        """By label the events by place where it was said and where not, as sources count."""
        out, known = {}, self._known()
        if known != self._known_then:
            self._known_then, self._shown = known, {}
        for label, of_place in self._counts.items():
            honest, wrong = [0.0] * _PLACES, [0.0] * _PLACES
            for at, of_source in of_place.items():
                shown = self._shown.get((label, at))
                if shown is None:
                    shown = self._shown[label, at] = _bounded(of_source, known)
                honest[at], wrong[at] = shown
            out[label] = honest, wrong
        return out

    def denied_by_few(self, known: Collection[str]) -> list[str]:
        """Labels of which nearly all wrong ones are of fewer than half of the ``known`` sources.

        Where these send nearly all of the labels that is no wonder: then it has to be more.
        """
        out, few = [], (len(known) - 1) // 2
        all_said = sum(self._said.get(source, 0) for source in known)
        for label, of_place in self._counts.items():
            unsaid: dict[str, int] = {}
            for of_source in of_place.values():
                for source, (_, n) in of_source.items():
                    if n and source in known:
                        unsaid[source] = unsaid.get(source, 0) + n
            by_size = sorted(unsaid, key=unsaid.__getitem__, reverse=True)
            theirs = sum(self._said.get(source, 0) for source in by_size[:few])
            most = _OTHERS * min(1.0 - theirs / max(all_said, 1), 0.5)
            rest = sum(unsaid[source] for source in by_size[few:])
            if few > 0 and rest <= most * max(sum(unsaid.values()), 1):
                out.append(label)
        return out

    def _known(self) -> set[str]:
        """Sources that have said enough labels."""
        return {source for source, n in self._said.items() if n >= _KNOWN}


def _bounded(of_source: Mapping[str, list[int]], known: Collection[str]) -> tuple[float, float]:
    """Return the events of a cell that said the label and did not, as its sources count."""
    sizes = sorted([x[0] + x[1] for source, x in of_source.items() if source in known])
    most = sizes[len(sizes) // 2] if len(sizes) >= _KNOWN_MIN else inf
    honest = wrong = 0.0
    for said, unsaid in of_source.values():
        if (n := said + unsaid) > most:
            honest += most / n * said
            wrong += most / n * unsaid
        elif n > 0:  # what is taken back may come before it
            honest += said
            wrong += unsaid
    return honest, wrong


def odds_of(
    counts: Mapping[str, tuple[list[float], list[float]]],
    alone: Mapping[str, Collection[str]],
    held: Collection[str],
    unlearned: Mapping[str, Collection[str]],
    unknown: Collection[str] = (),
    proven: Collection[str] = (),
) -> Odds:
    """The odds by what is counted of each label; the others: as they are to have them.

    ``unknown``: labels of which nothing is said either, for what is wrong of them only a few say.

    A label that few have said is taken to be said at random, and nothing is said of its sources.
    """
    totals = [_sum(one[which] for one in counts.values()) for which in (0, 1)]
    of_honest, of_wrong = (_shares(total, 1.0) for total in totals)
    odds = Odds({}, {}, {}, 0.0, 0.0, alone, held, unlearned, proven)
    denied = [0.0, 0.0]
    for label, (here, there) in counts.items():
        w = odds.unsaid[label] = _shares(there, _POOLED, of_wrong)
        at_random = _POOLED * min(max(2.0 - sum(here) / _FAMILIAR, 0.0), 1.0)
        h = odds.said[label] = _shares(here, at_random, w)
        odds.usual[label] = _shares(here, _POOLED, of_honest)
        for which, events, shares in ((0, here, h), (1, there, w)):
            denied[which] += sum(events) * sum(
                s for s, a, b in zip(shares, h, w, strict=True) if a < b
            )
    for label in {**alone, **dict.fromkeys(unknown)}:
        del odds.said[label], odds.usual[label]
    honest, wrong = (x / max(sum(total), 1.0) for x, total in zip(denied, totals, strict=True))
    return odds._replace(honest=honest, wrong=wrong)


def held_by_few(
    bins: Mapping[str, Mapping[str, Mapping[int, int]]], known: Collection[str]
) -> frozenset[str]:
    """Labels of which fewer than half of the ``known`` sources send nearly all.

    ``bins``: losses by label and source.
    """
    held, few = [], (len(known) - 1) // 2
    for label, of_source in bins.items():
        sizes = sorted((sum(of_source[s].values()) for s in of_source.keys() & known), reverse=True)
        if label and known and sum(sizes[:few]) >= _NEARLY_ALL * sum(sizes):
            held.append(label)
    return frozenset(held)


def key_of(label: str) -> str:
    """The key of a label: a long text is cut, and its checksum distinguishes it from others."""
    if len(label) <= LABEL_CHARS:
        return label
    return f"{label[: LABEL_CHARS - 9]}#{crc32(label.encode()):08x}"


def _place_of(loss: float) -> int:
    return _place(ceil(2.0 * log2(loss if loss > _LEAST else _LEAST)))


def _place(half_octave: int) -> int:
    at = half_octave - _FIRST
    return 0 if at < 0 else at if at < _PLACES else _PLACES - 1


def _sum(counts: Iterable[list[float]]) -> list[float]:
    total = [0.0] * _PLACES
    for one in counts:
        total = list(map(add, total, one))
    return total


def _shares(counts: list[float], pooled: float, of_all: Shares | None = None) -> Shares:
    """The shares of counts, of which ``pooled`` more are dealt as all are, or evenly."""
    total, even = sum(counts) + pooled, 1.0 / _PLACES
    of_all = of_all or (even,) * _PLACES
    return tuple([(n + pooled * share) / total for n, share in zip(counts, of_all, strict=True)])
