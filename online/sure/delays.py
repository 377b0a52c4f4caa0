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

F is that of all sources together, and no source counts for more than twice the mean of the others:
one that sends many positives at once does not decide what those of others weigh.  Sources are told
apart by a hash of their names, 64 of them.  Nothing fades: all rows count alike, old and new.
"""

from __future__ import annotations

import math
import zlib
from typing import Any, Final

from paramserver.blocks import COUNT, Block, Blocks, Touched
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
_OTHERS: Final = 2.0
"""Times the mean of the others that one of them counts."""


class Delays:
    """Delays of the positive labels of one model, with an open delta; a view of the rows.

    Parameters:
        window_s: Seconds after which an event without a label gets one by default.
    """

    def __init__(self, window_s: float) -> None:
        self._window_s = window_s
        self._all, self._within = f"all of {window_s:g} by ", f"within {window_s:g} by "
        self._sums: dict[str, float] = {}
        self._open: dict[str, float] = {}

    def add(self, example: Example, at: float, source: str = "") -> None:
        """Count one learned row: a label by default, one that corrects it, or a positive one."""
        if example.moved is not None:
            return
        if example.late is not None:
            self._sum("defaulted")
            return
        if (first := example.corrects) is not None and first.defaulted:
            self._sum("corrected")
        if example.label is not True or example.provisional or example.predicted_at is None:
            return
        if (delay_s := at - example.predicted_at) >= _LEAST_S:
            self._sum(f"{_DELAY}{math.floor(_place(delay_s))}")
            place = zlib.crc32(source.encode()) % _PLACES
            self._sum(f"{self._all}{place}")
            if delay_s < self._window_s:
                self._sum(f"{self._within}{place}")

    def _sum(self, name: str) -> None:
        self._sums[name] = self._sums.get(name, 0) + 1
        self._open[name] = self._open.get(name, 0) + 1

    # -- the verbs of a view -----------------------------------------------------------------

    @property
    def named(self) -> Touched:
        """The blocks, each as a whole."""
        return {DELAYS: None}

    def cut(self) -> Blocks:
        """The open delta, and reset it."""
        opened, self._open = self._open, {}
        return {DELAYS: Block(COUNT, opened)} if opened else {}

    def rebase(self, values: Blocks) -> None:
        """Take new values for the keys given, with the open delta on top."""
        if (block := values.get(DELAYS)) is not None:
            for name, value in block.data.items():
                self._sums[name] = value + self._open.get(name, 0)

    def reset(self, values: Blocks) -> None:
        """Become exactly ``values``, with an empty open delta."""
        self._sums, self._open = {}, {}
        self.rebase(values)

    # -- what is told ------------------------------------------------------------------------

    @property
    def positives(self) -> int:
        """Positive labels of which the delay is known."""
        return int(sum(n for name, n in self._sums.items() if name.startswith(_DELAY)))

    def reached(self) -> float:
        """Share of the positives that have come within the window; 0 before enough have.

        Of those that came while the window was another one the buckets tell, until there are enough
        that came since.
        """
        found = [
            (n, self._sums.get(f"{self._within}{place}", 0.0))
            for place in range(_PLACES)
            if (n := self._sums.get(f"{self._all}{place}", 0.0)) > 0
        ]
        if (all_ := sum(n for n, _ in found)) >= POSITIVES_MIN:
            others = max(len(found) - 1, 1)
            counts = [min(n, _OTHERS * (all_ - n) / others) if all_ > n else n for n, _ in found]
            shares = zip(counts, found, strict=True)
            return sum(count * within / n for count, (n, within) in shares) / sum(counts)
        if (total := self.positives) < POSITIVES_MIN:
            return 0.0
        place, within = _place(self._window_s), 0.0
        for name, n in self._sums.items():
            if name.startswith(_DELAY):
                within += n * min(max(place - int(name.removeprefix(_DELAY)), 0.0), 1.0)
        return within / total

    def weights(self) -> tuple[float, float]:
        """The weight of a negative by default, and of a positive label that comes after it."""
        share = self.reached()
        late = max(1.0 - share, _LATE_MIN)
        return share + (1.0 - share) * late, late

    def shown(self) -> dict[str, Any]:
        """Return what became of events without a label, as the status has it."""
        default, late = self.weights()
        return {
            "window_s": self._window_s,
            "positives": self.positives,
            "within": self.reached() if self.positives >= POSITIVES_MIN else None,
            "defaulted": int(self._sums.get("defaulted", 0)),
            "corrected": int(self._sums.get("corrected", 0)),
            "weight": default,
            "late_weight": late,
        }


def _place(delay_s: float) -> float:
    return min(max(_OCTAVE * math.log2(delay_s), float(_FIRST)), float(_LAST))
