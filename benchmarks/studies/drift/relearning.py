"""This benchmark shows what a fresh model gains after an alarm: the service's rule, in one process.

When the error has risen, and ``ROWS / 2`` rows have come since, a fresh model learns the rows since
the rise, ``ROWS`` at most; on the newer half of them it is asked before it learns, and takes the
present one's place if its share of right answers is higher by ``DEVIATIONS`` standard errors and
its log loss is no higher.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from river import linear_model, naive_bayes, optim, preprocessing, tree

from benchmarks.studies.drift.detectors import Progress
from benchmarks.studies.drift.marked import FILES
from evaluation.drift.watch import Watch
from evaluation.errors import StreamUnusable
from evaluation.learner import Answer, verbs
from evaluation.metrics import Task
from evaluation.streams import Stream, open_stream
from replay.example import Features, Label

ROWS: Final = 2_000
JUDGED_MIN: Final = 100
DEVIATIONS: Final = 2.0

Make = Callable[[Task], Any]


def _logistic(task: Task) -> Any:
    sgd = optim.SGD(0.05)
    if task == "binary":
        return preprocessing.StandardScaler() | linear_model.LogisticRegression(sgd)
    return preprocessing.StandardScaler() | linear_model.SoftmaxRegression(sgd)


LEARNERS: Final[Mapping[str, Make]] = {
    "logistic": _logistic,
    "naive Bayes": lambda task: naive_bayes.GaussianNB(),
    "tree": lambda task: tree.HoeffdingTreeClassifier(),
    "adaptive tree": lambda task: tree.HoeffdingAdaptiveTreeClassifier(seed=1),
}


@dataclass(frozen=True, slots=True)
class Line:
    """Accuracy in per cent without and with it, in points; fresh models taught, and taken."""

    stream: str
    learner: str
    rows: int
    plain: float
    relearned: float
    gain: float
    taught: int
    taken: int


@dataclass(frozen=True, slots=True)
class _Row:
    number: int
    x: Features
    y: Label
    right: float
    loss: float


def run(
    data_dir: Path | None,
    *,
    rows: int | None = None,
    learners: Mapping[str, Make] = LEARNERS,
    progress: Progress = lambda line: None,
) -> list[Line]:
    """Elec2, INSECTS and the marked files; the first ``rows`` of each.

    Raises:
        StreamUnusable: A stream that is not there.
    """
    if data_dir is None:
        raise StreamUnusable("synth_known_drift", "no data directory is set", "Set ONLINE_DATA_DIR")
    marked = [str(data_dir / "synth_known_drift" / f"{file}.csv.gz") for file in FILES]
    found = []
    for name in ("elec2", "insects", *marked):
        stream = open_stream(name, data_dir)
        for learner, make in learners.items():
            progress(f"relearning: {stream.name}, {learner}")
            found.append(line(stream, learner, make, rows))
    return found


def line(stream: Stream, learner: str, make: Make, rows: int | None = None) -> Line:
    """One learner on one stream, with and without it."""
    read = list(stream.rows)[:rows]
    plain, _, _ = _play(read, stream.task, make, relearns=False)
    again, taught, taken = _play(read, stream.task, make, relearns=True)
    name = Path(stream.name).name.partition("_")[0]
    return Line(name, learner, len(read), plain, again, again - plain, taught, taken)


def _play(
    rows: Sequence[tuple[Features, Label]], task: Task, make: Make, *, relearns: bool
) -> tuple[float, int, int]:
    """Accuracy in per cent, fresh models taught, and taken."""
    ask, learn = verbs(make(task), task)
    watch, kept = Watch(), deque[_Row](maxlen=ROWS)
    right, taught, taken = 0.0, 0, 0
    alarm: tuple[int, int] | None = None  # its row, and the row from which on it was so
    for number, (x, y) in enumerate(rows, 1):
        answer, notes = ask(x)
        row = _row(number, x, y, answer, task)
        learn(x, y, notes)
        right += row.right
        kept.append(row)
        rung = watch.judged(1.0 - row.right) if relearns else []
        if alarm is None and (risen := next((a for a in rung if a.worse), None)) is not None:
            alarm = number, risen.since
        if alarm is not None and 2 * (number - alarm[0]) >= ROWS:
            fresh = verbs(make(task), task)
            taught += 1
            if _better(*fresh, [r for r in kept if r.number >= alarm[1]], task):
                (ask, learn), taken = fresh, taken + 1
            alarm = None
    return 100.0 * right / max(len(rows), 1), taught, taken


def _better(ask: Any, learn: Any, rows: Sequence[_Row], task: Task) -> bool:
    """Teach a fresh model; whether it is better on the newer half."""
    gains, losses = list[float](), 0.0
    for i, row in enumerate(rows):
        answer, notes = ask(row.x)
        if 2 * i >= len(rows):
            now = _row(row.number, row.x, row.y, answer, task)
            gains.append(now.right - row.right)
            losses += now.loss - row.loss
        learn(row.x, row.y, notes)
    n = len(gains)
    if n < JUDGED_MIN or losses > 0.0:
        return False
    mean = sum(gains) / n
    squares = sum((gain - mean) ** 2 for gain in gains)
    return mean * n > DEVIATIONS * math.sqrt(squares)


def _row(number: int, x: Features, y: Label, answer: Answer, task: Task) -> _Row:
    truth = bool(y) if task == "binary" else y
    share = (answer.probabilities or {}).get(truth, 0.0)
    loss = -math.log(min(max(share, 1e-15), 1.0))
    return _Row(number, x, y, float(answer.label == truth), loss)
