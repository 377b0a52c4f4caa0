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
``unusable``        1 for an answer that is no finite number, or no probabilities
=================== ==========================================================================

:func:`details` adds what the other metrics need, each of them a count or a sum as well:

===================== ========================================================================
``asked``, ``unanswered``  1 for a row that was asked; 1 if the model answered nothing
``pair/<json>\t<json>`` 1 for the pair of label and answer (``pair/<json>\t``: no answer)
``score/<bin>/<0|1>`` 1 in the histogram of scores: binary, the probability of True among rows of
                      label 0 or 1; multiclass, that of the answer, where it was wrong or right
``sum/<tenth>``       the score, by tenths of it
``brier``             squared error of the probabilities; its rows are ``log_n``
``y_sum``, ``y_squares`` (regression) the target and its square, for rows that were predicted
===================== ========================================================================

A histogram of scores is all that the area under the ROC curve and the calibration error need, in
bounded memory, and those of replicas and of periods add up.  :mod:`evaluation.summary` reads it.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping
from typing import Final, Literal

from replay.example import Label, label_of, label_text

Task = Literal["binary", "multiclass", "regression"]

COUNTERS_MAX: Final = 10_000
"""Different counters of a span; what would be one more is counted as ``folded``.

Only labels can be so many: pairs of them, of a hundred labels.
"""
ROUNDING: Final = 1e-6
"""So far outside [0, 1] a probability may be."""

_LABEL: Final = "label/"
PAIR: Final = "pair/"
SCORE: Final = "score/"
LOG_CLIP: Final = 1e-15
"""Least probability of a label in the log loss."""

_TAIL: Final = tuple(10 ** (-2 - j / 4) for j in range(16, 0, -1))
EDGES: Final = (*_TAIL, *(i / 100 for i in range(1, 100)), *(1 - e for e in reversed(_TAIL)))
"""Of the bins of scores: hundredths, and four a decade from .01 down to 1e-6, at both ends."""

