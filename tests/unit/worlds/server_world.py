"""The server's process on a store in memory, with clocks that a test moves."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from paramserver.core import wire
from paramserver.process.actor import Host, ParameterServer, ServerSettings
from paramserver.process.lineage import Lineage
from paramserver.process.sharing import Shard
from paramserver.snapshots.store import Disk

LINEAGE = Lineage("prices", "s" * 64, "LR()", "sum")


@dataclass(frozen=True)
class Info:
    id: int
    end: int
    sealed: bool = False
    replica: str = "r"
    trimmed: int = 0


@dataclass(frozen=True)
class Head:
    epoch: int
    snapshot: str | None


@dataclass(frozen=True)
class Control:
    seq: int
    kind: str
    key: str = ""
    payload: bytes = b""


@dataclass(frozen=True)
class Followed:
    upto: int


@dataclass
class FakeStore:
    """A store in memory.  ``failing`` names methods that raise, before or after their effect.

    Attributes:
        trims: What :meth:`trim` was asked for; it removes whatever is allowed of ``rows``.
        bounds: Of each of these, after when a stamp is of a wrong clock, and the running time.
    """

    rows: dict[int, Info] = field(default_factory=lambda: {1: Info(1, 100), 2: Info(2, 100)})
    heads: dict[str, Head] = field(default_factory=dict)
    control: list[Control] = field(default_factory=list)
    failing: dict[str, str] = field(default_factory=dict)
    trims: list[tuple[dict[int, int], float, int]] = field(default_factory=list)
    expired: list[tuple[float, int]] = field(default_factory=list)
    bounds: list[tuple[float, float]] = field(default_factory=list)
    ran_ms: int = 0
    newest_seq: int = 10**6

    def _maybe_fail(self, method: str, when: str) -> None:
        if self.failing.get(method) == when:
            raise OSError(f"{method} failed")

    def head(self, model: str, spec: str) -> Head:
        self._maybe_fail("head", "before")
        return self.heads.get(spec, Head(0, None))

    def begin_epoch(self, model: str, spec: str, expected: int) -> int:
        self._maybe_fail("begin_epoch", "before")
        head = self.head(model, spec)
        if head.epoch != expected:
            raise RuntimeError("epoch lost")
        self.heads[spec] = replace(head, epoch=expected + 1)
        return expected + 1

    def move_head(self, model: str, spec: str, epoch: int, snapshot: str) -> None:
        self._maybe_fail("move_head", "before")
        if self.head(model, spec).epoch != epoch:
            raise RuntimeError("epoch lost")
        self.heads[spec] = Head(epoch, snapshot)
        self._maybe_fail("move_head", "after")

    def partition(self, partition: int) -> Info | None:
        self._maybe_fail("partition", "before")
        return self.rows.get(partition)

    def partitions(self, model: str) -> list[Info]:
        return list(self.rows.values())

    def follow(self, model: str, after: int, n: int) -> Followed:
        return Followed(self.newest_seq)

    def controls(self, model: str, after: int) -> list[Control]:
        self._maybe_fail("controls", "before")
        return [c for c in self.control if c.seq > after]

    def write_control(
        self, model: str, kind: str, key: str, payload: bytes, fence: tuple[str, int] | None = None
    ) -> tuple[Control, bool]:
        self._maybe_fail("write_control", "before")
        if fence is not None and self.heads.get(fence[0], Head(0, None)).epoch != fence[1]:
            raise RuntimeError("epoch lost")
        found = next((c for c in self.control if c.key == key), None)
        row = found or Control(len(self.control) + 1, kind, key, payload)
        if found is None:
            self.control.append(row)
        self._maybe_fail("write_control", "after")
        return row, found is None

    def newest_line(self) -> None:
        """There is no log of decisions here."""

    def run(self, model: str, spec: str, epoch: int, ms: int) -> int:
        self._maybe_fail("run", "before")
        if self.head(model, spec).epoch != epoch:
            raise RuntimeError("epoch lost")
        self.ran_ms += ms
        self._maybe_fail("run", "after")
        return self.ran_ms

    def trim(
        self,
        model: str,
        spec: str,
        epoch: int,
        upto: Mapping[int, int],
        before: float,
        n: int,
        *,
        ahead: float,
        ran: float,
    ) -> int:
        self._maybe_fail("trim", "before")
        if self.head(model, spec).epoch != epoch:
            raise RuntimeError("epoch lost")
        self.trims.append((dict(upto), before, n))
        self.bounds.append((ahead, ran))
        removed = 0
        for p, info in list(self.rows.items()):
            step = min(max(upto.get(p, 0) - info.trimmed, 0), n - removed)
            self.rows[p] = replace(info, trimmed=info.trimmed + step)
            removed += step
        return removed

    def expire(self, model: str, before: float, n: int, *, ahead: float, ran: float) -> int:
        self.expired.append((before, n))
        return 0


class Died(BaseException):
    """The process would have ended."""


@dataclass
class World:
    """One machine: its store, its disk, its clocks."""

    path: Path
    store: FakeStore = field(default_factory=FakeStore)
    now_s: float = 1000.0
    settings: ServerSettings = field(default_factory=ServerSettings)
    lineage: Lineage = LINEAGE

    def start(
        self, find_gone: Any = None, disk: Disk | None = None, shard: Shard | None = None
    ) -> ParameterServer:
        def die() -> None:
            raise Died

        clock: Callable[[], float] = lambda: self.now_s  # noqa: E731
        host = Host(monotonic=clock, wall=clock, die=die, disk=disk or Disk())
        return ParameterServer(
            self.lineage,
            lambda: self.store,
            str(self.path),
            self.settings,
            find_gone,
            host=host,
            background=False,
            shard=shard,
        )

    def serving(self, **kw: Any) -> ParameterServer:
        server = self.start(**kw)
        assert server.restore(), server.status()["reason"]
        return server

    def file(self, name: str) -> Path:
        directory = self.path / self.lineage.model / self.lineage.spec[:16]
        return directory / f"{name}.snapshot"


def sync(server: ParameterServer, *rows: tuple[int, int, int], **changes: Any) -> wire.SyncReply:
    epoch = server.status()["epoch"]
    pushes = [
        wire.Push(
            epoch,
            LINEAGE.spec,
            partition,
            first,
            last,
            last - first + 1,
            (epoch, 0),
            {"w": wire.WireBlock("additive", {"k": float(last - first + 1)})},
        )
        for partition, first, last in rows
    ]
    fields: dict[str, Any] = {
        "format": wire.FORMAT,
        "replica": "r1",
        "partition": 1,
        "pushes": pushes,
        "since": None,
        "values": True,
        "adopting": [],
        "report": {"rows": 3.0},
    }
    data = wire.encode(wire.SyncRequest(**(fields | changes)))
    return wire.decode_reply(server.sync(data))


def value(server: ParameterServer) -> float:
    blocks = sync(server).blocks
    return float(blocks["w"].data["k"]) if blocks else 0.0


def learned(world: Any, *lasts: int) -> Any:
    """A server that has published the rows of partition 1 up to each of these."""
    server, first = world.serving(), 1
    for last in lasts:
        world.now_s += 10
        sync(server, (1, first, last))
        server.snapshot()
        first = last + 1
    return server
