"""The cost of several parameter servers of one model, beside one: the processor's time of each.

The same pushes of rows of one table go to one server and to as many as are asked for, turn by turn:
read from bytes, applied, answered and written as the service does it, each server by its own clock.
To whoever sends, cutting belongs: it costs nothing with one.  Not in it: the way between processes.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np

from paramserver.core import wire
from paramserver.core.blocks import ROWS, Block, to_wire
from paramserver.core.server import Server
from paramserver.core.shards import Cut
from paramserver.core.tables.ids import IdArray
from paramserver.core.tables.rows import Rows

WIDTH: Final = 16
TABLE: Final = 200_000
_SPEC: Final = "0" * 64
_PAIRS: Final = 11
_PUSHES: Final = 40

Clock = Callable[[], float]


@dataclass(frozen=True, slots=True)
class Partition:
    """The one partition of the stream, as the store would tell of it."""

    id: int = 1
    replica: str = "r"
    end: int = 2**40
    sealed: bool = False
    trimmed: int = 0


@dataclass(frozen=True, slots=True)
class Compared:
    """Several servers beside one, with so many rows a push; medians of pairs.

    Attributes:
        one_rows, busiest_rows: Rows a second of the processor, of one server and of the busiest of
            several.
        speed: The second beside the first.
        total: Time of all servers and of who sends, beside that with one.
    """

    shards: int
    rows: int
    one_rows: float
    busiest_rows: float
    speed: float
    total: float


class Servers:
    """The servers of a model with one table, and what they and who sends have taken, in seconds."""

    def __init__(self, shards: int, table: int, clock: Clock) -> None:
        self._cut, self._clock = Cut(shards), clock
        self._servers = [Server("m", _SPEC, "{}", "sum", 1) for _ in range(shards)]
        self._first = 0
        self._last: list[tuple[int, int] | None] = [None] * shards
        values = {"t": _block(np.arange(table, dtype=np.uint64))}
        parts = self._cut.blocks(values) if shards > 1 else [values]
        for server, part in zip(self._servers, parts, strict=True):
            server.values["t"] = part["t"]
            server.values["t"].data.lay_out()
        self.reset()

    def reset(self) -> None:
        """Begin to count anew."""
        self.took = [0.0] * len(self._servers)
        self.sending = 0.0

    def push(self, block: Block) -> None:
        """Push them, and pull what has changed since the last time."""
        begun = self._clock()
        self._first += 1
        push = wire.Push(
            self._servers[0].epoch, _SPEC, 1, self._first, self._first, 1,
            (self._servers[0].epoch, 0), to_wire({"t": block}),
        )  # fmt: skip
        parts = self._cut.push(push) if len(self._servers) > 1 else [push]
        asked = [
            wire.encode(wire.SyncRequest(wire.FORMAT, "r", 1, [part], since, True, []))
            for since, part in zip(self._last, parts, strict=True)
        ]
        self.sending += self._clock() - begun
        for number, (server, data) in enumerate(zip(self._servers, asked, strict=True)):
            begun = self._clock()
            message = wire.decode_request(data)
            acks = [server.push(one, Partition) for one in message.pushes]
            wire.encode(server.reply(message, acks, [], 0.0))
            self.took[number] += self._clock() - begun
            self._last[number] = server.version


def _block(ids: IdArray) -> Block:
    return Block(ROWS, Rows(ids, np.full((len(ids), WIDTH), 0.5, dtype=np.float32)))


def compared(
    shards: int, rows: int, *, table: int = TABLE, pairs: int = _PAIRS, clock: Clock | None = None
) -> Compared:
    """Several servers beside one, in pairs whose order changes."""
    draw, clock = np.random.default_rng(0), time.process_time if clock is None else clock
    both = [Servers(n, table, clock) for n in (1, shards)]
    found: list[tuple[float, float, float, float]] = []
    for pair in range(pairs):
        pushed = [
            _block(draw.choice(table, rows, replace=False).astype(np.uint64))
            for _ in range(_PUSHES)
        ]
        for servers in both if pair % 2 else reversed(both):
            servers.reset()
            for block in pushed:
                servers.push(block)
        one, several = both
        n, busiest = rows * _PUSHES, max(several.took)
        totals = [sum(servers.took) + servers.sending for servers in both]
        found.append((n / one.took[0], n / busiest, one.took[0] / busiest, totals[1] / totals[0]))
    return Compared(shards, rows, *(statistics.median(x) for x in zip(*found, strict=True)))
