"""Models that a program passes as objects: served in its own process, copied for each state.

They have no source, so no other process can build them, and their spec is their structure.
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
_BY_ROW: Final = ("learn_one", "predict_one", "predict_proba_one")
_MANY: Final = ("SoftmaxRegression", "OneVsRestClassifier", "OneVsOneClassifier")

_given: dict[str, Callable[[], Any]] = {}

_TASKS: Final[dict[str, TaskName]] = {
    "anomaly": "anomaly",
    "logreg": "binary",
    "softmax": "multiclass",
    "linreg": "regression",
}


def hand_over(name: str, model: Any) -> str:
    """Register the object for a model, and return the ``learner`` setting that refers to it.

    A class or function is called for each copy; any other object is copied with its learned state.
    """
    check_recipe(f"{PLACE}:{name}", model)
    if makes_models(model):
        _given[name] = model
    else:
        mine = copy.deepcopy(model)  # the program may go on using its own
        _given[name] = lambda: copy.deepcopy(mine)
    return f"{PLACE}:{name}"


def factory(name: str) -> Callable[[], Any]:
    """Return the function that makes a copy.  LearnerUnusable: not registered in this process."""
    if name not in _given:
        raise LearnerUnusable(
            f"{PLACE}:{name}",
            "it was handed to online.serve as an object, and only that process can build it",
            "Write model.py with a function `make` that returns it, and into the settings "
            "`learner: model.py:make` with `state_of: structure`",
        )
    return _given[name]


def makes_models(given: Any) -> bool:
    """Return whether it has to be called for a model: a class or a function."""
    return isinstance(given, type) or (callable(given) and not hasattr(given, "learn_one"))


def task_of(model: Any) -> TaskName | None:
    """Return the only task that the model fits; None if it fits several."""
    if isinstance(model, str):
        return _TASKS.get(model)
    final = steps(model)[-1]
    if isinstance(final, base.Regressor):
        return "regression"
    if isinstance(final, base.Classifier):
        if type(final).__name__ in _MANY:
            return "multiclass"
        return None if final._multiclass else "binary"
    return "anomaly" if is_detector(model) else None


def possible_tasks(model: Any) -> tuple[TaskName, ...]:
    """Return the tasks among which the settings have to choose for such a model."""
    if isinstance(steps(model)[-1], base.Classifier):
        return "binary", "multiclass"
    return "binary", "multiclass", "regression"


def check_recipe(learner: str, made: Any) -> None:
    """Refuse a bare scikit-learn estimator or torch module.  Raises LearnerUnusable."""
    if (recipe := recipe_of(made)) is not None:
        raise LearnerUnusable(learner, *recipe)


def recipe_of(made: Any) -> tuple[str, str] | None:
    """Return problem and remedy for a bare scikit-learn estimator or torch module; else None."""
    name = type(made).__name__
    if (sklearn := sys.modules.get("sklearn.base")) and isinstance(made, sklearn.BaseEstimator):
        if hasattr(made, "partial_fit"):
            return f"{name} of scikit-learn does not say the names of its features", (
                f"Wrap it: online.models.estimator.Estimator({name}(…), inputs=[…])"
            )
        if hasattr(made, "fit") and not any(hasattr(made, method) for method in _BY_ROW):
            return f"{name} has no partial_fit: it can't learn row by row", (
                "Take an estimator that can, such as SGDClassifier; a fitted one is served "
                "unchanged from an ONNX file or an MLflow folder"
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
