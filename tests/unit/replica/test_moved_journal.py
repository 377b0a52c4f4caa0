"""The journal's file is moved while a replica does not know what is written, and put back."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import replica_world as worlds

from replay.errors import JournalUnavailable
from replay.journal.base import Appended, NewRow
from replay.journal.sqlite.journal import SqliteJournal


class Moved(SqliteJournal):
    """Its file is moved at the step ``at``, after an append but before a decision."""

    at = ""
    met = 0

    def move(self) -> None:
        self.at, self.met = "", 1
        self._path.rename(self._path.with_name("away.db"))

    def put_back(self) -> None:
        self.met = 0
        self._path.with_name("away.db").rename(self._path)

    def append(
        self, partition: int, known: int, rows: Sequence[NewRow], epoch: int = 0
    ) -> Appended:
        if self.at == "append":
            super().append(partition, known, rows, epoch)
            self.move()
            raise JournalUnavailable("the answer was lost")
        self.met += self.met > 0
        return super().append(partition, known, rows, epoch)

    def write_control(self, *args: Any, **named: Any) -> Any:
        if self.at == "write_control" and args[1] == "failed":
            self.move()
        self.met += self.met > 0
        return super().write_control(*args, **named)


def test_a_failed_row_is_said_once_the_file_is_back_and_pushes_go_on(tmp_path: Path) -> None:
    async def scene(world: Any) -> None:
        journal = Moved(world.folder / "journal.db", disk_low_mb=0)
        replica = await world.replica(
            journal=journal, build=lambda: worlds.Picky(worlds.counting().estimator)
        )
        journal.at = "write_control"
        sent = asyncio.create_task(replica.writer.record([worlds.row("x", feature="bad")]))
        await worlds.until(lambda: journal.met > 2)  # it has been refused
        assert not sent.done(), "neither answered nor pushed before it is written"
        journal.put_back()
        assert worlds.statuses(await sent) == [("failed", False)]
        assert not replica._follower.failure_unwritten
        assert worlds.statuses(await replica.writer.record([worlds.row("y")])) == [
            ("learned", False)
        ]
        await worlds.until(lambda: not replica.learner.open_rows)  # the server has them
        await replica.stop(5)

    worlds.play(tmp_path, scene)


def test_a_row_whose_first_answer_was_lost_is_not_called_unwritten(tmp_path: Path) -> None:
    async def scene(world: Any) -> None:
        journal = Moved(world.folder / "journal.db", disk_low_mb=0)
        replica = await world.replica(journal=journal)
        journal.at = "append"
        sent = asyncio.create_task(replica.writer.record([worlds.row("x")]))
        await worlds.until(lambda: sent.done() or journal.met > 2)
        assert not sent.done(), sent
        journal.put_back()
        assert worlds.statuses(await sent) == [("learned", False)]
        assert world.weight(replica, "x") == 1
        await replica.stop(5)

    worlds.play(tmp_path, scene)
