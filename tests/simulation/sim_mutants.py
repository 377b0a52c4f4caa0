"""The real source with one rule less, in memory, and seeds that must not survive it.

A mutant is made of texts that stand once in a module and of what stands there instead, or of a
machine that does not keep its word.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

from sim_world import Faulty

_PRODUCT = ("online", "paramserver", "replay")
_HEIRS = {  # their classes are made of classes of the first
    "paramserver.process": ("paramserver.actor",),
    "replay.journal.sqlitefile": ("replay.journal.sqlite",),
}
Change = tuple[str, str, str]
"""Module, a text that stands in it once, and what stands there instead."""


@dataclass(frozen=True)
class Mutant:
    """What is changed, and how it is noticed.

    Attributes
    ----------
    climate
        What is the same in all seeds: the faults that bring it out, at a pace that does.
    within
        So many seeds must notice it, at a few times what it took (``run.py --mutants``).
    """

    changes: tuple[Change, ...] = ()
    faulty: Faulty = field(default_factory=Faulty)
    climate: Mapping[str, Any] = field(default_factory=dict)
    within: int = 100

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The changed code is what everybody uses, until the end of the block."""
        saved = {m: dict(vars(m)) for m in _product()}
        try:
            names = [name for name, _, _ in self.changes]
            names += [heir for name in names for heir in _HEIRS.get(name, ())]
            for name in dict.fromkeys(names):
                self._change(importlib.import_module(name), saved)
            yield
        finally:
            for module, names in saved.items():
                vars(module).clear()
                vars(module).update(names)

    def _change(self, module: ModuleType, saved: dict[ModuleType, dict[str, object]]) -> None:
        source = inspect.getsource(module)
        for name, old, new in self.changes:
            if name == module.__name__:
                assert source.count(old) == 1, f"{source.count(old)} times in {name}: {old}"
                source = source.replace(old, new)
        before = dict(vars(module))
        exec(compile(source, f"<changed {module.__name__}>", "exec"), vars(module))
        changed = {id(x): vars(module)[name] for name, x in before.items() if name[:2] != "__"}
        for other in saved:
            for name, x in list(vars(other).items()):
                if other is not module and id(x) in changed:
                    setattr(other, name, changed[id(x)])


def _product() -> list[ModuleType]:
    return [m for name, m in sys.modules.items() if name.split(".")[0] in _PRODUCT]


_FILE = "replay.journal.sqlitefile"
_JOURNAL = "replay.journal.sqlite"
_APPEND = "replay.journal.sqliteappend"
_SCHEMA = "replay.journal.sqliteschema"
_WRITER = "online.writer"
_REPLICA = "online.replica"
_FOLLOWER = "online.follower"
_LEARNER = "online.learner"
_DELTAS = "online.deltas"
_SERVER = "paramserver.server"
_PROCESS = "paramserver.process"
_STORE = "paramserver.snapshots.store"

_OWN = "if stored.partition != self._partition or stored.offset <= self._known:"
_NO_OVERLAP = "if push.first != clock + 1:"
_LOST = ("lost = self._broken()\n", "lost: Collection[int] = []\n")
_PREDICTED = (
    "            self._take([Row(0, self.partition, self.known + 1 + k, r.key, r.event_id,"
    " r.source, r.verdict, r.factor, r.payload, r.at) for k, r in enumerate(rows)])\n"
)
_EARLY = (
    "        if len(rows) == 1 and rows[0].key in getattr(self, 'early', ()):\n"
    "            r = rows[0]\n"
    "            place = (self.partition, self.known + 1 + self.early.index(r.key))\n"
    "            row = Row(0, *place, r.key, r.event_id, r.source, r.verdict, r.factor, r.payload,"
    " r.at)\n"
    "            return [Recorded('learned', row, self._stamp(), self._stamp(), True)]\n"
)
_NOTED = "                with self._lock:\n                    server.note_durable(state)\n"
_FSYNC = "            self._disk.fsync(temporary)\n"
_RECORD = "        done = asyncio.get_running_loop().create_future()\n"

