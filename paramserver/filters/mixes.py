"""Mixes of two labels: how much of each a source sends, and how much of that the model denies.

Where the model answers *no*, a source that reports conversions only and never sends *no* surprises
with each row: it sends those alone that the model has missed.  So the rate that the others have
there is no measure for it.  By Bayes' rule the odds of *yes* where *no* is answered grow as the
odds of *yes* among all that the source sends.

That is so where hardly anybody sends both labels.  Where four sources do, they are the measure for
all: true rows that the model knows hide lies among them from each comparison of one label with it.
And it is so as long as its *yes* is denied about as often as that of the others who send it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from math import log, sqrt
from statistics import median
from typing import Final

from paramserver.filters.losses import SOURCES_MIN

_OVER: Final = 128.0
"""Rows of a source over which its counts fade."""

_FEW: Final = 4.0
_ENOUGH: Final = 8.0
"""Usual rows that each source begins with; and rows of a source that says what is usual."""

_BOTH: Final = 0.1
"""Faded rows of its rarer label, of a source that sends both: one among its last three hundred."""

_OFTENER: Final = 1.25
_MORE: Final = 0.01
_CHANCE: Final = 0.75
"""Denied labels of an honest source: so many times what is usual, so much more, and by chance so
many standard deviations.  With twice the usual and .03, who turns one label in five into the other
one was not found; with the usual and .02 an honest source in sixty was condemned."""

_NOW: Final = 32
_KNOWN: Final = 1024

_DENIED: Final = log(2.0)


class _Counts:
    """Rows of one source by label, and the denied ones; of two labels, the second is not first."""

    __slots__ = ("denied", "said")

    def __init__(self) -> None:
        self.said, self.denied = [0.0, 0.0], [0.0, 0.0]


class Mixes:
    """The mixes of the sources; says nothing of anybody before four have sent enough.

    Nor while four send both labels.

    Parameters:
        labels: JSON texts of the two labels; empty: there are not two, and nothing is said.
    """

    def __init__(self, labels: Sequence[str] = ()) -> None:
        self._at: Mapping[str, int] = {label: i for i, label in enumerate(labels)}
        self._of: dict[str, _Counts] = {}  # last heard at the end
        self._usual: tuple[float, float] | None = None  # odds of each label, of the median source
        self._denied: tuple[float | None, float | None] = (None, None)  # shares, likewise

    def hear(self, source: str, label: str | None, loss: float) -> None:
        """One label, and what the answer lost."""
        at = self._at.get(label or "")
        if at is None:
            return
        counts = self._of.pop(source, None) or _Counts()
        if len(self._of) >= _KNOWN:
            del self._of[next(iter(self._of))]
        self._of[source] = counts
        fade = 1.0 - 1.0 / _OVER
        for both in (counts.said, counts.denied):
            both[0], both[1] = both[0] * fade, both[1] * fade
        counts.said[at] += 1.0
        counts.denied[at] += loss > _DENIED

    def rate(self, rate: float, source: str, answer: str) -> float:
        """How often an honest source denies this answer, if others with another mix do at ``rate``.

        Never less: who sends more of the answer is judged as the others are.
        """
        counts, at = self._of.get(source), self._at.get(answer)
        if counts is None or at is None or self._usual is None:
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
        """Whether the model denies this label of a source far more often than it is usual."""
        if (usual := self._denied[at]) is None:
            return False  # nobody else sends it
        most = min(_OFTENER * usual + _MORE, 1.0)
        n = counts.said[at]
        return counts.denied[at] > n * most + _CHANCE * sqrt(n * most * (1.0 - most))

    def refresh(self) -> None:
        """Take the median source anew, of those that were heard last, if it is to be asked."""
        now = list(islice(reversed(self._of.values()), _NOW))
        shares = [
            (counts.said[1] + 0.5) / (total + 1.0)
            for counts in now
            if (total := sum(counts.said)) >= _ENOUGH
        ]
        if len(shares) < SOURCES_MIN or self._both() >= SOURCES_MIN:
            self._usual = None
            return
        share = median(shares)
        self._usual = (1.0 - share) / share, share / (1.0 - share)
        self._denied = self._usually(now, 0), self._usually(now, 1)

    def _both(self) -> int:
        """How many sources send both labels: of all, for who sends one only can take many names."""
        return sum(min(counts.said) >= _BOTH for counts in self._of.values())

    def _usually(self, now: Sequence[_Counts], at: int) -> float | None:
        found = [counts.denied[at] / n for counts in now if (n := counts.said[at]) >= _FEW]
        return median(found) if len(found) >= SOURCES_MIN else None
