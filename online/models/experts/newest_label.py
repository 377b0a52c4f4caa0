"""The newest label as a further answer in regression, where labels resemble those before.

Polls, prices and levels change little from row to row.  There the newest label is a better answer
than any function of the features, and a mean of both better than either.  So an answer m of the
experts becomes m + s · (c − m), where c is the newest label that has arrived, and s the share in
[0, 1] with the least squares of past errors (stacked regression, Breiman 1996)::

    s = Σ (y − m) (c − m) / (Σ (c − m)² + RIDGE · mean (y − m)²)

Sums and mean fade over 200 labels.  m and c are those of the time of the answer: they are noted
with it, so late labels are judged as they will be used.  Both differences are cut at FAR root mean
square errors of m, since a few outliers would determine the squares.

A label moves c by no more than that either, so that a false one moves no other answer far; each
further label in a row that is beyond the bound doubles it.

Of several replicas each keeps its own state while it learns, and one that has learned nothing since
its last exchange takes that of the last push: a mean of their newest labels would be an older one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from struct import Struct
from typing import Final

from online.models.experts.exponential_weights import FADE
from paramserver.core.blocks import OPAQUE, Block, Blocks

RIDGE: Final = 20.0
"""Labels whose errors the newest label must have saved before it counts."""

FAR: Final = 3.0
"""Root mean square errors at which differences are cut."""

_BLOCK: Final = "last_label"  # `newest_label` was a mean over replicas
_STATE: Final = Struct("<6d")
_BEYOND_MAX: Final = 60.0


class NewestLabel:
    """The newest label, its share of the answer, and the sums that the share follows from.

    Attributes:
        level: The newest label; None: none has arrived.
        share: Its share of the answer, from 0 to 1.
    """

    def __init__(self) -> None:
        self.level: float | None = None
        self.share = 0.0
        self._products = self._gaps = self._errors = self._count = 0.0  # sums that fade
        self._beyond = 0.0  # labels in a row beyond the bound
        self._judged = False  # whether a label came since the cut

    @property
    def total(self) -> float:
        """Return a sum that is finite if all sums are."""
        return self._errors + self._gaps

    def mixed_in(self, answer: float) -> float:
        """Return the experts' answer with the newest label mixed in."""
        if not self.share or self.level is None:
            return answer
        return answer + self.share * (self.level - answer)

    def note(self, answer: float) -> tuple[float, ...]:
        """Return what is noted with an answer: the experts' own, and the newest label."""
        return () if self.level is None else (answer, self.level)

    def learn(self, label: float, noted: Sequence[float], weight: float) -> None:
        """Take a label; ``noted`` is what was noted with its answer, empty if nothing was."""
        if noted:
            answer, level = noted
            fade = FADE**weight
            part = (1.0 - fade) / (1.0 - FADE)
            far = self._far()
            error, gap = cut_at(label - answer, far), cut_at(level - answer, far)
            self._products = fade * self._products + part * error * gap
            self._gaps = fade * self._gaps + part * gap * gap
            self._errors = fade * self._errors + part * error * error
            self._count = fade * self._count + part
            self.share = self._best_share()
        if self.level is None:
            self.level = label
        else:
            change, far = label - self.level, self._far() * 2.0**self._beyond
            self._beyond = min(self._beyond + 1.0, _BEYOND_MAX) if abs(change) > far else 0.0
            self.level += min(weight, 1.0) * cut_at(change, far)
        self._judged = True

    def cut(self) -> Blocks:
        """Return the state, if a label came since the last cut."""
        if not self._judged or self.level is None:
            return {}
        self._judged = False
        held = (self.level, self._products, self._gaps, self._errors, self._count, self._beyond)
        return {_BLOCK: Block(OPAQUE, _STATE.pack(*held))}

    def rebase(self, values: Blocks) -> None:
        """Take new values, unless labels came since the last cut."""
        if self._judged or (block := values.get(_BLOCK)) is None:
            return
        held = _STATE.unpack(block.data)
        self.level, self._products, self._gaps, self._errors, self._count, self._beyond = held
        self.share = self._best_share()

    def _far(self) -> float:
        return FAR * math.sqrt(self._errors / self._count) if self._errors > 0.0 else math.inf

    def _best_share(self) -> float:
        if not (errors := self._errors) > 0.0:
            return 0.0
        return max(0.0, min(1.0, self._products / (self._gaps + RIDGE * errors / self._count)))


def cut_at(difference: float, far: float) -> float:
    """Return the difference, or the bound if it is beyond it."""
    return max(-far, min(far, difference))
