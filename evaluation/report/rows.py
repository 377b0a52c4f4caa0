"""The input of a report: predictions and labels in the order of events, in batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from evaluation.metrics import Task
from replay.example import Label

Floats = NDArray[np.float64]
Column = Floats | Sequence[str | None]
"""Numbers (NaN: missing or not finite) or texts of categories (None: missing)."""


@dataclass(frozen=True, slots=True)
class Rows:
    """Consecutive rows, column by column; all columns have the same length.

    Attributes:
        label, predicted: Label and prediction; None: not known yet, or no prediction.  In a binary
            task they are True and False.
        probabilities: Probability of each label by its JSON text; None: the model gave none.
        no_change: The newest label known at each prediction; None: derived from the earlier rows
            and the delay.
        time, label_time: Times of prediction and label (POSIX seconds), shape (n,); NaN: unknown.
        delay: Time from prediction to label in seconds, if ``label_time`` does not give it; NaN:
            unknown.
        verdict: Verdict of each row in the journal; None for a file.
        covered: 1 if the predicted set or interval contained the label, 0 if not, NaN if there was
            none.
        declared: Features of ``Origin.slices`` as texts, also if they are numbers in ``features``.
    """

    label: Sequence[Label | None]
    predicted: Sequence[Label | None]
    probabilities: Sequence[Mapping[str, float] | None]
    time: Floats
    label_time: Floats
    features: Mapping[str, Column]
    no_change: Sequence[Label | None] | None = None
    delay: Floats | None = None
    version: Sequence[str | None] | None = None
    source: Sequence[str | None] | None = None
    verdict: Sequence[str] | None = None
    covered: Floats | None = None
    declared: Mapping[str, Sequence[str | None]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.label)


@dataclass(frozen=True, slots=True)
class Origin:
    """The origin of the rows, and how to read them.

    Attributes:
        names: Names of True and False in a binary task; empty: none.
        delay: Number of rows until a label is known, if the rows do not give its time.
        columns: Columns of a file by role.
        left_out: Columns of a file that are not features, with the reason.
        slices: Features whose values are all shown, up to ``slice_values`` of each, whatever their
            scores.
    """

    kind: Literal["file", "journal"]
    name: str
    task: Task
    names: Mapping[bool, str] = field(default_factory=dict)
    delay: int = 0
    columns: Mapping[str, str | None] = field(default_factory=dict)
    left_out: Mapping[str, str] = field(default_factory=dict)
    slices: Sequence[str] = ()
    slice_values: int = 32
