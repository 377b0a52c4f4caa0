"""A store that is full, or has lost a row, while a replica records what became of other rows."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
import replica_world as worlds

from online.errors import RequestError
from online.replica.answers import Waiter
from online.replica.pending import waiting_for
from replay.errors import JournalDamaged, ServerFull
from replay.journal.base import Partition, Row
from replay.journal.sqlite.journal import SqliteJournal


class Full(SqliteJournal):
    """Refuses the next ``full`` writes of each kind but appends, as a server without memory."""

    full = 0
    refused = 0

    def _check(self) -> None:
        if self.full:
            self.full, self.refused = self.full - 1, self.refused + 1
            raise ServerFull("OOM")

    def write_control(self, *args: Any, **named: Any) -> Any:
        if args[1] == "failed":
            self._check()
        return super().write_control(*args, **named)

    def register(self, *args: Any) -> Partition:
        self._check()
        return super().register(*args)

    def claim(self, partition: int, offset: int) -> int:
        self._check()
        return super().claim(partition, offset)


def full(world: Any) -> Full:
    return Full(world.folder / "journal.db", disk_low_mb=0)


def test_a_failed_row_is_recorded_once_there_is_room_and_pushes_go_on(tmp_path: Path) -> None:
    async def scene(world: Any) -> None:
        journal = full(world)
        replica = await world.replica(
            journal=journal, build=lambda: worlds.Picky(worlds.counting().estimator)
        )
        journal.full = 2
        sent = replica.writer.record([worlds.row("x", feature="bad"), worlds.row("y")])
        async with asyncio.timeout(worlds.PATIENCE_S):
            assert [r.status for r in await sent] == ["failed", "learned"]
        assert journal.refused == 2
        await worlds.until(lambda: not replica.incidents)
        await worlds.until(lambda: replica.learner.clock.get(replica.writer.partition) == 2)
        await replica.stop(5)
        assert replica.writer.answers.requests == 0

    worlds.play(tmp_path, scene)


def test_a_sealed_writer_waits_for_room_and_answers_all_requests(tmp_path: Path) -> None:
    async def scene(world: Any) -> None:
        journal = full(world)
        replica = await world.replica(journal=journal)
        journal.seal(replica.writer.partition)
        journal.full = 2
        async with asyncio.timeout(worlds.PATIENCE_S):
            recorded = await replica.writer.record([worlds.row("x")])
        assert (recorded[0].status, journal.refused) == ("learned", 2)
        await replica.stop(5)

    worlds.play(tmp_path, scene)


def test_a_claim_waits_for_room_at_the_stop_too(tmp_path: Path) -> None:
    async def scene(world: Any) -> None:
        journal = full(world)
        replica = await world.replica(journal=journal)
        replica._follower._claims._begun = Row(
            1,
            replica.writer.partition,
            1,
            b"k" * 16,
            "e",
            "",
            worlds.Verdict.ACCEPTED,
            1.0,
            b"",
            1.0,
        )
        journal.full = 1
        await replica.stop(60)
        assert journal.refused == 1

    worlds.play(tmp_path, scene)


@pytest.mark.parametrize("damaged", [True, False])
@pytest.mark.parametrize("way", ["leave_to_adopter", "answer_rewritten"])
def test_a_row_that_is_damaged_or_gone_costs_only_its_own_request(
    tmp_path: Path, way: str, damaged: bool
) -> None:
    class Gone(SqliteJournal):
        def find(self, model: str, key: bytes) -> Row | None:
            if key != worlds.row("gone").key:
                return super().find(model, key)
            if damaged:
                raise JournalDamaged("a row")
            return None

    async def scene(world: Any) -> None:
        replica = await world.replica(journal=Gone(world.folder / "journal.db", disk_low_mb=0))
        answers, loop = replica.writer.answers, asyncio.get_running_loop()
        await replica.writer.record([worlds.row("there")])
        waits = [
            waiting_for([worlds.row(event)], None, loop.create_future())
            for event in ("gone", "there")
        ]
        answers.requests += 2
        await getattr(answers, way)([Waiter(waiting, 0) for waiting in waits])
        assert answers.requests == 0, "each would take one of the places for requests, for ever"
        assert waits[1].done.done()
        if damaged:
            assert waits[0].results[0].status == "damaged"
        else:
            with pytest.raises(RequestError, match="in time"):
                await waits[0].done
        await replica.stop(5)

    worlds.play(tmp_path, scene)
