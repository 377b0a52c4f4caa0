"""The plain runs that a served model is compared with: river alone, and the last-label rule."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from replay.example import Features, Label


@dataclass(frozen=True, slots=True)
class Run:
    """A prequential run has these results.

    Attributes:
        accuracy: Right labels divided by rows; a row for which nothing was predicted counts as
            wrong.
        probabilities: What was answered before each row's label was learned, in order.
    """

    accuracy: float
    probabilities: list[dict[Label, float]]


def progressive(model: Any, rows: Iterable[tuple[Features, Label]]) -> Run:
    """Test, then learn, each row in turn, with river's own calls and nothing around them."""
    right = 0
    answers: list[dict[Label, float]] = []
    for features, label in rows:
        probabilities = model.predict_proba_one(features)
        answers.append(dict(probabilities))
        best = max(probabilities, key=probabilities.get) if probabilities else None
        right += best is not None and best == label
        model.learn_one(features, label)
    return Run(right / len(answers) if answers else 0.0, answers)


def last_label(rows: Iterable[tuple[Features, Label]]) -> float:
    """Accuracy of answering with the label before; on many real streams a hard rule to beat."""
    right = n = 0
    last: Label | None = None
    for _, label in rows:
        right += last == label
        n += 1
        last = label
    return right / n if n else 0.0
