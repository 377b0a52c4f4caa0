"""Purposes: for each task of a settings file, everything that follows from it.

Models, counters and reports know three kinds of labels (:data:`evaluation.metrics.Task`).  A
purpose says which of them its task uses, and what differs otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal

if TYPE_CHECKING:  # reading settings must not import metrics
    from evaluation.metrics import Task

TaskName = Literal["binary", "multiclass", "regression", "choose", "anomaly"]

_FEW_LABELS: Final = "it needs a label with each row, and anomalies have few"


@dataclass(frozen=True, slots=True)
class Purpose:
    """All that differs by task, except for the arithmetic of the models.

    Attributes:
        name: ``task`` in a settings file.
        labels: The kind of labels: one of two, one of several, a number.
        columns: Fields of an answer beside the label, as column-based protocols name them.
        part: Name of the settings that only this task has.
        learner: The default learner.
        range: A setting of ``part`` whose two numbers bound the labels of the default learner.
        unlabelled: Rows are learned without labels, and scores are no probabilities.
        keyed: Each key of an entity can have an offset of its own.
        bounded: Labels are numbers without a declared range: outliers are clipped.
        closed: Settings that are not available, and why.
    """

    name: str
    labels: Task
    columns: tuple[str, ...] = ()
    part: str | None = None
    learner: str | None = None
    range: str | None = None
    unlabelled: bool = False
    keyed: bool = False
    bounded: bool = False
    closed: Mapping[str, str] = field(default_factory=dict)

    @property
    def metric(self) -> str:
        """Return the primary metric."""
        return "mae" if self.labels == "regression" else "accuracy"

    def read(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Translate the settings of a model of this task to the kind of model it is made of."""
        if self.part is None:
            return dict(given)
        own_part = {} if given.get(self.part) is None else given[self.part]
        out = {"learner": self.learner, **given, "task": self.labels, self.part: own_part}
        bounds = own_part.get(self.range) if isinstance(own_part, dict) else None
        params = out.get("params", {})
        if not isinstance(bounds, list | tuple) or not isinstance(params, Mapping):
            return out  # invalid values are refused by validation
        if len(bounds) == 2 and out["learner"] == self.learner:
            low, high = bounds
            out["params"] = {"low": low, "high": high, **params}
        return out


PURPOSES: Final[Mapping[str, Purpose]] = {
    one.name: one
    for one in (
        Purpose("binary", "binary", ("probability", "probabilities"), keyed=True),
        Purpose("multiclass", "multiclass", ("probabilities",)),
        Purpose("regression", "regression", keyed=True, bounded=True),
        Purpose(
            "choose",
            "regression",
            part="choose",
            learner="rewards",
            range="reward_range",
            closed={
                "features": "its rows have names of their own: leave `features` out",
                "confidence": "a choice has no set or interval; leave it out",
            },
        ),
        Purpose(
            "anomaly",
            "binary",
            ("score",),
            part="anomaly",
            learner="anomaly",
            unlabelled=True,
            closed=dict.fromkeys(
                (
                    "replay", "confidence", "calibrate", "slices", "challenger", "triggers",
                    "devices", "root_set",
                ),
                _FEW_LABELS,
            ),
        ),
    )
}  # fmt: skip
"""Purposes by name.  One with a ``part`` is recognized again by that part."""
