"""The interface of learners that can be evaluated, which is that of river's models.

A classifier has ``predict_proba_one(x)``, or only ``predict_one(x)`` if it has no probabilities; a
regressor has ``predict_one(x)``.  All have ``learn_one(x, y)``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from evaluation.metrics import ROUNDING, Task
from replay.example import Features, Label


@dataclass(frozen=True, slots=True)
class Answer:
    """A learner's prediction for a row.

    Attributes:
        label: The label, or a number in regression; None if the learner made no prediction.
        probabilities: Probability of each label that the learner knows, or None.
        usable: False if the prediction was not a finite number or not probabilities; then
            ``label`` is None.
    """

    label: Label | None
    probabilities: Mapping[Label, float] | None = None
    usable: bool = True


@runtime_checkable
class Learner(Protocol):
    """The minimal interface; the prediction methods are looked up by task."""

    def learn_one(self, x: Features, y: Label) -> object:
        """Learn a row with its label."""


@runtime_checkable
class Remembering(Protocol):
    """A learner that gets notes on its prediction back with the label, for delayed labels.

    Notes are opaque: they are stored with the row and passed back.
    """

    def answer_noted(self, x: Features) -> tuple[Answer, object]:
        """Return the prediction for a row, and notes to pass back.  Changes nothing."""

    def learn_noted(self, x: Features, y: Label, notes: object) -> object:
        """Learn a row with the notes on its prediction."""


Ask = Callable[[Features], tuple[Answer, object]]
Learn = Callable[[Features, Label, object], object]


def verbs(learner: Any, task: Task) -> tuple[Ask, Learn]:
    """Return functions that predict and learn a row with this learner.

    Raises TypeError that names the missing method.
    """
    if isinstance(learner, Remembering):
        return learner.answer_noted, learner.learn_noted
    if not isinstance(learner, Learner):
        raise TypeError(f"{learner!r:.80} has no learn_one(x, y)")
    predict = getattr(learner, "predict_one", None)
    predict_proba = getattr(learner, "predict_proba_one", None)
    if task != "regression" and predict_proba is not None:

        def ask(x: Features) -> tuple[Answer, object]:
            return by_shares(task, predict_proba(x)), None
    elif predict is not None:

        def ask(x: Features) -> tuple[Answer, object]:
            return by_value(task, predict(x)), None
    else:
        raise TypeError(f"{learner!r:.80} has no predict_one(x)")
    learn_one = learner.learn_one

    def learn(x: Features, y: Label, notes: object) -> object:
        return learn_one(x, y)

    return ask, learn


def by_shares(task: Task, shares: Mapping[Label, float]) -> Answer:
    """Return an answer with the most probable label (the first one if there are several).

    In a binary task labels equal to 0 and 1 become False and True.
    """
    if not shares:
        return Answer(None)
    if not all([-ROUNDING <= p <= 1.0 + ROUNDING for p in shares.values()]):
        return Answer(None, usable=False)
    if task == "binary":
        shares = {bool(label): float(p) for label, p in shares.items()}
    return Answer(max(shares, key=shares.__getitem__), shares)


def by_value(task: Task, value: Any) -> Answer:
    """Return an answer with a label without probabilities, or a number."""
    if value is None:
        return Answer(None)
    if task == "regression":
        number = float(value)
        return Answer(number) if math.isfinite(number) else Answer(None, usable=False)
    return Answer(bool(value) if task == "binary" else value)
