"""Frozen models: trained elsewhere, served and evaluated here, and never changed.

:class:`Frozen` is the adapter; :class:`Answers` interprets the numbers that such a model returns.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Literal

from evaluation.metrics import Task
from online.models.base import Prediction, by_logit, by_probability, by_scores
from online.models.errors import AnswerUnusable, LearnerUnusable
from paramserver.core.blocks import Blocks
from replay.example import Features, Label

Output = Literal["probability", "logits"]
Ask = Callable[[Features], Prediction]

_SUM_MAX: Final = 1e-3  # largest difference of a sum of float32 probabilities from 1


class Frozen:
    """The adapter of a model that never changes.

    A row with a label is scored, counted and answered with `learned`, but changes nothing.

    Parameters:
        ask: Function that predicts one row without changing state.
        structure: Text that identifies the model by the content of its files.
        inputs: Names of the features that it uses; others are ignored.
        numeric_only: Whether all of them are numbers.
    """

    mergeable = True  # it is the same in every replica
    learns = False
    why_not_mergeable = None

    def __init__(
        self, ask: Ask, structure: str, inputs: Sequence[str], *, numeric_only: bool
    ) -> None:
        self._ask = ask
        self.structure, self.numeric_only = structure, numeric_only
        self.inputs = tuple(inputs)

    def __reduce__(self) -> tuple[Any, ...]:
        return str, (self.structure,)  # its pickle only identifies it

    def __deepcopy__(self, memo: object) -> Frozen:
        return self  # it is immutable

    def predict(self, features: Features) -> Prediction:
        """Predict the label of one row."""
        return self._ask(features)

    def predict_many(self, rows: Sequence[Features]) -> list[Prediction]:
        """Predict row by row: in a batch the last bits of float32 answers would differ."""
        return [self._ask(x) for x in rows]

    def learn(self, features: Features, label: Label, weight: float) -> None:
        """Do nothing; the service scores the row."""

    def cut(self) -> Blocks:
        """Return no blocks: the model never changes."""
        return {}

    def rebase(self, values: Blocks) -> None:
        """Do nothing: the model has no blocks."""

    def reset(self, values: Blocks) -> None:
        """Do nothing: the model is always as built."""


class Answers:
    """Converts the numbers or labels that a model returns to answers of the task.

    Parameters:
        learner: The model's name in errors.
        labels: Labels of its probabilities, in their order; None if the model does not have them.
        classes: Names of the two labels of a binary task: ``negative`` and ``positive``.
        output: Whether numbers for labels are probabilities or logits.
    """

    def __init__(
        self,
        learner: str,
        task: Task,
        labels: Sequence[Any] | None = None,
        classes: Mapping[str, object] | None = None,
        output: str = "probability",
    ) -> None:
        if output not in ("probability", "logits"):
            problem = f"output {output!r:.40}"
            raise LearnerUnusable(learner, problem, "Say probability or logits")
        if isinstance(labels, str) or (labels is not None and len(set(labels)) < len(labels)):
            problem = f"labels {labels!r:.100}"
            raise LearnerUnusable(learner, problem, "Give a list of the labels, each once")
        self._learner, self._task, self._logits = learner, task, output == "logits"
        plain = None if labels is None else [x.item() if hasattr(x, "item") else x for x in labels]
        self._names, self._classes = plain, dict(classes or {})

    def number(self, value: Any) -> Prediction:
        """Make the answer of a regression."""
        return Prediction(float(value), None)

    def label(self, value: Any) -> Prediction:
        """Make the answer from a label without probabilities."""
        value = value.item() if hasattr(value, "item") else value
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if self._task == "binary":
            if value in self._classes.values():
                return Prediction(value == self._classes["positive"], None)
            if value in (0, 1):
                return Prediction(bool(value), None)
            remedy = "Say which label is which: classes: {negative: …, positive: …}"
            raise AnswerUnusable(f"{value!r:.80}", self._task, remedy)
        return Prediction(value, None)

    def shares(self, numbers: Sequence[float]) -> Prediction:
        """Make the answer from a number for each label, or from one for the positive label."""
        if len(numbers) == 1 and self._task == "binary":
            if self._logits:
                return by_logit(numbers[0])
            self._check(numbers[0], 1.0)
            return by_probability(numbers[0])
        named = dict(zip(self._labels(len(numbers)), numbers, strict=True))
        if self._logits:
            return by_scores(named)
        total = math.fsum(numbers)
        self._check(min(numbers), total)
        shares = {label: p / total for label, p in named.items()}
        return Prediction(max(shares, key=shares.__getitem__), shares)

    def by_name(self, shares: Mapping[Any, float]) -> Prediction:
        """Make the answer from probabilities by label."""
        self._names = list(shares) if self._names is None else self._names
        return self.shares([float(shares[name]) for name in self._names])

    def _labels(self, n: int) -> list[Label]:
        names = list(range(n)) if self._names is None else self._names
        if len(names) != n or n < 2 or (self._task == "binary" and n > 2):
            problem = (
                f"it gives {n} numbers for {self._names or 'the labels'} in a {self._task} task"
            )
            raise LearnerUnusable(self._learner, problem, "Name as many in params: labels")
        if self._task == "binary":
            positive = self._classes.get("positive")
            second = positive is None or positive not in names
            return [False, True] if second else [name == positive for name in names]
        return names

    def _check(self, least: float, total: float) -> None:
        # NaN passes: the answer is refused as one that is not finite.
        if least < 0.0 or least > 1.0 or abs(total - 1.0) > _SUM_MAX:
            remedy = "Say params: {output: logits} if a softmax or sigmoid is missing"
            raise AnswerUnusable("numbers that are no probabilities", self._task, remedy)


def value_of(features: Features, name: str, missing: float) -> float:
    """Return the named feature as a number; ``missing`` if it is absent or no number."""
    value = features.get(name)
    return float(value) if isinstance(value, int | float) else missing
