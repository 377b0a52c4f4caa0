"""Prequential metrics of a model and of baselines on the same rows, as additive counters.

Each row is scored by the prediction made *before* its label was known (Gama et al. 2013, *On
evaluating stream learning algorithms*).  :func:`increments` returns what one row adds to the
counters; :func:`summarise` computes the metrics from sums of them over rows and replicas.  So a
count block carries all metrics exactly, whatever the order of merges.

=================== ==========================================================================
counter             increment for each row with a prediction (``label/``: for every row)
=================== ==========================================================================
``n``               1
``correct``         1 if the predicted label was right
``majority_correct`` 1 if the most frequent label so far was right
``no_change_correct`` 1 if the newest label known at the prediction was right
``log_loss``        −ln p(label), p clipped to [1e-15, 1]; ``log_n`` counts these rows
``label/<json>``    1 for the label with this JSON text
``abs_error``, ``squared_error``, ``mean_abs_error``, ``last_abs_error`` (regression)
                    errors of the model, of the mean so far and of the newest target
``target_n``, ``target_sum`` (regression) 1 and the target, for every row
``unusable``        1 for a prediction that is no finite number, or no probabilities
=================== ==========================================================================

:func:`details` returns increments for the other metrics, which are counts or sums as well:

===================== ========================================================================
``asked``, ``unanswered``  1 for a row with a request; 1 if the model made no prediction
``pair/<json>\t<json>`` 1 for the pair of label and prediction (``pair/<json>\t``: none)
``score/<bin>/<0|1>`` 1 in the histogram of scores: binary, the probability of True, by label 0 or
                      1; multiclass, that of the predicted label, by wrong (0) or right (1)
``sum/<tenth>``       the score, by tenths of it
``brier``             squared error of the probabilities; ``log_n`` counts its rows
``y_sum``, ``y_squares`` (regression) the target and its square, for rows with a prediction
===================== ========================================================================

From the histogram of scores the area under the ROC curve and the calibration error are computed in
bounded memory; histograms of replicas and periods add up.  See :mod:`evaluation.summary`.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping
from typing import Final, Literal

from replay.example import Label, label_of, label_text

Task = Literal["binary", "multiclass", "regression"]

COUNTERS_MAX: Final = 10_000
"""Greatest number of counters of a span; further ones are counted as ``folded``.

Only pairs of more than a hundred labels can be so many.
"""
ROUNDING: Final = 1e-6
"""How far outside [0, 1] a probability may be."""

_LABEL: Final = "label/"
PAIR: Final = "pair/"
SCORE: Final = "score/"
LOG_CLIP: Final = 1e-15
"""Least probability in the log loss."""

_TAIL: Final = tuple(10 ** (-2 - j / 4) for j in range(16, 0, -1))
EDGES: Final = (*_TAIL, *(i / 100 for i in range(1, 100)), *(1 - e for e in reversed(_TAIL)))
"""Edges of the bins of scores: hundredths, and four per decade from .01 to 1e-6 at both ends."""

TENTHS: Final = tuple(min(int(round(low * 100, 6) // 10), 9) for low in (0.0, *EDGES))
_PLACES: Final = tuple(
    (f"score/{i}/0", f"score/{i}/1", f"sum/{tenth}") for i, tenth in enumerate(TENTHS)
)


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
    """Return the increments of the counters for one row.

    Parameters:
        predicted: The predicted label or number; None without a prediction, and then the row counts
            in no score.
        probabilities: Probability of each label by its JSON text.  With fewer than two labels there
            is no log loss: a model without probabilities is recorded as one label with 1.
        no_change: The newest label known at the time of the prediction.
        majority: :func:`majority` of the counters before this row.
        asked: True: a classifier without a prediction was wrong.
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
        if not p <= 1.0 + ROUNDING:  # also NaN, which would make the sum NaN for ever
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
    # Before the first label both baselines predict 0, as an untrained model does.
    out["mean_abs_error"] = abs(float(mean or 0.0) - target)
    out["last_abs_error"] = abs(float(last or 0.0) - target)
    return out