MUTANTS: dict[str, Mutant] = {
    "a commit is answered before it is synced": Mutant(faulty=Faulty(synchronous="OFF")),
    "a disk that syncs nothing": Mutant(faulty=Faulty(lying_disk=True)),
    "the log is not synced when it is opened": Mutant(
        (
            (
                _FILE,
                '            self._writer.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()\n',
                "",
            ),
        )
    ),
    "after an I/O error the next commit is believed": Mutant(
        (
            (
                _FILE,
                "            return  # a foreign program held the lock: nothing was begun\n"
                "        self._recover()\n",
                "            return\n        if self._writer.in_transaction:\n"
                "            self._writer.execute('ROLLBACK')\n",
            ),
        )
    ),
    "learned before the commit": Mutant(
        (
            (
                _WRITER,
                "            appended = await self._append(rows)\n",
                _PREDICTED + "            appended = await self._append(rows)\n",
            ),
        )
    ),
    "a duplicate is answered before the first is committed": Mutant(
        (
            (_WRITER, _RECORD, _EARLY + _RECORD),
            (
                _WRITER,
                "            appended = await self._append(rows)\n",
                "            self.early = [r.key for r in rows]\n"
                "            appended = await self._append(rows)\n",
            ),
        )
    ),
    "a duplicate is answered before the first is learned": Mutant(
        (
            (
                _WRITER,
                "if row.partition == self.partition and row.offset in self._waiters:",
                "if False:",
            ),
        )
    ),
    "no duplicates are known": Mutant(
        (
            (
                _SCHEMA,
                'UNIQUE (partition, "offset"), UNIQUE (model, key));',
                'UNIQUE (partition, "offset"));',
            ),
            (
                _APPEND,
                "found = self._db.execute(sql.BY_KEY, (self._model, key)).fetchone()",
                "found = None",
            ),
        )
    ),
    "a seal does not stop the writer": Mutant(
        ((_APPEND, "        if sealed:\n", "        if False:\n"),)
    ),
    "a partition is adopted without a seal": Mutant(
        (
            (
                _REPLICA,
                "end = await self.writer.write(self._journal.seal, partition)",
                "end = (await self.writer.write(self._journal.partition, partition)).end",
            ),
        )
    ),
    "offsets are given before duplicates are known": Mutant(
        (
            (
                _APPEND,
                "        if stored.partition != self._partition or stored",
                "        self.end += 1\n        if stored.partition != self._partition or stored",
            ),
        )
    ),
    "an own row is called a duplicate": Mutant(((_APPEND, _OWN, "if True:"),)),
    "a cancelled handler's row is not learned": Mutant(
        (
            (
                _WRITER,
                "await asyncio.wait_for(asyncio.shield(done), ",
                "await asyncio.wait_for(done, ",
            ),
            (
                _WRITER,
                "                self.committed.append(row)\n",
                "                if row.key not in self.gone:\n"
                "                    self.committed.append(row)\n",
            ),
            (
                _WRITER,
                "        self._take(fresh)\n",
                "        self.gone = {r.key for w in batch if w.done.cancelled() for r in w.rows}\n"
                "        self._take(fresh)\n",
            ),
            (
                _FOLLOWER,
                "                if run:\n                    return run\n",
                "                if committed and not run:\n"
                "                    self._learner.tracks[partition].next = committed[0].offset\n"
                "                    run.append(committed.popleft())\n"
                "                if run:\n                    return run\n",
            ),
        )
    ),
    "what failed is not taken back": Mutant(
        ((_LEARNER, "                self._put_back()\n", ""),)
    ),
    "deltas over a broken chain are kept": Mutant(((_LEARNER, *_LOST),)),
    "an acknowledged delta stays on top": Mutant(
        ((_DELTAS, "if d.last > clock.get(d.partition, 0)]", "]"), (_LEARNER, *_LOST))
    ),
    "replies of an older epoch are taken": Mutant(
        (
            (
                _LEARNER,
                "if (reply.epoch, reply.count) < max(self.version, (self.arrival.epoch, 0)):",
                "if reply.epoch == self.version[0] and reply.count < self.version[1]:",
            ),
        )
    ),
    "the new copy answers at once": Mutant(
        ((_LEARNER, "if all(map(self._caught_up, self._targets)):", "if True:"),)
    ),
    "counts of two epochs are compared": Mutant(
        (
            (_SERVER, "if since is None or since[0] != self.epoch:", "if since is None:"),
            (_LEARNER, "self.want_all or reply.epoch != self.version[0]", "self.want_all"),
        )
    ),
    "the server takes an overlap": Mutant(((_SERVER, _NO_OVERLAP, "if push.first > clock + 1:"),)),
    "the server takes a gap": Mutant(((_SERVER, _NO_OVERLAP, "if push.first < clock + 1:"),)),
    "the server takes a repeat": Mutant(
        (
            (_SERVER, "if push.last <= clock:", "if push.last < clock:"),
            (_SERVER, _NO_OVERLAP, "if push.first > clock + 1:"),
        )
    ),
    "a push of another epoch is taken": Mutant(
        ((_SERVER, "if push.epoch != self.epoch:", "if False:"),)
    ),
    "clock and values are read apart": Mutant(
        (
            (
                _PROCESS,
                "            acks = [server.push(push, self._lookup)",
                "            before = dict(server.clock)\n"
                "            acks = [server.push(push, self._lookup)",
            ),
            (
                _PROCESS,
                "            return wire.encode(server.reply(",
                "            server.clock, after = before, server.clock\n"
                "            apart = wire.encode(server.reply(",
            ),
            (
                _PROCESS,
                "    def _lookup(self",
                "            server.clock = after\n            return apart\n\n"
                "    def _lookup(self",
            ),
        )
    ),
    "a snapshot shares what is pushed later": Mutant(
        ((_SERVER, "        self._unshare(delta)\n", ""),)
    ),
    "the head is moved by whoever wants to": Mutant(
        (
            (
                _JOURNAL,
                "            _check_epoch(db, model, spec, epoch)\n"
                "            db.execute(sql.MOVE_HEAD",
                "            db.execute(sql.MOVE_HEAD",
            ),
        )
    ),
    "durable is told before the head is moved": Mutant(
        (
            (_PROCESS, _NOTED, ""),
            (
                _PROCESS,
                "            if state is not None:\n                try:\n",
                "            if state is not None:\n                server.note_durable(state)\n"
                "                try:\n",
            ),
        )
    ),
    "a snapshot's bytes are not synced": Mutant(((_STORE, _FSYNC, ""),)),
    "a snapshot's name is not synced": Mutant(
        (
            (
                _STORE,
                "            raise\n        self._disk.fsync_directory(self._path)\n",
                "            raise\n",
            ),
        )
    ),
    "a closed partition begins again": Mutant(
        ((_SERVER, "            if partition in self.closed:\n", "            if False:\n"),)
    ),
}
