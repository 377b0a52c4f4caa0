"""Detects sources that suddenly send mostly rows on which the model is uncertain.

An attacker who queries the model first, and lies only about rows on which it is uncertain, sends no
unlikely labels, because there both labels have similar probabilities.  But such rows move the model
most and honest ones are few, so the model soon learns the lies.  The attacker is recognised by
sending hardly any other rows.  The test is a CUSUM of log likelihood ratios (Page 1954): an honest
source sends uncertain rows at the rate of the median source or at its own long-term rate, whichever
is higher, plus 5 %; an attacker does so in nine of ten rows.

The same test is run for each of two labels.  Attackers who suddenly sent only one of them, on rows
whose true label was the other, were believed after some forty rows, because by then the label was
usual.
"""

from __future__ import annotations

from math import log
from typing import Final

_UNSURE: Final = (0.25, 1.5)
"""A row is uncertain if the loss of its label is in this range (nats): probability 0.22 to 0.78."""

_LATELY: Final = 8.0
_LONG: Final = 64.0
_LONG_RISING: Final = 512.0
"""Time constants of the rates, in rows of a source of median size.  The last one holds while a
source is rising: an honest source whose rows have become hard is suspected for about so long."""

_ENOUGH: Final = 24.0
_SOURCES: Final = 8
"""Least rows of a source before it is judged, and least number of sources to compare."""

_MORE: Final = 0.05
_LIES: Final = 0.9
_RATE_MAX: Final = 0.7
"""Excess rate of uncertain rows allowed for an honest source; rate of an attacker; and usual rate
from which on the test is inactive."""

_BEGINS: Final = 4.0
_ENDS: Final = 1.0
_MOST: Final = 8.0
"""Threshold of the CUSUM (nats) at which a source starts to rise, below which it stops, and cap."""

_NOW: Final = 32
_KNOWN: Final = 1024


class _Rate:
    """One source's short-term and long-term rates of uncertain rows, and its CUSUM."""

    __slots__ = ("lately", "long", "n", "nats", "rises")

    def __init__(self) -> None:
        self.n, self.long, self.lately, self.nats, self.rises = 0, 0.0, 0.0, 0.0, False


class Rising:
    """The rates of all sources; inactive before eight sources have sent enough rows.

    Parameters:
        begins: Nats from where on a source rises.

    Attributes:
        risen: Sources of whose recent rows nearly all are uncertain.
    """

    def __init__(self, begins: float = _BEGINS) -> None:
        self._begins = begins
        self._of: dict[str, _Rate] = {}  # last heard at the end
        self._usual: float | None = None  # of the median source
        self.risen: set[str] = set()

    def hear(self, source: str, loss: float, size: float) -> None:
        """Count a label's loss; ``size``: the source's size in units of the median one, ≥ 1."""
        self.note(source, _UNSURE[0] < loss < _UNSURE[1], size)

    def note(self, source: str, hit: bool, size: float) -> None:
        """Count one row of a source; ``hit``: it is of the kind that the test counts."""
        rate = self._of.pop(source, None) or _Rate()
        if len(self._of) >= _KNOWN:
            oldest = next(iter(self._of))
            del self._of[oldest]
            self.risen.discard(oldest)
        self._of[source] = rate
        n = rate.n = rate.n + 1
        long, lately = _LONG * size, _LATELY * size
        over = _LONG_RISING * size if rate.rises else n if n < long else long
        rate.long += (hit - rate.long) / over
        rate.lately += (hit - rate.lately) / (n if n < lately else lately)
        if not (hit or rate.nats) or self._usual is None or n < _ENOUGH * size:
            return
        usual = max(rate.long, self._usual) + _MORE
        if usual >= _RATE_MAX:
            rate.nats, rate.rises = 0.0, False
            self.risen.discard(source)
            return
        nats = log(_LIES / usual) if hit else log((1.0 - _LIES) / (1.0 - usual))
        rate.nats = min(max(rate.nats + nats / size, 0.0), _MOST)
        rises = rate.nats > (_ENDS if rate.rises else self._begins)
        if rises != rate.rises:
            rate.rises = rises
            (self.risen.add if rises else self.risen.discard)(source)

    def forgive(self) -> None:
        """Reset all sources, because the stream has changed."""
        for rate in self._of.values():
            rate.nats, rate.rises = 0.0, False
        self.risen.clear()

    def refresh(self) -> None:
        """Recompute the median rates over the sources that sent last."""
        now = [rate for rate in reversed(self._of.values()) if rate.n >= _ENOUGH][:_NOW]
        if len(now) < _SOURCES:
            self._usual = None
            self.forgive()  # too few sources to compare with
            return
        long, lately = sorted([r.long for r in now]), sorted([r.lately for r in now])
        self._usual = max(long[len(now) // 2], lately[len(now) // 2])
