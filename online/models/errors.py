"""These types say what can go wrong with a model (see :mod:`online.errors`)."""

from __future__ import annotations

from collections.abc import Sequence

from online.errors import OnlineError


class ModelError(OnlineError):
    """Base of the models' errors."""


class LearnerUnusable(ModelError):
    """A ``learner`` setting that gives no model.

    ``learner`` is the setting's value, ``problem`` what is wrong with it and ``remedy`` what to
    write instead.
    """

    def __init__(self, learner: str, problem: str, remedy: str) -> None:
        super().__init__(learner, problem, remedy)
        self.learner, self.problem, self.remedy = learner, problem, remedy

    def __str__(self) -> str:
        return f"learner {self.learner!r}: {self.problem}. {self.remedy}"


class NothingLearned(ModelError):
    """A row that was refused before anything was changed: nothing has to be put back."""


class WeightUnsupported(NothingLearned):
    """A row with a weight other than 1 for an estimator that takes none; nothing was learned."""

    def __init__(self, weight: float, estimator: str) -> None:
        super().__init__(weight, estimator)
        self.weight, self.estimator = weight, estimator

    def __str__(self) -> str:
        return (
            f"weight {self.weight!r}: {self.estimator} learns rows of weight 1 only. "
            "Leave the weight out, or take an estimator whose learn_one has a weight `w`"
        )


class StateNotFinite(ModelError):
    """A row that drove the weights out of the finite numbers; the caller puts the model back."""

    def __init__(self, total: float) -> None:
        super().__init__(total)
        self.total = total

    def __str__(self) -> str:
        return (
            f"the row drives the weights to {self.total}. "
            "Scale the features, or take a lower learning rate"
        )


class LabelUnknown(NothingLearned):
    """A label for which the model has no output; nothing was learned."""

    def __init__(self, label: object, known: Sequence[object]) -> None:
        super().__init__(label, known)
        self.label, self.known = label, known

    def __str__(self) -> str:
        known = ", ".join(map(repr, self.known))
        return f"label {self.label!r:.80} is none of {known:.200}. Give the model an output for it"


class RowUnusable(NothingLearned):
    """A row that a model can make nothing of; nothing was learned."""

    def __init__(self, problem: str) -> None:
        super().__init__(problem)
        self.problem = problem

    def __str__(self) -> str:
        return f"the row can't be learned: {self.problem}. Send features that the model takes"


class BlobUntrusted(ModelError):
    """A pickled state that was not sealed with this service's key.  It was not unpickled."""

    def __init__(self, reason: str, size_bytes: int) -> None:
        super().__init__(reason, size_bytes)
        self.reason, self.size_bytes = reason, size_bytes

    def __str__(self) -> str:
        return (
            f"pickled state of {self.size_bytes} bytes: {self.reason}, so it was not read. "
            "Give the service the key file that sealed it, or start it with --fresh"
        )


class AnswerUnusable(ModelError):
    """A model's answer that is none for its task."""

    def __init__(self, answer: str, task: str, remedy: str) -> None:
        super().__init__(answer, task, remedy)
        self.answer, self.task, self.remedy = answer, task, remedy

    def __str__(self) -> str:
        return f"the model answered {self.answer}, no answer for task {self.task}. {self.remedy}"
