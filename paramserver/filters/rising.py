"""Which sources send far more rows than they used to of which the model is not sure.

A liar who asks the model first, and lies about rows of which it is not sure, says nothing that is
unlikely: there an answer and its opposite are alike.  But such rows move the model most, and
honest ones are few, so what the liar says there is learned until it is what the model says.  What
gives it away is that hardly any of its rows is another one.  So rows by which a source is usual
and those of a liar are compared in a sum of their log likelihood ratios that is never below zero
(Page 1954): an honest source is unsure as often as the median one is, or as it has always been
itself, and a twentieth more; of the rows of a liar nine in ten are.

The same is asked of each of two labels.  Liars who suddenly send one of them only, about rows of
which the other is true, were believed after some forty: the label is usual from then on.
"""

from __future__ import annotations

from itertools import islice
from math import log
from typing import Final

_UNSURE: Final = (0.25, 1.5)
"""Losses of a label, in nats, whose other one would have lost about as much: shares of .22 to .78
both."""

_LATELY: Final = 8.0
_LONG: Final = 64.0
_LONG_RISING: Final = 512.0
"""Rows that the rates are over: of a source as large as the median one.  Who rises becomes usual to
itself after the last, however young it is: so long is somebody honest held whose rows became hard.
"""

_ENOUGH: Final = 24.0
_SOURCES: Final = 8
"""Rows of a source before it is judged, and sources that are compared."""

_MORE: Final = 0.05
_LIES: Final = 0.9
_RATE_MAX: Final = 0.7
"""Unsure rows of an honest source beyond what is usual; of a hostile one; and of honest ones, from
where on nothing is said."""

_BEGINS: Final = 4.0
_ENDS: Final = 1.0
_MOST: Final = 8.0
"""Nats from where on a source rises, below which it does no more, and at most."""

_NOW: Final = 32
_KNOWN: Final = 1024


class _Rate:
    """How often one source is unsure, over some rows and over many; and the sum of the test."""

    __slots__ = ("lately", "long", "n", "nats", "rises")

    def __init__(self) -> None:
        self.n, self.long, self.lately, self.nats, self.rises = 0, 0.0, 0.0, 0.0, False


class Rising:
    """The rates of all sources; says nothing of anybody before eight have sent enough.

    Parameters:
        begins: Nats from where on a source rises.
    """

    def __init__(self, begins: float = _BEGINS) -> None:
        self._begins = begins
        self._of: dict[str, _Rate] = {}  # last heard at the end
        self._usual: float | None = None  # of the median source

    def hear(self, source: str, loss: float, size: float) -> None:
        """One label and what the answer lost; ``size``: of the source, in median ones, ≥ 1."""
        self.note(source, _UNSURE[0] < loss < _UNSURE[1], size)

    def note(self, source: str, hit: bool, size: float) -> None:
        """Count one row of a source, which is of the kind that is looked for or not."""
        rate = self._of.pop(source, None) or _Rate()
        if len(self._of) >= _KNOWN:
            del self._of[next(iter(self._of))]
        self._of[source] = rate
        rate.n += 1
        over = _LONG_RISING * size if rate.rises else min(rate.n, _LONG * size)
        rate.long += (hit - rate.long) / over
        rate.lately += (hit - rate.lately) / min(rate.n, _LATELY * size)
        if self._usual is None or rate.n < _ENOUGH * size:
            return
        usual = max(rate.long, self._usual) + _MORE
        if usual >= _RATE_MAX:
            rate.nats, rate.rises = 0.0, False
            return
        nats = log(_LIES / usual) if hit else log((1.0 - _LIES) / (1.0 - usual))
        rate.nats = min(max(rate.nats + nats / size, 0.0), _MOST)
        rate.rises = rate.nats > (_ENDS if rate.rises else self._begins)

    def rises(self, source: str) -> bool:
        """Whether nearly all that the source sends of late is what the model is not sure of."""
        rate = self._of.get(source)
        return rate is not None and rate.rises

    def forgive(self) -> None:
        """All begin anew: it is the world that has turned."""
        for rate in self._of.values():
            rate.nats, rate.rises = 0.0, False

    def refresh(self) -> None:
        """Take the median source anew, of those that were heard last."""
        enough = (rate for rate in reversed(self._of.values()) if rate.n >= _ENOUGH)
        now = list(islice(enough, _NOW))
        if len(now) < _SOURCES:
            self._usual = None
            self.forgive()  # there is nobody to compare them with
            return
        long, lately = sorted(r.long for r in now), sorted(r.lately for r in now)
        self._usual = max(long[len(now) // 2], lately[len(now) // 2])
