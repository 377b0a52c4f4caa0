"""Probabilities corrected by labels: log loss and calibration error before and after, on streams.

Each learner answers a row before its label is known, and learns it when it has come.  What it says
is kept; the correction is the service's own and learns of these answers alone, for the learners
learn nothing of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Final

import numpy as np
from river import forest

from benchmarks.quality import confidence
from benchmarks.quality.defaults import built
from evaluation.metrics import Task
from evaluation.streams import Row, open_stream
from online.models.base import Prediction
from online.sure.calibration import Calibration
from paramserver.core.blocks import Blocks
from replay.example import Example, Features, Label, label_text

STREAMS: Final = ("elec2", "insects", "acs", "gas", "kdd99", "mixed")
LEARNERS: Final = ("linear", "logreg", "ftrl", "forest")
DELAYS: Final = (0, 48, 500)
_TOGETHER: Final = 64
_TENTHS: Final = 10
_WORST: Final = 1e-15

Progress = Callable[[str], None]
Ask = Callable[[Features], Prediction]
Teach = Callable[[Features, Label, Prediction], None]


@dataclass(frozen=True, slots=True)
class Line:
    """A line says what came of one learner's answers on one stream.

    Attributes:
        loss, corrected: Log loss of what the model said, and of what was answered.
        ece, ece_corrected: Calibration error of the answered label's probability, by tenths.
        share: Share of rows whose probabilities were corrected.
        replicas: Corrected loss less the loss, in four replicas.
    """

    stream: str
    delay: int
    learner: str
    rows: int
    loss: float
    corrected: float
    gain: float
    ece: float
    ece_corrected: float
    share: float
    replicas: float


def rows_of(name: str, data: Path, most: int | None) -> tuple[Task, Iterator[Row]]:
    """Task and rows of a stream by its name here."""
    if name in ("acs", "mixed", "sea"):
        return confidence.rows_of(name, data, most)
    stream = open_stream(name, data)
    return stream.task, islice(stream.rows, most)


def _learner(name: str, task: Task) -> tuple[Ask, Teach]:
    """Return what answers and what learns."""
    if name == "forest":
        model = forest.ARFClassifier(n_models=10, seed=42)
        return lambda x: _of_river(model.predict_proba_one(x)), lambda x, y, _: model.learn_one(
            x, y
        )
    if name == "logreg" and task == "multiclass":
        name = "softmax"
    served = built(name, task, **({"scale": "plain"} if name == "ftrl" else {}))
    return lambda x: served.answer_noted(x)[1], served.learn_noted


def _of_river(shares: dict[Label, float]) -> Prediction:
    return Prediction(max(shares, key=shares.__getitem__) if shares else None, shares)


def ask(
    name: str, learner: str, data: Path, delay: int, most: int | None
) -> tuple[list[Prediction], list[Label]] | None:
    """Return the learner's answers, and the labels; None: it takes no such rows."""
    task, rows = rows_of(name, data, most)
    rows = iter(rows)
    first = next(rows)
    texts = any(isinstance(value, str) for value in first[0].values())
    if texts and learner == "logreg":
        return None
    answer, teach = _learner(learner, task)
    asked: list[tuple[Features, Label, Prediction]] = []
    said: list[Prediction] = []
    labels: list[Label] = []
    for i, (x, y) in enumerate([first, *rows]):
        said.append(answer(x))
        labels.append(y)
        asked.append((x, y, said[-1]))
        if i >= delay:
            teach(*asked[i - delay])
            asked[i - delay] = ({}, False, said[-1])
    return said, labels


def corrected(
    said: Sequence[Prediction], labels: Sequence[Label], delay: int, replicas: int = 1
) -> list[Prediction]:
    """The answers as they are given by so many replicas, each label ``delay`` rows late."""
    parts = [Calibration() for _ in range(replicas)]
    values: Blocks = {}
    out: list[Prediction] = []
    examples: list[Example] = []
    for i, answer in enumerate(said):
        part = parts[i % replicas]
        out.append(part.answered(answer))
        shares = out[-1].probabilities or {}
        score = {label_text(k): p for k, p in shares.items()} or None
        examples.append(Example({}, labels[i], score=score, sure=part.stamp()))
        if i >= delay:
            parts[(i * 7 + i // 5) % replicas].add(examples[i - delay])
        if replicas > 1 and (i + 1) % (_TOGETHER * replicas) == 0:
            confidence.exchange(parts, values)
    return out


def scored(said: Sequence[Prediction], labels: Sequence[Label]) -> tuple[float, float]:
    """Log loss and calibration error of answers with at least two probabilities."""
    losses, sure, right = [], [], []
    for answer, label in zip(said, labels, strict=True):
        shares = answer.probabilities
        if shares is None or len(shares) < 2:
            continue
        losses.append(-math.log(max(shares.get(label, 0.0), _WORST)))
        sure.append(max(shares.values()))
        right.append(answer.label == label)
    tenths = np.minimum((np.array(sure) * _TENTHS).astype(int), _TENTHS - 1)
    apart = np.array(sure) - np.array(right, dtype=float)
    error = sum(abs(float(apart[tenths == i].sum())) for i in range(_TENTHS))
    return float(np.mean(losses)), error / len(sure)


def run(
    names: Sequence[str],
    data: Path,
    *,
    learners: Sequence[str] = LEARNERS,
    delays: Sequence[int] = DELAYS,
    most: int | None = None,
    progress: Progress = lambda text: None,
) -> list[Line]:
    """Each learner on each stream, before and after, in one replica and in four."""
    lines = []
    for name in names:
        for delay in delays:
            for learner in learners:
                progress(f"{name}, {learner}, labels {delay} late")
                if (found := ask(name, learner, data, delay, most)) is None:
                    continue
                lines.append(_line(name, delay, learner, *found))
    return lines


def _line(name: str, delay: int, learner: str, said: list[Prediction], labels: list[Label]) -> Line:
    given = corrected(said, labels, delay)
    loss, ece = scored(said, labels)
    after, ece_after = scored(given, labels)
    four, _ = scored(corrected(said, labels, delay, replicas=4), labels)
    share = sum(a is not b for a, b in zip(said, given, strict=True)) / len(said)
    return Line(
        name, delay, learner, len(said), round(loss, 4), round(after, 4), round(loss - after, 4),
        round(ece, 4), round(ece_after, 4), round(share, 3), round(four - loss, 4),
    )  # fmt: skip
