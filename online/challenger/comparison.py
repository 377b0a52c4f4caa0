"""A second model that learns in shadow, asked each row as of when the serving one was.

The rows of the journal are learned in commit order (:mod:`online.learning.ordered`).  What is
compared are two answers to the same row: the *champion's*, which stands in the row, and the
*challenger's*, which may know no label that the champion did not know.  With several replicas that
is less than what had come: a replica hears of what others have taken some time later.  So the row
says what was known, the challenger learns some seconds behind the journal, and rows are read ahead
of it::

    journal   … learned │ read ahead: asked before the first row that the champion did not know │

A row whose label came later than that can't be asked in time any more: it is
learned and counted as late, never compared.  The score of a row is right or wrong, in regression
which of the two errors is smaller, as a share of both; :mod:`evaluation.comparison` says when a
difference is one.  All counters are part of the challenger's state, like its parameters: a row is
in them once, or not at all.

No Ray, no I/O, no clock: the shell is :mod:`online.challenger.shadow`.
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
from online.models.base import Model
from replay import codec
from replay.example import Example, Label, label_of, label_text
from replay.journal.base import Row

Verdict = Literal["better", "worse", "undecided", "not enough data"]

AHEAD_ROWS: Final = 8192
"""Rows read ahead at most; with more within the delay, rows are learned sooner and are late."""
LATE_SHARE: Final = 0.5
"""Of the rows that were asked; above it the compared ones are too few to stand for all."""
_CLIP: Final = 1e-15
_PREFIX: Final = "versus/"
_PAIR: Final = ("pairs", "sum", "squares")


@dataclass(frozen=True, slots=True)
class Standing:
    """Challenger against champion, on the rows that both were asked.

    Attributes:
        verdict: On the challenger.
        rows, late: Compared; asked too long before their label to be compared.
        champion, challenger: Accuracy, in regression the mean absolute error; None before the first
            row.
        champion_loss, challenger_loss: Mean log loss of the rows for which both gave probabilities;
            None in regression.
        difference, interval: Mean of the scores' difference, above 0 in the challenger's favour,
            and what it is at all numbers of rows with the probability asked for.
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
        """Why it must not be promoted by itself; None: it may be."""
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
    """The learner of the challenger: one process has it, and answers nobody.

    Parameters:
        rival: Whom it is compared with, and since when: counters of other rivals are left alone.
    """

    def __init__(
        self, build: Callable[[], Model], *, task: Task, spec: str, rows_max: int, rival: str
    ) -> None:
        super().__init__(build, task=task, spec=spec, rows_max=rows_max)
        self._prefix = f"{_PREFIX}{rival}/"
        self._answers: dict[int, Example] = {}  # by seq: the row with this model's answer
        self._champions: dict[int, Mapping[str, float]] = {}
        self._late: set[int] = set()

    def ask(self, seq: int, example: Example, *, compare: bool) -> None:
        """Answer a row that is still to be learned, with what is known now.

        ``compare``: the answer in the row is the champion's.
        """
        answer = self.serving.predict(example.features)
        score = self.score(answer)
        if score and not all(math.isfinite(p) for p in score.values()):
            score = None  # it counts as no answer
        if compare and example.score is not None:
            self._champions[seq] = example.score
        self._answers[seq] = msgspec.structs.replace(example, score=score, notes=answer.notes)

    def too_late(self, seq: int) -> None:
        """The row can't be asked any more: its question came before a label that is learned."""
        self._late.add(seq)

    def _example(self, row: Row) -> Example:
        """The champion's answer and notes are no business of this model."""
        if (asked := self._answers.pop(row.seq, None)) is not None:
            return asked
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
        """Return what a row adds to the comparison.  A model that answers nothing is wrong."""
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
        super()._write_down()  # no row before this one is learned again
        for kept in (self._answers, self._champions):
            for seq in [seq for seq in kept if seq <= self.position]:
                del kept[seq]
        self._late = {seq for seq in self._late if seq > self.position}

    def _seen(self, name: str) -> float:
        return self.tally.counters.get(self._prefix + name, 0.0)

    def standing(self, *, rows_min: int, alpha: float = 0.05) -> Standing:
        """Return what can be said now of the challenger beside the champion."""
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
    """1 for the right label; in regression the absolute error, infinite if there is no answer."""
    if task == "regression":
        answer = score.get("")
        return math.inf if answer is None else abs(answer - float(label))
    return float(bool(score) and label_of(max(score, key=score.__getitem__)) == label)


