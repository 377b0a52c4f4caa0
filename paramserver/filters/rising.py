"""Which sources push the model far harder than they used to, beside the others.

A liar who asks the model first, and lies about rows of which it is not sure, says nothing that is
unlikely: there an answer and its opposite are alike.  But such rows move the model most, and
honest ones are few, so what the liar says there is learned until it is what the model says.  What
gives it away is that all its rows push.  So of each source there are two moving means of how hard
its labels push, one less the share that the model gave them: over some rows and over many.  Who
has always had the harder rows is compared with itself, and where all have harder ones nobody rises.
"""

from __future__ import annotations

from itertools import islice
from math import exp
from typing import Final

_LATELY: Final = 8.0
_LONG: Final = 64.0
_LONG_RISING: Final = 512.0
"""Rows that the means are over: of a source as large as the median one."""

_ENOUGH: Final = 24.0
_SOURCES: Final = 8
_BEGINS: Final = 1.6
_ENDS: Final = 1.2
"""Rows of a source before it can rise; sources that are compared; and how many times the median
source's mean, and what the source has usually of that, make it rise, or still do."""

_NOW: Final = 32
_KNOWN: Final = 1024
_LEAST: Final = 1e-6


class _Push:
    """The means of one source."""

    __slots__ = ("lately", "long", "n", "rises")

    def __init__(self) -> None:
        self.n, self.long, self.lately, self.rises = 0, 0.0, 0.0, False


class Rising:
    """How hard each source pushes; says nothing of anybody before eight sources have sent some."""

    def __init__(self) -> None:
        self._of: dict[str, _Push] = {}  # last heard at the end
        self._lately, self._long = 0.0, 0.0  # of the median source; none yet: 0

    def hear(self, source: str, loss: float, size: float) -> None:
        """One label and what the answer lost; ``size``: of the source, in median ones, ≥ 1."""
        push = self._of.pop(source, None) or _Push()
        if len(self._of) >= _KNOWN:
            del self._of[next(iter(self._of))]
        self._of[source] = push
        x, over = 1.0 - exp(-loss), _LONG_RISING if push.rises else _LONG
        push.n += 1
        push.long += (x - push.long) / min(push.n, over * size)
        push.lately += (x - push.lately) / min(push.n, _LATELY * size)
        usual = max(push.long / self._long, 1.0) * self._lately if self._long else 0.0
        times = _ENDS if push.rises else _BEGINS
        push.rises = push.n >= _ENOUGH * size and 0.0 < times * usual < push.lately

    def rises(self, source: str) -> bool:
        """Whether the source pushes far harder than it used to, beside the others."""
        push = self._of.get(source)
        return push is not None and push.rises

    def refresh(self) -> None:
        """Take the median source anew, of those that were heard last."""
        now = [p for p in islice(reversed(self._of.values()), _NOW) if p.n >= _ENOUGH]
        if len(now) < _SOURCES:
            self._lately = self._long = 0.0
            return
        self._lately = max(sorted(p.lately for p in now)[len(now) // 2], _LEAST)
        self._long = max(sorted(p.long for p in now)[len(now) // 2], _LEAST)
