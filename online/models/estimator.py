"""scikit-learn estimators with ``partial_fit``.

Linear models by SGD with a constant rate merge: ``coef`` and ``intercept`` are dense blocks with
the change since the estimator was built, beside the moments of the input scaler.  The state of any
other estimator is sent as a whole (:mod:`online.models.adapters.opaque`).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from sklearn.base import BaseEstimator
from sklearn.linear_model import Perceptron, SGDClassifier, SGDRegressor
from sklearn.utils import get_tags

from evaluation.metrics import Task
from online.models.base import Merging, Prediction
from online.models.errors import LabelUnknown, LearnerUnusable, StateNotFinite
from online.models.features.inputs import Inputs, labels_for
from online.models.structure import describe
from paramserver.core.blocks import DENSE, Block, Blocks, array_bytes, array_of
from replay.example import Features, Label

_SGD: Final = (SGDClassifier, SGDRegressor, Perceptron)
_PARTS: Final = ("coef", "intercept")


@dataclass(frozen=True)
class Estimator:
    """A recipe that a factory returns to serve a scikit-learn estimator.

    Attributes:
        estimator: An estimator with ``partial_fit``, fitted or not.
        inputs, scale: See :class:`~online.models.features.inputs.Inputs`.
        labels: Labels of a classifier; None: False and True in a binary task.
    """

    estimator: Any
    inputs: Sequence[str]
    labels: Sequence[Label] | None = None
    scale: bool = True

    def model_for(self, task: Task) -> Any:
        """Make a model that merges, or an estimator for ``Opaque``.  Raises LearnerUnusable."""
        name = type(self.estimator).__name__
        if not hasattr(self.estimator, "partial_fit"):
            remedy = "Take one that learns row by row, as SGDClassifier, or serve it frozen"
            raise LearnerUnusable(name, "it has no partial_fit", remedy)
        if (kind := _no_predictor(self.estimator)) is not None:
            remedy = "Take a classifier or regressor; detectors of anomalies are river's"
            raise LearnerUnusable(name, f"it is a {kind}, and answers no labels", remedy)
        if (
            task != "regression"
            and not hasattr(self.estimator, "classes_")
            and (task == "multiclass" and self.labels is None)
        ):
            raise LearnerUnusable(name, "its classes are not known", "Give labels=[…]")
        fitted = getattr(self.estimator, "n_features_in_", len(self.inputs))
        if fitted != len(self.inputs):
            problem = f"it was fitted with {fitted} features, {len(self.inputs)} inputs are named"
            raise LearnerUnusable(name, problem, "Name the features that it was fitted with")
        why = why_not_mergeable(self.estimator)
        return RowByRow(self, task, why) if why else LinearEstimator(self, task)


def _no_predictor(estimator: Any) -> str | None:
    """Return what the estimator is, if its answers are no labels; None if they may be."""
    kind = None
    if isinstance(estimator, BaseEstimator):
        kind = get_tags(estimator).estimator_type
    if kind in ("clusterer", "outlier_detector", "density_estimator"):
        return str(kind).replace("_", " ")
    return None if hasattr(estimator, "predict") else "transformer"


def why_not_mergeable(estimator: Any) -> str | None:
    """Return why copies of the estimator can't be merged; None if they can."""
    name = type(estimator).__name__
    if type(estimator) not in _SGD:
        return f"scikit-learn's {name} has no merge"
    if estimator.learning_rate != "constant":
        return f"{name}(learning_rate={estimator.learning_rate!r}) depends on the rows seen"
    if estimator.average:
        return f"{name}(average={estimator.average!r}) keeps a mean of its own"
    return None


class RowByRow:
    """A scikit-learn estimator with river's interface: one row at a time."""

    def __init__(self, recipe: Estimator, task: Task, why_not_mergeable: str | None) -> None:
        self.why_not_mergeable = why_not_mergeable
        self.estimator = copy.deepcopy(recipe.estimator)
        name = type(self.estimator).__name__
        self.inputs = Inputs(name, recipe.inputs, scale=recipe.scale)
        self._fitted = hasattr(self.estimator, "n_features_in_")
        self._targets: list[Any] = []  # the estimator's own values for the labels
        self.labels: list[Label] | None = None
        if task != "regression":
            own = getattr(self.estimator, "classes_", None)
            given = recipe.labels if recipe.labels is not None else own
            given = [False, True] if given is None else list(given)
            self.labels = labels_for(name, task, len(given), given)
            self._targets = list(range(len(given)) if own is None else own.tolist())
            if own is not None and [*map(str, self._targets)] != [*map(str, given)]:
                problem = f"it was fitted on {self._targets!r:.100}, and labels are {given!r:.100}"
                raise LearnerUnusable(name, problem, "Leave the labels out")
        self._proba = hasattr(self.estimator, "predict_proba")
        self.online_structure = (
            f"sklearn {name} {describe(self.estimator.get_params())} "
            f"inputs={list(recipe.inputs)!r} labels={self.labels!r} scale={recipe.scale}"
        )
        self._try()

    def _try(self) -> None:
        """Learn rows with a copy.  Raises LearnerUnusable if any row would fail.

        A standardised number is below 0 as often as above, which counts and categories are not.
        """
        held, fitted = self.estimator, self._fitted
        self.estimator, value = copy.deepcopy(held), 0.0
        try:
            for value in (0.0, -1.0) if self.inputs.scaled else (0.0,):
                row = [value] * len(self.inputs.names)
                self.fit(row, self._targets[0] if self._targets else 0.0, None)
        except Exception as error:  # an estimator may raise anything
            said = f"raises {type(error).__name__}: {str(error).rstrip('.')}"
            problem = f"a row {said}"
            remedy = "Mend its parameters, or take one that learns row by row, as SGDClassifier"
            if value:
                problem = f"a standardised row {said}"
                remedy = "Say scale=False, and send only numbers that it takes"
            raise LearnerUnusable(type(held).__name__, problem[:300], remedy) from error
        finally:
            self.estimator, self._fitted = held, fitted

    def learn_one(self, x: Features, y: Label) -> None:
        """Learn one row with one call of ``partial_fit``."""
        target = self.target(y)
        self.fit(self.inputs.learn(x), target, None)

    def target(self, label: Label) -> Any:
        """Convert a label to the estimator's target.  Raises LabelUnknown."""
        if self.labels is None:
            return float(label)
        if label not in self.labels:
            raise LabelUnknown(label, self.labels)
        return self._targets[self.labels.index(label)]

    def fit(self, row: list[float], target: Any, weight: float | None) -> None:
        """Call ``partial_fit`` with one row; the first call names the classes."""
        more: dict[str, Any] = {} if weight is None else {"sample_weight": [weight]}
        if self.labels is not None and not self._fitted:
            more["classes"] = np.array(self._targets)
        self.estimator.partial_fit(np.array([row]), np.array([target]), **more)
        self._fitted = True

    def predict_one(self, x: Features) -> Label | None:
        """Predict one row; None before the first learned row."""
        if not self._fitted:
            return None
        answer = self.estimator.predict(np.array([self.inputs.row(x)]))[0]
        if self.labels is None:
            return float(answer)
        return self.labels[self._targets.index(answer)]

    def predict_proba_one(self, x: Features) -> dict[Label, float]:
        """Return the probability of each label.  NotImplementedError if there are none."""
        if not self._proba or self.labels is None:
            raise NotImplementedError
        if not self._fitted:
            return {label: 1 / len(self.labels) for label in self.labels}
        shares = self.estimator.predict_proba(np.array([self.inputs.row(x)]))[0].tolist()
        return dict(zip(self.labels, shares, strict=True))


