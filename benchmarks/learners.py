"""Learners that only the benchmarks and tests serve."""

from __future__ import annotations

from typing import Any

from river import forest, linear_model, optim, preprocessing


def alma() -> Any:
    """ALMA behind running standardisation: the best single river linear model on Elec2."""
    return preprocessing.StandardScaler() | linear_model.ALMAClassifier()


def arf() -> Any:
    """An adaptive random forest of ten trees: half a millisecond and more a row."""
    return forest.ARFClassifier(n_models=10, seed=1)


COUNT_LABEL = 1e9
"""The label of every event of :func:`counting`: no prediction ever reaches it."""


ADDING_STEP = 2.0**-31


def adding() -> Any:
    """A linear model to whose weights each row adds a 2^30th of its label.

    It is so small a step of the squared loss that what a weight is already hardly counts: sums
    are right to eight digits in any order.
    """
    return linear_model.LinearRegression(
        optimizer=optim.SGD(ADDING_STEP), intercept_lr=0.0, loss=optim.losses.Squared()
    )


SLOPE_STEP = 2.0**-9


def sloping() -> Any:
    """A classifier whose weight of a feature of its own row alone is the sum of its lessons.

    The slope of the log loss is a half where nothing is known, and the step so small that it stays
    one: each row adds 2^-10 times its weight, with the label's sign.
    """
    return linear_model.LogisticRegression(
        optimizer=optim.SGD(SLOPE_STEP), intercept_lr=0.0, l2=0.0
    )


def counting() -> Any:
    """A linear model whose weights count events exactly.

    The absolute loss has gradient -1 while the prediction is below the label, so each event adds
    2^-10 times its feature values to the weights.  Sums of dyadic numbers are exact in any order.
    """
    step = 2.0**-10
    return linear_model.LinearRegression(
        optimizer=optim.SGD(step), intercept_lr=step, loss=optim.losses.Absolute()
    )
