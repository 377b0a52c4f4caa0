"""Learners over real streams, test then learn, beside published figures and honest baselines.

Every learner runs in a process of its own, so that its memory can be told from others'.
"""

from __future__ import annotations

import gc
import itertools
import multiprocessing
import time
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import psutil
from river import forest, linear_model, naive_bayes, neighbors, optim, preprocessing, tree

from benchmarks.quality.defaults import Built
from evaluation.errors import StreamUnusable
from evaluation.learner import Answer, verbs
from evaluation.metrics import Task
from evaluation.prequential import prequential
from evaluation.scores import Judged
from evaluation.streams import Stream, open_stream
from online.models.ftrl import Ftrl
from online.models.selfrate import SelfRate
from replay.example import Features, Label

STREAMS: Final = ("elec2", "insects", "gas", "phishing", "bananas", "image_segments")
COSTLY: Final = ("knn", "arf", "amf")
COSTLY_VALUES: Final = 100_000
"""Streams of more rows times features are left out for these learners, unless asked for."""
DELAYS: Final = (0, 48, 336)

Progress = Callable[[str], None]


def _scaled(final: Any) -> Any:
    return preprocessing.StandardScaler() | final


def _sgd(rate: float, task: Task) -> Any:
    if task == "binary":
        return _scaled(linear_model.LogisticRegression(optim.SGD(rate)))
    return _scaled(linear_model.SoftmaxRegression(optim.SGD(rate)))


LEARNERS: Final[Mapping[str, Callable[[Task], Any]]] = {
    "lr .005": lambda task: _sgd(0.005, task),
    "lr .05": lambda task: _sgd(0.05, task),
    "alma": lambda task: _scaled(linear_model.ALMAClassifier()) if task == "binary" else None,
    "nb": lambda task: naive_bayes.GaussianNB(),
    "ht": lambda task: tree.HoeffdingTreeClassifier(),
    "hat": lambda task: tree.HoeffdingAdaptiveTreeClassifier(seed=42),
    "knn": lambda task: _scaled(neighbors.KNNClassifier()),
    "arf": lambda task: forest.ARFClassifier(n_models=10, seed=42),
    "amf": lambda task: forest.AMFClassifier(n_estimators=10, seed=42),
    "ours: linear": lambda task: Built(SelfRate().model_for(task), task),
    "ours: ftrl": lambda task: Built(Ftrl().model_for(task), task),
}
"""river's, and the service's own; one that does not know the task makes None."""

PUBLISHED: Final[Mapping[tuple[str, str], float]] = {
    ("elec2", "last label"): 0.8533, ("elec2", "lr .005"): 0.8221, ("elec2", "alma"): 0.9064,
    ("elec2", "nb"): 0.7287, ("elec2", "ht"): 0.7956, ("elec2", "hat"): 0.8213,
    ("elec2", "knn"): 0.8531, ("elec2", "arf"): 0.8766, ("elec2", "amf"): 0.8499,
    ("phishing", "last label"): 0.5156, ("phishing", "lr .005"): 0.8872,
    ("phishing", "alma"): 0.8256, ("phishing", "nb"): 0.8847, ("phishing", "ht"): 0.8799,
    ("phishing", "hat"): 0.8743, ("phishing", "knn"): 0.8815, ("phishing", "arf"): 0.9079,
    ("phishing", "amf"): 0.9047,
    ("bananas", "last label"): 0.5095, ("bananas", "lr .005"): 0.5432,
    ("bananas", "alma"): 0.5064, ("bananas", "nb"): 0.6152, ("bananas", "ht"): 0.6422,
    ("bananas", "hat"): 0.6165, ("bananas", "knn"): 0.8851, ("bananas", "arf"): 0.8870,
    ("bananas", "amf"): 0.8894,
    ("image_segments", "last label"): 0.1481, ("image_segments", "nb"): 0.7319,
    ("image_segments", "ht"): 0.7761, ("image_segments", "hat"): 0.7744,
    ("image_segments", "knn"): 0.8735, ("image_segments", "arf"): 0.8185,
    ("image_segments", "amf"): 0.9017,
}  # fmt: skip
"""River's own table (docs/benchmarks), prequential accuracy without delay."""

