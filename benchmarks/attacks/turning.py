"""R7: a world that turns without an attacker, with filters and without.

Gas sensors that age, electricity prices, and digits whose labels are exchanged at half of the
stream, each dealt to twelve honest sources that differ.  The same rows are judged and learned by
the default filters and by none.  *Recovery* after a turn: rows until the mean of the last hundred
answers is at 95 % of what the run without filters comes to in the second half of what follows.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, islice
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks.attacks.honest import Loop, first_of_each, source_of
from evaluation.streams import open_stream
from online.settings.model import ModelSettings
from replay.example import Features, Label

REJECTED_MAX: Final = 0.05
RECOVERY_MAX: Final = 1.1
"""Share of rows set aside; rows until recovery over those without filters."""

SOURCES: Final = 12
DEALT: Final = ("alike", "by label", "by size", "one after another")
_WINDOW: Final = 100
_NEAR: Final = 0.95
_GAS_BATCHES: Final = (445, 1_244, 1_586, 161, 197, 2_300, 294)
_ELEC2_TURN: Final = 17_760
_ELEC2_ROWS: Final = 24_000
_DIGITS: Final = 6_000

Row = tuple[Features, Label]


@dataclass(frozen=True, slots=True)
class Turning:
    """A stream with known turns: ``turns`` are rows at which another world begins."""

    name: str
    task: Any
    learner: str
    rows: Sequence[Row]
    turns: Sequence[int]


@dataclass(frozen=True, slots=True)
class Turned:
    """One stream, dealt in one way.

    Accuracies in percent; ``rejected`` in percent of rows; ``recovery`` and ``without`` in rows,
    summed over the turns.  ``quarantined``: sources that were, pardoned later or not.
    """

    what: str
    rows: int
    accuracy: float
    unfiltered: float
    rejected: float
    clipped: int
    quarantined: int
    recovery: int
    without: int
    drifts: int
    good: bool


def streams(data_dir: Path | None, rows: int | None = None) -> Iterator[Turning]:
    """The three of them; ``rows`` of each at most.  Raises StreamUnusable."""
    gas = list(islice(iter(open_stream("gas", data_dir).rows), rows))
    yield _known("gas", "multiclass", "softmax", gas, list(accumulate(_GAS_BATCHES)))
    elec2 = list(islice(iter(open_stream("elec2", data_dir).rows), rows or _ELEC2_ROWS))
    yield _known("elec2", "binary", "logreg", elec2, [_ELEC2_TURN])
    exchanged = _exchanged(digits(data_dir, rows or _DIGITS))
    yield _known("digits exchanged", "multiclass", "softmax", exchanged, [len(exchanged) // 2])


def _known(name: str, task: str, learner: str, rows: list[Row], turns: list[int]) -> Turning:
    within = [turn for turn in turns if turn + 2 * _WINDOW <= len(rows)]
    return Turning(name, task, learner, rows, within or [len(rows) // 2])


def digits(data_dir: Path | None, many: int) -> list[Row]:
    """MNIST's first images, of 7 × 7.  Raises StreamUnusable."""
    from benchmarks.studies.memory import digits as data

    found = data.mnist(data_dir)
    x = found.x[:many].numpy().reshape(-1, 7, 4, 7, 4).mean((2, 4)).reshape(-1, 49)
    return [
        ({f"p{i}": float(v) for i, v in enumerate(image)}, label)
        for image, label in zip(x, found.y[:many].tolist(), strict=True)
    ]


def _exchanged(rows: Sequence[Row]) -> list[Row]:
    """From the middle on each digit has the name of another one."""
    names = np.random.default_rng(7).permutation(10)
    half = len(rows) // 2
    return [*rows[:half], *((x, int(names[int(y)])) for x, y in rows[half:])]


def run(
    data_dir: Path | None, rows: int | None = None, progress: Callable[[str], None] = lambda x: None
) -> Iterator[Turned]:
    """Each stream dealt in each way, and to sources that are alike with a root set too."""
    for stream in streams(data_dir, rows):
        for deal, with_root in [*((deal, False) for deal in DEALT), ("alike", True)]:
            line = turned(stream, deal, with_root=with_root)
            progress(str(line))
            yield line


def turned(stream: Turning, deal: str, *, with_root: bool = False) -> Turned:
    """One stream, dealt in one way, with filters and without."""
    plain, plain_right, _ = _played(stream, deal, "none")
    loop, right, quarantined = _played(stream, deal, "default", with_root=with_root)
    assert loop.filters is not None
    rejected = loop.counts["quarantined"] / loop.n
    recovery, without = recovered(plain_right, right, stream.turns)
    return Turned(
        f"{stream.name}, {deal}" + (", root set" if with_root else ""), loop.n,
        100.0 * loop.right / loop.n, 100.0 * plain.right / plain.n, 100.0 * rejected,
        loop.counts["clipped"], quarantined, recovery, without,
        loop.filters.chain.alarms,
        rejected < REJECTED_MAX and not quarantined and recovery <= RECOVERY_MAX * without,
    )  # fmt: skip


def _played(
    stream: Turning, deal: str, filters: str, *, with_root: bool = False
) -> tuple[Loop, list[bool], int]:
    root = first_of_each(stream.rows) if with_root else []
    given: dict[str, Any] = {"task": stream.task, "learner": stream.learner, "filters": filters}
    loop = Loop(ModelSettings(name="m", **given), vouched=True, root=root)
    draw, right, condemned = random.Random(0), list[bool](), list[str]()
    if loop.filters is not None:
        loop.filters.reputations.on_quarantine = condemned.append
    for features, label in stream.rows:
        before = loop.right
        loop.step(source_of(deal, SOURCES, loop.n, label, draw), features, label)
        right.append(loop.right > before)
    return loop, right, len(set(condemned))


def recovered(
    without: Sequence[bool], with_filters: Sequence[bool], turns: Sequence[int]
) -> tuple[int, int]:
    """Rows until recovery with filters and without, summed over the turns."""
    ends = [*turns[1:], len(without)]
    sums = [0, 0]
    for turn, end in zip(turns, ends, strict=True):
        settled = float(np.mean(without[(turn + end) // 2 : end]))
        for i, right in enumerate((with_filters, without)):
            sums[i] += _rows_until(np.asarray(right[turn:end], float), _NEAR * settled)
    return sums[0], sums[1]


def _rows_until(right: Any, level: float) -> int:
    """Rows until the mean of the last hundred is at the level; all of them if it never is."""
    window = min(_WINDOW, len(right) // 2)
    means = np.convolve(right, np.ones(window) / window, "valid")
    at = np.flatnonzero(means >= level)
    return int(at[0]) + window if len(at) else len(right)
