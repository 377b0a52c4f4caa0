"""Learners that only the benchmarks and tests serve."""

from __future__ import annotations

from typing import Any

from river import linear_model, optim, preprocessing


def alma() -> Any:
    """ALMA behind running standardisation: the best single river linear model on Elec2."""
    return preprocessing.StandardScaler() | linear_model.ALMAClassifier()


def counting() -> Any:
    """A linear model whose parameters count events exactly.

    Linear regression from zero with a loss whose gradient is always -1: each event adds its
    feature values times 2^-10 to the weights, so sums of dyadic numbers are exact in any order.
    """
    return linear_model.LinearRegression(
        optimizer=optim.SGD(2.0**-10), intercept_lr=2.0**-10, loss=_Count(), clip_gradient=1.0
    )


class _Count(optim.losses.RegressionLoss):  # type: ignore[misc]  # river is not typed
    """A "loss" whose gradient is -1 wherever it is taken."""

    def __call__(self, y_true: float, y_pred: float) -> float:
        return -y_pred

    def gradient(self, y_true: float, y_pred: float) -> float:
        return -1.0

    def mean_func(self, y_pred: float) -> float:
        return y_pred
