"""A challenger that learns in shadow, and its fair comparison with the serving model.

The challenger learns the journal's rows in commit order (:mod:`online.learning.ordered`).  For a
row two answers are compared: that of the *champion* (the serving model), which the row has, and
that of the *challenger*, which must not have learned any row that the champion had not learned.
With several replicas the champion knows less than the journal had, because a replica receives the
rows of others with a delay.  So each row records which rows were known, the challenger learns some
seconds behind the journal, and rows are read ahead of it::

    journal   … learned │ read ahead: predicted before the first row unknown to the champion │

If the label of a row arrives too late for this, the row is learned and counted as late, but not
compared.  The score of a row is 1 for a correct answer and else 0, in regression the difference of
both errors as a share of their sum; :mod:`evaluation.comparison` decides when a difference is
significant.  All counters are part of the challenger's state, as its parameters are, so each row is
counted at most once.

This module has no Ray, no I/O and no clock; :mod:`online.challenger.shadow` runs it.
"""

from __future__ import annotations

import bisect
import heapq
import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

import msgspec

from evaluation.comparison import Comparison
from evaluation.metrics import Task
from online.learning.base import LEARNED, Failed
from online.learning.ordered import OrderedLearner
from online.models.base import Model, Prediction
from online.models.errors import NotAnswered
from replay import codec
from replay.example import Example, Label, label_of, label_text
from replay.journal.base import Row

Verdict = Literal["better", "worse", "undecided", "not enough data"]

AHEAD_ROWS: Final = 8192
"""Most rows read ahead; with more rows within the delay, rows are learned sooner and are late."""
LATE_SHARE: Final = 0.5
"""Largest share of late rows; above it the compared rows do not represent all."""
_CLIP: Final = 1e-15
_PREFIX: Final = "versus/"
_PAIR: Final = ("pairs", "sum", "squares")


@dataclass(frozen=True, slots=True)
class Standing:
    """The comparison of challenger and champion on the rows that both predicted.

    Attributes:
        verdict: The verdict on the challenger.
        rows, late: Number of compared rows, and of rows whose label came too late for it.
        champion, challenger: Accuracy, in regression the mean absolute error; None before the first
            row.
        champion_loss, challenger_loss: Mean log loss of the rows for which both gave probabilities;
            None in regression.
        difference, interval: Mean difference of the scores, above 0 in the challenger's favour, and
            its confidence interval, valid after any number of rows.
        lacking: Why there is no verdict; empty if there is one.
    """

    verdict: Verdict
    rows: int
    late: int
    champion: float | None
    challenger: float | None
    champion_loss: float | None
    challenger_loss: float | None
    difference: float | None
    interval: tuple[float, float] | None
    lacking: tuple[str, ...]

    def summary(self) -> dict[str, Any]:
        """Return the standing as plain data."""
        return {**asdict(self), "lacking": list(self.lacking)}

    def held_back(self, task: Task) -> str | None:
        """Return why the challenger must not be promoted automatically; None if it may."""
        if self.verdict != "better":
            return f"the verdict is {self.verdict}"
        worse = self.challenger_loss, self.champion_loss
        if task == "regression":
            worse = self.challenger, self.champion
        if worse[0] is not None and worse[1] is not None and worse[0] > worse[1]:
            what = "mean error" if task == "regression" else "log loss"
            return f"its {what} is {worse[0]:.4g}, the champion's {worse[1]:.4g}"
        return None


