"""Rows that may stay: admission and eviction on a stream of clicks, beside no bound and hashing.

A click has a user, one of a million by Zipf's law whose popular ones change all the time, and an
item.  Whether it is a click follows from numbers of both, and of the pair.  ``fm`` with a table
learns them through a parameter server, 64 events a push, and each event is answered before it is
learned.  Beside a table without bound stand one of a quarter of its rows, whose server admits and
evicts, and one whose ids are hashed to as many places.  A flood sends each name only once.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from online.learning.deltas import Pulled
from online.models.fm import Fm
from online.models.state.factors import TABLE
from paramserver.core import wire
from paramserver.core.admission import TableBounds
from paramserver.core.blocks import to_wire
from paramserver.core.server import Server
from paramserver.core.tables.rows import Rows

EVENTS: Final = 120_000
SIGHTS: Final = 2
_USERS, _ITEMS = 1_000_000, 2_000
_EXPONENT: Final = 1.1
_DRIFT: Final = 0.05  # ranks an event
_PUSH: Final = 64
_SPEC: Final = "0" * 64

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Kept:
    """One table: AUC of the later half, rows at the end, and what it cost."""

    seed: int
    what: str
    auc: float
    rows: int
    waiting: int
    left: int
    bytes_an_event: float
    cpu_us_an_event: float


@dataclass(frozen=True, slots=True)
class Partition:
    """The one partition of the stream, as the store would tell of it."""

    id: int = 1
    replica: str = "r"
    end: int = 2**40
    sealed: bool = False
    trimmed: int = 0


def _numbers(ids: npt.NDArray[np.int64], seed: int) -> Floats:
    """A number of each id, about normal: the same one for the same id."""
    mixed = (ids.astype(np.uint64) + np.uint64(seed)) * np.uint64(0x9E3779B97F4A7C15)
    mixed ^= mixed >> np.uint64(31)
    mixed *= np.uint64(0xBF58476D1CE4E5B9)
    parts = [(mixed >> np.uint64(16 * i)) & np.uint64(0xFFFF) for i in range(4)]
    return np.asarray((sum(p.astype(np.float64) for p in parts) / 65_536.0 - 2.0) * math.sqrt(3.0))


def clicks(n: int, seed: int) -> tuple[list[dict[str, Any]], npt.NDArray[np.bool_]]:
    """Make events and their labels."""
    draw = np.random.default_rng(seed)
    ranks = [_zipf(draw, n, of) for of in (_USERS, _ITEMS)]
    moved = (ranks[0] + (_DRIFT * np.arange(n)).astype(np.int64)) % _USERS
    user = np.random.default_rng(seed + 1).permutation(_USERS)[moved]
    item = ranks[1]
    logit = 1.2 * _numbers(user, 1) + 0.8 * _numbers(item, 2) - 0.5
    logit += 0.8 * _numbers(user, 3) * _numbers(item, 4)
    labels = draw.random(n) < 1.0 / (1.0 + np.exp(-logit))
    pairs = zip(user.tolist(), item.tolist(), strict=True)
    return [{"user": str(u), "item": str(i)} for u, i in pairs], labels


def _zipf(draw: np.random.Generator, n: int, of: int) -> npt.NDArray[np.int64]:
    weights = np.cumsum(np.arange(1, of + 1, dtype=np.float64) ** -_EXPONENT)
    return np.asarray(np.searchsorted(weights, draw.random(n) * weights[-1]), dtype=np.int64)


def auc(scores: Floats, labels: npt.NDArray[np.bool_]) -> float:
    """Share of the pairs of a click and none that are in the right order."""
    _, place, count = np.unique(scores, return_inverse=True, return_counts=True)
    rank = (np.cumsum(count) - (count - 1) / 2.0)[place]
    hits = int(labels.sum())
    above = rank[labels].sum() - hits * (hits + 1) / 2.0
    return float(above / (hits * (len(labels) - hits)))


class Learning:
    """One replica of ``fm`` with a table, and its server."""

    def __init__(self, bounds: TableBounds | None, bits: int) -> None:
        self.model = Fm(4, bits=bits, table=True).model_for("binary")
        self.server = Server("m", _SPEC, "", "sum", 1)
        self.server.bound(bounds)
        self._pulled, self._pushes, self._since = Pulled(), 0, (1, 0)
        self.bytes = 0

    def exchange(self) -> None:
        """Push what was learned, and take what the server has of it."""
        self._pushes += 1
        push = wire.Push(1, _SPEC, 1, self._pushes, self._pushes, 1, self._since,
                         to_wire(self.model.cut()))  # fmt: skip
        sent = wire.encode(push)
        self.server.push(push, lambda partition: Partition())
        request = wire.SyncRequest(wire.FORMAT, "r", 1, [], self._since, True, [])
        data = wire.encode(self.server.reply(request, [], [], 0.0))
        self.bytes += len(sent) + len(data)
        reply = wire.decode_reply(data)
        touched = self._pulled.take(reply, ())
        self.model.rebase(self._pulled.with_deltas((), touched))
        self._since = (reply.epoch, reply.count)

    def rows(self) -> int:
        """Rows of the server's table."""
        block = self.server.values.get(TABLE)
        return 0 if block is None else len(block.data)


