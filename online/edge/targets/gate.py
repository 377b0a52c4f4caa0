"""The parity gate: compares a file's predictions with the model's, within fixed bounds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from online.edge.errors import ParityFailed
from online.edge.lowering.ir import Floats
from online.edge.targets.golden import Golden
from online.edge.targets.pack import Precision

BOUNDS: Final[dict[Precision, float]] = {"float64": 1e-12, "float32": 1e-6}
"""Largest difference of a probability; in regression, of a number, relative to its size if that is
above 1."""

TIE: Final = 2e-6
"""Probabilities closer than this are a tie: either label is accepted."""


@dataclass(frozen=True, slots=True)
class Parity:
    """Comparison of a file's outputs with the golden rows.

    Attributes:
        rows: Number of rows.
        max_abs: Largest difference, see :data:`BOUNDS`.
        agree: Share of the rows outside ties with the model's label (1.0 in regression).
        worst: Index of the row of ``max_abs``.
    """

    rows: int
    max_abs: float
    agree: float
    worst: int


def compare(answers: Floats, golden: Golden) -> Parity:
    """Compare a file's outputs for the golden rows with the expected ones."""
    expected = golden.expected
    if answers.shape != expected.shape:
        raise ValueError(f"answers of shape {answers.shape} for {expected.shape}")
    off = np.abs(answers - expected) / np.maximum(1.0, np.abs(expected))
    off = np.where(np.isnan(off), np.inf, off)
    worst = int(off.max(axis=1).argmax())
    agree = agreement(answers, expected) if golden.labels else 1.0
    return Parity(len(expected), float(off.max()), agree, worst)


def gate(
    target: str, answers: Floats, golden: Golden, bound: float, least_agree: float = 1.0
) -> Parity:
    """Compare; raise ParityFailed if the bound is exceeded or too many labels differ."""
    parity = compare(answers, golden)
    if parity.max_abs > bound:
        raise ParityFailed(target, parity.max_abs, bound, parity.worst)
    if parity.agree < least_agree:
        raise ParityFailed(target, 1.0 - parity.agree, 1.0 - least_agree, parity.worst)
    return parity


def agreement(answers: Floats, expected: Floats) -> float:
    """Share of the rows outside ties with the expected label; 1.0 if all are ties.

    Parameters:
        found, expected: Probabilities, shape (rows, classes); of two classes those of the second,
            (rows, 1).
    """
    if expected.shape[1] == 1:
        clear = np.abs(expected[:, 0] - 0.5) > TIE
        same = (answers[:, 0] > 0.5) == (expected[:, 0] > 0.5)
    else:
        ordered = np.sort(expected, axis=1)
        clear = ordered[:, -1] - ordered[:, -2] > TIE
        same = answers.argmax(axis=1) == expected.argmax(axis=1)
    return float(same[clear].mean()) if clear.any() else 1.0
