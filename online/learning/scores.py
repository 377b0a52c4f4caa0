"""Converts answers into scores kept in rows, and learned rows into increments of the metrics."""

from __future__ import annotations

from typing import Final

from evaluation.metrics import Task, details, increments, majority
from online.learning.counters import ANOTHERS, COSTS, Tally
from online.models.base import Prediction
from replay.example import Example, Label, is_unlabelled, label_of, label_text

_SCORE_MAX = 1e100


def score_of(task: Task, prediction: Prediction) -> dict[str, float] | None:
    """A prediction in the form kept in rows: by the label's JSON text, or ``{"": number}``.

    None, i.e. no answer, also if a number's square would overflow in the metrics, or it is NaN.
    """
    if prediction.probabilities is not None:
        score = {label_text(k): v for k, v in prediction.probabilities.items()}
    elif prediction.label is None:
        return None
    elif task == "regression":
        score = {"": float(prediction.label)}
    else:
        return {label_text(prediction.label): 1.0}
    return score if all(abs(value) <= _SCORE_MAX for value in score.values()) else None


UNLABELLED_ROWS: Final = "unlabelled"
"""Counter of rows that were learned without a label."""

UNLABELLED_ABOVE: Final = "unlabelled_above"
"""Counter of those that were answered as anomalies."""


def increments_of(task: Task, example: Example, tally: Tally) -> dict[str, float]:
    """Return the row's increments of the prequential counters."""
    score, shares = example.score, None
    if score and ("" in score) != (task == "regression"):
        score = None  # the answer of a model of another task, which the row is learned without
    above = 0.0 if score is None else float(score.get("true", 0.0) > 0.5)
    if is_unlabelled(task, example.label):
        return {UNLABELLED_ROWS: 1, UNLABELLED_ABOVE: above}
    predicted: Label | None = None
    if task == "regression":
        mean = majority(task, tally.counters)
        predicted = score.get("") if score else None
    else:
        mean, shares = tally.majority(), score
        predicted = label_of(max(score, key=score.__getitem__)) if score else None
    counted = increments(
        task,
        label=example.label,
        predicted=predicted,
        probabilities=shares,
        no_change=example.no_change,
        majority=mean,
    )
    if score is not None:
        counted |= details(task, label=example.label, predicted=predicted, probabilities=shares)
    if example.taught:  # it was counted as unlabelled before
        counted |= {UNLABELLED_ROWS: -1, UNLABELLED_ABOVE: -above}
    if tally.is_anothers(example):
        counted |= {ANOTHERS + name: value for name, value in counted.items() if name in COSTS}
    return counted
