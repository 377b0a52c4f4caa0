"""Online conformal prediction: the threshold of one model's sets and intervals, moved by labels.

The method is adaptive conformal inference (Gibbs and Candès 2021, *Adaptive conformal inference
under distribution shift*, equation 2): after each label the level moves against the error, so that
the share of misses is alpha in the long run for any stream (their proposition 4.1).  Here the
threshold itself moves, not a level of past scores (Angelopoulos, Candès and Tibshirani 2023,
*Conformal PID control*, equation 2), so no past scores have to be stored.

The nonconformity *score* of a label is, in classification, the log odds against it; that of the
most probable label counts as least, so it is in every set and no set is empty.  In regression it is
the log of the absolute error minus the mean log error so far, which makes it independent of units.
A label is in the set if its score is at most q::

    q ← q + step · (1[score > q now] − alpha) + late · (1[score > q when predicted] − alpha)

The second term alone has the guarantee, because the set that was answered counts.  But with late
labels it oscillates, because a move takes effect only in answers whose labels are still missing.
The first term tests the same score with the present threshold, as in quantile tracking.  The step
of the second term shrinks with the delay: beyond a horizon it is divided by the number of labels
between prediction and label.  From :data:`_NEAR` labels of delay on, it also is scaled by how
significantly the recent errors differ from alpha; otherwise it would react to its own oscillation.

With slices (the values of named features) each value has its own part of the threshold, which is
added to the common part: half of each move goes to the slices, divided by the row's features.
Replicas divide a move of the common part by their number.  They divide that of a slice only as far
as all of them together have many of its labels between two exchanges (the number here, this time or
the last, times the replicas), since a few labels can't move it too far.  So each slice has its own
sum of errors, and its share of misses is alpha in the long run, also where slices overlap: this is
the gradient of the pinball loss of a threshold that is linear in the slices (Jung et al. 2023,
*Batch multivalid conformal prediction*; Gibbs, Cherian and Candès 2023).

The threshold of an answer travels with it (:meth:`Confidence.stamp`), in the token and in the row.
So the state is a sum over rows: a block that merges by addition and is never averaged.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from evaluation.metrics import Task
from online.sure.slice_values import Values, plain_value
from paramserver.core.blocks import Blocks
from paramserver.core.sums import Sums
from replay.example import Example, Features, label_text

_Label = TypeVar("_Label")

CONFIDENCE: Final = "confidence"
"""Name of the block with the sums over the learned rows."""

STAMP: Final = struct.Struct("<fI")
"""The threshold of an answer, and the number of labels that had moved it, modulo 2^32."""

_MOVED, _N, _ASKED, _COVERED, _SIZE, _LOGS, _ERRORS, _STRAYED = (
    "moved", "n", "asked", "covered", "size", "log_n", "log_error", "strayed",
)  # fmt: skip
_ODDS_MAX: Final = 8.0
_ALL: Final = _ODDS_MAX + 1.0
_OF_LATE: Final = 1_000.0
_NEAR: Final = 50
_STRAY: Final = 500.0
"""Window of the discounted sum of recent errors, in labels."""
_CHANCE: Final = 3.0
"""Standard deviations of that sum from which on it counts as fully significant."""
_OWN: Final = 0.5
"""Share of a move that goes to the row's slices."""
_TOGETHER: Final = 64.0
"""Labels of a slice between two exchanges, over all replicas, from which on moves are divided."""
_EXACT: Final = 1e-9  # least error, relative to the target


@dataclass(frozen=True, slots=True)
class _Steps:
    """Constants of the threshold's moves: its start, its bounds, and the steps of both terms.

    For numbers the greatest threshold is e³⁰ times the mean error so far, since errors may grow
    from exact answers (1e-9 of the target) to any size; with less, no interval would hold for long.
    ``horizon`` is the delay in labels up to which the ``late`` step is not reduced.
    """

    start: float
    low: float
    high: float
    step: float
    late: float
    horizon: float


_LABELS: Final = _Steps(start=2.0, low=0.0, high=_ALL, step=0.15, late=0.15, horizon=500)
_NUMBER: Final = _Steps(start=1.0, low=-8.0, high=30.0, step=0.02, late=0.2, horizon=25)


