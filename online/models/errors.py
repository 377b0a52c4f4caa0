"""This module defines the errors of models (see :mod:`online.errors`)."""

from __future__ import annotations

from collections.abc import Sequence

from online.errors import OnlineError


class ModelError(OnlineError):
    """Base of the models' errors."""


class LearnerUnusable(ModelError):
    """A ``learner`` setting from which no model can be made.

    ``learner`` is the setting's value, ``problem`` what is wrong with it, ``remedy`` what to do.
    """

    learner: str
    problem: str
    remedy: str
    text = "learner {learner!r}: {problem}. {remedy}"


class NothingLearned(ModelError):
    """A row that was refused before any state changed, so that nothing has to be restored."""


class WeightUnsupported(NothingLearned):
    """A row with a weight other than 1 for an estimator that takes none; nothing was learned."""

    weight: float
    estimator: str
    text = (
        "weight {weight!r}: {estimator} learns rows of weight 1 only. Leave the weight out, or "
        "take an estimator whose learn_one has a weight `w`"
    )


class StateNotFinite(ModelError):
    """A row that made a weight infinite or NaN; the caller restores the model's state."""

    total: float
    text = (
        "the row drives the weights to {total}. Scale the features, or take a lower learning rate"
    )


class LabelUnknown(NothingLearned):
    """A label for which the model has no output; nothing was learned."""

    label: object
    known: Sequence[object]

    def __str__(self) -> str:
        known = ", ".join(map(repr, self.known))
        return f"label {self.label!r:.80} is none of {known:.200}. Give the model an output for it"


class BlobUntrusted(ModelError):
    """A pickled state that was not sealed with this service's key.  It was not unpickled."""

    reason: str
    size_bytes: int
    text = (
        "pickled state of {size_bytes} bytes: {reason}, so it was not read. Give the service the "
        "key file that sealed it, or start it with --fresh"
    )


class NotAnswered(ModelError):
    """A row to which a model of the user's gives no valid answer.

    ``taught``: it has learned something; before that many models have no answer.
    """

    taught = True


class AnswerUnusable(NotAnswered):
    """An answer of the model that is not valid for its task."""

    answer: str
    task: str
    remedy: str
    text = "the model answered {answer}, no answer for task {task}. {remedy}"


class AnswerRaised(NotAnswered):
    """A row for which the model raises an exception instead of answering."""

    reason: str
    taught: bool
    text = "the model raises {reason}"
