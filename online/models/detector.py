"""Anomaly detectors: they learn normal rows without labels, and score how unusual a row is.

Under ``task: anomaly`` the score is a rank (:class:`Ranking`), whatever the detector's own scale
is.  Under ``task: binary`` it is the probability of True (:class:`Detector`): normal rows are sent
with the label False and learned.  In both tasks, a row that turned out to be an anomaly is sent
with True: it counts for the detector's metrics and is not learned.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right, insort
from collections import deque
from typing import Any, Final

from river import anomaly, base, preprocessing

from evaluation.metrics import Task
from online.models.adapters.opaque import Opaque
from online.models.base import Prediction
from online.models.errors import LearnerUnusable
from online.models.structure import describe, steps
from replay.example import Features

REFERENCE_ROWS: Final = 2_000
"""Number of recently learned rows with whose scores a score is ranked."""

_SHARES: Final = (anomaly.HalfSpaceTrees,)
"""Detectors whose score is in [0, 1]; other scores are mapped to [0, 1] monotonically."""
_SCALERS: Final = "river.preprocessing.scale"


def trees(trees: int = 25, height: int = 8, window: int = 250, seed: int = 1) -> Any:
    """Make half-space trees behind a min-max scaler: `learner: anomaly`."""
    detector = anomaly.HalfSpaceTrees(trees, height, window, seed=seed)
    return preprocessing.MinMaxScaler() | detector


def is_detector(estimator: Any) -> bool:
    """Return whether the estimator learns without labels.

    That is one of river's detectors, also as the last step of a pipeline, or a class with
    ``score_one``.
    """
    if isinstance(estimator, base.Base):
        return isinstance(steps(estimator)[-1], base.AnomalyDetector)
    others = ("predict", "predict_one", "predict_proba_one")
    scores = hasattr(estimator, "score_one") and hasattr(estimator, "learn_one")
    return scores and not any(hasattr(estimator, name) for name in others)


class Detector:
    """A detector with a classifier's interface.

    Feature names that it has not learned are left out of predictions: a scaler in front of the
    detector would insert them.
    """

    def __init__(self, detector: Any) -> None:
        self.detector = detector
        self.online_structure = f"detector of anomalies: {describe(detector)}"
        first, *more = steps(detector)
        scaled = not more or type(first).__module__ == _SCALERS
        self.numeric_only = bool(getattr(detector, "numeric_only", scaled))
        self._known: dict[str, None] = {}
        self._shares = isinstance(steps(detector)[-1], _SHARES)

    def predict_proba_one(self, features: dict[str, Any]) -> dict[bool, float]:
        """Return the score as the probability of True."""
        score = self._score(features)
        if not self._shares:
            score = 0.5 + 0.5 * score / (1.0 + abs(score))
        score = min(max(score, 0.0), 1.0)
        return {False: 1.0 - score, True: score}

    def learn_one(self, features: dict[str, Any], label: bool) -> None:
        """Learn a normal row; a row with the label True is not learned."""
        if not label:
            self.detector.learn_one(features)
            self._known.update(dict.fromkeys(features))

    def _score(self, features: dict[str, Any]) -> float:
        """Return the detector's own score; 0 for a row without any known name."""
        known = {name: value for name, value in features.items() if name in self._known}
        return float(self.detector.score_one(known)) if known else 0.0


class Ranking(Detector):
    """A detector whose score is a rank: the share of recently learned rows that scored lower.

    Scores of 0 before the first other score are not ranked: river's half-space trees return 0 for
    their whole first window, and compared with that every next row would be an anomaly.
    """

    def __init__(self, detector: Any) -> None:
        super().__init__(detector)
        self.online_structure = f"ranks of anomalies: {describe(detector)}"
        self._lately: deque[float] = deque(maxlen=REFERENCE_ROWS)
        self._sorted: list[float] = []

    def predict_proba_one(self, features: dict[str, Any]) -> dict[bool, float]:
        """Return the rank in [0, 1) as the probability of True; low while few were learned."""
        score = self._score(features)
        below = bisect_left(self._sorted, score) + bisect_right(self._sorted, score)
        rank = math.nan if math.isnan(score) else 0.5 * below / (len(self._sorted) + 1)
        return {False: 1.0 - rank, True: rank}

    def learn_one(self, features: dict[str, Any], label: bool) -> None:
        """Learn a normal row, and record the score that it had before."""
        if label:
            return
        score = self._score(features)
        super().learn_one(features, label)
        if math.isnan(score) or (score == 0.0 and not self._sorted):
            return
        if len(self._lately) == REFERENCE_ROWS:
            del self._sorted[bisect_left(self._sorted, self._lately[0])]
        self._lately.append(score)
        insort(self._sorted, score)


class Detecting(Opaque):
    """A detector as a model of ``task: anomaly``: a score above 0.5 is an anomaly.

    Parameters:
        threshold: The rank that is mapped to 0.5.  It is not part of the state, so it can change
            without a new lineage.
    """

    def __init__(self, detector: Any, threshold: float, **more: Any) -> None:
        super().__init__(Ranking(detector), task="binary", **more)
        self._threshold = threshold

    def predict(self, features: Features) -> Prediction:
        """Predict one row, with its score as the probability of True."""
        probabilities = super().predict(features).probabilities
        assert probabilities is not None
        score = bent(probabilities[True], self._threshold)
        return Prediction(score > 0.5, {False: 1.0 - score, True: score})


def bent(rank: float, threshold: float) -> float:
    """Map a rank to a score, linearly from 0 to the threshold (0.5) and from there to 1."""
    if rank <= threshold:
        return 0.5 * rank / threshold
    return 0.5 + 0.5 * (rank - threshold) / (1.0 - threshold)


def detecting(
    learner: str, made: Any, task: Task, threshold: float | None, **seals: Any
) -> Opaque | None:
    """Make the model of a detector; None if ``made`` is none or the task is for other models.

    ``threshold`` is given in ``task: anomaly``, which needs a detector.  Raises LearnerUnusable.
    """
    why = "it is a detector of anomalies"
    if not is_detector(made):
        if threshold is None:
            return None
        raise LearnerUnusable(
            learner,
            f"task is anomaly and {type(made).__name__} is no detector",
            "Take `learner: anomaly`, a detector of river, or a class with score_one(features) and "
            "learn_one(features)",
        )
    if threshold is not None:
        return Detecting(made, threshold, why_not_mergeable=why, **seals)
    if task != "binary":
        return None
    return Opaque(Detector(made), task=task, why_not_mergeable=why, **seals)
