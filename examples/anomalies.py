"""A detector of anomalies of your own: how far a row is from what is usual, in spreads.

It needs two methods.  A score may be on any scale, larger is more unusual; `task: anomaly` answers
its rank among the rows learned lately, and learns rows with a label or without:

    models: [{name: payments, task: anomaly, learner: examples/anomalies.py:Distance}]
"""

from __future__ import annotations


class Distance:
    """Mean and spread of each number, of which the old count less and less."""

    numeric_only = True

    def __init__(self, memory: float = 500.0) -> None:
        self.memory, self.rows = memory, 0
        self.mean: dict[str, float] = {}
        self.spread: dict[str, float] = {}

    def score_one(self, features: dict[str, float]) -> float:
        """The farthest number of the row; names that were never learned have been left out."""
        return max(abs(x - self.mean[name]) / self._spread(name) for name, x in features.items())

    def learn_one(self, features: dict[str, float]) -> None:
        """Learn what is usual; rows that are known as anomalies do not come here."""
        self.rows += 1
        share = max(1.0 / self.memory, 1.0 / self.rows)
        for name, x in features.items():
            away = x - self.mean.setdefault(name, x)
            self.mean[name] += share * away
            self.spread[name] = (1.0 - share) * (self.spread.get(name, 0.0) + share * away**2)

    def _spread(self, name: str) -> float:
        return max(self.spread[name], 1e-12) ** 0.5
