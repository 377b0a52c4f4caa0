"""An answer explained: what each feature has added to it, for whoever asks."""

from __future__ import annotations

import time
from typing import Final

from online.errors import RequestError
from online.messages.structs import Explanation
from online.models.base import Prediction
from online.replica.replica import ModelReplica
from online.rows.door import Door
from online.sure.contributions import NotExplained, added_up, contributions
from replay.example import Features

_MORE_S: Final = 0.002
"""Further orders of the features are looked at for so long: other answers wait meanwhile."""


def why(replica: ModelReplica, door: Door, features: Features, answer: Prediction) -> Explanation:
    """Say what the features have added to the answer, which the model has just given.

    Raises RequestError: the row has too many features, or the model can't be asked about less.
    """
    most = replica.limits.explain_max // 2
    if len(features) > most:
        message = f"a row of {len(features)} features, at most {most} are explained"
        hint = "Send fewer, or raise limits.explain_max to twice as many"
        raise RequestError(422, "too_many_to_explain", message, "features", hint)
    begun_s = time.perf_counter()
    label = None if replica.settings.task == "regression" else answer.label
    try:
        if label is None and replica.settings.task != "regression":
            raise NotExplained("it knows no label yet")
        learner = replica.learner
        bounded = learner.bounds.answered(features)
        found = added_up(learner.serving, bounded, label) or contributions(
            learner.predict_many, features, label,
            asks_max=replica.limits.explain_max,
            in_time=lambda: time.perf_counter() - begun_s < _MORE_S,
        )  # fmt: skip
    except NotExplained as error:
        hint = "Ask without explain, or serve a model that answers rows with features left out"
        raise RequestError(422, "not_explainable", str(error), "explain", hint) from None
    added = sorted(found.added.items(), key=lambda item: -abs(item[1]))
    of = None if label is None else door.show(label)
    return Explanation(of, found.base, found.output, dict(added), found.exact)
