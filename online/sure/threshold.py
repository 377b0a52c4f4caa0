"""The threshold behind the sets and intervals of one model, moved by the labels that come back.

Adaptive conformal inference (Gibbs and Candès 2021, *Adaptive conformal inference under
distribution shift*, equation 2): after each label the level moves against the error, so that the
share of misses is alpha in the long run, whatever the stream does (their proposition 4.1).  Here
the threshold itself moves, not a level of past scores (Angelopoulos, Candès and Tibshirani 2023,
*Conformal PID control*, equation 2): nothing of the past has to be kept.

A label's *score* says how little the answer was for it.  In classification it is the log odds
against it, and that of the most probable label is the least of all: a set always has it, and an
empty one is no answer.  In regression it is the logarithm of the error, less the mean logarithm of
all errors so far, so that no unit matters.  A label is in the set if its score is at most q::

    q ← q + step · (1[score > q now] − alpha) + late · (1[score > q when it was asked] − alpha)

The second part alone has the guarantee, for what counts is the set that was answered; with late
labels it alone swings, because a move shows only when the answers that it changed are labelled.
The first one looks at the same score with the threshold of now, as a quantile is tracked.  The
second one's step is learned from how late labels are: it is divided by the labels that came between
the question and its label, beyond a horizon.  Where labels come :data:`_NEAR` labels late and more,
it moves by as much as the errors of answers of late say more than chance does: else it goes on
swinging after what it has done itself.

With slices (the values of named features) each value has a part of the threshold of its own, which
is added to that of all: half of each move goes there, shared by the row's features.  Replicas
divide a move of all by how many they are; a slice's only as far as all of them together have many
of its labels between two exchanges (here, this time or the last, times the replicas), for what few
labels do is not too much.  So each slice has its own sum of errors, and the share of misses is
alpha in each in the long run, overlapping ones, too; that is the gradient of the pinball loss in a
threshold that is linear in the slices (Jung et al. 2023, *Batch multivalid conformal prediction*;
Gibbs, Cherian and Candès 2023).

What the answer was given with travels with it (:meth:`Confidence.stamp`), in the id and in the row.
So the state is a sum over rows: a block that adds over replicas, and is never averaged.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from evaluation.metrics import Task
from online.sure.values import Values, plain_value
from paramserver.core.blocks import Blocks
from paramserver.core.sums import Sums
from replay.example import Example, Features, label_text

_Label = TypeVar("_Label")

CONFIDENCE: Final = "confidence"
"""The block: sums over the learned rows."""

STAMP: Final = struct.Struct("<fI")
"""The threshold of an answer, and how many labels had moved it, modulo 2^32."""

_MOVED, _N, _ASKED, _COVERED, _SIZE, _LOGS, _ERRORS, _STRAYED = (
    "moved", "n", "asked", "covered", "size", "log_n", "log_error", "strayed",
)  # fmt: skip
_ODDS_MAX: Final = 8.0
_ALL: Final = _ODDS_MAX + 1.0
_OF_LATE: Final = 1_000.0
_NEAR: Final = 50
_STRAY: Final = 500.0
"""Labels over which the errors of late are summed."""
_CHANCE: Final = 3.0
"""Standard deviations of that sum from which on it says all."""
_OWN: Final = 0.5
"""Share of a move that is of the row's slices alone."""
_TOGETHER: Final = 64.0
"""Labels of a slice in all replicas between two exchanges from which on they correct one error."""
_EXACT: Final = 1e-9  # an error is taken for at least this share of the target


@dataclass(frozen=True, slots=True)
class _Steps:
    """How the threshold moves: steps of the two parts, and its ends.

    ``horizon``: labels that may lie between a question and its label at the whole ``late`` step;
    divided by that step, it is the most by which labels of one moment can move it too far.
    """

    start: float
    low: float
    high: float
    step: float
    late: float
    horizon: float


_LABELS: Final = _Steps(start=2.0, low=0.0, high=_ALL, step=0.15, late=0.15, horizon=500)
_NUMBER: Final = _Steps(start=1.0, low=-8.0, high=6.0, step=0.02, late=0.2, horizon=25)


