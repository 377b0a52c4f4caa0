"""Default labels: a prediction without a label for ``conversion_window`` counts as negative.

The default is a provisional label: it is learned like any other, and taken back if a label arrives
later.  Both are weighted by how late positives usually arrive (:mod:`online.sure.delays`).  The
weights are stored in the row, so every replay learns the same.
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
    """Default labels of one model, for predictions whose wait has ended.

    Parameters:
        views: Sums over the model's rows, including the label delays.
        serving: Returns the model copy that answers now.
    """

    leftovers = False
    counted = "labels_defaulted"

    def __init__(
        self, window_s: float | None, views: Sequence[View], serving: Callable[[], Model]
    ) -> None:
        self.wait_s, self._delays, self._serving = window_s, delays_in(views), serving

    def settled(self, key: bytes, half: Stored, made: PredictionHalf, at: float) -> NewRow | None:
        """The row of a prediction whose wait has ended; None: it does not wait for a label."""
        if made.choice is not None:
            return None
        weight = late = 1.0
        source = half.source or SOURCE
        if self._delays is not None and getattr(self._serving(), "takes_weight", True):
            weight, late = self._delays.weights(source)
        label = WaitingLabel(False, weight, None, source, half.event_id, at, ())
        return joined(key, made, label, at, half.payload, late=late, provisional=True)
