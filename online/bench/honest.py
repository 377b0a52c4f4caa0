"""What filters cost those who are honest: real streams without an attacker, in one process.

A row is predicted, judged and learned, as the service does it, by the plain model and by one behind
the filters.  Once all rows come from one source, as they do where nobody has heard of sources, and
once they are dealt to ten.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

from evaluation.streams import open_stream
from online.config import data_dir
from online.evidence import Evidence
from online.filtering import Filtering, filtering_for
from online.local import score_of
from online.model_settings import ModelSettings
from online.models.base import learn_example
from online.models.load import load
from replay import codec
from replay.example import Example
from replay.journal.base import NewRow, Outcome, Row, Verdict

STREAMS: Final = (
    ("elec2", "binary", "logreg"),
    ("phishing", "binary", "logreg"),
    ("insects", "multiclass", "softmax"),
)
POINTS: Final = 0.5
"""Of accuracy that filters may cost."""


@dataclass(frozen=True, slots=True)
class Honest:
    """One stream; accuracies in percent, ``us`` the mean of judging one row."""

    what: str
    sources: int
    rows: int
    accuracy: float
    unfiltered: float
    clipped: int
    set_aside: int
    quarantined: int
    us: float
    good: bool


def run(rows: int | None = None) -> Iterator[Honest]:
    """Each stream with one source and with ten."""
    for name, task, learner in STREAMS:
        plain = _play(name, task, learner, 1, rows, filters="none")
        for sources in (1, 10):
            found = _play(name, task, learner, sources, rows, filters="default")
            lost = found.counts["quarantined"]
            apart = plain.accuracy - found.accuracy
            alike = apart == 0.0 if sources == 1 else apart <= POINTS
            yield Honest(
                name, sources, found.rows, found.accuracy, plain.accuracy,
                found.counts["clipped"], lost, found.quarantined, found.us, alike and not lost,
            )  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Played:
    rows: int
    accuracy: float
    counts: Counter[str]
    quarantined: int
    us: float


def _play(
    name: str, task: Any, learner: str, sources: int, rows: int | None, *, filters: Any
) -> _Played:
    settings = ModelSettings(name="m", task=task, learner=learner, filters=filters)
    model = load(learner, {}, task=task, classes=None, key=bytes(32), base_dir=Path()).model
    local: Any = SimpleNamespace(serving=model, clock={}, version=(1, 0))
    made = filtering_for(settings, local, None, sources_max=1_000, vouched=True)
    evidence = Evidence()
    evidence.heard = made
    draw, right, n, spent_s = random.Random(0), 0, 0, 0.0
    counts = Counter[str]()
    for features, label in islice(iter(open_stream(name, data_dir()).rows), rows):
        n += 1
        answer = model.predict(features)
        right += answer.label == label
        example = Example(features, label, score=score_of(task, answer))
        key, source = n.to_bytes(16, "little"), f"s{draw.randrange(sources)}"
        row = NewRow(key, str(n), source, Verdict.ACCEPTED, codec.encode(example), float(n))
        if made is not None:
            begun_s = time.perf_counter()
            row = _judged(made, row, n)
            spent_s += time.perf_counter() - begun_s
        counts[row.verdict] += 1
        standing = _standing(row, n)
        evidence.add(standing, codec.decode(row.payload).judged)
        if row.verdict in (Verdict.ACCEPTED, Verdict.CLIPPED):
            learn_example(model, example, row.factor)
    quarantined = 0 if made is None else len(made.quarantined)
    return _Played(n, 100.0 * right / n, counts, quarantined, 1e6 * spent_s / n)


def _judged(filters: Filtering, row: NewRow, n: int) -> NewRow:
    (judged,) = filters.judge([row])
    filters.committed([judged], [Outcome(True, _standing(judged, n))])
    return judged


def _standing(row: NewRow, n: int) -> Row:
    return Row(
        n, 1, n, row.key, row.event_id, row.source, row.verdict, row.factor, row.payload, row.at
    )