class Challenger(OrderedLearner):
    """The learner of the challenger, in a process of its own that serves no requests.

    Parameters:
        build: Makes an untrained model.
        task, spec, rows_max: As for :class:`~online.learning.ordered.OrderedLearner`.
        rival: Identifies the champion and since when it serves; each rival has its own counters.
    """

    def __init__(
        self, build: Callable[[], Model], *, task: Task, spec: str, rows_max: int, rival: str
    ) -> None:
        super().__init__(build, task=task, spec=spec, rows_max=rows_max)
        self._prefix = f"{_PREFIX}{rival}/"
        self._answers: dict[int, Example] = {}  # seq → the row with this model's answer
        self._champions: dict[int, Mapping[str, float]] = {}
        self._late: set[int] = set()

    def ask(self, seq: int, example: Example, *, compare: bool) -> None:
        """Predict a row before it is learned, with the present parameters.

        ``compare`` is true if the answer in the row is the champion's.
        """
        try:
            answer = self.serving.predict(example.features)
        except NotAnswered:
            answer = Prediction(None, None)
        if compare and example.score is not None:
            self._champions[seq] = example.score
        self._answers[seq] = msgspec.structs.replace(
            example, score=self.score(answer), notes=answer.notes
        )

    def too_late(self, seq: int) -> None:
        """Record that a row can't be compared: a row unknown to the champion is learned already."""
        self._late.add(seq)

    def _example(self, row: Row) -> Example:
        """Return the row to learn, with this model's answer and notes or none."""
        if (predicted := self._answers.pop(row.seq, None)) is not None:
            return predicted
        return msgspec.structs.replace(codec.decode(row.payload), score=None, notes=None)

    def _counted(self, row: Row, example: Example) -> dict[str, float]:
        counted = super()._counted(row, example)
        if row.seq in self._late:
            return {**counted, f"{self._prefix}late": 1}
        champion = self._champions.get(row.seq)
        if champion is None:
            return counted
        versus = self._versus(champion, example.score or {}, example.label)
        return counted | {self._prefix + name: value for name, value in versus.items()}

    def _versus(
        self, champion: Mapping[str, float], own: Mapping[str, float], label: Label
    ) -> dict[str, float]:
        """Return what a row adds to the counters of the comparison; no answer counts as wrong."""
        ours, theirs = _outcome(self._task, own, label), _outcome(self._task, champion, label)
        a, b = ours, theirs
        if self._task == "regression":
            both = ours + theirs
            a, b = (0.0, 0.0) if both == 0 else (_share(theirs, ours), 0.0)
            ours, theirs = min(ours, 1e300), min(theirs, 1e300)
        comparison = Comparison()
        comparison.merge({name: self._seen(name) for name in _PAIR})
        out = {**comparison.add(a, b), "challenger": ours, "champion": theirs}
        if self._task != "regression" and len(own) > 1 and len(champion) > 1:
            out["both"] = 1
            out["challenger_loss"], out["champion_loss"] = _loss(own, label), _loss(champion, label)
        return out

    def _write_down(self) -> None:
        super()._write_down()  # rows up to here are not replayed
        for answers in (self._answers, self._champions):
            for seq in [seq for seq in answers if seq <= self.position]:
                del answers[seq]
        self._late = {seq for seq in self._late if seq > self.position}

    def _seen(self, name: str) -> float:
        return self.tally.counters.get(self._prefix + name, 0.0)

    def standing(self, *, rows_min: int, alpha: float = 0.05) -> Standing:
        """Return the present comparison with the champion."""
        comparison = Comparison(alpha)
        comparison.merge({name: self._seen(name) for name in _PAIR})
        now = comparison.now()
        late, n, both = int(self._seen("late")), now.n, self._seen("both")
        lacking = list(now.lacking)
        if 0 < n < rows_min:
            lacking = [f"{n} rows were compared, rows_min asks for {rows_min}"]
        if late > LATE_SHARE * (n + late):
            lacking.append(
                f"{late} of {n + late} labels came later than challenger.delay after the question"
            )
        verdict: Verdict = "undecided"
        if lacking:
            verdict = "not enough data"
        elif now.better is not None:
            verdict = "better" if now.better == "a" else "worse"
        interval = None if now.interval is None else (now.interval.low, now.interval.high)
        return Standing(
            verdict, n, late,
            self._seen("champion") / n if n else None,
            self._seen("challenger") / n if n else None,
            self._seen("champion_loss") / both if both else None,
            self._seen("challenger_loss") / both if both else None,
            now.mean, interval, tuple(lacking),
        )  # fmt: skip


def _outcome(task: Task, score: Mapping[str, float], label: Label) -> float:
    """Return 1 for a correct label, else 0; in regression the absolute error, or infinity."""
    if task == "regression":
        answer = score.get("")
        return math.inf if answer is None else abs(answer - float(label))
    return float(bool(score) and label_of(max(score, key=score.__getitem__)) == label)


def _share(champion: float, challenger: float) -> float:
    """Return (champion − challenger) / (champion + challenger) of two errors, in [−1, 1]."""
    if math.isinf(champion) or math.isinf(challenger):
        return float(math.isinf(champion)) - float(math.isinf(challenger))
    return (champion - challenger) / (champion + challenger)


def _loss(score: Mapping[str, float], label: Label) -> float:
    return -math.log(min(max(score.get(label_text(label), 0.0), _CLIP), 1.0))


