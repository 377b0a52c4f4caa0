"""This benchmark measures what a stream makes a model forget, with and without rehearsal.

The figures stand beside published ones.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn

from benchmarks.studies.memory import digits as data
from benchmarks.studies.memory import drifting
from benchmarks.studies.memory.continual import Point, Remembered, remembered
from benchmarks.studies.memory.drifting import Drifted
from benchmarks.studies.memory.rehearser import DER, ER, NONE, OURS, TWICE, Method, Rehearser

SEEDS: Final = (1, 2, 3, 4, 5)
"""For proving.  Everything was chosen with seeds from 101 on."""

_EVERY = 100  # rows between two looks
_LOOKED: Final = 200  # rows of each task at a look

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Protocol:
    """A stream of tasks, its network and the figures that others published for it.

    Attributes:
        name: In the tables.
        tasks: Makes the tasks from the digits and a seed.
        hidden: Widths of the network's hidden layers.
        batch: Fresh rows of a step.
        capacity: Items of the memory.
        rates: Learning rate of a method by its name; ``""``: of the others.
        published: Final accuracy of a method by its name.
        asked: Least accuracy, most forgetting and least worst case of ours; None: not asked.
    """

    name: str
    tasks: Callable[[data.Digits, int], list[data.Task]]
    hidden: tuple[int, ...]
    batch: int
    capacity: int
    rates: dict[str, float]
    published: dict[str, str]
    asked: tuple[float, float | None, float | None] | None = None


@dataclass(frozen=True, slots=True)
class Line:
    """A method under a protocol: means over the seeds, in percent."""

    what: str
    memory: int
    runs: int
    acc: float
    sd: float
    forgetting: float
    bwt: float
    any_time: float
    worst: float
    steps_per_s: float
    buffer_mb: float
    published: str
    asked: str
    good: bool


@dataclass(frozen=True, slots=True)
class Run:
    """One seed of a method."""

    figures: Remembered
    steps_per_s: float
    buffer_mb: float


def _split(rows: int | None) -> Callable[[data.Digits, int], list[data.Task]]:
    return lambda digits, seed: data.split(digits, seed, rows)


_MIR: Final = {"none": "19.0", "ER": "82.1", "ours": "87.6 (ER-MIR)"}
_RATES: Final = {"": 0.1, "ours": 0.5, "ours, two passes": 0.2}
F1: Final = (
    Protocol(
        "F1 Split-MNIST 5 x 1,000", _split(1_000), (400,), 10, 500, _RATES, _MIR, (90.5, 7.4, 88.0)
    ),
    Protocol("F1 Split-MNIST 5 x 1,000", _split(1_000), (400,), 10, 200, _RATES, {}),
    Protocol(
        "F1 one row a step",
        _split(1_000),
        (400,),
        1,
        500,
        {"": 0.01, "ours": 0.12, "ours, two passes": 0.04},
        {},
    ),
)
_DER: Final = (100, 100)
_SIXTY: Final = {"": 0.1, "DER++": 0.03, "ours": 0.02, "ours, two passes": 0.02}
F2: Final = (
    Protocol(
        "F2 S-MNIST 60,000",
        _split(None),
        _DER,
        10,
        500,
        {**_SIXTY, "ours": 0.04, "ours, two passes": 0.04},
        {"ER": "86.12", "DER++": "91.00"},
        (92.0, None, None),
    ),
    Protocol(
        "F2 S-MNIST 60,000",
        _split(None),
        _DER,
        10,
        200,
        _SIXTY,
        {"ER": "80.43", "DER++": "85.61"},
        (88.0, None, None),
    ),
)
F3: Final = (
    Protocol(
        "F3 P-MNIST 20 x 60,000",
        data.permuted,
        _DER,
        128,
        500,
        {"": 0.2},
        {"none": "40.70", "ER": "80.60", "DER++": "88.21"},
        (87.0, None, None),
    ),
    Protocol(
        "F3 R-MNIST 20 x 60,000",
        data.rotated,
        _DER,
        128,
        500,
        {"": 0.2, "ours": 0.3},
        {"none": "67.66", "ER": "88.91", "DER++": "92.77"},
        (93.0, None, None),
    ),
)
F4: Final = (
    Protocol(
        "F4 turning pairs 20,000",
        data.turning,
        _DER,
        10,
        500,
        _RATES,
        {"ER": "65.0 (MNIST-360)", "DER++": "69.6 (MNIST-360)"},
    ),
)
"""The published ones are of another stream of this kind: three times as long."""


def network(wide: int, hidden: Sequence[int], classes: int, seed: int) -> nn.Module:
    """Layers with rectifiers between them, drawn from ``seed``."""
    torch.manual_seed(seed)
    widths = [wide, *hidden]
    layers: list[nn.Module] = []
    for a, b in itertools.pairwise(widths):
        layers += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(widths[-1], classes))


def run_one(protocol: Protocol, method: Method, digits: data.Digits, seed: int) -> Run:
    """Learn the tasks, looking at all that have been seen every hundred rows."""
    wide = digits.x.shape[1]
    learner = Rehearser(
        network(wide, protocol.hidden, data.CLASSES, seed),
        method,
        wide=wide,
        classes=data.CLASSES,
        capacity=protocol.capacity,
        rate=protocol.rates.get(method.name, protocol.rates[""]),
        seed=seed,
    )
    tasks, size = protocol.tasks(digits, seed), protocol.batch
    looks = [(task.view(task.asked_x[:_LOOKED]), task.asked_y[:_LOOKED]) for task in tasks]
    every = max(_EVERY // size, 1)
    after, points, steps, seconds = [], [], 0, 0.0
    for k, task in enumerate(tasks):
        for first in range(0, len(task.y), size):
            begun = time.perf_counter()
            learner.step(task.view(task.x[first : first + size]), task.y[first : first + size])
            seconds += time.perf_counter() - begun
            steps += 1
            if steps % every == 0:
                points.append(Point(k, [learner.accuracy(*look) for look in looks[: k + 1]]))
        after.append([learner.accuracy(t.view(t.asked_x), t.asked_y) for t in tasks[: k + 1]])
    megabytes = 0.0 if learner.kept is None else learner.kept.megabytes
    return Run(remembered(after, points), steps / seconds, megabytes)


def line(protocol: Protocol, method: Method, runs: Sequence[Run]) -> Line:
    """The means, beside what was published and asked."""
    means = {
        name: statistics.fmean(getattr(run.figures, name) for run in runs)
        for name in ("acc", "forgetting", "bwt", "any_time", "worst")
    }
    asked, good = "", True
    if protocol.asked is not None and method is OURS:
        acc, forgetting, worst = protocol.asked
        bounds = [("acc >=", acc, means["acc"] >= acc)]
        if forgetting is not None:
            bounds.append(("forgetting <=", forgetting, means["forgetting"] <= forgetting))
        if worst is not None:
            bounds.append(("worst >=", worst, means["worst"] >= worst))
        asked = ", ".join(f"{what} {bound:g}" for what, bound, _ in bounds)
        good = all(met for _, _, met in bounds)
    return Line(
        f"{protocol.name}: {method.name}",
        protocol.capacity if method.buffer else 0,
        len(runs),
        means["acc"],
        statistics.stdev(run.figures.acc for run in runs) if len(runs) > 1 else 0.0,
        means["forgetting"],
        means["bwt"],
        means["any_time"],
        means["worst"],
        statistics.median(run.steps_per_s for run in runs),
        statistics.fmean(run.buffer_mb for run in runs),
        protocol.published.get(method.name, ""),
        asked,
        good,
    )


def table(
    protocols: Iterable[Protocol],
    digits: data.Digits,
    *,
    methods: Sequence[Method] = (NONE, ER, DER, OURS, TWICE),
    seeds: Sequence[int] = SEEDS,
    progress: Progress = lambda line: None,
) -> list[Line]:
    """A line for each protocol and method; torch computes in one thread."""
    torch.set_num_threads(1)
    lines = []
    for protocol in protocols:
        for method in methods:
            progress(f"{protocol.name}: {method.name}")
            runs = [run_one(protocol, method, digits, seed) for seed in seeds]
            lines.append(line(protocol, method, runs))
    return lines


COST_MAX: Final = 1.7
"""Most plain steps of torch that one with three drawn rows for each fresh one may cost."""


@dataclass(frozen=True, slots=True)
class Cost:
    """Steps of F1 with three drawn rows a fresh one beside plain ones in turn.

    µs of a step, the least of the rounds: of the usual torch loop, of ours with nothing drawn, and
    of ours.  ``ratio``: of the last to the first, ``own_ratio``: to the second, medians.
    """

    what: str
    torch_us: float
    none_us: float
    step_us: float
    ratio: float
    own_ratio: float
    asked: str
    good: bool


Step = Callable[[Tensor, Tensor], None]


def _torch_loop(module: nn.Module) -> Step:
    """The peer: the usual training loop in torch."""
    optimizer, loss = torch.optim.SGD(module.parameters(), lr=0.01), nn.CrossEntropyLoss()

    def step(x: Tensor, y: Tensor) -> None:
        optimizer.zero_grad()
        loss(module(x), y).backward()
        optimizer.step()

    return step


def cost(digits: data.Digits, size: int, *, rounds: int = 15, steps: int = 100) -> Cost:
    """Measure turns of steps of ``size`` fresh rows each; the memory is full from the start."""
    torch.set_num_threads(1)
    protocol, wide = F1[0], digits.x.shape[1]
    calls = [_torch_loop(network(wide, protocol.hidden, data.CLASSES, 1))]
    for method in (NONE, OURS):
        learner = Rehearser(
            network(wide, protocol.hidden, data.CLASSES, 1),
            method,
            wide=wide,
            classes=data.CLASSES,
            capacity=protocol.capacity,
            rate=0.01,
            seed=1,
        )
        calls.append(learner.step)
    for step in calls:
        step(digits.x[: protocol.capacity], digits.y[: protocol.capacity])
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(rounds):
        for step, own in zip(calls, times, strict=True):
            begun = time.perf_counter()
            for i in range(0, steps * size, size):
                at = i % (len(digits.y) - size)
                step(digits.x[at : at + size], digits.y[at : at + size])
            own.append(1e6 * (time.perf_counter() - begun) / steps)
    usual, none, ours = times
    ratio = statistics.median(b / a for a, b in zip(usual, ours, strict=True))
    own_ratio = statistics.median(b / a for a, b in zip(none, ours, strict=True))
    return Cost(
        f"F1, {size} fresh",
        min(usual),
        min(none),
        min(ours),
        ratio,
        own_ratio,
        f"ratio <= {COST_MAX}",
        ratio <= COST_MAX,
    )


@dataclass(frozen=True, slots=True)
class Found:
    """Every table of the command."""

    tasks: list[Line]
    drift: list[Drifted]
    cost: list[Cost]

    @property
    def good(self) -> bool:
        """All that is asked of ours is met."""
        verdicts = [row.good for row in self.tasks] + [row.good for row in self.drift]
        return all(verdicts) and all(row.good for row in self.cost)


def run(
    data_dir: Path | None, *, long: bool = False, progress: Progress = lambda line: None
) -> Found:
    """F1, F2, F4 and F5; ``long`` adds F3, which takes an hour."""
    digits = data.mnist(data_dir)
    lines = table(F1, digits, progress=progress)
    lines += table((*F2, *F4), digits, progress=progress)
    if long:
        lines += table(F3, digits, seeds=SEEDS[:2], progress=progress)
    drift = drifting.table(drifting.F5, data_dir, progress=progress)
    return Found(lines, drift, [cost(digits, 1), cost(digits, 10)])
