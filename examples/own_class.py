"""A class of your own: the mean of the targets seen with the same ``shop``.

Whatever takes features as a dict and has ``predict`` and ``learn_one`` can be served; its state is
pickled, and each replica learns all rows.

    models: [{name: baskets, task: regression, learner: examples/own_class.py:MeanByShop}]
"""

from __future__ import annotations


class MeanByShop:
    """Mean target by the feature ``shop``; of a shop that is not known, the mean of all."""

    def __init__(self) -> None:
        self.sums: dict[object, tuple[int, float]] = {}

    def predict(self, features: dict[str, object]) -> float:
        """The mean so far; 0 before the first row."""
        n, total = self.sums.get(features.get("shop")) or self.sums.get("all") or (1, 0.0)
        return total / n

    def learn_one(self, features: dict[str, object], target: float) -> None:
        """Count one row for its shop and for all."""
        for shop in (features.get("shop"), "all"):
            n, total = self.sums.get(shop, (0, 0.0))
            self.sums[shop] = (n + 1, total + target)
