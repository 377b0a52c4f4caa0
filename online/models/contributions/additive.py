"""Contributions of features in additive models, computed from the weights alone."""

from __future__ import annotations

from river import linear_model, optim

from online.models.adapters.linear import Linear
from online.models.base import Model, Prediction
from online.models.contributions import mixed_experts
from online.models.experts.exponential_weights import Terms
from online.models.selfrate import SelfRateModel
from online.models.structure import steps
from replay.example import Features, Label


def explained(model: Model, features: Features) -> tuple[Prediction, Terms | None] | None:
    """Predict a row with the contributions of its features; None if the model is not additive.

    The contributions are None if the model knows no label yet.
    """
    if isinstance(model, SelfRateModel):
        return mixed_experts.explained(model, features)
    if type(model) is not Linear:
        return None
    answer = model.predict(features)
    terms = terms_of(model, features, None if answer.probabilities is None else answer.label)
    return None if terms is None else (answer, terms)


def terms_of(model: Model, features: Features, label: Label | None) -> Terms | None:
    """Return the contributions to the log odds of the label, or to the number (label None).

    Returns None if the model is not additive.
    """
    if type(model) is not Linear:
        return None
    final = steps(model.estimator)[-1]
    logistic = type(final) is linear_model.LogisticRegression
    if logistic and (label is None or type(final.loss) is not optim.losses.Log):
        return None
    if not logistic and type(final) is not linear_model.LinearRegression:
        return None
    sign = -1.0 if logistic and label is False else 1.0
    weights, row = final.weights, model.numbers(features)
    added = dict.fromkeys(features, 0.0)
    added.update({name: sign * weights.get(name, 0.0) * x for name, x in row.items()})
    base = float(final.intercept)
    return Terms(base, base + sum(added.values()), added)