class Confidence(Sums):
    """The threshold of one model: a view of the learned rows, with an open delta.

    Parameters:
        task: The model's task.
        level: Coverage: share of sets and intervals that should contain the label, in (0, 1).
        slices: Features whose values have their own part of the threshold.
        most: Most values of each feature; later ones are counted together.
    """

    scores: Final = True

    def __init__(self, task: Task, level: float, slices: Sequence[str] = (), most: int = 0) -> None:
        super().__init__(CONFIDENCE)
        self.level = level
        self._number = task == "regression"
        self._steps = _NUMBER if self._number else _LABELS
        self._own, self._others = 0.0, 0.0  # recent labels counted here, and in other replicas
        self._since: dict[str, int] = {}  # by slice: labels counted here since the last cut
        self._before: dict[str, int] = {}  # by slice: labels between the two cuts before
        self._values = Values(slices, most)
        self._stamp, self._least = b"", 0.0  # cached for the present sums; empty: to be computed

    # -- asking ------------------------------------------------------------------------------

    def stamp(self, features: Features | None = None) -> bytes:
        """Return the current threshold for a row, packed for tokens and rows."""
        own = self._values.keys(features or {}) if self._values.names else ()
        if not self._stamp or own:
            n = int(self.now.get(_N, 0)) & 0xFFFFFFFF
            stamp = STAMP.pack(self._now(own), n)
            if own:
                return stamp
            self._stamp, self._least = stamp, _least(STAMP.unpack(stamp)[0])
        return self._stamp

    def _at(self, own: Sequence[str]) -> float:
        """Return the threshold for rows in these slices, without bounds."""
        sums = self.now
        moved = sums.get(_MOVED, 0.0) + sum([sums.get(f"{key}\t{_MOVED}", 0.0) for key in own])
        return self._steps.start + moved

    def _now(self, own: Sequence[str]) -> float:
        steps = self._steps
        moved = min(max(self._at(own), steps.low), steps.high)
        if not self._number:
            return moved
        logs = self.now.get(_LOGS, 0.0)
        return moved + self.now[_ERRORS] / logs if logs else math.inf

    def labels(self, stamp: bytes, score: Mapping[_Label, float] | None) -> list[_Label] | None:
        """Return the labels in the set, the most probable first; None without an answer.

        ``score`` has the probability of each label, in the form of the model or of rows.
        """
        if not score:
            return None
        least = self._least if stamp is self._stamp else _least(STAMP.unpack(stamp)[0])
        chosen = [label for label, p in score.items() if p >= least]
        if len(chosen) > 1:
            chosen.sort(key=score.__getitem__, reverse=True)
        return chosen or [max(score, key=score.__getitem__)]

    def interval(self, stamp: bytes, answer: float) -> tuple[float, float] | None:
        """Return the ends of the interval around the answer; None before the first label."""
        half = _half(STAMP.unpack(stamp)[0])
        return None if half is None else (answer - half, answer + half)

    # -- learning ----------------------------------------------------------------------------

    def add(self, example: Example, at: float = 0.0, source: str = "") -> None:
        """Count one learned row, unless its answer has no noted threshold."""
        score, stamp = example.score, example.sure
        if not (score and example.scored) or stamp is None or len(stamp) < STAMP.size:
            return
        then, n = STAMP.unpack_from(stamp)
        own = self._values.keys(example.features, learned=True)
        if self._number:
            self._add_number(float(example.label), score.get("", 0.0), then, n, own)
        else:
            self._add_label(label_text(example.label), score, then, n, own)

    def _add_label(
        self, label: str, score: Mapping[str, float], then: float, n: int, own: Sequence[str]
    ) -> None:
        covered, size = _held_label(label, score, then)
        self._count(covered, size)
        right = label == max(score, key=score.__getitem__)
        against = -_ALL if right else _against(score.get(label, -1.0))
        self._move(against > self._now(own), not covered, n, own)

    def _add_number(
        self, target: float, answer: float, then: float, n: int, own: Sequence[str]
    ) -> None:
        error = max(abs(target - answer), _EXACT * max(abs(target), abs(answer)))
        if not math.isfinite(error):
            return
        before = self._now(own)
        log = math.log(error) if error > 0.0 else -math.inf
        held = _held_number(target, answer, then)
        if held is not None:
            self._count(*held)
        if before < math.inf:
            self._move(log > before, None if held is None else not held[0], n, own)
        if error > 0.0:
            self.count(_LOGS, 1)
            self.count(_ERRORS, log)

    def _count(self, covered: bool, size: float) -> None:
        self.count(_ASKED, 1)
        self.count(_COVERED, int(covered))
        self.count(_SIZE, size)

    def _move(
        self, missed: bool, missed_then: bool | None, n: int, own: Sequence[str] = ()
    ) -> None:
        """Move the threshold after a label.

        Parameters:
            missed: Whether the label is outside the set of the present threshold.
            missed_then: Whether it was outside the set that was answered; None: there was none.
            n: Number of labels at the time of the prediction.
            own: The row's slices.
        """
        steps, alpha = self._steps, 1.0 - self.level
        seen = int(self.now.get(_N, 0))
        late = (seen - n) & 0xFFFFFFFF
        if late >= 1 << 31:  # the predicting replica had counted more labels than this one
            late = 0
        by = steps.step * (missed - alpha)
        if missed_then is not None:
            share = min(1.0, steps.horizon / (late + 1))
            if late >= _NEAR:
                share = min(share, max(_NEAR / (late + 1), self._strayed(missed_then - alpha)))
            by += steps.late * share * (missed_then - alpha)
        others = self._others / max(self._own, 1.0)
        self._own += 1.0
        at = self._at(own)
        # Several replicas together may move it beyond its bounds.  Then no replica moves it
        # further, nor back to the bound in one step, since all of them would.
        room = max(steps.high - at, 0.0) if by > 0.0 else min(steps.low - at, 0.0)
        most = min if by > 0.0 else max
        for key in own:
            # with few labels of a slice between two exchanges, no other replica corrects the error
            since = self._since.get(key, 0)
            self._since[key] = since + 1
            came = max(since, self._before.get(key, 0)) * (1.0 + others)
            together = 1.0 + others * min(1.0, came / _TOGETHER)
            self.count(f"{key}\t{_MOVED}", most(by / together, room) * _OWN / len(own))
        by = most(by / (1.0 + others), room)
        self.count(_MOVED, by * (1.0 - _OWN) if own else by)
        self.count(_N, 1)

    def cut(self) -> Blocks:
        """Return the open delta and empty it."""
        self._before, self._since = self._since, {}
        return super().cut()

    def _strayed(self, error: float) -> float:
        """Count an error; return how significantly coverage differs from the level, in [0, 1]."""
        held = min(max(self.now.get(_STRAYED, 0.0), -_STRAY), _STRAY)
        self.count(_STRAYED, error - held / _STRAY)  # bounded, as replicas may discount twice
        variance = self.level * (1.0 - self.level) * _STRAY / 2.0
        return min(1.0, self.now[_STRAYED] ** 2 / (variance * _CHANCE**2))

    def count(self, name: str, value: float) -> None:
        self._stamp = b""
        super().count(name, value)

    def rebase(self, values: Blocks) -> None:
        """Set new values of the given keys with the open delta on top."""
        if (block := values.get(CONFIDENCE)) is not None:
            self._stamp = b""
            self._note_others(block.data.get(_N, 0.0))
            self._values.meet(block.data)
        super().rebase(values)

    def _note_others(self, n: float) -> None:
        """Count the labels of other replicas, given the number ``n`` in the server's values."""
        came = n + self._open.get(_N, 0) - self.now.get(_N, 0)
        if self.now and came > 0:
            self._others += came
        if self._own + self._others > _OF_LATE:
            self._own, self._others = self._own / 2.0, self._others / 2.0

    def reset(self, values: Blocks) -> None:
        """Set the whole state to ``values``, with an empty open delta."""
        self._stamp = b""
        self._values.forget()
        super().reset(values)

    # -- reports -----------------------------------------------------------------------------

    def summary(self) -> dict[str, Any]:
        """Return the coverage of labelled answers, and the mean size of sets or width of intervals.

        Both are None before the first label.  ``slices`` has each slice's own part of the
        threshold, by feature and value.
        """
        n = self.now.get(_ASKED, 0)
        size = "width" if self._number else "size"
        out: dict[str, Any] = {
            "level": self.level,
            "n": int(n),
            "coverage": self.now[_COVERED] / n if n else None,
            size: self.now[_SIZE] / n if n else None,
        }
        if names := self._values.names:
            own: dict[str, dict[str, float]] = {name: {} for name in names}
            for key, moved in self.now.items():
                name, tab, rest = key.partition("\t")
                if tab and name in own:
                    own[name][plain_value(rest.partition("\t")[0])] = moved
            out["slices"] = own
        return out


