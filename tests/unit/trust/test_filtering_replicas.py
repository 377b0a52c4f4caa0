"""What is said of sources adds up over replicas, and over those that come later."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
import replica_world
from replica_world import Held, World, play, until
from test_filtering import HONEST, Told, counted, nats, opened, rows_of, told

from online.trust import sources
from online.trust.filtering import Filtering
from paramserver.core.blocks import Blocks, merge
from paramserver.filters.base import Event, Opinion, Source
from paramserver.filters.sources import RELEASES, Effects


def test_one_attacker_spread_over_replicas_is_one(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        pair = [await world.replica(name, filters=told) for name in "ab"]
        for i, replica in enumerate(pair):
            await opened(replica)
            found = counted(await replica.writer.record(rows_of("x", 4, 4 * i)))
            assert "quarantined" not in found or i == 1
        for replica in pair:  # neither has seen enough alone
            await until(lambda r=replica: nats(r) < -6.0)
            assert replica.filters is not None
            assert replica.filters.reputations.quarantined == ["x"]
        found = counted(await pair[0].writer.record(rows_of("x", 1, 99)))
        assert found == {"quarantined": 1}
        third = await world.replica("c", filters=told)
        assert nats(third) < -6.0
        assert third.filters is not None
        assert third.filters.reputations.quarantined == ["x"]
        for replica in (*pair, third):
            await replica.stop(2)

    play(tmp_path, scene)


@pytest.mark.parametrize("said", [True, False])
def test_an_operator_releases_a_source_for_all_replicas(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: bool
) -> None:
    if not said:  # the mutant: only the replica that was asked knows
        monkeypatch.setattr(sources, "merge", _told_nothing)
        monkeypatch.setattr(replica_world, "PATIENCE_S", replica_world.IN_VAIN_S)

    async def scene(world: World) -> None:
        pair = [await world.replica(name, filters=told) for name in "ab"]
        for replica in pair:
            await opened(replica)
        assert counted(await pair[0].writer.record(rows_of("x", 20)))["quarantined"] == 14
        assert all(r.filters is not None for r in pair)
        await until(lambda: pair[1].filters.reputations.quarantined == ["x"])
        assert pair[0].filters.reputations.release("x")
        assert not pair[0].filters.reputations.release("x"), "it is released"
        assert counted(await pair[0].writer.record(rows_of("x", 1, 50))) == {"learned": 1}
        await until(lambda: pair[1].filters.reputations.quarantined == [])
        assert counted(await pair[1].writer.record(rows_of("x", 1, 60))) == {"learned": 1}
        assert abs(nats(pair[1])) <= 2.0, "what was said before does not count"
        for replica in pair:
            await replica.stop(2)

    if said:
        play(tmp_path, scene)
    else:
        with pytest.raises((AssertionError, TimeoutError)):
            play(tmp_path, scene)


def _told_nothing(into: Blocks, more: Blocks) -> None:
    if RELEASES in more:
        return
    merge(into, more)


class Broken(Told):
    def judge(self, event: Event, source: Source) -> Opinion:
        raise AssertionError("a filter was asked")


@pytest.mark.parametrize("forgetful", [False, True])
def test_recovery_asks_no_filter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forgetful: bool
) -> None:
    """Rows of a dead replica are learned by one whose filters only raise: verdicts are written."""

    def broken(learner: Any) -> Filtering:
        made = told(learner)
        made.chain.filters = (Broken(),)  # type: ignore[assignment]
        return made

    async def scene(world: World) -> None:
        first = await world.replica("a", filters=told)
        await opened(first)
        world.client.down = True  # nothing of it gets to the server
        await first.writer.record(rows_of("x", 20))
        expected = {f"x-{i}": world.weight(first, f"x-{i}") for i in range(20)}
        known = nats(first)
        for task in first._tasks:
            task.cancel()
        world.client.down = False
        if forgetful:  # the mutant: what a row says is not in it
            nothing = lambda judged, source, verdict: Effects(source, {}, 0, {})  # noqa: E731
            monkeypatch.setattr("online.learning.source_evidence.effects_of", nothing)
        second = await world.replica("b", filters=broken)
        await second.exchange._adopt(first.writer.partition)
        await until(lambda: second.learner.includes(first.writer.partition, first.writer.known))
        assert {name: world.weight(second, name) for name in expected} == pytest.approx(expected)
        assert (nats(second) == known) is not forgetful
        assert second.filters is not None
        for source in HONEST:
            second.filters._see(source, 0.0)
        with pytest.raises(AssertionError, match="was asked"):
            second.filters.judge(rows_of("y", 1))
        await second.stop(2)

    play(tmp_path, scene)


def test_a_rollback_takes_evidence_back_too(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        replica = await world.replica(filters=told)
        await opened(replica)
        await until(lambda: replica.learner.own == 0)
        name = world.server.snapshot(False)["name"]
        await replica.writer.record(rows_of("x", 20))
        await until(lambda: replica.learner.own == 0)
        assert nats(replica) < -6.0
        world.server.rollback(name)
        await until(lambda: nats(replica) == 0.0)
        assert replica.filters is not None
        assert replica.filters.reputations.quarantined == []
        assert nats(replica, HONEST[-1]) == 1.0, "the first that was judged"
        await replica.stop(2)

    play(tmp_path, scene)


def test_who_follows_another_process_counts_each_row_once(tmp_path: Path) -> None:
    """The writer's evidence is on top of the values until the clock says that they have it."""

    async def scene(world: World) -> None:
        front = await world.replica("front", filters=told, learns=False)
        back = await world.replica("back", filters=told)
        back.follow(front.writer.partition)
        await opened(front)
        await front.writer.record(rows_of("x", 4))
        assert nats(front) == -4.0
        await until(lambda: front.writer.queued == 0)
        assert nats(front) == -4.0
        assert nats(back) == -4.0
        assert front.filters is not None
        await until(lambda: not front.filters.reputations._pending)
        for replica in (front, back):
            await replica.stop(2)

    play(tmp_path, scene)


def test_a_model_learned_in_order_counts_all_rows(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        pair = [await world.replica(name, filters=told, ordered=True) for name in "ab"]
        for i, replica in enumerate(pair):
            await opened(replica)
            await replica.writer.record(rows_of("x", 2, 2 * i))
        for replica in pair:
            await until(lambda r=replica: nats(r) == -4.0)
            await replica.stop(2)

    play(tmp_path, scene)


def test_a_repeat_is_answered_although_its_first_row_is_learned_meanwhile(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        Held.open.set()
        held = Held(world.folder / "journal.db", disk_low_mb=0)
        one = await world.replica("a", filters=told, ordered=True)
        two = await world.replica("b", filters=told, ordered=True, journal=held)
        for replica in (one, two):
            await opened(replica)
        Held.open.clear()
        same, appends = rows_of("x", 1), Held.appends
        repeated = asyncio.create_task(two.writer.record([*same, *rows_of("h", 1)]))
        await until(lambda: Held.appends > appends)
        await one.writer.record(same)
        await until(lambda: two.learner.includes(one.writer.partition, one.writer.known))
        Held.open.set()
        assert [found.repeat for found in await repeated] == [True, False]
        assert (nats(one), nats(two)) == (-1.0, -1.0)
        for replica in (one, two):
            await replica.stop(2)

    play(tmp_path, scene)
