"""Terms of models that add up features: what each has added to the answer, by the weights alone."""

from __future__ import annotations

from river import linear_model, optim

from online.models.base import Model
from online.models.linear import Linear
from online.models.structure import steps
from replay.example import Features, Label


def terms_of(
    model: Model, features: Features, label: Label | None
) -> tuple[float, dict[str, float]] | None:
    """Return what an answer begins with, and each feature adds; None: no weights say it.

    ``label`` is that whose log odds are meant, None of a number.
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
    return sign * float(final.intercept), added
