"""Bounded tables: who has a row, by a plain reading of the rules that shares no code with them.

Replicas push late, on old versions, what they have added to rows of a few ids; the server is ended
and starts from a snapshot.  After each push the server has the rows that the plain reading has, and
every replica that has pulled has the same.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from online.learning.deltas import Pulled
from paramserver.core import admission, wire
from paramserver.core.admission import Keeper, SightingSketch, TableBounds
from paramserver.core.blocks import ROWS, Block, to_wire
from paramserver.core.server import Server
from paramserver.core.tables.rows import Rows
from paramserver.snapshots import format as snapshot_format

SPEC = "d" * 64
ROWS_MAX, NEEDED = 32, 2
KEY = bytes(range(24))


@dataclass(frozen=True)
class _Partition:
    id: int
    replica: str = "r"
    end: int = 10**9
    sealed: bool = False
    trimmed: int = 0


@dataclass
class Plain:
    """Rows, uses and sights by id, as the documentation tells of them."""

    rows: dict[int, float] = field(default_factory=dict)
    ranks: dict[int, float] = field(default_factory=dict)
    sights: Counter[int] = field(default_factory=Counter)
    left: dict[int, int] = field(default_factory=dict)
    late = waiting = seen = 0
    age = 0.0

    def push(self, delta: dict[int, float], base: int, version: int) -> None:
        told, used = self.waiting, []
        for i, x in delta.items():
            if i not in self.rows:
                if self.left.get(i, 0) > base:
                    self.late += 1
                    continue
                self.sights[i] += 1
                if self.sights[i] < NEEDED:
                    self.waiting += 1
                    continue
                self.sights[i] -= 1  # it was told of a row that there is
            self.rows[i] = self.rows.get(i, 0.0) + x
            used.append(i)
        self.age += sum(i not in self.ranks for i in used) * 32 / ROWS_MAX
        for i in used:
            before = 0.95 ** (self.age - self.ranks[i]) if i in self.ranks else 0.0
            self.ranks[i] = float(np.float32(self.age - math.log1p(before) / math.log(0.95)))
        self.seen += self.waiting - told
        if self.seen >= ROWS_MAX:
            self.seen, self.sights = 0, Counter({i: n // 2 for i, n in self.sights.items()})
        many = len(self.rows) - ROWS_MAX
        if many <= 0:
            return
        worst = sorted(self.rows, key=lambda i: (self.ranks[i], i))
        for i in worst[: many + ROWS_MAX // 32]:
            del self.rows[i], self.ranks[i]
            self.left[i] = version


def bounded(server: Server, kept: Any = None) -> Server:
    kept = server._kept if kept is None else kept
    server.keeper = Keeper(TableBounds(ROWS_MAX, NEEDED), kept, lambda n: KEY[:n])
    return server


def table_of(blocks: Any) -> dict[int, float]:
    block = blocks.get("t")
    if block is None:
        return {}
    return dict(zip(block.data.ids.tolist(), block.data.numbers[:, 0].tolist(), strict=True))


class World:
    """A server, its plain reading, and replicas that pull and push when they like."""

    def __init__(self, seed: int) -> None:
        self.r, self.met = random.Random(seed), Counter[str]()
        self.server, self.plain = bounded(Server("m", SPEC, "", "sum", 1)), Plain()
        self.held = [Pulled() for _ in range(3)]
        self.versions: list[wire.Version | None] = [None] * 3
        self.clocks = [0] * 3
        self.news = 0

    def run(self, steps: int = 200) -> None:
        for _ in range(steps):
            match self.r.choice(["push", "push", "push", "pull", "pull", "restart"]):
                case "push":
                    self.push(self.r.randrange(3))
                case "pull":
                    self.pull(self.r.randrange(3))
                case _ if self.r.random() < 0.2:
                    self.restart()
            assert table_of(self.server.values) == self.plain.rows
        for n in range(3):
            self.pull(n)
        keeper = self.server.keeper
        assert keeper is not None
        assert keeper.late <= self.plain.late
        self.met["late"], self.met["waiting"] = self.plain.late, self.plain.waiting
        self.met["left"] = len(self.plain.left)

    def push(self, n: int) -> None:
        self.news += 1  # ids drift: some are asked for again and again, and then no more
        some = {self.news // 3 + int(self.r.paretovariate(0.6)) % 90 for _ in range(12)}
        delta = {i: float(self.r.randrange(1, 9)) for i in some}
        since = self.versions[n]
        base = since if since is not None and since[0] == self.server.epoch else None
        ids = np.array(list(delta), dtype=np.uint64)
        numbers = np.array(list(delta.values()), dtype=np.float32).reshape(-1, 1)
        blocks = to_wire({"t": Block(ROWS, Rows(ids, numbers))})
        offset = self.clocks[n] + 1
        given = wire.Push(self.server.epoch, SPEC, n + 1, offset, offset, 1,
                          base or (self.server.epoch, 0), blocks)  # fmt: skip
        for status in ("applied", "repeat"):  # the second one changes nothing
            assert self.server.push(given, _Partition).status == status
        self.clocks[n] = offset
        self.plain.push(delta, base[1] if base else 0, self.server.count)

    def pull(self, n: int) -> None:
        request = wire.SyncRequest(wire.FORMAT, f"r{n}", n + 1, [], self.versions[n], True, [])
        data = wire.encode(self.server.reply(request, [], [], 0.0))
        reply = wire.decode_reply(data)
        self.met[reply.kind] += 1
        self.held[n].take(reply, ())
        self.versions[n] = (reply.epoch, reply.count)
        assert table_of(self.held[n].blocks) == self.plain.rows, "the same ids at a version"
        assert not [name for name in self.held[n].blocks if name.startswith(admission.KEPT)]

    def restart(self) -> None:
        self.met["restart"] += 1
        state = self.server.begin_snapshot(0.0, None, {})
        state = snapshot_format.decode(snapshot_format.encode(state))
        self.server = bounded(Server.restored(state, "sum", self.server.epoch + 1))
        self.plain.left = {}  # deltas of before an epoch are told to be of now


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No two ids fall together: sights are what the plain reading counts."""
    monkeypatch.setattr(admission, "_CELLS", 4_096)


