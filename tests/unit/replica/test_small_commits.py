"""Callers who send one event after the other share a commit, instead of waiting by turns."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
from replica_world import World, play, row, until

from online.replica import follower, queue
from replay.journal.base import Appended, NewRow
from replay.journal.sqlite import SqliteJournal

CALLERS, ROUNDS = 4, 6


class Gated(SqliteJournal):
    """A journal whose first commit waits until it may go on."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, disk_low_mb=0)
        self.sizes: list[int] = []
        self.gate = threading.Event()

    def append(
        self, partition: int, known: int, rows: Sequence[NewRow], epoch: int = 0
    ) -> Appended:
        self.sizes.append(len(rows))
        self.gate.wait(240)
        return super().append(partition, known, rows, epoch)


def commits(folder: Path) -> list[int]:
    """Rows of each commit, where half of the callers come while the others' commit is under way."""
    sizes: list[int] = []

    async def scene(world: World) -> None:
        journal = Gated(world.folder / "journal.db")
        replica = await world.replica(journal=journal)

        async def call(name: str) -> None:
            for i in range(ROUNDS):
                await replica.writer.record([row(f"{name}-{i}")])

        callers = [asyncio.create_task(call(f"a{n}")) for n in range(CALLERS)]
        await until(lambda: len(journal.sizes) == 1)
        callers += [asyncio.create_task(call(f"b{n}")) for n in range(CALLERS)]
        await until(lambda: replica.writer.waiting == 2 * CALLERS)
        journal.gate.set()
        await asyncio.gather(*callers)
        sizes.extend(journal.sizes)
        await replica.stop(5)

    play(folder, scene)
    return sizes


def test_two_halves_of_the_callers_share_the_commits_from_then_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follower, "_TURN_S", 1e9)  # however slow the machine is
    sizes = commits(tmp_path / "one")
    assert sum(sizes) == 2 * CALLERS * ROUNDS
    assert max(sizes) == 2 * CALLERS
    assert len(sizes) <= ROUNDS + 2
    monkeypatch.setattr(queue, "_TURNS", 0)  # the control: by turns, to the end
    assert len(commits(tmp_path / "two")) > ROUNDS + 2
