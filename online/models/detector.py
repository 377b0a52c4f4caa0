"""River's detectors of anomalies as binary models: the score is the probability of true.

Rows are sent with the label false and learned as what is usual; one that somebody has found out to
be an anomaly comes with true, which judges the detector and is not learned.
"""

from __future__ import annotations

from typing import Any, Final

from river import anomaly, base

from online.models.structure import describe, steps

_SHARES: Final = (anomaly.HalfSpaceTrees,)
"""Detectors whose score is in [0, 1]; those of others are brought there, in their order."""
_SCALERS: Final = "river.preprocessing.scale"


def is_detector(estimator: Any) -> bool:
    """Whether it is a detector, alone or behind other steps, that learns without labels."""
    return isinstance(steps(estimator)[-1], base.AnomalyDetector)


class Detector:
    """A detector that is asked and taught as a classifier is.

    Names of features that it has not learned are left out when it is asked: a scaler in front of
    it would take them in.
    """

    def __init__(self, detector: Any) -> None:
        self.detector = detector
        self.online_structure = f"detector of anomalies: {describe(detector)}"
        first, *more = steps(detector)
        self.numeric_only = not more or type(first).__module__ == _SCALERS
        self._known: dict[str, None] = {}
        self._shares = isinstance(steps(detector)[-1], _SHARES)

    def predict_proba_one(self, features: dict[str, Any]) -> dict[bool, float]:
        """The score, as a share."""
        known = {name: value for name, value in features.items() if name in self._known}
        score = float(self.detector.score_one(known)) if known else 0.0
        if not self._shares:
            score = 0.5 + 0.5 * score / (1.0 + abs(score))
        score = min(max(score, 0.0), 1.0)
        return {False: 1.0 - score, True: score}

    def learn_one(self, features: dict[str, Any], label: bool) -> None:
        """Learn what is usual: a row that is known as an anomaly is not."""
        if not label:
            self.detector.learn_one(features)
            self._known.update(dict.fromkeys(features))
