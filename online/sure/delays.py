"""How late positive labels come: what a label by default weighs follows from it.

Of each positive label the time from its prediction is counted, in buckets that grow by a quarter of
an octave, so the share of them that have come within a time can be read off.  Beside them stands
how many events got a label by default, and how many of these were corrected.  All are sums over the
learned rows, so replicas add up, and what is undone or forgotten counts no more.

A window that ends before all positives have come takes some of them for negatives until they come.
If the share F has come, negatives weigh F + (1 − F)·v and positives that come later v: then both
weigh alike in the sum, whatever v is.  With v = 1 each label weighs as one, and what is still on
its way counts fully on the wrong side.  With v = 0 it does not, and nothing is learned of what
comes late; if F is small, nothing is learned at all.  Here v is 1 − F, and at least a tenth: what
comes late is never all but lost, whoever says that all comes at once.

F is that of the source's own positives once there are enough of them.  For others it is that of all
sources together, of which none counts for more than the mean of the others: one that sends many
positives at once does not decide what the labels of others weigh.  Sources are told apart by a hash
of their names, 64 of them.  What a source's positives have said fades, over about :data:`_MEMORY`
of them: if they come later than they used to, F follows.
"""

from __future__ import annotations

import math
import zlib
from typing import Any, Final

from paramserver.core.sums import Sums
from replay.example import Example

DELAYS: Final = "delays"
"""The block: sums over the learned rows."""

POSITIVES_MIN: Final = 50
"""Positive labels below which nothing is known of how late they come: all labels weigh 1."""

_DELAY: Final = "delay "
"""Begins the names of buckets."""
_LEAST_S: Final = 0.001
"""What has come sooner was no answer's label: its features came with it."""
_OCTAVE: Final = 4
_FIRST, _LAST = -40, 108
"""Buckets: from 1 ms to a few years."""
_LATE_MIN: Final = 0.1
"""What comes late weighs at least so much."""
_PLACES: Final = 64
"""Places that sources are hashed to: the block is bounded, whatever names they give themselves."""
_MEMORY: Final = 1_000.0
"""Positives of a source over which its share fades."""
_ENOUGH: Final = _MEMORY * (1.0 - (1.0 - 1.0 / _MEMORY) ** POSITIVES_MIN) - 1e-6
"""What is left of the least that say something."""


class Delays(Sums):
    """Delays of the positive labels of one model, with an open delta; a view of the rows.

    Parameters:
        window_s: Seconds after which an event without a label gets one by default.
    """

    def __init__(self, window_s: float) -> None:
        super().__init__(DELAYS)
        self._window_s = window_s
        self._all, self._within = f"all of {window_s:g} by ", f"within {window_s:g} by "

    def add(self, example: Example, at: float, source: str = "") -> None:
        """Count one learned row: a label by default, one that corrects it, or a positive one."""
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

    # -- what is told ------------------------------------------------------------------------

    @property
    def positives(self) -> int:
        """Positive labels of which the delay is known."""
        return int(sum(n for name, n in self.now.items() if name.startswith(_DELAY)))

    def reached(self, source: str | None = None) -> float | None:
        """Share of the positives that have come within the window; None before enough have.

        Of those of this source, if there are enough; else of all.  Of those that came while the
        window was another one the buckets tell, until there are enough that came since.  Replicas
        that did not hear of each other for long may have let fade more than there was: what is
        left of it is no share below none, or above all.
        """
        found = {
            place: (n, min(max(self.now.get(f"{self._within}{place}", 0.0), 0.0), n))
            for place in range(_PLACES)
            if (n := self.now.get(f"{self._all}{place}", 0.0)) > 0.0
        }
        own, in_time = (0.0, 0.0) if source is None else found.get(_hashed(source), (0.0, 0.0))
        if own >= _ENOUGH:
            return in_time / own
        if (all_ := sum(n for n, _ in found.values())) >= _ENOUGH:
            others = len(found) - 1
            counts = [min(n, (all_ - n) / others) if others else n for n, _ in found.values()]
            pairs = zip(counts, found.values(), strict=True)
            return sum(count * within / n for count, (n, within) in pairs) / sum(counts)
        if (total := self.positives) < POSITIVES_MIN:
            return None
        place, within = _place(self._window_s), 0.0
        for name, n in self.now.items():
            if name.startswith(_DELAY):
                within += n * min(max(place - int(name.removeprefix(_DELAY)), 0.0), 1.0)
        return within / total

    def weights(self, source: str | None = None) -> tuple[float, float]:
        """The weight of a negative by default, and of a positive label that comes after it."""
        share = self.reached(source) or 0.0
        late = max(1.0 - share, _LATE_MIN)
        return share + (1.0 - share) * late, late

    def summary(self) -> dict[str, Any]:
        """Return what became of events without a label, as the status has it."""
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
