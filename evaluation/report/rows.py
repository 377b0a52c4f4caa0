"""Rows as the report reads them: answers and labels in the order of events, in bounded batches."""

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
"""Numbers (NaN: missing or no finite number) or texts of categories (None: missing)."""


@dataclass(frozen=True, slots=True)
class Rows:
    """Consecutive rows, column by column; all columns have the same length.

    Attributes:
        label, predicted: None: it has not come; nothing was answered.  Those of a binary task are
            True and False.
        probabilities: Of each label by its JSON text; None: the model gave none.
        no_change: The newest label known at each answer; None: it is the newest label of the rows
            before, ``delay`` rows back.
        time, label_time: POSIX seconds of answer and label, shape (n,); NaN: unknown.
        delay: Seconds from answer to label, where ``label_time`` does not say it; NaN: unknown.
        verdict: What the journal says of each row; None in a file.
        covered: 1 where the set or interval that was answered had the label, 0 where it did not,
            NaN where there was none.
        declared: Features of ``Origin.slices`` as texts, whatever they are in ``features``.
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
    """Where rows come from and how they are to be read.

    Attributes:
        names: What True and False are called in a binary task; empty: just so.
        delay: Rows until a label is known, where the rows do not say it themselves.
        columns: Which column of a file was taken for what.
        left_out: Columns of a file that are no features: why, by name.
        slices: Features of which each value is shown, however well it does: up to
            ``slice_values`` of each.
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
