"""Input vectors: named features become a row of numbers, for models of fixed dimension."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from operator import itemgetter
from typing import Any

import numpy as np

from evaluation.metrics import Task
from online.models.errors import LearnerUnusable
from online.models.limited import Scale, scaler_of
from online.models.state.composite import Composite
from online.models.state.scalers import Columns
from replay.example import Features, Label


class Inputs(Composite):
    """The input features of a model, in their order, and their scaler.

    Parameters:
        model: The model's name in errors.
        names: Names of the features.  Other features of a row are ignored.  A missing one counts
            as 0, which is the mean if values are standardised.
        scale: Whether and how values are standardised, by the moments of the rows learned so far.
        ids: Features that are identifiers (whole numbers), each with the number of rows of its
            embedding table.  They are taken modulo that number and never standardised.  A missing
            one is row 0.
    """

    def __init__(
        self,
        model: str,
        names: Sequence[str],
        *,
        scale: Scale,
        ids: Mapping[str, int] | None = None,
    ) -> None:
        self.names = tuple(names)
        self._places = {name: i for i, name in enumerate(self.names)}
        self._known = frozenset(self._places)
        if isinstance(names, str) or not self.names or len(self._known) < len(self.names):
            remedy = "Give the names of the features, each once"
            raise LearnerUnusable(model, f"inputs {list(names)!r:.200}", remedy)
        self._all_of = itemgetter(*self.names) if len(self.names) > 1 else None
        self._ids = dict(ids or {})
        if odd := [n for n, rows in self._ids.items() if n not in self._known or rows < 1]:
            problem = f"id {odd[0]!r} of {self._ids[odd[0]]} rows"
            raise LearnerUnusable(
                model, problem, "Name some of the inputs, with a row or more each"
            )
        self.scaled = bool(scale)
        self._scaler = scaler_of(scale, "scaler")
        self._parts = () if self._scaler is None else (self._scaler,)

    def row(self, features: Features) -> list[float]:
        """Return the input vector for a prediction, without changing state."""
        x: dict[str, Any] = self._taken(features)
        ids = self._rows_of_ids(x)
        return self._row(ids | (x if self._scaler is None else self._scaler.transform(x)))

    def rows(self, many: Sequence[Features]) -> Columns:
        """Return :meth:`row` of each row, shape (rows, inputs); vectorised if none is missing."""
        raw = None if self._ids else self._whole(many)
        if raw is None:
            return np.array([self.row(x) for x in many], dtype=np.float64)
        if self._scaler is None:
            return raw
        known, x = self._scaler.transform_many(list(self.names), raw)
        if len(known) == len(self.names):
            return x
        out = np.zeros_like(raw)
        out[:, [self.names.index(name) for name in known]] = x
        return out

    def _whole(self, many: Sequence[Features]) -> Columns | None:
        """Return the rows as one array; None if a row lacks a feature."""
        if self._all_of is None or any(type(x) is not dict for x in many):
            return None
        try:
            raw = np.array(list(map(self._all_of, many)), dtype=np.float64)
        except KeyError:
            return None
        return None if np.isnan(raw).any() else raw  # numpy converts None to NaN

    def learn(self, features: Features) -> list[float]:
        """Update the moments with a row, then return its input vector for learning."""
        x: dict[str, Any] = self._taken(features)
        ids = self._rows_of_ids(x)
        return self._row(ids | (x if self._scaler is None else self._scaler.learn(x)))

    def _taken(self, features: Features) -> dict[str, Any]:
        if not self._ids and features.keys() <= self._known:
            return features
        return {name: value for name, value in features.items() if name in self._known}

    def _rows_of_ids(self, x: dict[str, Any]) -> dict[str, Any]:
        """Remove the identifiers from ``x`` and return them as rows of their tables."""
        return {
            name: math.floor(x.pop(name)) % rows for name, rows in self._ids.items() if name in x
        }

    def _row(self, x: Mapping[str, Any]) -> list[float]:
        if self._all_of is not None and len(x) == len(self.names):
            return list(map(float, self._all_of(x)))
        out = [0.0] * len(self.names)
        for name, value in x.items():
            out[self._places[name]] = float(value)
        return out


def labels_for(model: str, task: Task, outputs: int, given: Sequence[Label] | None) -> list[Label]:
    """Return the labels of a classifier's outputs in their order.

    They are those given, or else False and True in a binary task, or else 0, 1, 2 …
    Raises LearnerUnusable if task, number of outputs and labels do not fit together.
    """
    if outputs < 2 or (task == "binary" and outputs > 2):
        problem = f"task is {task} and it has {outputs} outputs"
        raise LearnerUnusable(model, problem, "Give it one for each label")
    default: list[Any] = [False, True] if task == "binary" else list(range(outputs))
    labels = [x.item() if hasattr(x, "item") else x for x in (default if given is None else given)]
    if task == "binary":
        if sorted(map(repr, labels)) not in (["0", "1"], ["False", "True"]):
            problem = f"labels {labels!r:.100} in a binary task"
            raise LearnerUnusable(model, problem, "Leave them out; names go into `classes`")
        labels = list(map(bool, labels))
    if isinstance(given, str) or len(labels) != outputs or len(set(labels)) < outputs:
        problem = f"{len(labels)} labels for {outputs} outputs"
        raise LearnerUnusable(model, problem, "Give labels=[…], one for each output")
    return labels
