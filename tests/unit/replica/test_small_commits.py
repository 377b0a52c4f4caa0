"""Callers who send one event after the other share a commit, instead of waiting by turns."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Coroutine, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar, cast

import pytest
from replica_world import World, play, row, until

from online.replica import learning_cost, queue
from online.replica.pending import Waiting, waiting_for
from online.settings.limits import Limits
from replay.journal.base import Appended, NewRow
from replay.journal.sqlite.journal import SqliteJournal

CALLERS, ROUNDS = 4, 6
T = TypeVar("T")


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
    monkeypatch.setattr(learning_cost, "TURN_S", 1e9)  # however slow the machine is
    sizes = commits(tmp_path / "one")
    assert sum(sizes) == 2 * CALLERS * ROUNDS
    assert max(sizes) == 2 * CALLERS
    assert len(sizes) <= ROUNDS + 2
    monkeypatch.setattr(queue, "_TURNS", 0)  # the control: by turns, to the end
    monkeypatch.setattr(queue, "_GATHER_S", 0.0)
    assert len(commits(tmp_path / "two")) > ROUNDS + 2


class Line:
    """A queue of its own: requests come when they are told to, and are answered likewise."""

    def __init__(self) -> None:
        answers: Any = cast(Any, SimpleNamespace(requests=0, incident=None))
        self.answers, self.counts = answers, Counter[str]()
        self.queue = queue.Queue(Limits(), self.counts, answers)
        self._sent: dict[str, Waiting] = {}

    def send(self, *names: str) -> None:
        for name in names:
            done = asyncio.get_running_loop().create_future()
            self._sent[name] = waiting_for([row(name)], None, done)
            self.queue.put(self._sent[name], None).cancel()

    def answer(self, n: int) -> None:
        self.answers.requests -= n

    async def take(self, *, n: int = 100, counted: str = "predictions") -> list[str]:
        """Begin a commit, before which so many predictions, or others, were answered."""
        self.counts[counted] += n
        batch = await self.queue.next_batch()
        return [one.rows[0].event_id for one in batch]


def bounded(scene: Coroutine[Any, Any, T]) -> T:
    """Result of a scene; whatever waits without an end in it fails."""

    async def run() -> T:
        async with asyncio.timeout(60):
            return await scene

    return asyncio.run(run())


async def three_who_come_one_by_one(n: int = 100, counted: str = "predictions") -> list[str]:
    line = Line()
    line.send("a", "b", "c")
    assert await line.take() == ["a", "b", "c"]
    line.answer(2)
    line.send("d")
    taking = asyncio.create_task(line.take(n=n, counted=counted))
    for name in "ef":
        for _ in range(queue._TURNS + 2):
            await asyncio.sleep(0)
        if name == "e":
            line.answer(1)
        line.send(name)
    return await taking


def test_who_sends_as_often_as_others_has_a_commit_with_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(queue, "_GATHER_S", 1e9)  # it is not the time that ends the wait
    assert bounded(three_who_come_one_by_one()) == ["d", "e", "f"]
    assert bounded(three_who_come_one_by_one(counted="choices")) == ["d", "e", "f"]
    assert bounded(three_who_come_one_by_one(1)) == ["d"], "nobody else wants the loop"
    monkeypatch.setattr(queue, "_GATHER_S", 0.0)  # the control
    assert bounded(three_who_come_one_by_one()) == ["d"]


def test_nobody_waits_for_those_who_do_not_come(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue, "_GATHER_S", 1e9)

    async def scene() -> None:
        line = Line()
        line.send("a", "b", "c", "d")
        await line.take()
        line.answer(2)
        line.send("e")
        taking = asyncio.create_task(line.take())
        for _ in range(queue._TURNS + 2):
            await asyncio.sleep(0)
        assert not taking.done()
        line.queue._end_gathering()  # the time is over
        assert await taking == ["e"]
        line.answer(3)
        line.send("f")
        assert await line.take() == ["f"], "who is alone does not wait"
        line.answer(1)
        line.send("g", "h")
        assert await line.take() == ["g", "h"], "four would have come before: two have, of late"

    bounded(scene())
