"""Detectors of anomalies: what is usual is learned, and a row is scored by how unusual it is.

Under ``task: anomaly`` the score is a rank (:class:`Ranking`), whatever the detector's own scale
is.  Under ``task: binary`` it is the probability of true (:class:`Detector`): rows are sent with
the label false and learned.  In both a row that somebody has found out to be an anomaly comes with
true, which judges the detector and is not learned.
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
"""Rows learned lately with which another one is compared."""

_SHARES: Final = (anomaly.HalfSpaceTrees,)
"""Detectors whose score is in [0, 1]; those of others are brought there, in their order."""
_SCALERS: Final = "river.preprocessing.scale"


def trees(trees: int = 25, height: int = 8, window: int = 250, seed: int = 1) -> Any:
    """Half-space trees on numbers between the least and the greatest seen: `learner: anomaly`."""
    detector = anomaly.HalfSpaceTrees(trees, height, window, seed=seed)
    return preprocessing.MinMaxScaler() | detector


def is_detector(estimator: Any) -> bool:
    """Whether it learns without labels: a detector of river, or a class with ``score_one``.

    A detector of river may stand behind other steps.
    """
    if isinstance(estimator, base.Base):
        return isinstance(steps(estimator)[-1], base.AnomalyDetector)
    others = ("predict", "predict_one", "predict_proba_one")
    scores = hasattr(estimator, "score_one") and hasattr(estimator, "learn_one")
    return scores and not any(hasattr(estimator, name) for name in others)


class Detector:
    """A detector that is asked and taught as a classifier is.

    Names of features that it has not learned are left out when it is asked: a scaler in front of
    it would take them in.
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
        """The score, as a share."""
        score = self._score(features)
        if not self._shares:
            score = 0.5 + 0.5 * score / (1.0 + abs(score))
        score = min(max(score, 0.0), 1.0)
        return {False: 1.0 - score, True: score}

    def learn_one(self, features: dict[str, Any], label: bool) -> None:
        """Learn what is usual: a row that is known as an anomaly is not."""
        if not label:
            self.detector.learn_one(features)
            self._known.update(dict.fromkeys(features))

    def _score(self, features: dict[str, Any]) -> float:
        """The detector's own score; 0 of a row of which it knows no name."""
        known = {name: value for name, value in features.items() if name in self._known}
        return float(self.detector.score_one(known)) if known else 0.0


class Ranking(Detector):
    """A detector whose score is a rank: the share of the rows learned lately that scored lower.

    Zeros that a detector says before anything else are not ranked: river's half-space trees say
    them for a whole window, and beside these each of the next rows would be an anomaly.
    """

    def __init__(self, detector: Any) -> None:
        super().__init__(detector)
        self.online_structure = f"ranks of anomalies: {describe(detector)}"
        self._lately: deque[float] = deque(maxlen=REFERENCE_ROWS)
        self._sorted: list[float] = []

    def predict_proba_one(self, features: dict[str, Any]) -> dict[bool, float]:
        """The rank, as a share; it is below 1 whatever the row, and low while few were learned."""
        score = self._score(features)
        below = bisect_left(self._sorted, score) + bisect_right(self._sorted, score)
        rank = math.nan if math.isnan(score) else 0.5 * below / (len(self._sorted) + 1)
        return {False: 1.0 - rank, True: rank}

    def learn_one(self, features: dict[str, Any], label: bool) -> None:
        """Learn what is usual, and how unusual it was before it was learned."""
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
        threshold: The rank that becomes 0.5.  It is no part of the state: another one is another
            answer.
    """

    def __init__(self, detector: Any, threshold: float, **more: Any) -> None:
        super().__init__(Ranking(detector), task="binary", **more)
        self._threshold = threshold

    def predict(self, features: Features) -> Prediction:
        """Answer for one row; its score stands where the probability of true would."""
        probabilities = super().predict(features).probabilities
        assert probabilities is not None
        score = bent(probabilities[True], self._threshold)
        return Prediction(score > 0.5, {False: 1.0 - score, True: score})


def bent(rank: float, threshold: float) -> float:
    """The rank with the threshold at 0.5, in straight lines from 0 to it and from it to 1."""
    if rank <= threshold:
        return 0.5 * rank / threshold
    return 0.5 + 0.5 * (rank - threshold) / (1.0 - threshold)


def detecting(
    learner: str, made: Any, task: Task, threshold: float | None, **seals: Any
) -> Opaque | None:
    """The model of a detector; None: it is none, and the task is for others.

    ``threshold`` is of ``task: anomaly``, for which only detectors are.  Raises LearnerUnusable.
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