def held(task: Task, example: Example) -> tuple[bool, float] | None:
    """Return whether the row's set or interval contained its label, and its size; None: no set."""
    score, stamp = example.score, example.sure
    if not score or stamp is None or len(stamp) < STAMP.size:
        return None
    then = STAMP.unpack_from(stamp)[0]
    if task == "regression":
        return _held_number(float(example.label), score.get("", 0.0), then)
    return _held_label(label_text(example.label), score, then)


def _held_label(label: str, score: Mapping[str, float], then: float) -> tuple[bool, float]:
    least = _least(then)
    size = sum([p >= least for p in score.values()])
    covered = score.get(label, -1.0) >= least or label == max(score, key=score.__getitem__)
    return covered, max(size, 1)


def _held_number(target: float, answer: float, then: float) -> tuple[bool, float] | None:
    half = _half(then)
    return None if half is None else (abs(target - answer) <= half, 2.0 * half)


def _least(threshold: float) -> float:
    """Return the least probability of a label in the set."""
    return 0.0 if threshold >= _ODDS_MAX else 1.0 / (1.0 + math.exp(threshold))


def _against(p: float) -> float:
    """Return the log odds against a label; the maximum for a label without a probability."""
    if p < 0.0:
        return _ALL
    if p <= 0.0:
        return _ODDS_MAX
    return min(max(math.log((1.0 - p) / p) if p < 1.0 else -_ODDS_MAX, -_ODDS_MAX), _ODDS_MAX)


def _half(threshold: float) -> float | None:
    """Return half of an interval's width; None before the first label."""
    if not threshold < 700.0:  # NaN too
        return None
    return math.exp(threshold)
