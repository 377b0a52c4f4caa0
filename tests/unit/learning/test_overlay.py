"""One process learns all, replicas learn their own rows on what it publishes."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Iterator
from pathlib import Path

from replica_world import World, play, row, statuses, until
from test_ordered import Sequenced, names, order

from online.learning.ordered import OrderedLearner
from online.replica.replica import ModelReplica
from paramserver.core.blocks import Blocks


async def _writer(world: World, name: str = "writer") -> ModelReplica:
    writer = await world.replica(name, build=Sequenced, ordered=True)
    writer.follow(0)
    return writer


def test_own_rows_are_there_at_once_and_those_of_others_soon(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        writer = await _writer(world)
        fronts = [await world.replica(f"f{i}", build=Sequenced, overlay=True) for i in range(2)]

        async def send(i: int) -> None:
            for n in range(60):
                (recorded,) = await fronts[i].writer.record([row(f"e{i}.{n}")])
                assert (recorded.status, recorded.repeat) == ("learned", False)
                mine = [name for name in names(fronts[i]) if name.startswith(f"e{i}.")]
                assert mine == [f"e{i}.{k}" for k in range(n + 1)], "each own row once, in order"
                await asyncio.sleep(0.002)

        await asyncio.gather(send(0), send(1))
        expected = order(world)
        for front in fronts:
            await until(lambda front=front: names(front) == expected, 240.0)  # type: ignore[misc]
            await until(lambda front=front: front.learner.own == 0)  # type: ignore[misc]
            assert front.learner.tally.digest[0] == 120
            assert front.updates_behind == 0
        assert sorted(r.learner.keeper for r in fronts) == [False, True]  # type: ignore[attr-defined]
        for replica in (*fronts, writer):
            await replica.stop(5)

    play(tmp_path, scene)


def test_without_own_rows_they_are_queued_until_they_come_back(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        front = await world.replica("f", build=Sequenced, overlay=True, learns=False)
        found = await front.writer.record([row("a"), row("b")])
        assert statuses(found) == [("queued", False)] * 2
        assert names(front) == []
        assert front.backlog.rows == 2
        writer = await _writer(world)
        await until(lambda: names(front) == ["a", "b"], 240.0)
        again = await front.writer.record([row("a")])
        assert statuses(again) == [("learned", True)]
        assert front.backlog.rows == 0
        await front.stop(5)
        await writer.stop(5)

    play(tmp_path, scene)


def test_the_process_that_learns_may_die(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        front = await world.replica("f", build=Sequenced, overlay=True)
        first = await _writer(world, "first")
        await front.writer.record([row("a")])
        await until(lambda: front.learner.own == 0)
        for task in first._tasks:
            task.cancel()
        await front.writer.record([row("b")])
        found = await front.writer.record([row("x", feature="bad"), row("c")])
        assert [r.status for r in found] == ["queued", "learned"], "the other one has to say"
        assert names(front) == ["a", "b", "c"]
        assert front.learner.own == 2
        second = await _writer(world, "second")
        await until(lambda: names(second) == ["a", "b", "c"])
        again = await front.writer.record([row("x", feature="bad")])
        assert statuses(again) == [("failed", True)]
        learner = second.learner
        assert isinstance(learner, OrderedLearner)
        partition = first.writer.partition
        await until(lambda: second.writer.partition > partition)
        await second.stop(5)
        await front.stop(5)

    play(tmp_path, scene)


def test_a_rollback_reaches_what_is_on_top(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        writer = await _writer(world)
        fronts = [await world.replica(f"f{i}", build=Sequenced, overlay=True) for i in range(2)]
        await fronts[0].writer.record([row("a")])
        await until(lambda: all(names(f) == ["a"] and f.learner.own == 0 for f in fronts))
        snapshot = world.server.snapshot()["name"]
        await fronts[1].writer.record([row("bad1")])
        await until(lambda: all(names(f) == ["a", "bad1"] for f in fronts))
        world.server.rollback(snapshot)
        await until(lambda: all(names(f) == ["a"] for f in (*fronts, writer)))
        await fronts[1].writer.record([row("next")])
        await until(lambda: all(names(f) == ["a", "next"] for f in (*fronts, writer)))
        for replica in (*fronts, writer):
            await replica.stop(5)

    play(tmp_path, scene)


class Stepped(Sequenced):
    """A model that is read in two steps, and notes whether the collector may run meanwhile."""

    collected: list[bool]
    dropped: list[list[str]]

    def resetting(self, values: Blocks) -> Iterator[None]:
        self.collected.append(gc.isenabled())
        yield
        self.collected.append(gc.isenabled())
        self.reset(values)

    def dropping(self) -> Iterator[None]:
        self.dropped.append(self.names)
        self.collected.append(gc.isenabled())
        yield


def test_the_collector_rests_while_a_copy_is_read(tmp_path: Path) -> None:
    Stepped.collected, Stepped.dropped = [], []

    async def scene(world: World) -> None:
        front = await world.replica("f", build=Stepped, overlay=True, learns=False)
        writer = await world.replica("writer", build=Stepped, ordered=True)
        writer.follow(0)
        await front.writer.record([row("a")])
        await until(lambda: names(front) == ["a"], 240.0)
        await front.stop(5)
        await writer.stop(5)

    assert gc.isenabled()
    play(tmp_path, scene)
    assert gc.isenabled()
    assert Stepped.collected, "a copy was read in steps"
    assert not any(Stepped.collected)
    assert Stepped.dropped[:1] == [[]], "the copy before is let go of once it does not answer"
    assert ["a"] not in Stepped.dropped
