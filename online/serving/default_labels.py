"""A prediction without a label within ``conversion_window`` is a negative, until one comes.

Its label by default is a provisional one: it is learned as any other, and taken back when a label
comes after all.  What both weigh follows from how late positives come (:mod:`online.sure.delays`);
it is written with the row, so whoever learns it later learns the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from online.learning.counters import View
from online.models.base import Model
from online.rows.joins import joined
from online.serving.defaults import SOURCE
from online.sure.views import delays_in
from replay.example import PredictionHalf, WaitingLabel
from replay.journal.base import NewRow, Stored


class DefaultLabels:
    """Labels by default of one model, for predictions whose wait has ended.

    Parameters:
        views: Sums over the model's rows; the delays are among them.
        serving: The copy that answers now.
    """

    leftovers = False
    counted = "labels_defaulted"

    def __init__(
        self, window_s: float | None, views: Sequence[View], serving: Callable[[], Model]
    ) -> None:
        self.wait_s, self._delays, self._serving = window_s, delays_in(views), serving

    def settled(self, key: bytes, half: Stored, made: PredictionHalf, at: float) -> NewRow | None:
        """The row of a prediction whose wait has ended; None: it is none that waits for that."""
        if made.choice is not None:
            return None
        weight = late = 1.0
        source = half.source or SOURCE
        if self._delays is not None and getattr(self._serving(), "takes_weight", True):
            weight, late = self._delays.weights(source)
        label = WaitingLabel(False, weight, None, source, half.event_id, at, ())
        return joined(key, made, label, at, half.payload, late=late)
