"""Prequential metrics as counters that add up, beside the baselines of the same rows.

Every row is judged by what was answered *before* its label was known (Gama et al. 2013, *On
evaluating stream learning algorithms*).  :func:`increments` says what one row adds; sums of them,
over rows and over replicas, are read by :func:`summarise`.  So a count block carries all metrics
exactly, whatever the order of the merges.

=================== ==========================================================================
counter             adds, for a row that was predicted (the label counts: for each row)
=================== ==========================================================================
``n``               1
``correct``         1 if the predicted label was right
``majority_correct`` 1 if the most frequent label so far was
``no_change_correct`` 1 if the newest label known at the prediction was
``log_loss``        −ln p(label), p clipped to [1e-15, 1]; ``log_n`` counts these rows
``label/<json>``    1 for the label with this JSON text
``abs_error``, ``squared_error``, ``mean_abs_error``, ``last_abs_error`` (regression)
                    errors of the model, of the mean so far and of the newest target
``target_n``, ``target_sum`` (regression) 1 and the target, for each row
=================== ==========================================================================
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final, Literal

from replay.example import Label, label_of, label_text

Task = Literal["binary", "multiclass", "regression"]

_LABEL: Final = "label/"
_CLIP: Final = 1e-15


def increments(
    task: Task,
    *,
    label: Label,
    predicted: Label | None,
    probabilities: Mapping[str, float] | None,
    no_change: Label | None,
    majority: Label | None,
) -> dict[str, float]:
    """What one row adds to the counters.

    Parameters
    ----------
    predicted
        Label or number that the model answered; None if it was not asked or knew nothing, and
        then the row is no part of any score.
    probabilities
        Of each label by its JSON text.  Those of fewer than two labels give no log loss: a model
        without probabilities is written as one label with 1.
    no_change
        The newest label known when the model was asked.
    majority
        :func:`majority` of the counters before this row.
    """
    if task == "regression":
        return _regression(float(label), predicted, no_change, majority)
    text = label_text(label)
    out: dict[str, float] = {_LABEL + text: 1}
    if predicted is None:
        return out
    out["n"] = 1
    out["correct"] = int(predicted == label)
    out["majority_correct"] = int(majority is not None and majority == label)
    out["no_change_correct"] = int(no_change is not None and no_change == label)
    if probabilities is not None and len(probabilities) > 1:
        out["log_n"] = 1
        p = probabilities.get(text, 0.0)
        out["log_loss"] = -math.log(min(max(p, _CLIP), 1.0))
    return out


def _regression(
    target: float, predicted: Label | None, last: Label | None, mean: Label | None
) -> dict[str, float]:
    out: dict[str, float] = {"target_n": 1, "target_sum": target}
    if predicted is None:
        return out
    error = abs(float(predicted) - target)
    out["n"] = 1
    out["abs_error"] = error
    out["squared_error"] = error * error
    # Before the first label both baselines know as much as a model that has seen none: 0.
    out["mean_abs_error"] = abs(float(mean or 0.0) - target)
    out["last_abs_error"] = abs(float(last or 0.0) - target)
    return out


def majority(task: Task, counters: Mapping[str, float]) -> Label | None:
    """The most frequent label so far, or the mean of the targets; None before the first.

    Of equally frequent labels the one whose JSON text comes first, in every replica.
    """
    if task == "regression":
        n = counters.get("target_n", 0)
        return counters.get("target_sum", 0.0) / n if n else None
    best, most = "", 0.0
    for name, count in counters.items():
        if name.startswith(_LABEL) and (count > most or (count == most and name < best)):
            best, most = name, count
    if not most:
        return None
    return label_of(best[len(_LABEL) :])


def summarise(task: Task, counters: Mapping[str, float]) -> dict[str, float | None]:
    """The metrics of summed counters; None where there is nothing to divide by.

    Classification: ``n``, ``accuracy``, ``majority``, ``no_change``, ``kappa_m``, ``kappa_t`` and
    ``log_loss`` (nats).  ``majority`` and ``no_change`` are the accuracies of these rules on the
    same rows, kappa_M = (p − p_majority) / (1 − p_majority) and kappa_T likewise with no-change
    (Bifet et al. 2015, *Efficient online evaluation of big data stream classifiers*).

    Regression: ``n``, ``mae``, ``rmse``, ``mean_mae`` and ``last_mae`` (the baselines' MAE), in
    the target's unit.
    """
    n = counters.get("n", 0)
    if task == "regression":
        squared = _ratio(counters.get("squared_error", 0.0), n)
        return {
            "n": n,
            "mae": _ratio(counters.get("abs_error", 0.0), n),
            "rmse": None if squared is None else math.sqrt(squared),
            "mean_mae": _ratio(counters.get("mean_abs_error", 0.0), n),
            "last_mae": _ratio(counters.get("last_abs_error", 0.0), n),
        }
    accuracy = _ratio(counters.get("correct", 0), n)
    often = _ratio(counters.get("majority_correct", 0), n)
    same = _ratio(counters.get("no_change_correct", 0), n)
    return {
        "n": n,
        "accuracy": accuracy,
        "majority": often,
        "no_change": same,
        "kappa_m": _kappa(accuracy, often),
        "kappa_t": _kappa(accuracy, same),
        "log_loss": _ratio(counters.get("log_loss", 0.0), counters.get("log_n", 0)),
    }


def _ratio(total: float, n: float) -> float | None:
    return total / n if n else None


def _kappa(accuracy: float | None, baseline: float | None) -> float | None:
    if accuracy is None or baseline is None or baseline == 1.0:
        return None
    return (accuracy - baseline) / (1.0 - baseline)
