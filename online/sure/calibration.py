"""Probabilities that say how often: one temperature for a model's answers, learned from labels.

A model that says .99 and is right nine times in ten is too sure.  Its log probabilities are
multiplied by one number, the *sharpness*, and made a distribution again (Platt 1999 without an
intercept; Guo et al. 2017, *On calibration of modern neural networks*).  That keeps the order of
labels, so no answer becomes another one; the model itself learns nothing of it.

Each label tells what its answer would have lost at each of :data:`GRID` sharpnesses.  The sums fade
over about :data:`_MEMORY` labels, and the least of them, between its neighbours by a parabola, is
the sharpness of now.  It is applied only

* if by these sums it gains more than :data:`_GAIN` a row, and :data:`_FREE` in all; the later
  labels are, the more, for the gain is one of the past, and with labels that come more than
  :data:`_LATE_MAX` labels later never;
* while what it has lost by all labels so far, if anything, is less than :data:`_BUDGET` a row, and
  :data:`_FREE`; the later labels are, the less, for what is under way is lost, too.

What the model itself had said follows from the answer and its sharpness, which travels with it in
three bytes, with the number of labels then.  So the state is a sum over rows: a block that adds
over replicas, and is never averaged.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from online.models.base import Prediction
from online.sure.threshold import STAMP
from paramserver.core.blocks import Blocks
from paramserver.core.sums import Sums
from replay.example import Example, label_text

CALIBRATION: Final = "calibration"
"""The block: sums over the learned rows."""

GRID: Final = tuple(2.0 ** (half / 2) for half in range(-4, 4))
"""The sharpnesses that are compared; 1: the model's own."""

_ONE: Final = GRID.index(1.0)
_POWERS: Final = np.array(GRID)[:, None]
_STEPS: Final = 8  # of a doubling: an answer's sharpness is a whole number of them
_STAMP: Final = struct.Struct("<bH")
_MEMORY: Final = 1_000.0
_GAIN: Final = 0.003
_BUDGET, _FREE = 0.001, 3.0
_LATE: Final = 20.0  # labels by which it is asked for twice as much
_LATE_MAX: Final = 150.0  # a world that turns has turned by then
_ROWS_MIN: Final = 100
_LATE_ROWS: Final = 3.0  # more labels for each one of lateness: the first ones seem to come soon
_WORST: Final = -math.log(1e-6)  # a row loses no more, so that one tells no more than some others
_REACH: Final = (-_WORST * _MEMORY, _WORST * _MEMORY)
"""Beyond it no losses bring a sum, but replicas that have together let fade more than there was: it
fades no faster, or it would swing ever wider."""
_LEAST: Final = 1e-15
_N, _SEEN, _COMPARED, _LATENESS, _GAINED = "n", "seen", "compared", "late", "gained"
_LOSSES: Final = tuple(f"loss/{i}" for i in range(len(GRID)))

Floats = npt.NDArray[np.float64]


