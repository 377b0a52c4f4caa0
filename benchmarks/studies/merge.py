"""Merge rules side by side: one stream dealt to several replicas that exchange deltas now and then.

A simulation in one process, without clock or network, so every run gives the same figures.  Rows
are dealt to N replicas.  Each tests a row, then learns it, and exchanges with the server after
every S own rows (or on a timer, after every S rows of the stream); their turns are spread evenly.
An exchange pushes what the replica has learned since the last one and takes the server's values.
Standardisation is that of the whole stream so far, once for all: moments merge exactly, so no
rule has a part in it.  Rates are compared all at once: they are an axis of every array.

Beside the rules stand

``single``   one learner that sees every row in turn;
``late``     one learner that is as late: it learns a row only when as many newer ones have come
             as a replica's prediction lacks in the mean (``rows_late``, counted);
``ordered``  each replica learns its own rows at once and everybody else's at its exchanges, in
             their order: N times the learning, and nothing is merged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
from river.datasets import synth

from evaluation.streams import Row, open_stream

Floats = npt.NDArray[np.float64]
Dealing = Literal["turns", "random", "busy", "lone"]

RATES: Final = (0.0125, 0.025, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6)
STREAMS: Final = ("elec2", "insects", "sea")
_SEED: Final = 1
_BUSY: Final = 0.9
_SEA_ROWS: Final = 5_000
STRENGTH: Final = 4.0


@dataclass(frozen=True, slots=True)
class Cell:
    """One setting: how rows are dealt, to how many, and how often they exchange.

    Attributes:
        dealing: ``turns``: one after the other.  ``random``: each row to anyone.  ``busy``: nine of
            ten rows to the first.  ``lone``: all rows to the first.
        every: Own rows between two exchanges, or rows of the stream if ``timer``.
    """

    dealing: Dealing
    replicas: int
    every: int
    timer: bool = False


FULL: Final = (
    *(Cell(d, n, s) for d in ("turns", "random") for n in (1, 2, 4, 8)
      for s in (1, 4, 16, 64, 256, 1024)),
    *(Cell(d, 4, s, timer) for d in ("busy", "lone") for timer in (False, True)
      for s in (4, 16, 64, 256)),
)  # fmt: skip
QUICK: Final = (Cell("turns", 4, 16), Cell("random", 4, 16), Cell("lone", 4, 16))


@dataclass(frozen=True, slots=True)
class Score:
    """Accuracy at a rule's own best rate, and at the single learner's best one."""

    best: float
    rate: float
    unchanged: float


@dataclass(frozen=True, slots=True)
class Line:
    """One cell of one stream; ``scores`` by rule, ``single``, ``late`` and ``ordered``."""

    stream: str
    dealing: str
    replicas: int
    every: int
    timer: bool
    rows: int
    rows_late: float
    scores: dict[str, Score]


# -- streams -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Data:
    """Rows as a model behind a StandardScaler has them when it predicts, and when it learns."""

    name: str
    asked: Floats
    learned: Floats
    labels: npt.NDArray[np.int64]
    outputs: int


def load(name: str, data_dir: Path | None, rows: int | None = None) -> Data:
    """A stream, standardised; ``sea`` is river's generator with four concepts in turn."""
    if name == "sea":
        return prepare(name, _sea(), rows)
    return prepare(name, open_stream(name, data_dir).rows, rows)


def _sea() -> Iterable[Row]:
    for variant in range(4):
        stream = synth.SEA(variant=variant, seed=variant + 1, noise=0.1)
        for features, label in islice(stream, _SEA_ROWS):
            yield {str(name): float(x) for name, x in features.items()}, bool(label)


def prepare(name: str, stream: Iterable[Row], rows: int | None = None) -> Data:
    """Standardise as river does: by the rows before to predict, by this one too to learn.

    A binary task has one output and a last column of ones, the intercept; softmax has none.
    """
    taken = list(islice(stream, rows))
    names = list(taken[0][0])
    raw = np.array([[float(x[key] or 0) for key in names] for x, _ in taken])
    known = sorted({label for _, label in taken})
    n, width = raw.shape
    asked, learned = np.zeros((n, width)), np.zeros((n, width))
    mean, squares = np.zeros(width), np.zeros(width)
    for i, row in enumerate(raw):
        asked[i] = _scaled(row - mean, squares / max(i, 1))
        gap = row - mean
        mean = mean + gap / (i + 1)
        squares = squares + gap * (row - mean)
        learned[i] = _scaled(row - mean, squares / (i + 1))
    labels = np.array([known.index(label) for _, label in taken])
    if len(known) > 2:
        return Data(name, asked, learned, labels, len(known))
    ones = np.ones((n, 1))
    return Data(name, np.hstack([asked, ones]), np.hstack([learned, ones]), labels, 1)


def _scaled(gap: Floats, variance: Floats) -> Floats:
    return np.divide(gap, np.sqrt(variance), out=np.zeros_like(gap), where=variance > 0)


