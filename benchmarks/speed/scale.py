"""A table of a thousand million rows for a thousand replicas, in virtual time.

One server takes one push after the other, and answers pulls between them.  What a push and an
answer cost it is measured here with the real :class:`paramserver.core.server.Server`: so much each,
and so much a row.  The rest is arithmetic: how many rows the events of an interval touch together
(Zipf's law), and a queue of one server at each shard, whose pushes and pulls come at random phases.
Relays by host are no part of the service: the simulation says what they would have to bear.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt

from benchmarks.speed.shards import Partition
from paramserver.core import wire
from paramserver.core.blocks import ROWS, Block, from_wire, to_wire
from paramserver.core.server import Server
from paramserver.core.tables.rows import Rows

ROWS_ALL: Final = 10**9
REPLICAS: Final = 1_000
EVENTS_S: Final = 10**6
FEATURES: Final = 30
WIDTH: Final = 16

_ROW_BYTES: Final = 8 + 4 * WIDTH  # of a message
_EXPONENT: Final = 1.1
_SPEC: Final = "0" * 64
_FEW, _MANY = 30, 2_000
_REPEATS: Final = 60
_TABLE: Final = 200_000  # rows that unit costs are measured on
_ROUNDS: Final = 40  # intervals that are simulated
_ASKED: Final = 4_000  # events whose way is followed

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Cost:
    """Microseconds of the processor: of one message, and of each row in it."""

    what: str
    each_us: float
    row_us: float

    def of(self, rows: float) -> float:
        """Seconds that a message of so many rows takes."""
        return (self.each_us + self.row_us * rows) / 1e6


@dataclass(frozen=True, slots=True)
class Setting:
    """How the service would be laid out.

    Attributes:
        hosts: Relays, one a host, that push and pull for its replicas; 0: replicas do themselves.
        interval_s: Between two pushes, and two pulls, of each.
        share: Of the rows that changed, those that are told in an interval: the others wait.
    """

    shards: int
    hosts: int
    interval_s: float
    share: float = 1.0


@dataclass(frozen=True, slots=True)
class Simulated:
    """A shard and a receiver bear so much; and so long it takes until another host has it.

    ``busy`` and ``receiver_cores``: what the shard takes of a core, and whoever receives; above
    1 it never catches up, and there is no latency.
    """

    shards: int
    relays: int
    interval_s: float
    share: float
    busy: float
    shard_out_mb_s: float
    receiver_in_mb_s: float
    receiver_cores: float
    visible_p50_s: float | None
    visible_p99_s: float | None


def distinct(draws: float, of: int = ROWS_ALL) -> float:
    """Different ids among so many that are drawn by Zipf's law: expected."""
    edges = np.unique(np.geomspace(1, of + 1, 4_000).astype(np.int64)).astype(np.float64)
    low, high = edges[:-1], edges[1:]
    mass = (low ** (1 - _EXPONENT) - high ** (1 - _EXPONENT)) / (_EXPONENT - 1)
    each = mass / mass.sum() / (high - low)
    return float(((high - low) * -np.expm1(-draws * each)).sum())


def unit_costs(clock: Callable[[], float] = time.process_time) -> tuple[Cost, Cost, Cost]:
    """Measure what a push costs the server, what an answer with changes does, and taking it."""
    draw, found = np.random.default_rng(1), dict[tuple[str, int], float]()
    for rows in (_FEW, _MANY):
        server = Server("m", _SPEC, "", "sum", 1)
        server.values["t"] = _block(np.arange(_TABLE))
        server.values["t"].data.lay_out()
        held = Rows.empty(WIDTH)
        spent = dict.fromkeys(("push", "answer", "taken"), 0.0)
        for nth in range(1, _REPEATS + 1):
            since = server.version
            block = _block(draw.choice(_TABLE, rows, replace=False))
            sent = msgspec.msgpack.encode(
                wire.Push(1, _SPEC, 1, nth, nth, 1, since, to_wire({"t": block}))
            )
            begun = clock()
            server.push(msgspec.msgpack.decode(sent, type=wire.Push), lambda p: Partition())
            pushed = clock()
            request = wire.SyncRequest(wire.FORMAT, "r", 1, [], since, True, [])
            told = wire.encode(server.reply(request, [], [], 0.0))
            answered = clock()
            blocks = from_wire(wire.decode_reply(told).blocks)
            held.update(blocks["t"].data)
            spent["push"] += pushed - begun
            spent["answer"] += answered - pushed
            spent["taken"] += clock() - answered
        found.update({(what, rows): 1e6 * s / _REPEATS for what, s in spent.items()})
    push, answer, taken = (_line(w, found) for w in ("push", "answer", "taken"))
    return push, answer, taken


