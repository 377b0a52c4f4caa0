"""Calibration of probabilities by temperature scaling, learned online from labels.

A model that predicts .99 and is right nine times in ten is overconfident.  Its log probabilities
are multiplied by one number, the *sharpness* (the inverse of a temperature), and normalised again
(Platt 1999 without an intercept; Guo et al. 2017, *On calibration of modern neural networks*).
The order of the labels stays, so the predicted label does not change, and the model itself does not
learn from it.

For each label the log loss of its answer is computed at each sharpness in :data:`GRID`.  The sums
are discounted over about :data:`_MEMORY` labels.  The sharpness with the least sum, interpolated by
a parabola, is the current one.  It is applied only

* if by these sums it gains more than :data:`_GAIN` for each row plus :data:`_FREE`.  The gain for
  each row must grow with the delay of labels, because it is one of the past; if labels are more
  than :data:`_LATE_MAX` labels late, it is never applied;
* while its total loss against the model's own probabilities is below :data:`_BUDGET` for each row
  plus :data:`_FREE`.  This bound shrinks with the delay, because answers whose labels are still
  missing may lose, too.

The model's own probabilities follow from the answer and its sharpness, which travels with the
answer in five bytes, with the number of labels at that time.  So the state is a sum over rows: a
block that merges by addition and is never averaged.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from online.models.base import Prediction
from online.sure.conformal import STAMP
from paramserver.core.blocks import Blocks
from paramserver.core.sums import Sums
from replay.example import Example, label_text

CALIBRATION: Final = "calibration"
"""Name of the block with the sums over the learned rows."""

GRID: Final = tuple(2.0 ** (half / 2) for half in range(-4, 4))
"""The sharpnesses that are compared; 1 leaves the model's probabilities as they are."""

_ONE: Final = GRID.index(1.0)
_POWERS: Final = np.array(GRID)[:, None]
_STEPS: Final = 8  # steps in a factor of 2: an answer's sharpness is a whole number of steps
_STAMP: Final = struct.Struct("<bI")
_NARROW: Final = struct.Struct(
    "<bH"
)  # of older versions: a delay of 40,000 labels looked like none
_MEMORY: Final = 1_000.0
_GAIN: Final = 0.003
_BUDGET, _FREE = 0.001, 3.0
_LATE: Final = 20.0  # mean delay, in labels, at which the bounds double
_LATE_MAX: Final = 150.0  # the stream may have drifted by then
_ROWS_MIN: Final = 100
_LATE_ROWS: Final = 3.0  # more rows needed for each label of delay: first labels have short delays
_WORST: Final = -math.log(1e-6)  # bound of a row's loss, so that no row dominates the sums
_REACH: Final = (-_WORST * _MEMORY, _WORST * _MEMORY)
"""Bounds of a sum when it is discounted.  Replicas together may discount more than there was; with
an unbounded sum that would oscillate with growing amplitude."""
_LEAST: Final = 1e-15
_N, _SEEN, _COMPARED, _LATENESS, _GAINED = "n", "seen", "compared", "late", "gained"
_LOSSES: Final = tuple(f"loss/{i}" for i in range(len(GRID)))

Floats = npt.NDArray[np.float64]


class Calibration(Sums):
    """The sharpness of one model's answers: a view of the learned rows, with an open delta."""

    scores: Final = True

    def __init__(self) -> None:
        super().__init__(CALIBRATION)
        self._step: int | None = 0  # None: to be recomputed

    # -- asking ------------------------------------------------------------------------------

    def answered(self, answer: Prediction) -> Prediction:
        """Return the calibrated answer; the same object while no sharpness is applied."""
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
        """Return the current sharpness and number of labels, packed for tokens and rows."""
        return _STAMP.pack(self._now(), int(self.now.get(_N, 0)) & 0xFFFFFFFF)

    @property
    def on(self) -> bool:
        """Return whether a sharpness other than 1 is applied now."""
        return bool(self._now())

    def _now(self) -> int:
        if self._step is None:
            self._step = self._found()
        return self._step

    def _found(self) -> int:
        """Compute the current sharpness in steps; 0: no correction."""
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
        """Count one learned row, unless its answer has no noted sharpness."""
        score, own_part = example.score, _own_part(example.sure)
        if own_part is None or not (score and example.scored) or len(score) < 2:
            return
        then, n, wraps = own_part
        label = label_text(example.label)
        if label not in score:  # a class that the model did not know then
            return
        shares = np.array(list(score.values()))
        if not np.isfinite(shares).all():
            return
        own = np.log(np.maximum(shares, _LEAST)) / _sharpness(then)
        losses = _losses(own, list(score).index(label))
        late = (int(self.now.get(_N, 0)) - n) % wraps
        fading = {name: losses[i] - losses[_ONE] for i, name in enumerate(_LOSSES)}
        fading |= {_SEEN: 1.0, _LATENESS: float(late if late < wraps / 2 else 0)}
        for name, value in fading.items():
            held = self.now.get(name, 0.0)
            least, most = _REACH if name in _LOSSES else (0.0, math.inf)
            self.count(name, value - min(max(held, least), most) / _MEMORY)
        if then:
            given_loss = min(-math.log(max(score[label], _LEAST)), _WORST)
            self.count(_GAINED, losses[_ONE] - given_loss)
        self.count(_COMPARED, 1.0)
        self.count(_N, 1)

    def count(self, name: str, value: float) -> None:
        self._step = None
        super().count(name, value)

    def rebase(self, values: Blocks) -> None:
        """Set new values of the given keys with the open delta on top."""
        self._step = None if CALIBRATION in values else self._step
        super().rebase(values)

    def reset(self, values: Blocks) -> None:
        """Set the whole state to ``values``, with an empty open delta."""
        self._step = 0
        super().reset(values)

    # -- reports -----------------------------------------------------------------------------

    def summary(self) -> dict[str, Any]:
        """Return sharpness, number of rows, mean delay in labels, and log loss gained per row."""
        n = self.now.get(_COMPARED, 0.0)
        return {
            "sharpness": _sharpness(self._now()),
            "n": int(n),
            "late": round(self._late, 1),
            "gained": self.now.get(_GAINED, 0.0) / n if n else None,
        }


def _sharpness(step: int) -> float:
    return float(2.0 ** (step / _STEPS))


def _own_part(sure: bytes | None) -> tuple[int, int, int] | None:
    """Return sharpness and number of a row's stamp, and where numbers begin anew; None without it.

    This module's part of the stamp is the last one.
    """
    for form, wraps in (_STAMP, 1 << 32), (_NARROW, 1 << 16):
        if sure is not None and len(sure) in (form.size, STAMP.size + form.size):
            step, n = form.unpack(sure[-form.size :])
            return step, n, wraps
    return None


def _losses(logs: Floats, label: int) -> Sequence[float]:
    """Return the log loss of the label at each sharpness of the grid."""
    scaled = _POWERS * (logs - logs.max())
    totals = np.log(np.exp(scaled).sum(axis=1))
    losses: list[float] = np.minimum(totals - scaled[:, label], _WORST).tolist()
    return losses
