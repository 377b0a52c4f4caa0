"""A model that several share, asked and taught beside what each key adds to its answer.

A term that is known is added to the linear predictor: the *offset* of a generalised linear model
(McCullagh and Nelder 1989, *Generalized Linear Models*, section 4.2).  The shared model learns what
is left after it, so the two learn one sum together, and neither learns what the other has.

=================== ================================== ==========================================
task                the term is added to               how the model is taught
=================== ================================== ==========================================
regression          the number                         by the label less the term
binary, experts     the log odds of each expert        by the probabilities of the shifted ones
binary, river's     the log odds                       with the term in the intercept, which is
logistic regression                                    taken out again
=================== ================================== ==========================================
"""

from __future__ import annotations

from typing import Any, Protocol

import msgspec
from river import linear_model, optim

from evaluation.metrics import Task
from online.models.adapters.linear import Linear
from online.models.base import Model, Noting, Prediction
from online.models.selfrate import Binary, SelfRateModel
from online.models.structure import steps
from replay.example import Example, Features


class Shifted(Protocol):
    """A shared model beside a term that is added to its answer."""

    def answer(self, features: Features, by: float) -> Prediction:
        """Answer with ``by`` added.  Changes nothing."""

    def learn(self, example: Example, weight: float, by: float) -> None:
        """Learn a row that was answered so.  May raise, and then leaves any state."""


def shifted(model: Model, task: Task) -> Shifted | None:
    """The model beside a term; None: it is none of those that take one."""
    if isinstance(model, SelfRateModel):
        if task == "regression":
            return _Numbers(model)
        return _Experts(model) if isinstance(model, Binary) else None
    if not isinstance(model, Linear):
        return None
    final = steps(model.estimator)[-1]
    if task == "regression" and type(final) is linear_model.LinearRegression:
        return None if type(final.loss) is optim.losses.Poisson else _Numbers(model)
    logistic = type(final) is linear_model.LogisticRegression
    if task == "binary" and logistic and type(final.loss) is optim.losses.Log:
        return _Logistic(model, final)
    return None


class _Numbers:
    """A model of a number, whichever it is."""

    def __init__(self, model: Model) -> None:
        self._model = model

    def answer(self, features: Features, by: float) -> Prediction:
        found = self._model.predict(features)
        return Prediction(float(found.label or 0.0) + by, None, found.notes)

    def learn(self, example: Example, weight: float, by: float) -> None:
        left = float(example.label) - by
        if isinstance(self._model, Noting):
            self._model.learn_noted(msgspec.structs.replace(example, label=left), weight)
        else:
            self._model.learn(example.features, left, weight)


class _Experts:
    """Experts of two labels."""

    def __init__(self, model: Binary) -> None:
        self._model = model

    def answer(self, features: Features, by: float) -> Prediction:
        model = self._model
        return model._answer(model._read(features, learns=False), by)

    def learn(self, example: Example, weight: float, by: float) -> None:
        model = self._model
        row = model._read(example.features, learns=True)
        model._check(model._step(row, example.label, weight, example, None, by))


class _Logistic:
    """River's logistic regression; ``final`` is the estimator behind its scalers."""

    def __init__(self, model: Linear, final: Any) -> None:
        self._model, self._final = model, final

    def answer(self, features: Features, by: float) -> Prediction:
        final = self._final
        p = final.loss.mean_func(final._raw_dot_one(self._model.numbers(features)) + by)
        return Prediction(p > 0.5, {False: 1.0 - p, True: p})

    def learn(self, example: Example, weight: float, by: float) -> None:
        self._final.intercept += by
        try:
            self._model.learn(example.features, example.label, weight)
        finally:
            self._final.intercept -= by
