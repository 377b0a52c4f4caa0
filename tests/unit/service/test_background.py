"""A replica that writes, and another process's that learns what it has written."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest
import replica_world as worlds

from online.errors import RequestError
from online.models.adapters.linear import Linear
from online.service.on_ray.learner_process import LearnerActor
from online.settings.limits import Limits
from replay.errors import JournalDamaged, JournalUnavailable


def test_rows_are_queued_learned_elsewhere_and_come_back(tmp_path: Path) -> None:
    async def scene(world: Any) -> None:
        front = await world.replica("front", learns=False)
        recorded = await front.writer.record([worlds.row("a"), worlds.row("b")])
        assert worlds.statuses(recorded) == [("queued", False)] * 2
        assert (front.backlog.rows, world.weight(front, "a")) == (2, 0)
        again = (await front.writer.record([worlds.row("a")]))[0]
        assert (again.status, again.repeat) == ("queued", True)
        assert not front.learner.includes(front.writer.partition, 1)
        back = await world.replica("back")
        back.follow(front.writer.partition)
        await worlds.until(lambda: front.learner.includes(front.writer.partition, 2))
        assert [world.weight(front, f) for f in "ab"] == [1, 1]
        assert (front.backlog.rows, front.learner.own) == (0, 0)
        assert front.learner.tally.digest[0] == 2
        again = (await front.writer.record([worlds.row("a")]))[0]
        assert (again.status, again.repeat) == ("learned", True)
        await front.writer.record([worlds.row("c")])  # and so it goes on
        await worlds.until(lambda: world.weight(front, "c") == 1)
        assert back.counts["learned"] == 3
        await front.stop(5)
        journal = world.journal()
        assert journal.partition(front.writer.partition).sealed
        journal.close()
        await back.stop(5)

    worlds.play(tmp_path, scene)


def test_the_learner_process_may_die_at_any_row(tmp_path: Path) -> None:
    async def scene(world: Any) -> None:
        front = await world.replica("front", learns=False)
        names = [f"e{i}" for i in range(40)]
        for n in range(4):
            back = await world.replica(f"back{n}")
            back.follow(front.writer.partition)
            part = names[10 * n : 10 * n + 10]
            await front.writer.record([worlds.row(name) for name in part])
            await worlds.until(lambda n=n: world.weight(front, names[10 * n]) == 1)
            for task in back._tasks:
                task.cancel()
            await asyncio.gather(*back._tasks, return_exceptions=True)
            back.store.close()
        last = await world.replica("last")
        last.follow(front.writer.partition)
        await worlds.until(lambda: front.backlog.rows == 0)
        assert [world.weight(front, name) for name in names] == [1] * 40
        assert front.learner.tally.digest[0] == 40
        await last.stop(5)
        await front.stop(0.1)

    worlds.play(tmp_path, scene)


def test_two_followers_teach_each_row_once(tmp_path: Path) -> None:
    """An actor that lives on beside the one that replaced it costs work, and nothing else."""

    async def scene(world: Any) -> None:
        front = await world.replica("front", learns=False)
        backs = [await world.replica(name) for name in ("old", "new")]
        for back in backs:
            back.follow(front.writer.partition)
        for i in range(30):
            await front.writer.record([worlds.row(f"e{i}")])
        await worlds.until(lambda: front.backlog.rows == 0)
        assert [world.weight(front, f"e{i}") for i in range(30)] == [1] * 30
        for back in backs:
            await back.stop(5)
        await front.stop(5)

    worlds.play(tmp_path, scene)


def test_the_queue_is_bounded_at_exactly_its_setting(tmp_path: Path) -> None:
    async def scene(world: Any) -> None:
        limits = Limits(queue_max=5, feedback_wait_s=60)
        front = await world.replica("front", learns=False, limits=limits)
        await front.writer.record([worlds.row(f"e{i}") for i in range(3)])
        sent = [asyncio.create_task(front.writer.record([worlds.row(f"f{i}")])) for i in range(4)]
        answers = await asyncio.gather(*sent, return_exceptions=True)
        refused = [answer for answer in answers if isinstance(answer, RequestError)]
        assert [(e.status, e.code, e.retry_after_s, e.definite) for e in refused] == [
            (429, "queue_full", 1, True)
        ] * 2
        assert front.counts["refused_queue"] == 2
        assert front.writer.queued == 5
        back = await world.replica("back")
        back.follow(front.writer.partition)
        await worlds.until(lambda: front.writer.queued == 0)
        await front.writer.record([worlds.row("g")])
        await worlds.until(lambda: world.weight(front, "g") == 1)
        assert [world.weight(front, f"f{i}") for i in range(4)] == [1, 1, 0, 0]
        await back.stop(5)
        await front.stop(5)

    worlds.play(tmp_path, scene)


class Poisoned(Linear):
    def learn(self, features: Any, label: Any, weight: float) -> None:
        if "poison" in features:
            raise ValueError("poison")
        super().learn(features, label, weight)


def build() -> Linear:
    return Poisoned(worlds.counting().estimator)


def test_a_row_that_failed_before_its_answer_is_said_to_have_failed(tmp_path: Path) -> None:
    """The commit's answer is lost, and until it is asked for again another process has the row."""

    async def scene(world: Any) -> None:
        front = await world.replica("front", learns=False, build=build)
        back = await world.replica("back", build=build)
        back.follow(front.writer.partition)
        learned, append = threading.Event(), front.store.journal.append

        def loses_its_first_answer(*given: Any) -> Any:
            answer = append(*given)
            if not learned.is_set():
                assert learned.wait(240)
                raise JournalUnavailable("the answer was lost")
            return answer

        front.store.journal.append = loses_its_first_answer
        row = worlds.row("x", feature="poison")
        recording = asyncio.create_task(front.writer.record([row]))
        await worlds.until(lambda: front.learner.includes(front.writer.partition, 1))
        learned.set()
        (answer,) = await recording
        assert (answer.status, answer.repeat) == ("failed", False)
        assert "poison" in (answer.reason or "")
        await back.stop(5)
        await front.stop(5)

    worlds.play(tmp_path, scene)


