"""Delays of positive labels, and the weights of default labels that follow from them.

The time from prediction to positive label is counted in buckets of a quarter of an octave, so that
the share of positives within a time can be computed.  Also counted are events that got a default
(negative) label, and those of them that were corrected later.  All are sums over the learned rows,
so they merge by addition, and rows that are undone or forgotten no longer count.

With a window that is shorter than some delays, late positives count as negatives until they arrive.
If the share F arrives in time, negatives get the weight F + (1 − F)·v and late positives get v:
for any v the expected weights balance.  With v = 1 all labels have weight 1, and a positive that
has not arrived counts fully as a negative.  With v = 0 it does not, but nothing is learned from
late positives, and if F is small, hardly anything at all.  Here v is 1 − F, and at least
:data:`_LATE_MIN`, so that late positives always count, even if a source claims that none are late.

F is that of the source's own positives once it has enough of them.  Otherwise it is that of all
sources together, where none counts more than the mean of the others: a source with many positives
must not determine the weights of the others.  Sources are hashed to :data:`_PLACES` slots.  The
counts of a source are discounted over about :data:`_MEMORY` positives, so that F follows changes.
"""

from __future__ import annotations

import math
import zlib
from typing import Any, Final

from paramserver.core.sums import Sums
from replay.example import Example

DELAYS: Final = "delays"
"""Name of the block with the sums over the learned rows."""

POSITIVES_MIN: Final = 50
"""With fewer positive labels F is unknown, and all labels have weight 1."""

_DELAY: Final = "delay "
"""Prefix of the names of buckets."""
_LEAST_S: Final = 0.001
"""A label with a shorter delay came together with its features, not after an answer."""
_OCTAVE: Final = 4
_FIRST, _LAST = -40, 108
"""Buckets: from 1 ms to a few years."""
_LATE_MIN: Final = 0.1
"""Least weight of a late positive."""
_PLACES: Final = 64
"""Slots to which sources are hashed, so that the block is bounded whatever names they use."""
_MEMORY: Final = 1_000.0
"""Window of the discount, in positives of a source."""
_ENOUGH: Final = _MEMORY * (1.0 - (1.0 - 1.0 / _MEMORY) ** POSITIVES_MIN) - 1e-6
"""The discounted count of :data:`POSITIVES_MIN` positives."""


class Delays(Sums):
    """Delays of one model's positive labels: a view of the learned rows, with an open delta.

    Parameters:
        window_s: Seconds after which an event without a label gets the default label.
    """

    scores: Final = False

    def __init__(self, window_s: float) -> None:
        super().__init__(DELAYS)
        self._window_s = window_s
        self._all, self._within = f"all of {window_s:g} by ", f"within {window_s:g} by "

    def add(self, example: Example, at: float, source: str = "") -> None:
        """Count one learned row: a default label, its correction, or a positive label."""
        if example.moved is not None:
            return
        if example.late is not None:
            self.count("defaulted", 1)
            return
        if (first := example.corrects) is not None and first.defaulted:
            self.count("corrected", 1)
        if example.label is not True or example.provisional or example.predicted_at is None:
            return
        if (delay_s := at - example.predicted_at) >= _LEAST_S:
            self.count(f"{_DELAY}{math.floor(_place(delay_s))}", 1)
            place, within = _hashed(source), delay_s < self._window_s
            for name, more in (f"{self._all}{place}", 1.0), (f"{self._within}{place}", within):
                self.count(name, more - max(self.now.get(name, 0.0), 0.0) / _MEMORY)

    @property
    def positives(self) -> int:
        """Return the number of positive labels with a known delay."""
        return int(sum(n for name, n in self.now.items() if name.startswith(_DELAY)))

    def reached(self, source: str | None = None) -> float | None:
        """Return F, the share of positives within the window; None before there are enough.

        It is that of the source's positives if there are enough, else that of all sources, or,
        after a change of the window, that of the buckets until there are enough new positives.
        Replicas that exchange rarely may together discount more than there was, so counts are
        clipped to valid shares.
        """
        known = {
            place: (n, min(max(self.now.get(f"{self._within}{place}", 0.0), 0.0), n))
            for place in range(_PLACES)
            if (n := self.now.get(f"{self._all}{place}", 0.0)) > 0.0
        }
        own, in_time = (0.0, 0.0) if source is None else known.get(_hashed(source), (0.0, 0.0))
        if own >= _ENOUGH:
            return in_time / own
        if (all_ := sum(n for n, _ in known.values())) >= _ENOUGH:
            others = len(known) - 1
            counts = [min(n, (all_ - n) / others) if others else n for n, _ in known.values()]
            pairs = zip(counts, known.values(), strict=True)
            return sum(count * within / n for count, (n, within) in pairs) / sum(counts)
        if (total := self.positives) < POSITIVES_MIN:
            return None
        place, within = _place(self._window_s), 0.0
        for name, n in self.now.items():
            if name.startswith(_DELAY):
                within += n * min(max(place - int(name.removeprefix(_DELAY)), 0.0), 1.0)
        return within / total

    def weights(self, source: str | None = None) -> tuple[float, float]:
        """Return the weights of a default label and of a positive label that replaces one."""
        share = self.reached(source) or 0.0
        late = max(1.0 - share, _LATE_MIN)
        return share + (1.0 - share) * late, late

    def summary(self) -> dict[str, Any]:
        """Return the counts and weights for the status."""
        default, late = self.weights()
        return {
            "window_s": self._window_s,
            "positives": self.positives,
            "within": self.reached(),
            "defaulted": int(self.now.get("defaulted", 0)),
            "corrected": int(self.now.get("corrected", 0)),
            "weight": default,
            "late_weight": late,
        }


def _hashed(source: str) -> int:
    return zlib.crc32(source.encode()) % _PLACES


def _place(delay_s: float) -> float:
    return min(max(_OCTAVE * math.log2(delay_s), float(_FIRST)), float(_LAST))