class LinearEstimator(Merging):
    """Adapter of a linear model for which :func:`why_not_mergeable` returns None.

    Attributes:
        inputs, labels: Names of the features, and labels of a classifier.
    """

    numeric_only = True

    def __init__(self, recipe: Estimator, task: Task) -> None:
        self._rows = RowByRow(recipe, task, None)
        self._estimator = self._rows.estimator
        self.inputs, self.labels = tuple(recipe.inputs), self._rows.labels
        if not hasattr(self._estimator, "coef_"):
            some = 0.0 if self.labels is None else self.labels[0]
            # a first fit creates the arrays, which are then set to 0
            self._rows.fit([0.0] * len(recipe.inputs), self._rows.target(some), None)
            for part in _PARTS:
                self._set(part, np.zeros_like(self._get(part)))
        self._estimator.t_ = 1.0
        self._built = {part: self._get(part) for part in _PARTS}
        self._start = dict(self._built)
        self._changed = False
        built = {part: numbers.tolist() for part, numbers in self._built.items()}
        self.structure = f"{self._rows.online_structure} built={built!r}"

    def predict(self, features: Features) -> Prediction:
        rows = self._rows
        label = rows.predict_one(features)
        try:
            shares = rows.predict_proba_one(features)
        except NotImplementedError:
            return Prediction(label, None)
        return Prediction(max(shares, key=shares.__getitem__), shares)

    def learn(self, features: Features, label: Label, weight: float) -> None:
        """Learn one row with one call of ``partial_fit``.  Raises LabelUnknown, StateNotFinite."""
        target = self._rows.target(label)
        self._fit(self._rows.inputs.learn(features), target, weight)

    def learn_again(self, features: Features, label: Label, weight: float) -> None:
        """Learn as :meth:`learn` does, without updating the scaler."""
        self._fit(self._rows.inputs.row(features), self._rows.target(label), weight)

    def _fit(self, row: list[float], target: Any, weight: float) -> None:
        self._changed = True
        self._rows.fit(row, target, weight)
        if not math.isfinite(total := sum(float(self._get(part).sum()) for part in _PARTS)):
            raise StateNotFinite(total)

    def cut(self) -> Blocks:
        """Return the open delta and empty it."""
        if not self._changed:
            return {}
        self._changed = False
        blocks = self._rows.inputs.cut()
        for part in _PARTS:
            now = self._get(part)
            delta = now - self._start[part]
            self._start[part] = now
            if delta.any():
                blocks[part] = Block(DENSE, array_bytes(delta))
        return blocks

    def rebase(self, values: Blocks) -> None:
        """Set new values with the open delta on top."""
        self._rows.inputs.rebase(values)
        for part in _PARTS:
            if (block := values.get(part)) is not None:
                base = self._built[part] + array_of(block.data)
                self._set(part, base + (self._get(part) - self._start[part]))
                self._start[part] = base

    def reset(self, values: Blocks) -> None:
        """Set the state to that of the estimator as built plus ``values``."""
        self._rows.inputs.reset(values)
        self._changed = False
        for part in _PARTS:
            base = self._built[part]
            if (block := values.get(part)) is not None:
                base = base + array_of(block.data)
            self._set(part, base)
            self._start[part] = base
        self._estimator.t_ = 1.0

    def _get(self, part: str) -> npt.NDArray[np.float64]:
        return np.array(getattr(self._estimator, f"{part}_"), dtype=np.float64).reshape(-1)

    def _set(self, part: str, numbers: npt.NDArray[np.float64]) -> None:
        held = getattr(self._estimator, f"{part}_")
        setattr(self._estimator, f"{part}_", numbers.copy().reshape(held.shape))
