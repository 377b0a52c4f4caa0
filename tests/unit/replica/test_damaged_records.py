"""A record or a row that is damaged or gone while a replica answers: the rest goes on."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
import replica_world as worlds

from online.errors import RequestError
from online.replica.answers import Waiter
from online.replica.pending import waiting_for
from replay.errors import JournalDamaged
from replay.journal.base import Row
from replay.journal.sqlite.journal import SqliteJournal


class Damaged(SqliteJournal):
    """The record of a failed row is there and damaged, until ``repaired``."""

    repaired = False
    met = 0

    def write_control(self, *args: Any, **named: Any) -> Any:
        if args[1] == "failed" and not self.repaired:
            self.met += 1
            raise JournalDamaged("a control row")
        return super().write_control(*args, **named)


def test_pushes_go_on_once_the_record_of_a_failed_row_is_repaired(tmp_path: Path) -> None:
    async def scene(world: Any) -> None:
        journal = Damaged(world.folder / "journal.db", disk_low_mb=0)
        replica = await world.replica(
            journal=journal, build=lambda: worlds.Picky(worlds.counting().estimator)
        )
        rows = [worlds.row("x", feature="bad"), worlds.row("y")]
        sent = asyncio.create_task(replica.writer.record(rows))
        await worlds.until(lambda: journal.met > 1)
        assert "damaged" in str(replica.incidents)
        assert not sent.done(), "a repeat could be answered otherwise"
        journal.repaired = True
        async with asyncio.timeout(worlds.PATIENCE_S):
            assert [r.status for r in await sent] == ["failed", "learned"]
        await worlds.until(lambda: not replica.incidents)
        await worlds.until(lambda: replica.learner.clock.get(replica.writer.partition) == 2)
        await replica.stop(5)
        assert replica.writer.answers.requests == 0

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