def test_a_row_that_fails_is_said_to_have_failed(tmp_path: Path) -> None:
    async def scene(world: Any) -> None:
        front = await world.replica("front", learns=False, build=build)
        back = await world.replica("back", build=build)
        back.follow(front.writer.partition)
        rows = [worlds.row("x", feature="poison"), worlds.row("a")]
        assert worlds.statuses(await front.writer.record(rows)) == [("queued", False)] * 2
        await worlds.until(lambda: world.weight(front, "a") == 1)
        again = (await front.writer.record([rows[0]]))[0]
        assert (again.status, again.repeat) == ("failed", True)
        assert again.reason is not None
        assert "poison" in again.reason
        await back.stop(5)
        await front.stop(5)

    worlds.play(tmp_path, scene)


def test_a_sealed_partition_is_left_for_the_next(tmp_path: Path) -> None:
    async def scene(world: Any) -> None:
        front = await world.replica("front", learns=False)
        back = await world.replica("back")
        first = front.writer.partition
        back.follow(first)
        await front.writer.record([worlds.row("a")])
        await worlds.until(lambda: world.weight(front, "a") == 1)
        journal = world.journal()
        journal.seal(first)  # somebody took the replica for dead
        other = await world.replica("other")
        await other.exchange._adopt(first)
        recorded = (await front.writer.record([worlds.row("b")]))[0]
        assert (recorded.status, recorded.row.partition != first) == ("queued", True)
        back.follow(front.writer.partition)
        await worlds.until(lambda: world.weight(front, "b") == 1)
        assert [world.weight(front, f) for f in "ab"] == [1, 1]
        assert back.learner.tracks.keys() == {back.writer.partition, front.writer.partition}
        journal.close()
        for replica in (other, back, front):
            await replica.stop(5)

    worlds.play(tmp_path, scene)


def test_a_frozen_model_is_acted_on_when_the_queue_is_learned(tmp_path: Path) -> None:
    async def scene(world: Any) -> None:
        front = await world.replica("front", learns=False)
        await front.writer.record([worlds.row("a")])
        control = world.server.freeze()["control"]
        await worlds.until(lambda: front.learner.frozen)
        recorded = await front.writer.record([worlds.row("b")])
        assert worlds.statuses(recorded) == [("frozen", False)]
        assert front.exchange.control < control, "a row is still to be learned"
        back = await world.replica("back")
        back.follow(front.writer.partition)
        await worlds.until(
            lambda: front.exchange.control >= control and back.exchange.control >= control
        )
        assert [world.weight(front, f) for f in "ab"] == [1, 0]
        await back.stop(5)
        await front.stop(5)

    worlds.play(tmp_path, scene)


@pytest.mark.parametrize("learns", [True, False])
def test_who_does_not_learn_is_not_asked_to_adopt(tmp_path: Path, learns: bool) -> None:
    async def scene(world: Any) -> None:
        dead = await world.replica("dead")
        for task in dead._tasks:
            task.cancel()
        await asyncio.gather(*dead._tasks, return_exceptions=True)
        journal = world.journal()
        row = worlds.row("a")
        journal.append(dead.writer.partition, 0, [row])
        world.server._running.gone = frozenset({dead.writer.partition})
        world.server._find_gone = lambda partitions: {dead.writer.partition}
        world.server.confirm()
        replica = await world.replica("other", learns=learns)
        met = world.client.met
        await worlds.until(lambda: world.client.met > met + 5)
        assert (
            dead.writer.partition in replica.learner.tracks or world.weight(replica, "a")
        ) == learns
        journal.close()
        dead.store.close()
        await replica.stop(1)

    worlds.play(tmp_path, scene)


def test_a_learner_process_that_could_not_start_tries_again() -> None:
    class Replica:
        starts = 0
        followed: int | None = None

        async def start(self) -> None:
            self.starts += 1
            if self.starts == 1:
                raise JournalDamaged("a control row")

        def follow(self, partition: int) -> None:
            self.followed = partition

    async def scene() -> None:
        actor = LearnerActor.__new__(LearnerActor)
        actor._replica, actor._starting = replica, None  # type: ignore[assignment]
        with pytest.raises(JournalDamaged):
            await actor.follow(3)
        await actor.follow(3)  # as the one who supervises it does
        await actor.follow(4)

    replica = Replica()
    asyncio.run(scene())
    assert (replica.starts, replica.followed) == (2, 4)
