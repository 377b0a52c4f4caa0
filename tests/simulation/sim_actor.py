"""A process of the simulation with its journals; those that only read or tend the journal."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from sim_choices import rows_of
from sim_labels import Journal as Found
from sim_loop import Process
from sim_model import KEEP_ROWS_S

import replay.journal.sqlite.journal
from replay.errors import JournalUnavailable

if TYPE_CHECKING:
    from sim_world import World


MODEL, SPEC = "m", "5" * 64
REWRITES = ("rollback", "forget", "relearn")
_WRITES = frozenset(
    {"append", "seal", "register", "begin_epoch", "move_head", "write_control", "claim", "run"}
)


class Actor:
    """A process with the journals that it has open."""

    kind = "actor"

    def __init__(self, world: World, number: int) -> None:
        self.world, self.name = world, f"{self.kind}-{number}"
        self.process = Process(world.loop, self.name)
        self.journals: list[Any] = []
        self.process.spawn(self._guarded())

    @property
    def alive(self) -> bool:
        return self.process.alive

    async def _guarded(self) -> None:
        """What nobody expected ends the seed, not only the process."""
        try:
            await self.live()
        except JournalUnavailable as error:
            self.world.note(f"{self.name} can't start: {error}")
            self.world.kill(self)  # its supervisor starts another
        except Exception as error:
            self.world.fail(error)

    async def live(self) -> None:
        """The process from its start on."""

    async def thread(self, name: str, step: Callable[..., Any], *args: Any) -> Any:
        """A step on one of the process's threads."""
        return await self.world.loop.run_in_executor(name, step, *args)

    def open_journal(self) -> Any:
        """The journal, as this process has it."""
        world = self.world
        kind = replay.journal.sqlite.journal.SqliteJournal

        class Watched(kind):  # type: ignore[misc, valid-type]
            """Its answers get lost, after it has done what it was asked."""

            def __getattribute__(self, name: str) -> Any:
                found = super().__getattribute__(name)
                return lossy(found) if name in _WRITES else found

            def seal(self, partition: int) -> int:
                world.sealed.add(partition)
                end: int = super().seal(partition)
                return end

            def write_control(self, model: str, kind: str, *args: Any) -> Any:
                """Whoever has older values than this rewrite is about to drop them."""
                written = super().write_control(model, kind, *args)
                if kind in REWRITES:
                    world.rewritten = max(world.rewritten, written[0].seq)
                return written

            def run(self, model: str, spec: str, epoch: int, ms: int) -> int:
                """Rows that are to become old do so by both clocks; elsewhere time is as it is."""
                faster = KEEP_ROWS_S / world.climate.old_s if world.climate.twice else 1.0
                total: int = super().run(model, spec, epoch, int(ms * faster))
                return total

        def lossy(step: Callable[..., Any]) -> Callable[..., Any]:
            def told(*args: Any) -> Any:
                answer = step(*args)
                if world.chance(world.lost_answers):
                    world.counts["lost answer"] += 1
                    raise JournalUnavailable("the answer was lost")
                return answer

            return told

        journal = Watched(
            world.journal_path,
            disk_low_mb=1,
            free_mb=lambda: 0.0 if world.disk.full else 100.0,
            synchronous=world.faulty.synchronous,
        )
        self.journals.append(journal)
        return journal


class Observer(Actor):
    """Reads the journal when all is calm."""

    kind = "observer"
    rollbacks: tuple[tuple[int, int, str], ...] | None = None
    trimmed = 0
    found: Found | None = None

    async def live(self) -> None:
        journal = await self.thread("main", self.open_journal)
        while True:
            rows = await self.thread("main", journal.controls, MODEL, 0)
            self._check_failed(rows)
            keys = [row.key.split(":")[2:] for row in rows if row.kind in REWRITES]
            partitions = await self.thread("main", journal.partitions, MODEL)
            self.trimmed = sum(partition.trimmed for partition in partitions)
            if self.world.climate.labels or self.world.climate.choices:
                every = [
                    row
                    for partition in partitions
                    for row in await self.thread("main", journal.read, partition.id, 1, 10_000)
                ]
                self.found = Found(every, rows)
                self.world.choices.rows = [*rows_of(every)] if self.world.climate.choices else None
            self.rollbacks = tuple((int(epoch), int(count), name) for epoch, count, name in keys)
            await asyncio.sleep(0.2)

    def _check_failed(self, controls: Sequence[Any]) -> None:
        """Raise AssertionError if a row failed that every model can learn.

        A learner records any error as its row's, also one of this simulation.
        """
        why = {row.key.split(":")[2]: row.payload for row in controls if row.kind == "failed"}
        for event in self.world.events.values():
            odd = event.poison or event.deadly
            reason = why.get(event.key.hex())
            assert odd or reason is None, f"{event.name} failed: {reason!r}"


class Head(Actor):
    """The process that moves the journal's log into its file."""

    kind = "head"

    async def live(self) -> None:
        journal = await self.thread("main", self.open_journal)
        while True:
            await asyncio.sleep(self.world.climate.tend_s)
            try:
                await self.thread("main", journal.checkpoint)
            except JournalUnavailable as error:
                self.world.note(f"checkpoint: {error}")
