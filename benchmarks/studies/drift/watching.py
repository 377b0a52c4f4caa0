"""This benchmark measures what watching costs a row: detectors, windows of features, and both."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any, Final

from benchmarks.studies.drift.detectors import Progress
from evaluation.drift.labelfree import LabelFree
from evaluation.drift.profile import build
from evaluation.drift.watch import Watch, WatchSettings
from evaluation.streams import open_stream

FEEDBACK_US: Final = 300.0
"""What one piece of feedback takes the service, about; the aim is a share of it."""
SHARE_MAX: Final = 0.15
ROUNDS: Final = 5


@dataclass(frozen=True, slots=True)
class Line:
    """Microseconds a row, median of the rounds, and as a share of a feedback's time."""

    what: str
    features: int
    served_us: float
    judged_us: float
    label_free_us: float
    share: float
    good: bool


_SETTINGS: Final[Mapping[str, WatchSettings]] = {
    "default": WatchSettings(),
    "with ADWIN on each feature": WatchSettings(features=("adwin",)),
}


def run(
    data_dir: Path | None, *, rows: int = 10_000, progress: Progress = lambda line: None
) -> list[Line]:
    """Elec2 (8 features), INSECTS (33) and 256 features that are drawn."""
    found = []
    n, draw = 2_000 + rows, Random(2).random
    streams = {name: open_stream(name, data_dir).rows for name in ("elec2", "insects")}
    streams["drawn"] = (({f"x{i}": draw() for i in range(256)}, True) for _ in range(n))
    for name, stream in streams.items():
        xs = [x for x, _ in islice(stream, n)]
        for what, settings in _SETTINGS.items():
            progress(f"cost of watching: {name}, {what}")
            found.append(_line(f"{name}, {what}", settings, xs))
    return found


def _line(what: str, settings: WatchSettings, xs: Sequence[dict[str, Any]]) -> Line:
    reference, live = build(xs[:2_000]), xs[2_000:]
    draw = Random(1)
    scores = [draw.random() for _ in live]
    wrong = [float(draw.random() < 0.2) for _ in live]
    served, judged, free = [], [], []
    for _ in range(ROUNDS):
        watch, judge = Watch(settings, reference), LabelFree()

        def each_served(watch: Watch = watch) -> None:
            for x, score in zip(live, scores, strict=True):
                watch.served(x, score)

        def each_judged(watch: Watch = watch) -> None:
            for error in wrong:
                watch.judged(error)

        def each_free(judge: LabelFree = judge) -> None:
            for score in scores:
                judge.served(score)
                judge.judged(score, True)

        served.append(_timed(each_served, len(live)))
        judged.append(_timed(each_judged, len(live)))
        free.append(_timed(each_free, len(live)))
    a, b, c = (statistics.median(times) for times in (served, judged, free))
    share = (a + b + c) / FEEDBACK_US
    return Line(what, len(reference.bins), a, b, c, share, share <= SHARE_MAX)


def _timed(call: Callable[[], None], rows: int) -> float:
    begun = time.process_time()
    call()
    return 1e6 * (time.process_time() - begun) / rows
