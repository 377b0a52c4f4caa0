"""A shared model that predicts and learns with a known offset added to its answer.

The offset is a known term in the linear predictor of a generalised linear model (McCullagh and
Nelder 1989, *Generalized Linear Models*, section 4.2).  The shared model learns the rest, so that
both fit one sum.

=================== ================================== ==========================================
task                the offset is added to             the model learns
=================== ================================== ==========================================
regression          the number                         the label minus the offset
binary, experts     the log odds of each expert        by the probabilities with the offset
binary, river's     the log odds                       with the offset added to the intercept
logistic regression                                    during the step
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


class WithOffset(Protocol):
    """A shared model that takes an offset."""

    def answer(self, features: Features, by: float) -> Prediction:
        """Predict with the offset ``by`` added.  Changes no state."""

    def learn(self, example: Example, weight: float, by: float) -> None:
        """Learn a row with the offset ``by`` added.  If it raises, the state is undefined."""


def shifted(model: Model, task: Task) -> WithOffset | None:
    """Wrap the model so that it takes an offset; None if it can't."""
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
    """Any regression model with an offset."""

    def __init__(self, model: Model) -> None:
        self._model = model

    def answer(self, features: Features, by: float) -> Prediction:
        answer = self._model.predict(features)
        return Prediction(float(answer.label or 0.0) + by, None, answer.notes)

    def learn(self, example: Example, weight: float, by: float) -> None:
        left = float(example.label) - by
        if isinstance(self._model, Noting):
            self._model.learn_noted(msgspec.structs.replace(example, label=left), weight)
        else:
            self._model.learn(example.features, left, weight)


class _Experts:
    """The binary mixture of experts with an offset."""

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
    """River's logistic regression with an offset; ``final`` is the pipeline's last step."""

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
