"""Correction of answers to labels that come late and in runs.

Experts that have learned a run of one label expect that it goes on.  If labels are late the run is
over when they answer.  So the probability of each label is multiplied by its share among all labels
divided by its share among recent ones, and all are divided by their sum (Saerens, Latinne and
Decaestecker 2002, *Adjusting the outputs of a classifier to new a priori probabilities*).

Where labels come at once the run does go on, and the correction is wrong.  So both answers to a row
are judged by its label, and the corrected one is served only while its discounted loss is less by
:data:`AHEAD`.  Nothing is computed or noted while recent labels are as usual.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np

from online.models.experts.exponential_weights import LONG, NotedClasses, class_losses
from online.models.experts.linear import Floats, OutputPerClass
from paramserver.core.blocks import LOCAL, Block, Blocks, array_bytes, array_of
from replay.example import Label, label_text

RECENT: Final = 1.0 - 1.0 / 500.0
"""Discount factor of the recent labels: a window of 500.  That of all labels is LONG."""

PRIOR: Final = 5.0
"""Labels in equal shares that both windows have from the start."""

APART: Final = 0.1
"""Total variation distance of both windows from which on answers are corrected."""

AHEAD: Final = 20.0
"""Discounted loss that corrected answers must have saved before they are served."""

_FACTOR_MAX: Final = 1_000.0
_GAIN: Final = "shift"
_PREFIX: Final = f"{_GAIN}/"


class LabelShift:
    """How often each label came recently and always, and what corrected answers have saved.

    Attributes:
        gain: Discounted loss of plain answers less that of corrected ones.
    """

    def __init__(self) -> None:
        self.gain = 0.0
        self._counts: Floats = np.zeros((2, 0))  # recent labels, all labels
        self._judged = False  # whether a label came since the cut
        self._factors: Floats | None = None  # of each class; None while labels are as usual

    def correct(self, answer: Floats) -> tuple[Floats, Floats | None]:
        """Return the answer to serve, and what to note with it: the factors, or None.

        They are negative if the answer is the corrected one.
        """
        factors = self._factors
        if factors is None or len(factors) != len(answer):
            return answer, None
        if self.gain <= AHEAD:
            return answer, factors
        corrected = answer * factors
        return corrected / corrected.sum(), -factors

    def learn(self, column: int, classes: int, noted: NotedClasses | None, weight: float) -> None:
        """Count a label, and judge the answers that were noted with its row."""
        counts = self._wide(classes)
        counts *= _FADES
        counts[:, column] += 1.0
        fade = LONG**weight
        self.gain *= fade
        if noted is not None and noted.answer is not None and noted.corrected is not None:
            plain, corrected = class_losses(np.stack((noted.answer, noted.corrected)), noted.own)
            self.gain += (plain - corrected) * (1.0 - fade) / (1.0 - LONG)
        self._judged, self._factors = True, _factors_of(counts)

    def cut(self, labels: Mapping[Label, int]) -> Blocks:
        """Return the state, if a label came since the last cut."""
        if not self._judged:
            return {}
        self._judged = False
        blocks = {_GAIN: Block(LOCAL, array_bytes(np.array([self.gain])))}
        counts = self._wide(len(labels))
        for label, column in labels.items():
            blocks[_PREFIX + label_text(label)] = Block(LOCAL, array_bytes(counts[:, column]))
        return blocks

    def rebase(self, values: Blocks, labels: Mapping[Label, int]) -> None:
        """Take new values, unless labels came since the last cut."""
        if self._judged or (block := values.get(_GAIN)) is None:
            return
        self.gain = array_of(block.data).item()
        counts = self._wide(len(labels))
        for label, column in labels.items():
            if (held := values.get(_PREFIX + label_text(label))) is not None:
                counts[:, column] = array_of(held.data)
        self._factors = _factors_of(counts)

    def _wide(self, classes: int) -> Floats:
        """Return the counts, with a column for each class."""
        if (more := classes - self._counts.shape[1]) > 0:
            self._counts = np.hstack((self._counts, np.zeros((2, more))))
        return self._counts


def _factors_of(counts: Floats) -> Floats | None:
    """Return the factor of each class; None if recent labels are as usual."""
    recent, always = counts + PRIOR / counts.shape[1]
    recent /= np.add.reduce(recent)
    always /= np.add.reduce(always)
    if not np.add.reduce(np.abs(recent - always)) > 2.0 * APART:
        return None
    factors: Floats = (always / recent).clip(1.0 / _FACTOR_MAX, _FACTOR_MAX)
    return factors


class ClassExperts(OutputPerClass):
    """Experts with one output for each class, and the correction of their answers."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = LabelShift()

    def cut(self) -> Blocks:
        """Return the open delta and empty it."""
        return {**super().cut(), **self.shift.cut(self.labels)}

    def rebase(self, values: Blocks) -> None:
        """Set new values with the open delta on top, and add classes that are new."""
        super().rebase(values)
        self.shift.rebase(values, self.labels)


_FADES: Final[Floats] = np.array([[RECENT], [LONG]])
