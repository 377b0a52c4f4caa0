"""Models that a program hands over as objects: served in its process, copied for each state.

They have no source, so no other process can build them; what they are is told by their structure.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from typing import Any, Final

from river import base

from online.models.detector import is_detector
from online.models.errors import LearnerUnusable
from online.models.structure import steps
from online.settings.purposes import TaskName

PLACE: Final = "object"
_MANY: Final = ("SoftmaxRegression", "OneVsRestClassifier", "OneVsOneClassifier")

_given: dict[str, Callable[[], Any]] = {}

_TASKS: Final[dict[str, TaskName]] = {
    "anomaly": "anomaly",
    "logreg": "binary",
    "softmax": "multiclass",
    "linreg": "regression",
}


def hand_over(name: str, model: Any) -> str:
    """Keep the object for the model of this name; the ``learner`` setting that means it.

    A class or a function is called for each copy, everything else is copied with what it has
    learned.
    """
    if isinstance(model, type) or (callable(model) and not hasattr(model, "learn_one")):
        _given[name] = model
    else:
        mine = copy.deepcopy(model)  # whoever gave it may go on with it
        _given[name] = lambda: copy.deepcopy(mine)
    return f"{PLACE}:{name}"


def factory(name: str) -> Callable[[], Any]:
    """Return what makes a copy of the object.  LearnerUnusable: nobody gave one here."""
    if name not in _given:
        raise LearnerUnusable(
            f"{PLACE}:{name}",
            "it was handed to online.serve as an object, and only that process can build it",
            "Write model.py with a function `make` that returns it, and into the settings "
            "`learner: model.py:make` with `state_of: structure`",
        )
    return _given[name]


def task_of(model: Any) -> TaskName | None:
    """The task that the model is surely for; None: it may be for several."""
    if isinstance(model, str):
        return _TASKS.get(model)
    made = model() if isinstance(model, type) else model
    final = steps(made)[-1]
    if isinstance(final, base.Regressor):
        return "regression"
    if isinstance(final, base.Classifier):
        if type(final).__name__ in _MANY:
            return "multiclass"
        return None if final._multiclass else "binary"
    return "anomaly" if is_detector(made) else None


def recipe_of(made: Any) -> tuple[str, str] | None:
    """Tell what a bare scikit-learn estimator or torch module lacks, and what to write; or None."""
    name = type(made).__name__
    if (
        (sklearn := sys.modules.get("sklearn.base"))
        and isinstance(made, sklearn.BaseEstimator)
        and hasattr(made, "partial_fit")
    ):
        return f"{name} of scikit-learn does not say the names of its features", (
            f"Wrap it: online.models.estimator.Estimator({name}(…), inputs=[…])"
        )
    if (
        (torch := sys.modules.get("torch.nn"))
        and isinstance(made, torch.Module)
        and not hasattr(made, "predict")
    ):
        return f"{name} of torch does not say the names of its features", (
            "Wrap it: online.models.network.Network(module, inputs=[…])"
        )
    return None
