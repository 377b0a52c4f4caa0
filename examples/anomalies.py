"""A detector of anomalies: river's half-space trees as a binary model.

Its score is the probability of True, an anomaly.  Send each row with the label false, and those of
which somebody has found out that they are one with true: they are judged, and not learned.

    models: [{name: payments, task: binary, learner: examples/anomalies.py:Anomalies}]
"""

from __future__ import annotations

from river import anomaly, preprocessing


class Anomalies:
    """Half-space trees on numbers between the least and the greatest seen."""

    def __init__(self, trees: int = 25, height: int = 8, window: int = 250, seed: int = 1) -> None:
        self.scaler = preprocessing.MinMaxScaler()
        self.trees = anomaly.HalfSpaceTrees(trees, height, window, seed=seed)

    def predict_proba_one(self, features: dict[str, float]) -> dict[bool, float]:
        """The score; names that were never learned are left out, so that nothing changes."""
        known = {name: value for name, value in features.items() if name in self.scaler.min}
        score = float(self.trees.score_one(self.scaler.transform_one(known)))
        return {False: 1.0 - score, True: score}

    def learn_one(self, features: dict[str, float], label: bool) -> None:
        """Learn what is usual: a row that is known as an anomaly is not."""
        if not label:
            self.scaler.learn_one(features)
            self.trees.learn_one(self.scaler.transform_one(features))