class Confidence(Sums):
    """The threshold of one model, with an open delta; a view of the learned rows.

    Parameters:
        level: Share of sets and intervals that are to have the label, above 0 and below 1.
        slices: Features whose values have a part of the threshold of their own.
        most: Values that each has; others are one.
    """

    def __init__(self, task: Task, level: float, slices: Sequence[str] = (), most: int = 0) -> None:
        super().__init__(CONFIDENCE)
        self.level = level
        self._number = task == "regression"
        self._steps = _NUMBER if self._number else _LABELS
        self._own, self._others = 0.0, 0.0  # labels of late that moved it here, and elsewhere
        self._since: dict[str, int] = {}  # by slice, labels that moved it here since the cut
        self._before: dict[str, int] = {}  # the same between the two cuts before
        self._values = Values(slices, most)
        self._stamp, self._least = b"", 0.0  # of the sums as they are; empty: they have changed

    # -- asking ------------------------------------------------------------------------------

    def stamp(self, features: Features | None = None) -> bytes:
        """The threshold of now for a row with these features, as ids and rows keep it."""
        own = self._values.keys(features or {}) if self._values.names else ()
        if not self._stamp or own:
            n = int(self.now.get(_N, 0)) & 0xFFFFFFFF
            stamp = STAMP.pack(self._now(own), n)
            if own:
                return stamp
            self._stamp, self._least = stamp, _least(STAMP.unpack(stamp)[0])
        return self._stamp

    def _at(self, own: Sequence[str]) -> float:
        """How far the threshold has moved, for rows of these slices."""
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
        """The labels in the set, the most probable first; None without an answer.

        ``score`` has the probability of each, as the model or rows name them.
        """
        if not score:
            return None
        least = self._least if stamp is self._stamp else _least(STAMP.unpack(stamp)[0])
        found = [label for label, p in score.items() if p >= least]
        if len(found) > 1:
            found.sort(key=score.__getitem__, reverse=True)
        return found or [max(score, key=score.__getitem__)]

    def interval(self, stamp: bytes, answer: float) -> tuple[float, float] | None:
        """The lowest and the highest target; None before the first label."""
        half = _half(STAMP.unpack(stamp)[0])
        return None if half is None else (answer - half, answer + half)

    # -- learning ----------------------------------------------------------------------------

    def add(self, example: Example, at: float = 0.0, source: str = "") -> None:
        """Count one learned row.  One that was answered without a threshold says nothing."""
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
        found = _held_number(target, answer, then)
        if found is not None:
            self._count(*found)
        if before < math.inf:
            self._move(log > before, None if found is None else not found[0], n, own)
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
        """A label came of a row in the slices ``own``; ``n``: how many had when it was asked."""
        steps, alpha = self._steps, 1.0 - self.level
        seen = int(self.now.get(_N, 0))
        late = (seen - n) & 0xFFFFFFFF
        if late >= 1 << 31:  # another replica knew more than this one does
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
        # Beyond its ends, where several replicas together may bring it, nobody moves it further;
        # nor back at once, for then all of them would.
        room = max(steps.high - at, 0.0) if by > 0.0 else min(steps.low - at, 0.0)
        most = min if by > 0.0 else max
        for key in own:
            # few labels of a slice come between two exchanges: nobody else corrects their error
            since = self._since.get(key, 0)
            self._since[key] = since + 1
            came = max(since, self._before.get(key, 0)) * (1.0 + others)
            together = 1.0 + others * min(1.0, came / _TOGETHER)
            self.count(f"{key}\t{_MOVED}", most(by / together, room) * _OWN / len(own))
        by = most(by / (1.0 + others), room)
        self.count(_MOVED, by * (1.0 - _OWN) if own else by)
        self.count(_N, 1)

    def cut(self) -> Blocks:
        """The open delta, and reset it."""
        self._before, self._since = self._since, {}
        return super().cut()

    def _strayed(self, error: float) -> float:
        """How sure the errors of late say that the coverage is not what is asked, up to 1."""
        held = min(max(self.now.get(_STRAYED, 0.0), -_STRAY), _STRAY)
        self.count(_STRAYED, error - held / _STRAY)  # more than that replicas let fade twice
        variance = self.level * (1.0 - self.level) * _STRAY / 2.0
        return min(1.0, self.now[_STRAYED] ** 2 / (variance * _CHANCE**2))

    def count(self, name: str, value: float) -> None:
        self._stamp = b""
        super().count(name, value)

    def rebase(self, values: Blocks) -> None:
        """Take new values for the keys given, with the open delta on top."""
        if (block := values.get(CONFIDENCE)) is not None:
            self._stamp = b""
            self._note_others(block.data.get(_N, 0.0))
            self._values.meet(block.data)
        super().rebase(values)

    def _note_others(self, n: float) -> None:
        """So many labels moved the values of the server."""
        came = n + self._open.get(_N, 0) - self.now.get(_N, 0)
        if self.now and came > 0:
            self._others += came
        if self._own + self._others > _OF_LATE:
            self._own, self._others = self._own / 2.0, self._others / 2.0

    def reset(self, values: Blocks) -> None:
        """Become exactly ``values``, with an empty open delta."""
        self._stamp = b""
        self._values.forget()
        super().reset(values)

    # -- what is told ------------------------------------------------------------------------

    def summary(self) -> dict[str, Any]:
        """Coverage of the answers whose labels came, and the mean size or width of what was said.

        Both are None before the first.  ``slices``: by feature and value, how much more than that
        of all its threshold is.
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
    """Whether what the row was answered with had its label, and its size; None: nothing was."""
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
    """The least probability of a label in the set."""
    return 0.0 if threshold >= _ODDS_MAX else 1.0 / (1.0 + math.exp(threshold))


def _against(p: float) -> float:
    """The log odds against a label; the most for one that had no probability."""
    if p < 0.0:
        return _ALL
    if p <= 0.0:
        return _ODDS_MAX
    return min(max(math.log((1.0 - p) / p) if p < 1.0 else -_ODDS_MAX, -_ODDS_MAX), _ODDS_MAX)


def _half(threshold: float) -> float | None:
    """Half of an interval's width; None: nobody knows yet."""
    if not threshold < 700.0:  # NaN too
        return None
    return math.exp(threshold)
