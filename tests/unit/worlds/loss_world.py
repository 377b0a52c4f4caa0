"""A service whose store comes back older than it was: a copy put back, or its file cut.

Real replicas, server and journal, in one process.  Each event has a feature of its own, so the
model's weight says how often it was learned.
"""

from __future__ import annotations

import asyncio
import random
import shutil
import sqlite3
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from contextlib import closing
from pathlib import Path
from typing import Any, Protocol

import msgspec
from replica_world import SPEC, World, counting, row, until

from online.rebuild.acceptance import accept
from online.rebuild.fsck import Findings, compare
from online.replica.replica import ModelReplica
from paramserver.process.shortfall import Accepted
from paramserver.snapshots.history import SnapshotHistory
from paramserver.snapshots.places import lineage_place, open_snapshots
from paramserver.snapshots.store import Retention
from replay.journal.redis.journal import RedisJournal
from replay.journal.sqlite.journal import SqliteJournal

_AT_S = 4e9  # retention removes none


class Store(Protocol):
    """A store that can be set back while nobody has it open."""

    def open(self) -> Any: ...

    def keep(self) -> None:
        """Take a backup, as operators do."""

    def keep_cut(self, r: random.Random) -> None:
        """What is on the disk now, without its end, or with a flipped bit near it."""

    def put_back(self) -> None:
        """Go on from what was last taken."""


class SqliteStore:
    """The file and its log of writes."""

    def __init__(self, folder: Path) -> None:
        self._path, self._copy = folder / "journal.db", folder / "copy" / "journal.db"
        self._copy.parent.mkdir(parents=True, exist_ok=True)

    def open(self) -> SqliteJournal:
        return SqliteJournal(self._path, disk_low_mb=0)

    def keep(self) -> None:
        self._drop(self._copy)
        now, copy = sqlite3.connect(self._path), sqlite3.connect(self._copy)
        with closing(now), closing(copy):
            now.backup(copy)

    def keep_cut(self, r: random.Random) -> None:
        """SQLite goes on before the first frame of its log that is not whole."""
        self._drop(self._copy)
        shutil.copy(self._path, self._copy)
        data = bytearray(_log(self._path).read_bytes())
        used = _used(data)
        at = r.randrange(used // 3, used)
        if r.random() < 0.5:
            data = data[:at]
        else:
            data[at] ^= 1 << r.randrange(8)
        _log(self._copy).write_bytes(data)

    def put_back(self) -> None:
        self._drop(self._path)
        for file in self._copy.parent.glob("journal.db*"):
            shutil.copy(file, self._path.parent / file.name)
        self._path.with_name("journal.db-shm").unlink(missing_ok=True)
        self._path.open("rb").close()  # lets go of the locks of those that have died here

    def _drop(self, path: Path) -> None:
        for end in ("", "-wal", "-shm"):
            path.with_name(path.name + end).unlink(missing_ok=True)


def _log(path: Path) -> Path:
    return path.with_name(path.name + "-wal")


def _used(log: bytes) -> int:
    """Bytes of a log up to its last frame: what follows is of an earlier round of the file."""
    size = 24 + int.from_bytes(log[8:12], "big")
    at = 32
    while log[at + 8 : at + 16] == log[16:24] and at + size <= len(log):
        at += size
    return at


class RedisStore:
    """A server with its append-only files."""

    def __init__(self, server: Any, prefix: str) -> None:
        self._server, self._prefix = server, prefix
        self._copy = Path(server.folder).with_name(Path(server.folder).name + "-copy")

    def open(self) -> RedisJournal:
        return RedisJournal(self._server.url, prefix=self._prefix)

    def keep(self) -> None:
        shutil.rmtree(self._copy, ignore_errors=True)
        shutil.copytree(self._server.folder, self._copy)

    def keep_cut(self, r: random.Random) -> None:
        self.keep()
        (file,) = self._copy.glob("**/*.incr.aof")
        data = file.read_bytes()
        file.write_bytes(data[: r.randrange(len(data) * 2 // 3, len(data))])

    def put_back(self) -> None:
        self._server.kill()
        shutil.rmtree(self._server.folder)
        shutil.copytree(self._copy, self._server.folder)
        self._server.start()


class LossWorld(World):
    """Replicas and a server on a store that is set back between two lives."""

    def __init__(self, folder: Path, store: Store) -> None:
        self.store = store
        super().__init__(folder)

    def journal(self) -> Any:
        return self.store.open()

    def begin(self) -> None:
        """A new server process."""
        super().__init__(self.folder)


def history_of(folder: Path) -> SnapshotHistory:
    place = lineage_place(str(folder / "snapshots"), "m", SPEC)
    return SnapshotHistory(open_snapshots(place), Retention())


def checked(world: LossWorld) -> Findings:
    place = lineage_place(str(world.folder / "snapshots"), "m", SPEC)
    with closing(world.journal()) as journal:
        return compare(journal, open_snapshots(place), "m", SPEC)


def accepted(world: LossWorld, now_s: float = 100.0) -> list[Accepted]:
    with closing(world.journal()) as journal:
        return accept(journal, "m", {SPEC: history_of(world.folder)}, now_s)


async def send(replica: ModelReplica, names: Iterable[str]) -> Counter[str]:
    """Feedback of these events; how often which answer came."""
    answers: Counter[str] = Counter()
    for name in names:
        event = msgspec.structs.replace(row(name), at=_AT_S)
        (recorded,) = await replica.writer.record([event])
        answers["repeat" if recorded.repeat else recorded.status] += 1
    return answers


async def settled(world: LossWorld, replicas: list[ModelReplica]) -> None:
    """Until the server has what the replicas have learned."""

    journal = replicas[0].store.journal  # a new one would move the log into the file

    def same() -> bool:
        learned = world.server.status()["clock"]
        ends = {p.id: p.end for p in journal.partitions("m") if p.end}
        closed = world.server.status()["closed"]
        return all(p in closed or learned.get(p, 0) >= end for p, end in ends.items())

    await until(same, 240.0)


def live(
    world: LossWorld,
    scene: Callable[[list[ModelReplica]], Awaitable[Any]],
    n: int = 2,
    *,
    ordered: bool = False,
) -> Any:
    """A life of ``n`` replicas, which ends without a goodbye."""

    async def run() -> Any:
        journals = [world.journal() for _ in range(n)]
        replicas = [
            await world.replica(f"r{i}", build=counting, journal=journals[i], ordered=ordered)
            for i in range(n)
        ]
        try:
            return await scene(replicas)
        finally:
            for replica in replicas:
                await replica.stop(0.0)
            for journal in journals:
                journal.close()

    return asyncio.run(run())