ANCHORS: Final = ("last label", "lr .005", "alma")
"""Of Elec2; they have to be met exactly.  river's trees have changed since the table was made."""


# -- one run -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Line:
    """A learner on a stream.

    Attributes:
        us, us_p99: Microseconds of the processor for one answer and one row learned: mean, and 99
            of 100 rows take no longer.  Other processes do not count, so a busy machine is no
            excuse.
        mb: Memory that the process has gained, the stream's rows excepted.
    """

    stream: str
    rows: int
    delay: int
    what: str
    accuracy: float | None
    published: float | None
    no_change: float | None
    majority: float | None
    kappa_m: float | None
    kappa_t: float | None
    balanced: float | None
    log_loss: float | None
    ece: float | None
    auc: float | None
    us: float
    us_p99: float
    mb: float
    lacking: str


@dataclass(frozen=True, slots=True)
class Found:
    """All tables; ``anchors`` says for each anchor whether it was met exactly."""

    lines: list[Line]
    anchors: dict[str, bool]
    seconds: float

    @property
    def good(self) -> bool:
        """Whether the anchors are met."""
        return all(self.anchors.values())


class Timed:
    """A learner with the processor's time for each of its answers and rows."""

    def __init__(self, learner: Any, task: Task) -> None:
        self._ask, self._learn = verbs(learner, task)
        self.ns = array("q")
        self._asked_ns = 0

    def learn_one(self, x: Features, y: Label) -> None:
        """Never called: it has notes."""

    def answer_noted(self, x: Features) -> tuple[Answer, object]:
        """Return the learner's answer, and its notes with the time that it took in ns."""
        begun = time.thread_time_ns()
        answer, notes = self._ask(x)
        took = time.thread_time_ns() - begun
        return answer, (notes, took)

    def learn_noted(self, x: Features, y: Label, notes: Any) -> None:
        """Teach the learner a row, and note the time of its answer and of learning in ns."""
        inner, took = notes
        begun = time.thread_time_ns()
        self._learn(x, y, inner)
        self.ns.append(took + time.thread_time_ns() - begun)


def measure(stream: str, name: str, data_dir: Path | None, delay: int, limit: int | None) -> Line:
    """One learner over one stream, in this process."""
    data = open_stream(stream, data_dir)
    rows = list(itertools.islice(data.rows, limit))
    learner = LEARNERS[name](data.task)
    timed = Timed(learner, data.task)
    gc.collect()
    before = psutil.Process().memory_info().rss
    judged = prequential(timed, rows, data.task, delay=delay)
    gained = psutil.Process().memory_info().rss - before
    return _line(data, len(rows), delay, name, judged, timed.ns, gained)


def _line(
    data: Stream, rows: int, delay: int, name: str, judged: Judged, ns: array[int], gained: int
) -> Line:
    total = judged.total
    whole = delay == 0 and rows == data.n_rows
    return Line(
        data.name, rows, delay, name,
        total.accuracy, PUBLISHED.get((data.name, name)) if whole else None,
        total.no_change, total.majority, total.kappa_m, total.kappa_t, total.balanced_accuracy,
        total.log_loss, total.ece, total.auc,
        us=sum(ns) / len(ns) / 1e3 if ns else 0.0,
        us_p99=float(np.percentile(np.frombuffer(ns, np.int64), 99)) / 1e3 if ns else 0.0,
        mb=max(gained, 0) / 1e6,
        lacking="; ".join(judged.lacking),
    )  # fmt: skip


# -- all of them ---------------------------------------------------------------------------------


