"""A journal that comes back older than it was, beside snapshots of what it has lost.

Somebody copies its files; later everything stops, and the copy is put back.  What the newest
snapshots had learned since must be refused by name, and gone on without once that is accepted.
"""

from __future__ import annotations

import random
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from sim_actor import MODEL, SPEC, Observer
from sim_disk import DeadProcess, Inode, SnapshotDisk
from sim_processes import Server

import online.rebuild.acceptance
from paramserver.errors import PublishFailed
from paramserver.process.shortfall import Acceptance, accepted
from paramserver.snapshots.history import SnapshotHistory
from paramserver.snapshots.places import lineage_place, open_snapshots
from paramserver.snapshots.store import Retention
from replay.errors import JournalUnavailable

if TYPE_CHECKING:
    from sim_world import Climate, World

_ENDS = ("", "-wal")


def alone(climate: Climate) -> Climate:
    """The same without what would make it hard to say what counts how often."""
    faults = climate.faults - {"rollback", "freeze"}
    return replace(
        climate, older=True, faults=faults, forgets=False, deadly=0.0, twice=False, old=0.0
    )


class OlderJournal:
    """One copy of a seed, and when it is put back."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._dice = random.Random(f"loss {world.seed}")
        self._files: dict[str, bytes] | None = None
        span = world.climate.chaos_s
        self._copy_s = world.loop.time() + self._dice.uniform(0.1, 0.6) * span
        self._back_s = self._copy_s + self._dice.uniform(0.1, 0.4) * span
        self._done = False

    def turn(self) -> None:
        """Do what is due."""
        world, now_s = self._world, self._world.loop.time()
        path = str(world.journal_path)
        if self._files is None and now_s >= self._copy_s and path in world.disk.names:
            found = {end: world.disk.names.get(path + end) for end in _ENDS}
            self._files = {end: bytes(f.content) for end, f in found.items() if f is not None}
            world.note("the journal is copied")
        elif self._files is not None and now_s >= self._back_s and not self._done:
            self._done = True
            self._put_back()

    def _put_back(self) -> None:
        world = self._world
        error_rate, full, kills = world.disk.error_rate, world.disk.full, world.kill_at_work
        world.disk.error_rate, world.disk.full, world.kill_at_work = 0.0, False, 0.0
        lost_answers, world.lost_answers = world.lost_answers, 0.0
        for actor in world.actors:
            world.kill(actor)
        world.servers_of.clear()
        world.sealed.clear()
        before = self._rows()
        path = str(world.journal_path)
        for end in (*_ENDS, "-shm"):
            for names in (world.disk.names, world.disk.synced_names):
                names.pop(path + end, None)
        for end, data in (self._files or {}).items():
            inode = Inode()
            inode.content, inode.synced = bytearray(data), bytearray(data)
            world.disk.names[path + end] = world.disk.synced_names[path + end] = inode
        lost = before - self._rows()
        world.counts["older journal"] += bool(lost)
        world.note(f"an older journal is put back: {sorted(lost)} are gone")
        learned = self._learned()
        again = self._start(lost & learned)
        world.oracle.lose(lost, again)
        world.answers += 1
        world.disk.error_rate, world.disk.full, world.kill_at_work = error_rate, full, kills
        world.lost_answers = lost_answers

    def _start(self, known: set[str]) -> set[str]:
        """Start it, as an operator would; the events in what is gone on from.

        ``known``: lost events that a snapshot has.
        """
        world = self._world
        if not self._refused():
            assert not known, f"{sorted(known)} are lost without a word"
            return set()
        for _ in range(self._dice.choice((0, 0, 1, 2))):
            self._accept(self._dice.randrange(60))
            if not self._refused():
                assert self._loss() is not None, "it starts, and nothing says that it was accepted"
        self._accept(None)
        assert not self._refused(), "what was accepted does not start"
        world.counts["accepted loss"] += 1
        loss = self._loss()
        assert loss is not None
        return set(world.published["-".join(map(str, loss.note.version))])

    def _loss(self) -> Acceptance | None:
        with closing(self._journal()) as journal:
            return accepted(journal.controls(MODEL, 0), SPEC)

    def _accept(self, steps: int | None) -> None:
        """Give the command; after so many steps of the disk it is killed."""
        world = self._world
        world.disk.steps_left = steps
        journal = None
        try:
            journal = self._journal()
            history = self._history()
            online.rebuild.acceptance.accept(journal, MODEL, {SPEC: history}, world.wall())
        except (DeadProcess, JournalUnavailable, PublishFailed):
            if not world.disk.dead:
                raise
            world.counts["crash acceptance"] += 1
        finally:
            world.disk.steps_left = None
            if world.disk.dead:
                if journal is not None:
                    journal.close()
                world.release(None)
                world.disk.dead = False
            elif journal is not None:
                journal.close()

    def _refused(self) -> bool:
        """Whether a server refuses to start on what is there."""
        server = Server(self._world, 0)
        self._world.actors.append(server)
        try:
            served = server.real.restore()
            return not served and server.real.ping() == "refused"
        finally:
            self._world.kill(server)

    def _journal(self) -> Any:
        return Observer.open_journal(_Nobody(self._world))  # type: ignore[arg-type]

    def _rows(self) -> set[str]:
        with closing(self._journal()) as journal:
            return {
                row.event_id
                for p in journal.partitions(MODEL)
                for row in journal.read(p.id, p.trimmed + 1, 10_000)
            }

    def _history(self) -> SnapshotHistory:
        place = lineage_place("/simulated/snapshots", MODEL, SPEC)
        return SnapshotHistory(open_snapshots(place, SnapshotDisk(self._world.disk)), Retention())

    def _learned(self) -> set[str]:
        """Events that any snapshot counts which is there."""
        history = self._history()
        history.index()
        versions = ["-".join(map(str, row.version)) for row in history.listed()]
        return set().union(*(self._world.published[version] for version in versions))


class _Nobody:
    """Who opens a journal outside of all processes."""

    def __init__(self, world: World) -> None:
        self.world, self.journals = world, list[Any]()
