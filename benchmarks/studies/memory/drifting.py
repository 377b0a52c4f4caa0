"""Tables that drift: predicted before they are learned, and what is left of each past period."""

from __future__ import annotations

import gzip
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn

from benchmarks.studies.memory.rehearser import DER, ER, NONE, TWICE, Method, Rehearser
from evaluation.errors import StreamUnusable
from evaluation.streams import open_stream

_PERIODS: Final = 10
_BATCHES: Final = (1, 2, 3, 4, 5, 6, 8, 9)  # of the gas sensors; 7 and 10 are not at hand
_HELD: Final = 200  # rows of a period that are never learned; at most a fifth of it

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Table:
    """Rows in their order, with the period of each."""

    x: Tensor
    y: Tensor
    period: Tensor


@dataclass(frozen=True, slots=True)
class Setting:
    """A table and how it is learned.

    Attributes:
        asked: Least prequential accuracy and least accuracy on the first period of ours; None: not
            asked.
    """

    name: str
    load: Callable[[Path | None], Table]
    batch: int
    rate: float
    asked: tuple[float, float] | None = None
    capacity: int = 1_000
    hidden: int = 64


@dataclass(frozen=True, slots=True)
class Drifted:
    """A method on a table: means over the seeds, in percent.

    ``prequential`` is of rows predicted before they were learned; ``all_periods`` and
    ``first_period`` are of rows that were never learned, asked at the end.
    """

    what: str
    runs: int
    prequential: float
    all_periods: float
    first_period: float
    steps_per_s: float
    beside: str
    asked: str
    good: bool


def gas(data_dir: Path | None) -> Table:
    """Gas sensors over 36 months (Vergara et al. 2012); the period is the batch."""
    if data_dir is None:
        problem = "it is not bundled and no data directory is set"
        raise StreamUnusable("gas_drift", problem, "Set ONLINE_DATA_DIR")
    rows, labels, periods = [], [], []
    for period, batch in enumerate(_BATCHES):
        path = data_dir / "gas_drift" / f"batch{batch}.dat.gz"
        if not path.is_file():
            remedy = "Put it there, or name another directory"
            raise StreamUnusable("gas_drift", f"no file {path}", remedy)
        with gzip.open(path, "rt") as lines:
            for line in lines:
                label, *values = line.split()
                labels.append(int(label.partition(";")[0]) - 1)
                rows.append([float(value.partition(":")[2]) for value in values])
                periods.append(period)
    return Table(torch.tensor(rows), torch.tensor(labels), torch.tensor(periods))


def elec2(data_dir: Path | None) -> Table:
    """Electricity prices up or down (Harries 1999); a period is a tenth."""
    rows = list(open_stream("elec2", data_dir).rows)
    x = torch.tensor([[float(str(v)) for v in features.values()] for features, _ in rows])
    y = torch.tensor([int(label is True) for _, label in rows])
    return Table(x, y, torch.arange(len(y)) * _PERIODS // len(y))


F5: Final = (
    Setting("F5 gas sensors", gas, 16, 0.2, (93.0, 80.0)),
    Setting("F5 Elec2", elec2, 4, 0.1, (86.9, 81.0)),
    Setting("F5 Elec2", elec2, 16, 0.1),
)
SEEDS: Final = (1, 2, 3, 4, 5)
"""For proving; everything was chosen with seeds from 101 on.  A seed also draws the held rows,
which moves the first period's figure by 3 points."""

METHODS: Final = (NONE, ER, DER, TWICE)
_BESIDE: Final = {
    ("F5 gas sensors", "none"): "89.98 / 49.0",
    ("F5 gas sensors", "ER"): "92.34 / 81.7",
}


def play(setting: Setting, table: Table, method: Method, seed: int) -> tuple[float, ...]:
    """Prequential, all periods', first period's accuracy in percent, and steps a second."""
    held = _held(table, torch.Generator().manual_seed(seed))
    learned = torch.ones(len(table.y), dtype=torch.bool)
    learned[torch.cat(held)] = False
    x, y, size = table.x[learned], table.y[learned], setting.batch
    wide, classes = x.shape[1], int(table.y.max()) + 1
    torch.manual_seed(seed)
    learner = Rehearser(
        nn.Sequential(
            nn.Linear(wide, setting.hidden), nn.ReLU(), nn.Linear(setting.hidden, classes)
        ),
        method,
        wide=wide,
        classes=classes,
        capacity=setting.capacity,
        rate=setting.rate,
        seed=seed,
        scale=True,
    )
    right, begun = 0, time.perf_counter()
    for first in range(0, len(y), size):
        rows, labels = x[first : first + size], y[first : first + size]
        right += int((learner.outputs(rows).argmax(1) == labels).sum())
        learner.step(rows, labels)
    seconds = time.perf_counter() - begun
    left = [100 * learner.accuracy(table.x[at], table.y[at]) for at in held]
    steps = -(-len(y) // size)
    return 100 * right / len(y), statistics.fmean(left), left[0], steps / seconds


def _held(table: Table, draw: torch.Generator) -> list[Tensor]:
    """Rows of each period that are kept from learning."""
    held = []
    for period in range(int(table.period.max()) + 1):
        of_it = (table.period == period).nonzero()[:, 0]
        k = min(_HELD, len(of_it) // 5)
        held.append(of_it[torch.randperm(len(of_it), generator=draw)[:k]])
    return held


def table(
    settings: Sequence[Setting],
    data_dir: Path | None,
    *,
    methods: Sequence[Method] = METHODS,
    seeds: Sequence[int] = SEEDS,
    progress: Progress = lambda line: None,
) -> list[Drifted]:
    """A line for each setting and method; torch computes in one thread."""
    torch.set_num_threads(1)
    lines = []
    for setting in settings:
        rows = setting.load(data_dir)
        for method in methods:
            progress(f"{setting.name}: {method.name}")
            runs = [play(setting, rows, method, seed) for seed in seeds]
            lines.append(_line(setting, method, runs))
    return lines


def _line(setting: Setting, method: Method, runs: Sequence[tuple[float, ...]]) -> Drifted:
    prequential, everything, first, speed = (
        statistics.fmean(run[i] for run in runs) for i in range(4)
    )
    asked, good = "", True
    if setting.asked is not None and method is TWICE:
        least, least_first = setting.asked
        asked = f"prequential >= {least:g}, first >= {least_first:g}"
        good = prequential >= least and first >= least_first
    return Drifted(
        f"{setting.name}, {setting.batch} rows a step: {method.name}",
        len(runs),
        prequential,
        everything,
        first,
        speed,
        _BESIDE.get((setting.name, method.name), ""),
        asked,
        good,
    )