class Calibration(Sums):
    """The sharpness of one model's answers, with an open delta; a view of the learned rows."""

    def __init__(self) -> None:
        super().__init__(CALIBRATION)
        self._step: int | None = 0  # None: it is to be found again

    # -- asking ------------------------------------------------------------------------------

    def answered(self, answer: Prediction) -> Prediction:
        """The model's answer as it is given; the same one while it is not corrected."""
        shares = answer.probabilities
        if not (step := self._now()) or shares is None or len(shares) < 2:
            return answer
        logs = [math.log(max(p, _LEAST)) for p in shares.values()]  # NaN stays
        if not math.isfinite(sum(logs)):
            return answer
        sharp, most = _sharpness(step), max(logs)
        powers = [math.exp(sharp * (log - most)) for log in logs]
        total = sum(powers)
        named = dict(zip(shares, [power / total for power in powers], strict=True))
        return Prediction(answer.label, named, answer.notes)

    def stamp(self) -> bytes:
        """The sharpness of now and the number of labels, as ids and rows keep them."""
        return _STAMP.pack(self._now(), int(self.now.get(_N, 0)) & 0xFFFF)

    @property
    def on(self) -> bool:
        """Whether answers are corrected now."""
        return bool(self._now())

    def _now(self) -> int:
        if self._step is None:
            self._step = self._found()
        return self._step

    def _found(self) -> int:
        """Steps of the sharpness of now; 0: the model's own is left as it is."""
        sums = self.now
        seen, lost = sums.get(_SEEN, 0.0), -sums.get(_GAINED, 0.0)
        if seen < _ROWS_MIN + _LATE_ROWS * self._late or self._late > _LATE_MAX:
            return 0
        times = 1.0 + self._late / _LATE
        if lost * times > _BUDGET * sums.get(_COMPARED, 0.0) + _FREE:
            return 0
        losses = [sums.get(name, 0.0) for name in _LOSSES]
        best = min(range(len(GRID)), key=losses.__getitem__)
        if -losses[best] <= _GAIN * seen * times + _FREE:
            return 0
        at = float(best)
        if 0 < best < len(GRID) - 1:
            before, here, after = losses[best - 1 : best + 2]
            if (bent := before - 2.0 * here + after) > 0.0:
                at += 0.5 * (before - after) / bent
        return round((at - _ONE) / 2.0 * _STEPS)

    @property
    def _late(self) -> float:
        seen = self.now.get(_SEEN, 0.0)
        return self.now.get(_LATENESS, 0.0) / seen if seen else 0.0

    # -- learning ----------------------------------------------------------------------------

    def add(self, example: Example, at: float = 0.0, source: str = "") -> None:
        """Count one learned row.  One that was answered without a sharpness says nothing."""
        score, stamp = example.score, _own_part(example.sure)
        if stamp is None or not (score and example.scored) or len(score) < 2:
            return
        then, n = _STAMP.unpack(stamp)
        label = label_text(example.label)
        if label not in score:  # a class that was not known then
            return
        shares = np.array(list(score.values()))
        if not np.isfinite(shares).all():
            return
        own = np.log(np.maximum(shares, _LEAST)) / _sharpness(then)
        losses = _losses(own, list(score).index(label))
        late = (int(self.now.get(_N, 0)) - n) & 0xFFFF
        fading = {name: losses[i] - losses[_ONE] for i, name in enumerate(_LOSSES)}
        fading |= {_SEEN: 1.0, _LATENESS: float(late if late < 1 << 15 else 0)}
        for name, value in fading.items():
            held = self.now.get(name, 0.0)
            least, most = _REACH if name in _LOSSES else (0.0, math.inf)
            self.count(name, value - min(max(held, least), most) / _MEMORY)
        if then:
            given = min(-math.log(max(score[label], _LEAST)), _WORST)
            self.count(_GAINED, losses[_ONE] - given)
        self.count(_COMPARED, 1.0)
        self.count(_N, 1)

    def count(self, name: str, value: float) -> None:
        self._step = None
        super().count(name, value)

    def rebase(self, values: Blocks) -> None:
        """Take new values for the keys given, with the open delta on top."""
        self._step = None if CALIBRATION in values else self._step
        super().rebase(values)

    def reset(self, values: Blocks) -> None:
        """Become exactly ``values``, with an empty open delta."""
        self._step = 0
        super().reset(values)

    # -- what is told ------------------------------------------------------------------------

    def summary(self) -> dict[str, Any]:
        """The sharpness of now, rows that told of it, how late they are, log loss gained a row."""
        n = self.now.get(_COMPARED, 0.0)
        return {
            "sharpness": _sharpness(self._now()),
            "n": int(n),
            "late": round(self._late, 1),
            "gained": self.now.get(_GAINED, 0.0) / n if n else None,
        }


def _sharpness(step: int) -> float:
    return float(2.0 ** (step / _STEPS))


def _own_part(sure: bytes | None) -> bytes | None:
    """The part of a row's stamp that is of this module, which stands last."""
    if sure is None or len(sure) not in (_STAMP.size, STAMP.size + _STAMP.size):
        return None
    return sure[-_STAMP.size :]


def _losses(logs: Floats, label: int) -> Sequence[float]:
    """Return the losses of the label at each sharpness of the grid."""
    scaled = _POWERS * (logs - logs.max())
    totals = np.log(np.exp(scaled).sum(axis=1))
    found: list[float] = np.minimum(totals - scaled[:, label], _WORST).tolist()
    return found
