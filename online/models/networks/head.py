"""The head of a network: how its outputs become answers, and labels become loss targets."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import nn

from evaluation.metrics import Task
from online.models.base import Prediction, by_logit, by_probability, by_scores
from online.models.errors import LabelUnknown, LearnerUnusable
from online.models.features.inputs import labels_for
from online.models.structure import describe
from replay.example import Label, label_text


class Head:
    """Converts outputs to answers, and labels to targets of the loss.

    Attributes:
        labels: Labels of the outputs, in their order; None: there is one output.
        texts: The labels as JSON text.
        closed_form: Name of the loss if :mod:`online.models.networks.rehearsal` has its gradient in
            closed form; else None.
    """

    def __init__(
        self,
        name: str,
        task: Task,
        outputs: int,
        *,
        loss: nn.Module | None,
        labels: Sequence[Label] | None,
    ) -> None:
        self._single = task == "binary" and outputs == 1
        self.labels: list[Label] | None = None
        if task == "regression":
            if outputs != 1:
                problem = f"task is regression and it has {outputs} outputs"
                raise LearnerUnusable(name, problem, "Give it one")
        elif not self._single:
            self.labels = labels_for(name, task, outputs, labels)
        self.texts = [label_text(label) for label in self.labels or ()]
        self._places = {label: i for i, label in enumerate(self.labels or ())}
        self.loss: nn.Module = loss if loss is not None else self._usual(task)
        self.closed_form = closed_form(self.loss)
        self._is_probability = isinstance(self.loss, nn.BCELoss)
        self.text = f"loss={made(self.loss)} labels={self.labels!r}"

    def _usual(self, task: Task) -> nn.Module:
        if task == "regression":
            return nn.MSELoss()
        return nn.BCEWithLogitsLoss() if self._single else nn.CrossEntropyLoss()

    def answer(self, outputs: list[float]) -> Prediction:
        """Make the answer from the outputs for one row."""
        if self._single:
            return (by_probability if self._is_probability else by_logit)(outputs[0])
        if self.labels is None:
            return Prediction(outputs[0], None)
        return by_scores(dict(zip(self.labels, outputs, strict=True)))

    def target(self, label: Label, dtype: torch.dtype) -> torch.Tensor:
        """Return the loss target of one label.  Raises LabelUnknown."""
        targets = self.targets([label], dtype)
        return targets if self.labels is None else targets[0]

    def targets(self, labels: Sequence[Label], dtype: torch.dtype) -> torch.Tensor:
        """Return targets, shape (rows, 1): numbers, or indices of labels.  Raises LabelUnknown."""
        if self.labels is None:
            return torch.tensor([[float(label)] for label in labels], dtype=dtype)
        try:
            return torch.tensor([[self._places[label]] for label in labels])
        except KeyError as error:
            raise LabelUnknown(error.args[0], self.labels) from None


def closed_form(loss: nn.Module) -> str | None:
    """Return the name of a loss whose gradient is known in closed form; None for others."""
    if type(loss) is nn.MSELoss and loss.reduction == "mean":
        return "squared"
    plain = getattr(loss, "weight", None) is None and getattr(loss, "reduction", "") == "mean"
    if type(loss) is nn.BCEWithLogitsLoss and plain and loss.pos_weight is None:
        return "logistic"
    if type(loss) is nn.CrossEntropyLoss and plain and loss.label_smoothing == 0:
        return "softmax"
    return None


def made(value: object) -> str:
    """Describe a loss, or the function that makes an optimizer, as text for the spec."""
    if isinstance(value, nn.Module):
        return repr(value)
    if isinstance(value, partial):
        arguments = describe({**{str(i): a for i, a in enumerate(value.args)}, **value.keywords})
        return f"{describe(value.func)}{arguments}"
    return describe(value)