def run(
    data_dir: Path | None,
    *,
    streams: Sequence[str] = STREAMS,
    delays: Sequence[int] = DELAYS,
    full: bool = False,
    rows: int | None = None,
    workers: int = 2,
    progress: Progress | None = None,
) -> Found:
    """All learners on all streams; the delays on Elec2 only.

    ``full``: the costly learners on long streams too.  ``rows``: only so many of each stream.
    Raises StreamUnusable for an unknown stream, and for no rows.
    """
    if rows is not None and rows < 1:
        raise StreamUnusable(streams[0], f"rows is {rows}", "Ask for 1 row or more")
    begun = time.perf_counter()
    cells = [
        (stream, name, delay)
        for stream in streams
        for delay in (delays if stream == "elec2" else delays[:1])
        for name in _fitting(stream, data_dir, rows, full=full and delay == 0)
    ]
    cells.sort(key=lambda cell: cell[1] not in COSTLY)  # the longest first
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    found: dict[tuple[str, int], dict[str, Line]] = {}
    with ProcessPoolExecutor(workers, context, max_tasks_per_child=1) as pool:
        waiting = [
            (cell, pool.submit(measure, cell[0], cell[1], data_dir, cell[2], rows))
            for cell in cells
        ]
        for (stream, name, delay), future in waiting:
            done = future.result()
            found.setdefault((stream, delay), {})[name] = done
            if progress:
                score = _short(done.accuracy)
                progress(f"{stream}, labels {delay} rows late, {name}: {score}")
    keys = sorted(found, key=lambda key: (streams.index(key[0]), key[1]))
    lines = [found[key][name] for key in keys for name in LEARNERS if name in found[key]]
    return Found(lines, _anchors(lines), time.perf_counter() - begun)


def _fitting(stream: str, data_dir: Path | None, rows: int | None, *, full: bool) -> list[str]:
    data = open_stream(stream, data_dir)
    values = min(data.n_rows, rows or data.n_rows) * len(next(iter(data.rows))[0])
    return [
        name
        for name, make in LEARNERS.items()
        if make(data.task) is not None and (full or values <= COSTLY_VALUES or name not in COSTLY)
    ]


def _anchors(lines: Sequence[Line]) -> dict[str, bool]:
    """Which published figures of Elec2 are met to all their digits; none of a part of it."""
    met = {}
    for line in lines:
        if line.stream == "elec2" and line.published is not None and line.what in ANCHORS:
            met[line.what] = line.accuracy is not None and round(line.accuracy, 4) == line.published
            met["last label"] = round(line.no_change or 0.0, 4) == PUBLISHED["elec2", "last label"]
    return met


def shown(found: Found) -> str:
    """All tables in Markdown."""
    out: list[str] = []
    for (stream, delay), lines in _grouped(found.lines):
        first = lines[0]
        out += [
            "",
            f"### {stream}: {first.rows:,} rows, labels {delay} rows late; "
            f"no-change {_short(first.no_change)}, majority {_short(first.majority)}",
            "",
            "| learner | accuracy | River's table | kappa-M | kappa-T | balanced | log loss | ECE "
            "| AUC | µs/row | p99 | MB |",
            "|---|---|---|---|---|---|---|---|---|---|---|---|",
        ]
        for x in lines:
            scores = (x.accuracy, x.published, x.kappa_m, x.kappa_t, x.balanced, x.log_loss)
            cells = [x.what, *map(_short, scores), _short(x.ece), _short(x.auc)]
            note = f" ({x.lacking})" if x.lacking else ""
            out.append(f"| {' | '.join(cells)} | {x.us:.0f} | {x.us_p99:.0f} | {x.mb:.1f} |{note}")
    for name, met in found.anchors.items():
        figure = _short(PUBLISHED["elec2", name])
        out.append(f"\nElec2, {name}: {figure} {'met' if met else '**missed**'}")
    out.append(f"\n{found.seconds:.0f} s")
    return "\n".join(out)


def _grouped(lines: Sequence[Line]) -> Iterator[tuple[tuple[str, int], list[Line]]]:
    for key, group in itertools.groupby(lines, lambda line: (line.stream, line.delay)):
        yield key, list(group)


def _short(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.4f}".replace("0.", ".", 1) if abs(value) < 1 else f"{value:.3f}"