class ReadAhead:
    """Rows read ahead of a challenger, and when each of them has to be predicted.

    Parameters:
        learner: The challenger.
        delay_s: Seconds between the receipt of a row and its learning, in which later labels of
            earlier predictions can arrive.
        by_champion: Whether the present champion answered the row; another model may have served
            before.
        sealed: Whether a partition takes no more rows.
        alone: Whether a single replica serves, which knows all rows before a request.
        rows_max: Most rows read ahead.
    """

    def __init__(
        self,
        learner: Challenger,
        delay_s: float,
        by_champion: Callable[[Row, Example], bool],
        sealed: Callable[[int], bool],
        alone: Callable[[], bool],
        rows_max: int = AHEAD_ROWS,
    ) -> None:
        self._learner, self._delay_s, self._rows_max = learner, delay_s, rows_max
        self._by_champion, self._sealed, self._alone = by_champion, sealed, alone
        self.rows: deque[Row] = deque()
        # heaps of (predict before this seq or time, the row's seq, row, compare)
        self._asks: list[tuple[int, int, Example, bool]] = []
        self._asks_at: list[tuple[float, int, Example, bool]] = []
        self._ahead: dict[int, list[tuple[int, int]]] = {}  # partition → (offset, seq)
        self._last = learner.known()  # partition → last learned offset
        self._learned_at: float | None = None if learner.position else -math.inf
        self._seen_at = -math.inf  # all rows received before this time were read

    @property
    def room(self) -> int:
        """Return how many rows may be read now."""
        return self._rows_max - len(self.rows)

    def read(self, rows: Sequence[Row], ended_s: float | None) -> None:
        """Add the next rows in commit order.

        ``ended_s`` is the time at which there were no further rows; None if there are more.
        """
        self._seen_at = max((row.at for row in rows), default=-math.inf)
        if ended_s is not None:
            self._seen_at = ended_s
        if rows and self._learned_at is None:  # after a start all learned rows are older
            self._learned_at = rows[0].at
        for row in rows:
            self.rows.append(row)
            if row.verdict not in LEARNED:
                continue
            self._ahead.setdefault(row.partition, []).append((row.offset, row.seq))
            example = codec.decode(row.payload)
            if not example.scored:
                continue
            if example.score is not None and example.predicted_at is not None:
                self._note(row, example)

    def _note(self, row: Row, example: Example) -> None:
        """Schedule the prediction of a row, or record that it is too late for it."""
        compare = self._by_champion(row, example)
        if example.known is not None:
            before = self._first_unknown(example.known, row)
            if before is not None:
                heapq.heappush(self._asks, (before, row.seq, example, compare))
            elif compare:
                self._learner.too_late(row.seq)
            return
        assert self._learned_at is not None
        assert example.predicted_at is not None
        # The row does not record what the champion knew; a single replica knew all earlier rows.
        if self._alone() and example.predicted_at > self._learned_at:
            asked_at = min(example.predicted_at, row.at)  # the clock may have been set back
            heapq.heappush(self._asks_at, (asked_at, row.seq, example, compare))
        elif compare:
            self._learner.too_late(row.seq)

    def _first_unknown(self, known: Mapping[int, int], row: Row) -> int | None:
        """Return the seq of the first row that the champion did not know when it answered ``row``.

        None if such a row is learned already, or if ``known`` is empty.
        """
        newest, first = max(known, default=-1), row.seq
        if newest < 0:
            return None
        for partition in self._ahead.keys() | self._last.keys():
            last = known.get(partition)
            if last is None:
                if partition < newest and self._sealed(partition):
                    continue  # a sealed partition: every model has all of it
                last = 0
            if self._last.get(partition, 0) > last:
                return None
            ahead = self._ahead.get(partition, [])
            at = bisect.bisect_right(ahead, (last, math.inf))
            if at < len(ahead):
                first = min(first, ahead[at][1])
        return first

    def due(self) -> bool:
        """Return whether the next row may be learned, since labels had ``delay_s`` to arrive.

        A row that was received more than ``delay_s`` after the present does not wait for that time:
        the clock was set back.
        """
        if not self.rows:
            return False
        return abs(self._seen_at - self.rows[0].at) >= self._delay_s or self.room < 1

    def learn(self, give_up: Callable[[Row], str | None]) -> Failed | None:
        """Learn the next row, after predicting the rows that are due before it."""
        row = self.rows.popleft()
        while self._asks and self._asks[0][0] <= row.seq:
            _, seq, example, compare = heapq.heappop(self._asks)
            self._learner.ask(seq, example, compare=compare)
        while self._asks_at and self._asks_at[0][0] <= row.at:
            _, seq, example, compare = heapq.heappop(self._asks_at)
            self._learner.ask(seq, example, compare=compare)
        if row.verdict in LEARNED:
            del self._ahead[row.partition][0]
            self._last[row.partition] = row.offset
        failed = self._learner.learn(row, give_up(row))
        last = -math.inf if self._learned_at is None else self._learned_at
        self._learned_at = row.at if last - row.at >= self._delay_s else max(last, row.at)
        return failed