def deal(cell: Cell, rows: int) -> list[int]:
    """Which replica gets each row."""
    n = cell.replicas
    if cell.dealing == "turns":
        return [i % n for i in range(rows)]
    if cell.dealing == "lone" or n == 1:
        return [0] * rows
    rng = np.random.default_rng(_SEED)
    rest = (1 - _BUSY) / (n - 1)
    shares = [1 / n] * n if cell.dealing == "random" else [_BUSY] + [rest] * (n - 1)
    owners: list[int] = rng.choice(n, rows, p=shares).tolist()
    return owners


# -- learning ----------------------------------------------------------------------------------


def _answers(weights: Floats, row: Floats) -> Floats:
    """Probabilities, outputs last, for weights of any leading axes."""
    raw = weights @ row
    if raw.shape[-1] == 1:
        answers: Floats = 1.0 / (1.0 + np.exp(-raw))
        return answers
    powers = np.exp(raw - raw.max(axis=-1, keepdims=True))
    shares: Floats = powers / powers.sum(axis=-1, keepdims=True)
    return shares


def _right(weights: Floats, row: Floats, label: int) -> Any:
    if weights.shape[-2] == 1:
        return ((weights @ row)[..., 0] > 0) == bool(label)
    return (weights @ row).argmax(axis=-1) == label


def _step(weights: Floats, row: Floats, label: int, rates: Floats) -> Floats:
    """Learn a row in place; returns rate · squared gradient by weight."""
    slope = _answers(weights, row)
    if slope.shape[-1] == 1:
        slope -= label
    else:
        slope[..., label] -= 1.0
    gradient = slope[..., None] * row
    weights -= rates * gradient
    return rates * gradient * gradient


def _accuracy(right: Any, rows: int, weights: Floats) -> Floats:
    """Share of right answers, and 0 where weights have left the finite numbers."""
    finite = np.isfinite(weights).reshape(*weights.shape[:-2], -1).all(axis=-1)
    shares: Floats = np.where(finite, right / rows, 0.0)
    return shares


def late(data: Data, rates: Sequence[float], behind: int) -> Floats:
    """Accuracy by rate of one learner that learns each row ``behind`` rows after its turn."""
    weights = np.zeros((len(rates), data.outputs, data.asked.shape[1]))
    by = np.array(rates)[:, None, None]
    right = np.zeros(len(rates))
    for i, label in enumerate(data.labels.tolist()):
        right += _right(weights, data.asked[i], label)
        if (j := i - behind) >= 0:
            _step(weights, data.learned[j], int(data.labels[j]), by)
    return _accuracy(right, len(data.labels), weights)


def ordered(data: Data, rates: Sequence[float], cell: Cell) -> Floats:
    """Accuracy by rate if every replica learns everybody's rows."""
    owners, n = deal(cell, len(data.labels)), cell.replicas
    weights = np.zeros((n, len(rates), data.outputs, data.asked.shape[1]))
    by = np.array(rates)[:, None, None]
    right, seen, due = np.zeros(len(rates)), [0] * n, _Due(cell)
    for i, (label, owner) in enumerate(zip(data.labels.tolist(), owners, strict=True)):
        right += _right(weights[owner], data.asked[i], label)
        _step(weights[owner], data.learned[i], label, by)
        for replica in due.after(i, owner):
            for j in range(seen[replica], i + 1):
                if owners[j] != replica:
                    _step(weights[replica], data.learned[j], int(data.labels[j]), by)
            seen[replica] = i + 1
    return _accuracy(right, len(data.labels), np.moveaxis(weights, 0, -2).reshape(
        len(rates), 1, -1))  # fmt: skip


