"""A purpose is a task as a settings file names it: one value says all that follows from it.

What a model learns is one of three kinds of labels (:data:`evaluation.metrics.Task`), and models,
counters and reports know only these.  A purpose says which one it is, and what is asked of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal

if TYPE_CHECKING:  # whoever reads settings needs no metrics
    from evaluation.metrics import Task

TaskName = Literal["binary", "multiclass", "regression", "choose", "anomaly"]

_FEW_LABELS: Final = "it needs a label with each row, and anomalies have few"


@dataclass(frozen=True, slots=True)
class Purpose:
    """All that differs by task, but for the arithmetic of the models.

    Attributes:
        name: ``task`` in a settings file.
        labels: What is learned: one of two labels, one of several, a number.
        columns: What an answer has beside the label, as column protocols name it.
        part, learner: The settings that are this task's own, and who learns if they name nobody.
        range: A setting of that part; its two numbers bound what that learner is taught.
        unlabelled: Rows are learned that come without a label, and the score of an answer is no
            probability.
        keyed: Each key of an entity can have an offset of its own.
        bounded: Labels are numbers of which nobody said the range: those that are far off are
            clipped.
        closed: Settings that do not go with it, and why.
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
        """The score that people ask for first."""
        return "mae" if self.labels == "regression" else "accuracy"

    def read(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """The settings of a model of this task as those of what it is made of."""
        if self.part is None:
            return dict(given)
        own = {} if given.get(self.part) is None else given[self.part]
        out = {"learner": self.learner, **given, "task": self.labels, self.part: own}
        bounds = own.get(self.range) if isinstance(own, dict) else None
        params = out.get("params", {})
        if not isinstance(bounds, list | tuple) or not isinstance(params, Mapping):
            return out  # if they are anything else, it is refused for that
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
"""By name.  Those with a part of the settings are known again by that part."""