def _share(champion: float, challenger: float) -> float:
    """(champion − challenger) / (champion + challenger) of two errors, in [−1, 1]."""
    if math.isinf(champion) or math.isinf(challenger):
        return float(math.isinf(champion)) - float(math.isinf(challenger))
    return (champion - challenger) / (champion + challenger)


def _loss(score: Mapping[str, float], label: Label) -> float:
    return -math.log(min(max(score.get(label_text(label), 0.0), _CLIP), 1.0))


class Ahead:
    """Rows read ahead of a challenger, and who is asked when.

    Parameters:
        delay_s: So long after it was taken a row is learned, so that questions which came before it
            are known by then.
        by_champion: Whether what serves now has answered the row: before it another model may have
            served.
        sealed: Whether a partition takes no rows any more.
        alone: Whether one replica serves: it knows all that came before a question.
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
        self._asks: list[tuple[int, int, Example, bool]] = []  # before which seq, and of which
        self._asks_at: list[tuple[float, int, Example, bool]] = []  # the same, by time
        self._ahead: dict[int, list[tuple[int, int]]] = {}  # offset and seq, by partition
        self._last = learner.known()  # offset of what is learned, by partition
        self._learned_at: float | None = None if learner.position else -math.inf
        self._seen_at = -math.inf  # who was taken before this has been read

    @property
    def room(self) -> int:
        """Rows that may be read now."""
        return self._rows_max - len(self.rows)

    def read(self, rows: Sequence[Row], ended_s: float | None) -> None:
        """The next rows of the order; ``ended_s``: then there were no others (None: there are)."""
        self._seen_at = max((row.at for row in rows), default=-math.inf)
        if ended_s is not None:
            self._seen_at = ended_s
        if rows and self._learned_at is None:  # after a start: what is learned is older than these
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
        """When the row is to be asked, if it still can be."""
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
        # What the champion knew was not written down: of one replica it is all that had come.
        if self._alone() and example.predicted_at > self._learned_at:
            asked_at = min(example.predicted_at, row.at)  # a clock may be set back
            heapq.heappush(self._asks_at, (asked_at, row.seq, example, compare))
        elif compare:
            self._learner.too_late(row.seq)

    def _first_unknown(self, known: Mapping[int, int], row: Row) -> int | None:
        """Place of the first row that the champion did not know when it answered ``row``.

        None: one of them is learned already, or nobody wrote down what the champion knew.
        """
        newest, first = max(known, default=-1), row.seq
        if newest < 0:
            return None
        for partition in self._ahead.keys() | self._last.keys():
            last = known.get(partition)
            if last is None:
                if partition < newest and self._sealed(partition):
                    continue  # it was closed: every model has all of it
                last = 0
            if self._last.get(partition, 0) > last:
                return None
            ahead = self._ahead.get(partition, [])
            at = bisect.bisect_right(ahead, (last, math.inf))
            if at < len(ahead):
                first = min(first, ahead[at][1])
        return first

    def due(self) -> bool:
        """Whether the next row may be learned: who was asked before it came is known."""
        if not self.rows:
            return False
        return self.rows[0].at + self._delay_s <= self._seen_at or self.room < 1

    def learn(self, give_up: Callable[[Row], str | None]) -> Failed | None:
        """Learn the next row; who was asked before it came is asked first, and it itself."""
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
        self._learned_at = max(self._learned_at or -math.inf, row.at)
        return failed
