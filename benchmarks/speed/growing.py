"""Pushes of a small model whose server shares a process with a table that grows.

The table is pushed to without pause from a second thread: rows with ids that it has, or with new
ones, so that it doubles ten times.  Beside them, thirty rows at a time are pushed to another
server, as by a model that shares the process; the time of each such push is measured.
"""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np

from benchmarks.speed.ids import BATCH, EVENT, WIDTH, Ids, spread
from benchmarks.speed.shards import Servers
from paramserver.core.blocks import ROWS, Block
from paramserver.core.tables.rows import Rows

DOUBLINGS: Final = 10
_SMALL: Final = 5_000
_PAUSE_S: Final = 0.001
_TURNS: Final = 3


@dataclass(frozen=True, slots=True)
class Beside:
    """Milliseconds of a push to the small model; medians of turns.

    Attributes:
        rows: Of the table that is pushed to at the end.
        slowest_ms: Of all turns.
    """

    what: str
    rows: int
    pushes: int
    p50_ms: float
    p99_ms: float
    slowest_ms: float


def run(doublings: int = DOUBLINGS, turns: int = _TURNS) -> Iterator[Beside]:
    """Push beside a table that has its size, and beside one that grows to it, turn by turn."""
    ids = spread(BATCH << doublings)
    took: dict[str, list[list[float]]] = {"it has its size": [], "it grows": []}
    for _ in range(turns):
        for what, begin in zip(took, (len(ids), BATCH), strict=True):
            took[what].append(_beside(ids, begin))
    for what, found in took.items():
        yield Beside(
            what, len(ids), sum(map(len, found)),
            statistics.median(statistics.median(one) for one in found) * 1e3,
            statistics.median(sorted(one)[int(len(one) * 0.99)] for one in found) * 1e3,
            max(map(max, found)) * 1e3,
        )  # fmt: skip


def _beside(ids: Ids, begin: int) -> list[float]:
    """Push all ids to a table that has the first of them; return what pushes beside it took."""
    small, large = (Servers(1, 0, time.perf_counter) for _ in range(2))
    small.push(_rows(spread(_SMALL)))
    for at in range(0, begin, BATCH):
        large.push(_rows(ids[at : at + BATCH]))
    done, took = threading.Event(), list[float]()

    def grow() -> None:
        for at in range(0, len(ids), BATCH):
            large.push(_rows(ids[at : at + BATCH]))
        done.set()

    thread = threading.Thread(target=grow)
    thread.start()
    draw = np.random.default_rng(1)
    some = spread(_SMALL)
    while not took or not done.wait(_PAUSE_S):
        took.append(_timed(small.push, _rows(some[draw.integers(_SMALL, size=EVENT)])))
    thread.join()
    return took


def _timed(act: Callable[[Block], None], block: Block) -> float:
    begun = time.perf_counter()
    act(block)
    return time.perf_counter() - begun


def _rows(ids: Ids) -> Block:
    ids = np.unique(ids)
    return Block(ROWS, Rows(ids, np.full((len(ids), WIDTH), 0.5, dtype=np.float32)))
