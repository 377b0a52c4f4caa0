"""Anything is judged that answers for a row and then learns its label, as river's models do.

A classifier has ``predict_proba_one(x)``, or ``predict_one(x)`` alone if it knows no probabilities;
a regressor has ``predict_one(x)``.  All have ``learn_one(x, y)``.
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
    """An answer is what a learner answered for a row.

    Attributes:
        label: Label, or number in regression; None if it knew nothing.
        probabilities: Of each label that it knows; None if it gave none.
        usable: False if what it said is no finite number or no probabilities: ``label`` is None
            then.
    """

    label: Label | None
    probabilities: Mapping[Label, float] | None = None
    usable: bool = True


@runtime_checkable
class Learner(Protocol):
    """The least that is judged; the verbs that answer are looked up by task."""

    def learn_one(self, x: Features, y: Label) -> object:
        """Learn a row with its label."""


@runtime_checkable
class Remembering(Protocol):
    """A learner that is told again, with the label, what it answered; late labels need that.

    Notes are its own business: they are kept with the row and handed back.
    """

    def answer_noted(self, x: Features) -> tuple[Answer, object]:
        """Answer for a row, and what to hand back with its label.  Changes nothing."""

    def learn_noted(self, x: Features, y: Label, notes: object) -> object:
        """Learn a row with the notes of its answer."""


Ask = Callable[[Features], tuple[Answer, object]]
Learn = Callable[[Features, Label, object], object]


def verbs(learner: Any, task: Task) -> tuple[Ask, Learn]:
    """How the learner is asked and taught, chosen once for all rows.

    Raises TypeError if it is none, and says which verb is missing.
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
    """The label of the greatest probability, the first of several; nothing of none.

    In a binary task labels are taken as True and False, whatever 0 and 1 they are.
    """
    if not shares:
        return Answer(None)
    if not all([-ROUNDING <= p <= 1.0 + ROUNDING for p in shares.values()]):
        return Answer(None, usable=False)
    if task == "binary":
        shares = {bool(label): float(p) for label, p in shares.items()}
    return Answer(max(shares, key=shares.__getitem__), shares)


def by_value(task: Task, value: Any) -> Answer:
    """A label without probabilities, or a number."""
    if value is None:
        return Answer(None)
    if task == "regression":
        number = float(value)
        return Answer(number) if math.isfinite(number) else Answer(None, usable=False)
    return Answer(bool(value) if task == "binary" else value)
