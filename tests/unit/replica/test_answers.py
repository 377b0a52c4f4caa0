"""Answers for rows that the server's values had before they were learned here."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
import replica_world as worlds

from online.errors import RequestError
from online.replica.answers import Waiter
from online.replica.pending import waiting_for
from online.settings.limits import Limits
from replay.errors import JournalUnavailable
from replay.journal.base import NewRow, Row, Verdict
from replay.journal.sqlite.journal import SqliteJournal


class UnreadJournal(SqliteJournal):
    """Finds no row, and does not say why."""

    def find(self, model: str, key: bytes) -> Row | None:
        raise JournalUnavailable("a test")


def test_learning_waits_no_longer_for_a_row_than_whoever_asked(tmp_path: Path) -> None:
    async def scene(world: Any) -> None:
        journal = UnreadJournal(world.folder / "journal.db", disk_low_mb=0)
        replica = await world.replica(journal=journal, limits=Limits(feedback_wait_s=0.3))
        answers = replica.writer.answers
        payload = worlds.codec.encode(worlds.Example({"a": 1.0}, 1.0))
        row = NewRow(b"k" * 16, "a", "web", Verdict.ACCEPTED, payload, 1.0)
        waiting = waiting_for([row], None, asyncio.get_running_loop().create_future())
        answers.requests += 1
        async with asyncio.timeout(60.0):  # without a bound it would never end
            await answers.answer_rewritten([Waiter(waiting, 0)])
        with pytest.raises(RequestError) as caught:
            await waiting.done
        assert (caught.value.status, caught.value.code) == (503, "journal_unavailable")
        assert answers.requests == 0
        await replica.stop(5)

    worlds.play(tmp_path, scene)