def _block(ids: npt.NDArray[np.int64]) -> Block:
    numbers = np.full((len(ids), WIDTH), 0.5, dtype=np.float32)
    return Block(ROWS, Rows(ids.astype(np.uint64), numbers))


def _line(what: str, found: dict[tuple[str, int], float]) -> Cost:
    few, many = found[what, _FEW], found[what, _MANY]
    slope = max(many - few, 0.0) / (_MANY - _FEW)
    return Cost(what, max(few - _FEW * slope, 0.0), slope)


def simulated(at: Setting, costs: tuple[Cost, Cost, Cost], seed: int = 1) -> Simulated:
    """One shard, all that push to it and pull from it, and the way of some events."""
    push, answer, taken = costs
    senders = at.hosts or REPLICAS
    draws = EVENTS_S * FEATURES * at.interval_s
    told = at.share * distinct(draws) / at.shards  # rows of an answer
    sent = distinct(draws / senders) / at.shards
    busy = senders * (push.of(sent) + answer.of(told)) / at.interval_s
    out = senders * told * _ROW_BYTES / at.interval_s / 1e6
    taking = at.shards * taken.of(told) / at.interval_s
    behind = max(busy, taking) >= 1.0
    times = None if behind else _way(at, senders, (push.of(sent), answer.of(told)), seed)
    late = None if times is None else times + at.shards * taken.of(told)
    return Simulated(
        at.shards, at.hosts, at.interval_s, at.share, busy, out,
        at.shards * out / senders, taking,
        None if late is None else float(np.quantile(late, 0.5)),
        None if late is None else float(np.quantile(late, 0.99)),
    )  # fmt: skip


def _way(at: Setting, senders: int, took: tuple[float, float], seed: int) -> Floats:
    """Seconds from an event to the answer that tells another host of it."""
    draw = np.random.default_rng(seed)
    phases = draw.random((2, senders)) * at.interval_s
    rounds = np.arange(_ROUNDS)[:, None] * at.interval_s
    come = np.stack([phases[0] + rounds, phases[1] + rounds])  # of pushes, and of pulls
    kind = np.repeat([0, 1], senders * _ROUNDS)
    order = np.argsort(come.reshape(-1), kind="stable")
    service = np.array(took)[kind[order]]
    total = np.cumsum(service)  # one after the other: whoever comes waits for those before
    left = total + np.maximum.accumulate(come.reshape(-1)[order] - (total - service))
    done = np.empty_like(left)
    done[order] = left
    pushed, pulled = done.reshape(2, _ROUNDS, senders)
    who, whom = draw.integers(0, senders, (2, _ASKED))
    nth = draw.integers(1, _ROUNDS // 2, _ASKED)
    began = come[0, nth, who] - draw.random(_ASKED) * at.interval_s
    there = pushed[nth, who]
    asked = np.array([np.searchsorted(come[1, :, b], t) for t, b in zip(there, whom, strict=True)])
    arrived: Floats = pulled[np.minimum(asked, _ROUNDS - 1), whom] - began
    if not at.hosts:
        return arrived
    arrived += draw.random((2, _ASKED)).sum(axis=0) * 0.02  # to the relay, and from it
    return arrived


SETTINGS: Final = (
    Setting(1, 0, 0.02),
    Setting(64, 0, 0.02),
    Setting(64, 100, 0.02),
    Setting(64, 100, 1.0),
    Setting(256, 100, 1.0),
    Setting(256, 100, 10.0),
    Setting(64, 100, 1.0, 0.1),
    Setting(256, 100, 1.0, 0.1),
    Setting(64, 100, 10.0, 0.1),
)


@dataclass(frozen=True, slots=True)
class Changed:
    """Rows of which something was learned in a time, and what telling all of them takes."""

    interval_s: float
    million_rows: float
    mb_s: float


def changed(events_s: int = EVENTS_S) -> Iterator[Changed]:
    """By how long one waits before what has changed is told."""
    for interval_s in (0.02, 1.0, 10.0, 60.0):
        rows = distinct(events_s * FEATURES * interval_s)
        yield Changed(interval_s, rows / 1e6, rows * _ROW_BYTES / interval_s / 1e6)