def details(
    task: Task, *, label: Label, predicted: Label | None, probabilities: Mapping[str, float] | None
) -> dict[str, float]:
    """Return further increments for one row with a request; parameters as of `increments`."""
    if task == "regression":
        out: dict[str, float] = {"asked": 1}
        if predicted is None:
            out["unanswered"] = 1
        elif math.isfinite(float(predicted)):
            y = float(label)
            out["y_sum"], out["y_squares"] = y, y * y
        return out
    text = label_text(label)
    answer = "" if predicted is None else label_text(predicted)
    out = {"asked": 1, pair_counter(text, answer): 1}
    if predicted is None:
        out["unanswered"] = 1
    if probabilities is None or len(probabilities) < 2 or not usable(probabilities):
        return out
    if task == "binary":
        score, outcome = probabilities.get("true", 0.0), label is True
        out["brier"] = (score - outcome) ** 2
    else:
        score, outcome = max(probabilities.values()), answer == text
        own = probabilities.get(text, 0.0)
        squares = sum([p * p for p in probabilities.values()])
        out["brier"] = squares - own * own + (1.0 - own) ** 2
    place = place_of_score(score)
    out[place[outcome]] = 1
    out[place[2]] = score
    return out


def place_of_score(score: float) -> tuple[str, str, str]:
    """Return the counters of a score in [0, 1]: bin with outcome 0, with 1, and sum by tenth."""
    return _PLACES[bisect_right(EDGES, score)]


def pair_counter(label: str, answer: str) -> str:
    """Return the name of the counter for this label and prediction (JSON texts)."""
    return f"{PAIR}{label}\t{answer}"


def usable(probabilities: Mapping[str, float]) -> bool:
    """Return whether all probabilities are in [0, 1] up to rounding; NaN is not."""
    return all([-ROUNDING <= p <= 1.0 + ROUNDING for p in probabilities.values()])


def add(counters: dict[str, float], increments: Mapping[str, float]) -> None:
    """Add increments, or other rows' counters, to counters in place."""
    for name, value in increments.items():
        if name in counters or len(counters) < COUNTERS_MAX:
            counters[name] = counters.get(name, 0) + value
        else:
            counters["folded"] = counters.get("folded", 0) + 1


class Majority:
    """:func:`majority` maintained row by row, without iterating over all counters."""

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
        """Return the most frequent label so far; None before the first."""
        return label_of(self._best) if self._most else None


def label_counter(label: str) -> str:
    """Return the name of the counter of the label with this JSON text."""
    return _LABEL + label


def is_label(counter: str) -> bool:
    """Return whether the counter counts a label."""
    return counter.startswith(_LABEL)


def label_in(counter: str) -> str:
    """Return the JSON text of the label that the counter counts."""
    return counter[len(_LABEL) :]


def majority(task: Task, counters: Mapping[str, float]) -> Label | None:
    """Return the most frequent label so far, or the mean of the targets; None before the first.

    Among equally frequent labels it is the one whose JSON text is first in order, so that all
    replicas agree.
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
    """Return the metrics of summed counters; None where there is nothing to divide by.

    Classification: ``n``, ``accuracy``, ``majority``, ``no_change``, ``kappa_m``, ``kappa_t`` and
    ``log_loss`` (nats).  ``majority`` and ``no_change`` are the accuracies of these baselines on
    the same rows, kappa_M = (p − p_majority) / (1 − p_majority) and kappa_T likewise with no-change
    (Bifet et al. 2015, *Efficient online evaluation of big data stream classifiers*).

    Regression: ``n``, ``mae``, ``rmse``, ``mean_mae`` and ``last_mae`` (the baselines' MAE), in the
    target's unit.
    """
    n = counters.get("n", 0)
    if task == "regression":
        squared = ratio(counters.get("squared_error", 0.0), n)
        return {
            "n": n,
            "mae": ratio(counters.get("abs_error", 0.0), n),
            "rmse": None if squared is None else math.sqrt(squared),
            "mean_mae": ratio(counters.get("mean_abs_error", 0.0), n),
            "last_mae": ratio(counters.get("last_abs_error", 0.0), n),
        }
    accuracy = ratio(counters.get("correct", 0), n)
    often = ratio(counters.get("majority_correct", 0), n)
    same = ratio(counters.get("no_change_correct", 0), n)
    return {
        "n": n,
        "accuracy": accuracy,
        "majority": often,
        "no_change": same,
        "kappa_m": _kappa(accuracy, often),
        "kappa_t": _kappa(accuracy, same),
        "log_loss": ratio(counters.get("log_loss", 0.0), counters.get("log_n", 0)),
    }


def ratio(total: float | None, n: float | None) -> float | None:
    """Return the quotient; None where there is nothing to divide, or by."""
    return total / n if n and total is not None else None


def _kappa(accuracy: float | None, baseline: float | None) -> float | None:
    if accuracy is None or baseline is None or baseline == 1.0:
        return None
    return (accuracy - baseline) / (1.0 - baseline)
