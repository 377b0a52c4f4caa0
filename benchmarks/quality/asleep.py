"""A model of several views costs what `linear` does while all views but the first are asleep.

Both answer and learn the same rows by their notes, in turn; what is compared is processor time.
"""

from __future__ import annotations

import itertools
import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from benchmarks.fixtures.sources import STREAMS, Row
from online.models.auto import Auto
from online.models.selfrate import SelfRate
from online.models.sleeping_views import SleepingViews
from replay.example import Example, label_text

_ASKED: Final = 0.95
_NEVER: Final = -1_000_000
"""Labels since the last spell: none ends here."""


@dataclass(frozen=True, slots=True)
class Rate:
    """Rows that ``auto`` answers and learns asleep, for each of ``linear``, in the same time."""

    stream: str
    task: str
    rows: int
    pairs: int
    rate: float
    low: float
    high: float
    asked: float
    good: bool


def _seconds(model: Any, rows: Sequence[Row]) -> float:
    begun = time.process_time()
    for features, label in rows:
        answer = model.predict(features)
        score = {label_text(k): p for k, p in (answer.probabilities or {"": answer.label}).items()}
        model.learn_noted(Example(features, label, score=score, notes=answer.notes), 1.0)
    return time.process_time() - begun


def asleep(model: Any) -> None:
    """Put all views but the first to sleep, for longer than is measured: no rise wakes them."""
    naps: SleepingViews = model._mixture
    naps.slept, naps.labels, naps.rested = [1] * len(naps.slept), _NEVER, math.nan


def measure(stream: str, data: Path, *, rows: int, pairs: int) -> Rate:
    """Both over the same rows, in turn."""
    source = STREAMS[stream]
    told = list(itertools.islice(source.rows(data), rows))
    linear: Any = SelfRate(list(source.text)).model_for(source.task)
    auto: Any = Auto(list(source.text)).model_for(source.task)
    for model in (linear, auto):
        _seconds(model, told)
    rates = []
    for _ in range(pairs):
        asleep(auto)
        rates.append(_seconds(linear, told) / _seconds(auto, told))
    rate = statistics.median(rates)
    return Rate(
        stream, source.task, len(told), pairs, rate, min(rates), max(rates), _ASKED, rate >= _ASKED
    )


def run(data: Path, *, streams: Sequence[str], rows: int, pairs: int) -> list[Rate]:
    """Each of the streams."""
    return [measure(stream, data, rows=rows, pairs=pairs) for stream in streams]