class _Due:
    """Whose turn to exchange it is; first turns are spread evenly."""

    def __init__(self, cell: Cell) -> None:
        self._every, self._timer, self._n = cell.every, cell.timer, cell.replicas
        self._own = [i * cell.every // cell.replicas for i in range(cell.replicas)]

    def after(self, row: int, owner: int) -> list[int]:
        """Replicas that exchange after this row, which ``owner`` got."""
        if self._timer:
            every, n = self._every, self._n
            return [i for i in range(n) if (row + 1 + i * every // n) % every == 0]
        self._own[owner] += 1
        if self._own[owner] < self._every:
            return []
        self._own[owner] = 0
        return [owner]


# -- rules -------------------------------------------------------------------------------------


@dataclass(slots=True)
class Exchange:
    """An exchange is what a rule knows of a push: arrays by rate, output and column.

    Attributes:
        value: The server's values, which the rule changes in place.
        delta, moved: What the replica and the others did since the replica's last exchange.
        curvature: Σ rate · squared gradient of the replica's rows since then.
        others, learners: Pushes by others since then; (Σ n)² / Σ n² over the rows n of each
            replica.
    """

    value: Floats
    delta: Floats
    moved: Floats
    curvature: Floats
    others: int
    learners: float


def _sum(x: Exchange) -> None:
    x.value += x.delta


def _average(x: Exchange) -> None:
    x.value += x.delta / (1 + x.others)


def _compensated(x: Exchange) -> None:
    if x.others == 0:
        x.value += x.delta
        return
    used, more = 1 - np.exp(-STRENGTH * x.curvature), x.learners - 1
    kept = (1 + used / 2 * more) / (1 + used * more)
    x.value += kept * x.delta - used / 2 * x.moved


RULES: Final[dict[str, Callable[[Exchange], None]]] = {
    "sum": _sum,
    "average": _average,
    "compensated": _compensated,
}


class _World:
    """A server and its replicas under all rules and rates at once: axes rule and rate lead."""

    def __init__(self, data: Data, rules: Sequence[str], rates: Sequence[float], n: int) -> None:
        shape = (len(rules), len(rates), data.outputs, data.asked.shape[1])
        self._rules = rules
        self._rates = np.array(rates)[:, None, None]
        self.value = np.zeros(shape)
        self.local, self._base, self._used = (np.zeros((n, *shape)) for _ in range(3))
        self.rows = [0] * n  # of each since its last exchange
        self.known = [0] * n  # rows in the values that each has
        self._all = 0
        self._pushes: list[tuple[int, int]] = []  # whose, and how many rows
        self._seen = [0] * n

    def learn(self, replica: int, row: Floats, label: int) -> None:
        self._used[replica] += _step(self.local[replica], row, label, self._rates)
        self.rows[replica] += 1

    def exchange(self, replica: int) -> None:
        """Push what was learned, if anything was, and take the values."""
        if self.rows[replica]:
            self._push(replica)
        else:
            self.local[replica] = self.value
        self._base[replica] = self.local[replica]
        self._seen[replica], self.known[replica] = len(self._pushes), self._all

    def _push(self, replica: int) -> None:
        local, base, used = self.local[replica], self._base[replica], self._used[replica]
        counts = {replica: self.rows[replica]}
        others = [push for push in self._pushes[self._seen[replica] :] if push[0] != replica]
        for whose, rows in others:
            counts[whose] = counts.get(whose, 0) + rows
        learners = sum(counts.values()) ** 2 / sum(n * n for n in counts.values())
        delta, moved = local - base, self.value - base
        for i, rule in enumerate(self._rules):
            RULES[rule](Exchange(self.value[i], delta[i], moved[i], used[i], len(others), learners))
        local[...] = self.value
        self._pushes.append((replica, self.rows[replica]))
        self._all += self.rows[replica]
        self.rows[replica] = 0
        used[...] = 0.0


def simulate(
    data: Data, cell: Cell, rules: Sequence[str] = tuple(RULES), rates: Sequence[float] = RATES
) -> tuple[Floats, float]:
    """Accuracy by rule and rate, and the rows that a prediction lacks in the mean."""
    owners, n = deal(cell, len(data.labels)), len(data.labels)
    world, due = _World(data, rules, rates, cell.replicas), _Due(cell)
    right, lacking = np.zeros((len(rules), len(rates))), 0
    for i, (label, owner) in enumerate(zip(data.labels.tolist(), owners, strict=True)):
        right += _right(world.local[owner], data.asked[i], label)
        lacking += i - world.known[owner] - world.rows[owner]
        world.learn(owner, data.learned[i], label)
        for replica in due.after(i, owner):
            world.exchange(replica)
    return _accuracy(right, n, world.value), lacking / n


# -- the table ---------------------------------------------------------------------------------


def run(
    data: Data,
    cells: Sequence[Cell] = FULL,
    rates: Sequence[float] = RATES,
    progress: Callable[[str], None] = lambda _: None,
) -> list[Line]:
    """All cells of one stream."""
    rules = tuple(RULES)
    with np.errstate(over="ignore", invalid="ignore"):
        single = late(data, rates, 0)
        at = int(single.argmax())
        lateness: dict[int, Floats] = {0: single}
        lines = []
        for cell in cells:
            progress(f"{data.name}: {cell}")
            found, behind = simulate(data, cell, rules, rates)
            if (whole := round(behind)) not in lateness:
                lateness[whole] = late(data, rates, whole)
            columns = {"single": single, "late": lateness[whole]}
            alone = cell.replicas == 1 or cell.dealing == "lone"
            columns["ordered"] = single if alone else ordered(data, rates, cell)
            columns |= dict(zip(rules, found, strict=True))
            scores = {name: _score(column, rates, at) for name, column in columns.items()}
            place = (cell.dealing, cell.replicas, cell.every, cell.timer)
            lines.append(Line(data.name, *place, len(data.labels), behind, scores))
    return lines


def _score(column: Floats, rates: Sequence[float], at: int) -> Score:
    best = int(column.argmax())
    return Score(float(column[best]), rates[best], float(column[at]))


def markdown(lines: Sequence[Line]) -> str:
    """The lines as a table; a cell is the best accuracy / that at the single learner's rate."""
    columns = list(lines[0].scores)
    head = ["stream", "dealing", "N", "S", "rows late", *columns]
    out = [" | ".join(["", *head, ""]).strip(), "|" + "---|" * len(head)]
    for line in lines:
        every = f"{line.every} (timer)" if line.timer else str(line.every)
        shown = [f"{s.best:.4f} / {s.unchanged:.4f}" for s in line.scores.values()]
        place = [line.stream, line.dealing, str(line.replicas), every, f"{line.rows_late:.0f}"]
        out.append(f"| {' | '.join([*place, *shown])} |")
    return "\n".join(out)