_TENTHS: Final = tuple(min(int(round(low * 100, 6) // 10), 9) for low in (0.0, *EDGES))
_SCORES: Final = tuple((f"score/{i}/0", f"score/{i}/1") for i in range(len(EDGES) + 1))
_SUMS: Final = tuple(f"sum/{tenth}" for tenth in _TENTHS)
_PLACES: Final = tuple((*pair, total) for pair, total in zip(_SCORES, _SUMS, strict=True))


def increments(
    task: Task,
    *,
    label: Label,
    predicted: Label | None,
    probabilities: Mapping[str, float] | None,
    no_change: Label | None,
    majority: Label | None,
    asked: bool | None = None,
) -> dict[str, float]:
    """Return what one row adds to the counters.

    Parameters:
        predicted: Label or number that the model answered; None if it was not asked or knew
            nothing, and then the row is no part of any score.
        probabilities: Of each label by its JSON text.  Those of fewer than two labels give no log
            loss: a model without probabilities is written as one label with 1.
        no_change: The newest label known when the model was asked.
        majority: :func:`majority` of the counters before this row.
        asked: True: a classifier that answered nothing was wrong.
    """
    if task == "regression":
        return _regression(float(label), predicted, no_change, majority)
    text = label_text(label)
    out: dict[str, float] = {_LABEL + text: 1}
    if predicted is None and not asked:
        return out
    out["n"] = 1
    out["correct"] = int(predicted == label)
    out["majority_correct"] = int(majority is not None and majority == label)
    out["no_change_correct"] = int(no_change is not None and no_change == label)
    if probabilities is not None and len(probabilities) > 1:
        p = probabilities.get(text, 0.0)
        if not p <= 1.0 + ROUNDING:  # NaN too: one of them would be the sum for ever
            out["unusable"] = 1
            return out
        out["log_n"] = 1
        out["log_loss"] = -math.log(min(max(p, LOG_CLIP), 1.0))
    return out


def _regression(
    target: float, predicted: Label | None, last: Label | None, mean: Label | None
) -> dict[str, float]:
    out: dict[str, float] = {"target_n": 1, "target_sum": target}
    if predicted is None:
        return out
    error = abs(float(predicted) - target)
    if not math.isfinite(error):
        out["unusable"] = 1
        return out
    out["n"] = 1
    out["abs_error"] = error
    out["squared_error"] = error * error
    # Before the first label both baselines know as much as a model that has seen none: 0.
    out["mean_abs_error"] = abs(float(mean or 0.0) - target)
    out["last_abs_error"] = abs(float(last or 0.0) - target)
    return out


def details(
    task: Task,
    *,
    label: Label,
    predicted: Label | None,
    probabilities: Mapping[str, float] | None,
) -> dict[str, float]:
    """Return what one asked row adds beside :func:`increments`; parameters as there."""
    if task == "regression":
        out: dict[str, float] = {"asked": 1}
        if predicted is None:
            out["unanswered"] = 1
        elif math.isfinite(float(predicted)):
            y = float(label)
            out["y_sum"], out["y_squares"] = y, y * y
        return out
    text = label_text(label)
    said = "" if predicted is None else label_text(predicted)
    out = {"asked": 1, pair_counter(text, said): 1}
    if predicted is None:
        out["unanswered"] = 1
    if probabilities is None or len(probabilities) < 2 or not usable(probabilities):
        return out
    if task == "binary":
        score, outcome = probabilities.get("true", 0.0), label is True
        out["brier"] = (score - outcome) ** 2
    else:
        score, outcome = max(probabilities.values()), said == text
        own = probabilities.get(text, 0.0)
        squares = sum([p * p for p in probabilities.values()])
        out["brier"] = squares - own * own + (1.0 - own) ** 2
    at = bisect_right(EDGES, score)
    out[_SCORES[at][outcome]] = 1
    out[_SUMS[at]] = score
    return out


def place_of_score(score: float) -> tuple[str, str, str]:
    """Counters of a score in [0, 1]: its bin by outcome, false and true, and its tenth's sum."""
    return _PLACES[bisect_right(EDGES, score)]


def pair_counter(label: str, said: str) -> str:
    """Name of the counter of rows with this label and this answer, both JSON texts."""
    return f"{PAIR}{label}\t{said}"


def usable(probabilities: Mapping[str, float]) -> bool:
    """Whether all of them are in [0, 1], up to rounding; NaN is not."""
    return all([-ROUNDING <= p <= 1.0 + ROUNDING for p in probabilities.values()])


def add(counters: dict[str, float], increments: Mapping[str, float]) -> None:
    """Add a row's counters, or those of other rows, to a span's."""
    for name, value in increments.items():
        if name in counters or len(counters) < COUNTERS_MAX:
            counters[name] = counters.get(name, 0) + value
        else:
            counters["folded"] = counters.get("folded", 0) + 1


class Majority:
    """:func:`majority`, kept up to date row by row: it costs no walk over all counters."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self._best, self._most = "", 0

    def add(self, label: Label) -> None:
        """Count one more label."""
        text = label_text(label)
        if text not in self._counts and len(self._counts) >= COUNTERS_MAX:
            return
        n = self._counts[text] = self._counts.get(text, 0) + 1
        if n > self._most or (n == self._most and text < self._best):
            self._best, self._most = text, n

    def label(self) -> Label | None:
        """The most frequent label so far; None before the first."""
        return label_of(self._best) if self._most else None


def label_counter(label: str) -> str:
    """Name of the counter of the label with this JSON text."""
    return _LABEL + label


def is_label(counter: str) -> bool:
    """Whether it counts a label."""
    return counter.startswith(_LABEL)


def label_in(counter: str) -> str:
    """JSON text of the label that it counts."""
    return counter[len(_LABEL) :]


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
