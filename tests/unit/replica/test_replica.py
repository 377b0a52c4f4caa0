"""The replica's three loops in one process: real journal, real server, no Ray and no HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import replica_world as worlds

from online.errors import RequestError
from online.models.adapters.linear import Linear
from online.settings.limits import Limits
from replay.errors import JournalFull, JournalHeld, JournalUnavailable
from replay.journal.base import Appended, NewRow
from replay.journal.sqlite.journal import SqliteJournal

counting, play, row, statuses, until = (
    worlds.counting,
    worlds.play,
    worlds.row,
    worlds.statuses,
    worlds.until,
)


class Picky(Linear):
    """Raises half way on a marker, after its first step has learned."""

    def learn(self, features: Any, label: Any, weight: float) -> None:
        super().learn(features, label, weight)
        if "bad" in features:
            raise ValueError("a later step raised")


def test_many_requests_are_one_commit_and_repeats_get_the_first_row(tmp_path: Path) -> None:
    class Counting(SqliteJournal):
        batches: list[int] = []  # noqa: RUF012

        def append(
            self, partition: int, known: int, rows: Sequence[NewRow], epoch: int = 0
        ) -> Appended:
            self.batches.append(len(rows))
            return super().append(partition, known, rows, epoch)

    async def scene(world: Any) -> None:
        journal = Counting(world.folder / "journal.db", disk_low_mb=0)
        replica = await world.replica(journal=journal)
        found = await asyncio.gather(*(replica.writer.record([row(f"e{i}")]) for i in range(20)))
        assert [statuses(r) for r in found] == [[("learned", False)]] * 20
        assert len(journal.batches) < 5
        assert statuses(await replica.writer.record([row("e3")])) == [("learned", True)]
        both = await asyncio.gather(*(replica.writer.record([row("twin")]) for _ in range(2)))
        assert sorted(statuses(r)[0] for r in both) == [("learned", False), ("learned", True)]
        assert world.weight(replica, "e3") == world.weight(replica, "twin") == 1
        await replica.stop(5)
        assert world.server.status()["clock"] in ({1: 21}, {})

    play(tmp_path, scene)


def test_a_cancelled_request_changes_nothing(tmp_path: Path) -> None:
    async def scene(world: Any) -> None:
        replica = await world.replica()
        task = asyncio.create_task(replica.writer.record([row("gone")]))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        task.cancel()
        await until(lambda: world.weight(replica, "gone") == 1)
        assert statuses(await replica.writer.record([row("gone")])) == [("learned", True)]
        assert world.weight(replica, "gone") == 1
        await replica.stop(5)

    play(tmp_path, scene)


def test_a_lost_answer_of_the_store_is_no_duplicate(tmp_path: Path) -> None:
    class Lossy(SqliteJournal):
        losses = 2

        def append(
            self, partition: int, known: int, rows: Sequence[NewRow], epoch: int = 0
        ) -> Appended:
            appended = super().append(partition, known, rows, epoch)
            if self.losses:
                self.losses -= 1
                raise JournalUnavailable("the answer was lost")
            return appended

    async def scene(world: Any) -> None:
        replica = await world.replica(journal=Lossy(world.folder / "journal.db", disk_low_mb=0))
        recorded = await replica.writer.record([row("a"), row("b")])
        assert statuses(recorded) == [("learned", False)] * 2
        assert world.weight(replica, "a") == world.weight(replica, "b") == 1
        await replica.stop(5)

    play(tmp_path, scene)


def test_a_sealed_writer_takes_a_new_partition_and_the_adopter_learns_the_old_one(
    tmp_path: Path,
) -> None:
    async def scene(world: Any) -> None:
        first = await world.replica("first")
        world.client.down = True
        await first.writer.record([row("before")])
        world.client.down = False
        second = await world.replica("second")
        await second.exchange._adopt(first.writer.partition)
        old = first.writer.partition
        assert statuses(await first.writer.record([row("after")])) == [("learned", False)]
        assert first.writer.partition != old
        for replica in (first, second):
            await until(
                lambda r=replica: world.weight(r, "before") == world.weight(r, "after") == 1
            )
        await first.stop(5)
        await second.stop(5)

    play(tmp_path, scene)


@pytest.mark.parametrize("checked", [True, False], ids=["checked", "control"])
def test_a_new_replica_writes_nothing_into_a_store_that_has_lost_its_epoch(
    tmp_path: Path, checked: bool
) -> None:
    """Its partition is new there, so no offset is missing; control: it answers `learned`."""

    async def scene(world: Any) -> None:
        emptied = SqliteJournal(world.folder / "emptied.db", disk_low_mb=0)
        replica = await world.replica(journal=emptied)
        assert replica.learner.version[0] == 1
        if not checked:
            replica.writer._at._seen = lambda: 0
            assert statuses(await replica.writer.record([row("x")])) == [("learned", False)]
        else:
            with pytest.raises(RequestError) as refused:
                await replica.writer.record([row("x")])
            assert (refused.value.status, refused.value.code) == (503, "journal_refused")
            assert "up to epoch 0" in refused.value.message
            assert replica.incidents
            assert emptied.read(replica.writer.partition, 1, 9) == ()
        for task in replica._tasks:
            task.cancel()

    play(tmp_path, scene)


def test_a_full_disk_and_too_many_requests_are_definite(tmp_path: Path) -> None:
    class Full(SqliteJournal):
        full = True

        def append(
            self, partition: int, known: int, rows: Sequence[NewRow], epoch: int = 0
        ) -> Appended:
            if self.full:
                raise JournalFull(1.0, 256)
            return super().append(partition, known, rows, epoch)

    async def scene(world: Any) -> None:
        journal = Full(world.folder / "journal.db", disk_low_mb=0)
        replica = await world.replica(journal=journal, limits=Limits(ongoing_max=4))
        with pytest.raises(RequestError) as refused:
            await replica.writer.record([row("x")])
        assert (refused.value.status, refused.value.code) == (503, "journal_full")
        assert replica.incidents
        journal.full = False
        tasks = [asyncio.create_task(replica.writer.record([row(f"y{i}")])) for i in range(3)]
        results = await asyncio.gather(*tasks, return_exceptions=True)
        busy = [r for r in results if isinstance(r, RequestError)]
        assert [(e.status, e.code, e.retry_after_s) for e in busy] == [(429, "busy", 1)]
        assert not replica.incidents
        assert world.weight(replica, "y2") == 0  # the refused one was not written
        await replica.stop(5)

    play(tmp_path, scene)


def test_a_row_that_the_model_raises_on_fails_alone_and_for_every_repeat(tmp_path: Path) -> None:
    def picky() -> Linear:
        made = counting()
        return Picky(made.estimator)

    async def scene(world: Any) -> None:
        replica = await world.replica(build=picky)
        rows = [row("a"), row("poison", feature="bad"), row("c")]
        recorded = await replica.writer.record(rows)
        assert [r.status for r in recorded] == ["learned", "failed", "learned"]
        assert recorded[1].reason == "ValueError: a later step raised"
        again = await replica.writer.record([row("poison", feature="bad")])
        assert (again[0].status, again[0].repeat) == ("failed", True)
        other = await world.replica("other", build=picky)
        elsewhere = await other.writer.record([row("poison", feature="bad")])
        assert (elsewhere[0].status, elsewhere[0].repeat) == ("failed", True)
        assert [world.weight(replica, f) for f in ("a", "bad", "c")] == [1, 0, 1]
        await until(lambda: other.learner.tally.digest == replica.learner.tally.digest)
        assert replica.learner.tally.digest[0] == 2
        await replica.stop(5)
        await other.stop(5)

    play(tmp_path, scene)


def test_predictions_and_feedback_go_on_without_the_server(tmp_path: Path) -> None:
    async def scene(world: Any) -> None:
        replica = await world.replica()
        await until(lambda: replica.updates_behind == 0)
        world.client.down = True
        for i in range(200):
            await replica.writer.record([row(f"e{i}")])
        assert replica.updates_behind is None
        assert replica.learner.own == 200
        before = replica.age_ms
        await asyncio.sleep(0)
        assert before is not None
        world.client.down = False
        await until(lambda: replica.learner.own == 0)
        assert world.weight(replica, "e7") == 1
        await replica.stop(5)

    play(tmp_path, scene)


def test_a_store_that_can_not_be_read_delays_a_repeat_and_costs_no_slot(tmp_path: Path) -> None:
    class Unread(SqliteJournal):
        down = False
        asked = 0

        def controls(self, *args: Any) -> Any:
            Unread.asked += 1
            if self.down:
                raise JournalUnavailable("not now")
            return super().controls(*args)

    async def scene(world: Any) -> None:
        journal = Unread(world.folder / "journal.db", disk_low_mb=0)
        replica = await world.replica(journal=journal)
        await replica.writer.record([row("a")])
        Unread.down, asked = True, Unread.asked
        repeat = asyncio.create_task(replica.writer.record([row("a")]))
        await until(lambda: Unread.asked > asked + 1)
        Unread.down = False
        assert statuses(await repeat) == [("learned", True)]
        assert replica.writer.idle
        assert replica.counts["internal_errors"] == 0
        await replica.stop(5)

    play(tmp_path, scene)


class Held(SqliteJournal):
    """Another process holds it, or a commit does not end, as long as the test says so."""

    held = False
    unsure = False
    going_on = threading.Event()

    def append(
        self, partition: int, known: int, rows: Sequence[NewRow], epoch: int = 0
    ) -> Appended:
        if self.unsure:
            self.unsure = False
            super().append(partition, known, rows, epoch)
            raise JournalUnavailable("the answer was lost")
        if self.held:
            raise JournalHeld("process 7 (a backup)", 1.0, 7)
        self.going_on.wait()
        return super().append(partition, known, rows, epoch)


TURNS = 5000


def test_a_decision_that_waits_for_a_commit_is_not_asked_for_at_once_again_and_again(
    tmp_path: Path,
) -> None:
    """Turns of the loop without an end would take the time that the commit needs."""

    async def scene(world: Any) -> None:
        journal = Held(world.folder / "journal.db", disk_low_mb=0)
        journal.going_on.set()
        replica = await world.replica(journal=journal)
        journal.going_on.clear()
        try:
            recorded = asyncio.create_task(replica.writer.record([row("x")]))
            await until(lambda: replica.writer.committing)
            world.server.ban("another", True)
            await until(lambda: replica.learner.control > replica.exchange.control)
            before = world.client.met
            for _ in range(TURNS):
                await asyncio.sleep(0)
            assert world.client.met - before < TURNS / 10
        finally:
            journal.going_on.set()
        assert statuses(await recorded) == [("learned", False)]
        await until(lambda: replica.exchange.control == replica.learner.control)
        await replica.stop(5)

    play(tmp_path, scene)


async def in_time(replica: Any, name: str) -> Any:
    """What becomes of an event; sent again where this machine was slower than its short wait."""
    for _ in range(100):
        with contextlib.suppress(RequestError):
            return await replica.writer.record([row(name)])
    raise AssertionError("it is never in time")


def test_rows_that_no_commit_has_begun_with_are_refused_for_good(tmp_path: Path) -> None:
    """By name of who holds the journal; what is sent again later is new."""

    async def scene(world: Any) -> None:
        journal = Held(world.folder / "journal.db", disk_low_mb=0)
        journal.going_on.set()
        replica = await world.replica(journal=journal, limits=Limits(feedback_wait_s=30))
        journal.held = True
        with pytest.raises(RequestError) as refused:
            await replica.writer.record([row("x")])
        assert (refused.value.status, refused.value.code) == (503, "journal_held")
        assert "process 7 (a backup)" in refused.value.message
        assert "process 7 (a backup)" in str(replica.incidents)
        journal.held = False
        assert statuses(await in_time(replica, "x")) == [("learned", False)]
        assert (replica.incidents, world.weight(replica, "x")) == ([], 1)
        await replica.stop(5)

    play(tmp_path, scene)


def test_a_refusal_is_not_for_good_if_an_attempt_before_may_have_written(tmp_path: Path) -> None:
    async def scene(world: Any) -> None:
        journal = Held(world.folder / "journal.db", disk_low_mb=0)
        journal.going_on.set()
        replica = await world.replica(journal=journal, limits=Limits(feedback_wait_s=1))
        journal.unsure = journal.held = True
        with pytest.raises(RequestError) as refused:
            await replica.writer.record([row("x")])
        assert refused.value.code == "journal_unavailable", "it is on the disk"
        journal.held = False
        assert statuses(await in_time(replica, "x")) == [("learned", True)]
        assert world.weight(replica, "x") == 1
        await replica.stop(5)

    play(tmp_path, scene)


def test_what_waits_behind_a_commit_that_does_not_end_is_taken_back(tmp_path: Path) -> None:
    """The commit's own rows may be written; those behind it never are."""

    async def scene(world: Any) -> None:
        journal = Held(world.folder / "journal.db", disk_low_mb=0)
        journal.going_on.set()
        replica = await world.replica(journal=journal, limits=Limits(feedback_wait_s=0.3))
        journal.going_on.clear()
        first = asyncio.create_task(replica.writer.record([row("first")]))
        await until(lambda: replica.writer.writing)
        behind = asyncio.create_task(replica.writer.record([row("behind")]))
        found = await asyncio.gather(first, behind, return_exceptions=True)
        assert [error.code for error in found] == ["journal_unavailable", "journal_held"]
        journal.going_on.set()
        await until(lambda: world.weight(replica, "first") == 1)
        await until(lambda: replica.writer.idle)
        assert world.weight(replica, "behind") == 0
        assert statuses(await in_time(replica, "behind")) == [("learned", False)]
        await replica.stop(5)

    play(tmp_path, scene)


def test_a_model_that_stops_closes_its_journal_aside(tmp_path: Path) -> None:
    """The process may answer for other models, and for the one that takes its place."""
    threads: list[threading.Thread] = []

    async def scene(world: Any) -> None:
        replica = await world.replica()
        close = replica.store.close

        def noted() -> None:
            threads.append(threading.current_thread())
            close()

        replica.store.close = noted
        await replica.stop(5)

    worlds.play(tmp_path, scene)
    assert threads
    assert threading.main_thread() not in threads


def test_what_is_asked_of_a_closed_journal_fails_at_once(tmp_path: Path) -> None:
    async def scene(world: Any) -> None:
        replica = await world.replica()
        await replica.stop(5)
        for step in (replica.store.write, replica.store.read):
            with pytest.raises(RuntimeError):
                async with asyncio.timeout(worlds.PATIENCE_S):  # it would wait for ever
                    await step(lambda: None)

    worlds.play(tmp_path, scene)
