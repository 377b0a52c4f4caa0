"""Adjusts the expected surprise rate of a source to its mix of two labels.

Where the model predicts *no*, a source that only reports conversions (*yes*) surprises with every
row, because these are the ones that the model has missed.  So other sources' rate of surprises is
no standard for it.  By Bayes' rule the odds of *yes* given a prediction of *no* are proportional to
the odds of *yes* among all of the source's events.

This adjustment applies only while fewer than four sources send both labels, and to large sources.
Otherwise those sources are the standard for all, because an attacker can hide lies about one label
among true rows of the other.  It also requires that the model contradicts the source's *yes* about
as often as that of the other senders.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from math import log, sqrt
from statistics import median
from typing import Final

from paramserver.evidence.sums import SOURCES_MIN

_OVER: Final = 128.0
_FADE: Final = 1.0 - 1.0 / _OVER
"""Time constant (rows of the source) of the exponentially decaying counts, and their factor."""

_FEW: Final = 4.0
_ENOUGH: Final = 8.0
"""Prior pseudo-rows of the usual mix for each source; and least rows to count in the median."""

_BOTH: Final = 0.1
"""Least decayed count of its rarer label for a source that sends both: one of the last 300 rows."""

_NEARLY_ALL: Final = 0.8
"""Share of one label of a source that sends hardly any other."""

_OFTENER: Final = 1.25
_MORE: Final = 0.01
_CHANCE: Final = 0.75
"""Greatest rate of contradicted labels of an honest source: this factor times the usual rate, plus
this offset, plus these standard deviations.  With a factor of 2 and 0.03, a source that flips one
label in five was not detected; with 1 and 0.02, one honest source in sixty was quarantined."""

_NOW: Final = 32
_KNOWN: Final = 1024

_DENIED: Final = log(2.0)


class _Counts:
    """Decayed counts of one source's rows by label, and of those that the model contradicted."""

    __slots__ = ("denied", "said")

    def __init__(self) -> None:
        self.said, self.denied = [0.0, 0.0], [0.0, 0.0]


class Mixes:
    """The label mixes of the sources.

    It adjusts nothing before four sources have sent enough, nor while four send both labels.

    Parameters:
        labels: JSON texts of the two labels; empty: not a task with two labels, no adjustment.
    """

    def __init__(self, labels: Sequence[str] = ()) -> None:
        self._at: Mapping[str, int] = {label: i for i, label in enumerate(labels)}
        self._of: dict[str, _Counts] = {}  # last heard at the end
        self._usual: tuple[float, float] | None = None  # odds of each label, of the median source
        self._denied: tuple[float | None, float | None] = (None, None)  # shares, likewise
        self._compared = False  # four sources send both labels

    def hear(self, source: str, label: str | None, loss: float) -> None:
        """Count a label and its loss."""
        at = self._at.get(label or "")
        if at is None:
            return
        counts = self._of.pop(source, None) or _Counts()
        if len(self._of) >= _KNOWN:
            del self._of[next(iter(self._of))]
        self._of[source] = counts
        said, denied = counts.said, counts.denied
        said[0], said[1] = said[0] * _FADE, said[1] * _FADE
        denied[0], denied[1] = denied[0] * _FADE, denied[1] * _FADE
        said[at] += 1.0
        denied[at] += loss > _DENIED

    def is_nearly_all(self, source: str, label: str) -> bool:
        """Return whether a source sends hardly any other label than this one."""
        counts, at = self._of.get(source), self._at.get(label)
        if counts is None or at is None:
            return False
        said = counts.said
        total = said[0] + said[1]
        return total >= _ENOUGH and said[at] >= _NEARLY_ALL * total

    def rate(self, rate: float, source: str, answer: str, *, large: bool = False) -> float:
        """Return the expected rate at which an honest source contradicts this prediction.

        ``rate`` is the rate of sources with the usual mix; the result is never lower.  ``large``:
        the source has always sent so much that others are no standard for its mix.
        """
        if self._usual is None or (self._compared and not large):
            return rate
        counts, at = self._of.get(source), self._at.get(answer)
        if counts is None or at is None:
            return rate
        other = 1 - at
        usual = self._usual[other] / (1.0 + self._usual[other])
        said, total = counts.said[other], sum(counts.said)
        share = (said + _FEW * usual) / (total + _FEW)
        odds = share / (1.0 - share) / self._usual[other]
        if odds <= 1.0 or self._is_denied(counts, other):
            return rate
        odds *= rate / (1.0 - rate)
        return odds / (1.0 + odds)

    def _is_denied(self, counts: _Counts, at: int) -> bool:
        """Return whether the model contradicts a source's label far more often than usual."""
        if (usual := self._denied[at]) is None:
            return False  # nobody else sends it
        most = min(_OFTENER * usual + _MORE, 1.0)
        n = counts.said[at]
        return counts.denied[at] > n * most + _CHANCE * sqrt(n * most * (1.0 - most))

    def refresh(self) -> None:
        """Recompute the medians over the sources that sent last, if the adjustment applies."""
        now = list(islice(reversed(self._of.values()), _NOW))
        shares = [
            (counts.said[1] + 0.5) / (total + 1.0)
            for counts in now
            if (total := sum(counts.said)) >= _ENOUGH
        ]
        self._compared = self._both() >= SOURCES_MIN
        if len(shares) < SOURCES_MIN:
            self._usual = None
            return
        share = median(shares)
        self._usual = (1.0 - share) / share, share / (1.0 - share)
        self._denied = self._usually(now, 0), self._usually(now, 1)

    def _both(self) -> int:
        """Return the number of sources that send both labels.

        All known sources are counted, since attackers with one label may have many names.
        """
        return sum(min(counts.said) >= _BOTH for counts in self._of.values())

    def _usually(self, now: Sequence[_Counts], at: int) -> float | None:
        found = [counts.denied[at] / n for counts in now if (n := counts.said[at]) >= _FEW]
        return median(found) if len(found) >= SOURCES_MIN else None