def walks(seeds: int = 12) -> Counter[str]:
    met = Counter[str]()
    for seed in range(14, 14 + seeds):
        world = World(seed)
        world.run()
        met += world.met
    return met


def test_the_server_and_all_replicas_have_the_rows_that_the_rules_say() -> None:
    met = walks()
    assert not {"changes", "all", "restart", "late", "waiting", "left"} - {*(+met)}, met


_settle, _stays, _leave, _add = Keeper.settle, Keeper._stays, Keeper._leave, SightingSketch.add


def _tells_nobody(self: Any, *given: Any) -> Any:
    _settle(self, *given)
    return {}


def _takes_all(self: Any, name: str, table: Any, ids: Any, base: int) -> Any:
    return np.ones(len(ids), dtype=bool)


def _takes_late_ones(self: Any, name: str, table: Any, ids: Any, base: int) -> Any:
    return _stays(self, name, table, ids, 10**9)


def _never_leave(self: Any, name: str, table: Any, count: int) -> Any:
    return table.ids[:0]


def _most_used_leave(self: Any, name: str, table: Any, count: int) -> Any:
    ranks = self._ranks["kept.ranks." + name]
    ranks.put(ranks.ids.copy(), -ranks.numbers)
    gone = _leave(self, name, table, count)
    ranks.put(ranks.ids.copy(), -ranks.numbers)
    return gone


MUTANTS: dict[str, tuple[Any, str, Callable[..., Any]]] = {
    "replicas are not told what has no row": (Keeper, "settle", _tells_nobody),
    "every new row is taken": (Keeper, "_stays", _takes_all),
    "a delta from before its row left is added": (Keeper, "_stays", _takes_late_ones),
    "no row leaves": (Keeper, "_leave", _never_leave),
    "the rows used most leave": (Keeper, "_leave", _most_used_leave),
    "sights are not counted": (SightingSketch, "add", lambda self, ids, window: None),
    "sights do not age": (SightingSketch, "add", lambda self, ids, window: _add(self, ids, 10**9)),
    "uses are not kept in snapshots": (Keeper, "blocks", lambda self: {}),
    "what is gone stays in a replica": (Rows, "drop", lambda self, ids: None),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_one_rule_less_is_noticed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    owner, rule, mutant = MUTANTS[name]
    monkeypatch.setattr(owner, rule, mutant)
    with pytest.raises((AssertionError, KeyError)):
        walks()