def learned(
    what: str, n: int, seed: int, bounds: TableBounds | None = None, bits: int = 31
) -> Kept:
    """The stream, learned with one kind of table."""
    events, labels = clicks(n, seed)
    learning, scores = Learning(bounds, bits), np.zeros(n)
    begun = time.process_time()
    for i, (event, label) in enumerate(zip(events, labels.tolist(), strict=True)):
        scores[i] = (learning.model.predict(event).probabilities or {})[True]
        learning.model.learn(event, label, 1.0)
        if i % _PUSH == _PUSH - 1:
            learning.exchange()
    spent = time.process_time() - begun
    keeper, half = learning.server.keeper, n // 2
    waiting, left = (keeper.waiting, keeper.left) if keeper else (0, 0)
    return Kept(
        seed, what, auc(scores[half:], labels[half:]), learning.rows(), waiting, left,
        learning.bytes / n, 1e6 * spent / n,
    )  # fmt: skip


def run(n: int = EVENTS, seeds: int = 3, sights: int = SIGHTS) -> Iterator[Kept]:
    """Each kind of table on each stream."""
    for seed in range(1, seeds + 1):
        free = learned("no bound", n, seed)
        yield free
        most = max(free.rows // 4, 16)
        yield learned("a quarter, admitted", n, seed, TableBounds(most, sights))
        yield learned("a quarter, all admitted", n, seed, TableBounds(most))
        yield learned("hashed to as many places", n, seed, bits=round(math.log2(most)))


@dataclass(frozen=True, slots=True)
class Flooded:
    """A flood of names that nobody sends twice, after honest clicks: rows, and rows in memory."""

    what: str
    names: int
    rows: int
    replica_rows: int
    bytes_an_event: float
    cpu_us_an_event: float


def flood(names: int = 50_000, rows_max: int = 5_000) -> Iterator[Flooded]:
    """Names by the thousand, with admission and without."""
    kinds = (("no bound", None), ("bounded", TableBounds(rows_max, SIGHTS)))
    for what, bounds in kinds:
        learning, begun = Learning(bounds, 31), time.process_time()
        for i in range(names):
            learning.model.learn({"user": f"nobody {i}"}, i % 2 == 0, 1.0)
            if i % _PUSH == _PUSH - 1:
                learning.exchange()
        spent = time.process_time() - begun
        held = learning.model._machine.lines._table  # type: ignore[union-attr]
        assert isinstance(held, Rows)
        yield Flooded(
            what, names, learning.rows(), held.end - held.begin, learning.bytes / names,
            1e6 * spent / names,
        )  # fmt: skip
