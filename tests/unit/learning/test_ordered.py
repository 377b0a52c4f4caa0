"""Replicas that each learn all rows in commit order: real journal and server in one process."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from replica_world import World, play, row, statuses, until

from online.learning.ordered import OrderedLearner
from online.models.base import Prediction
from paramserver.core.blocks import OPAQUE, Block, Blocks
from replay.example import Features, Label
from replay.journal.base import Verdict


class Sequenced:
    """Its state is the order in which it has learned; it dislikes some features' names."""

    mergeable, learns, numeric_only, structure = False, True, True, "sequenced"
    why_not_mergeable: str | None = "an order has no sum"

    def __init__(self) -> None:
        self.names: list[str] = []

    def predict(self, features: Features) -> Prediction:
        return Prediction(float(len(self.names)), None)

    def predict_many(self, rows: Sequence[Features]) -> list[Prediction]:
        return [self.predict(x) for x in rows]

    def learn(self, features: Features, label: Label, weight: float) -> None:
        self.names += features
        if "bad" in self.names or self.names[-1].startswith("poison"):
            raise ValueError("it dislikes the name")

    def cut(self) -> Blocks:
        return {"state": Block(OPAQUE, " ".join(self.names).encode())}

    def rebase(self, values: Blocks) -> None:
        raise AssertionError("nobody merges it")

    def reset(self, values: Blocks) -> None:
        state = values.get("state")
        self.names = state.data.decode().split() if state else []


def names(replica: Any) -> list[str]:
    model = replica.learner.serving
    assert isinstance(model, Sequenced)
    return model.names


def order(world: World) -> list[str]:
    """What the journal says, row by row."""
    rows = world.journal().follow("m", 0, 10_000).rows
    return [r.event_id for r in rows if r.verdict is Verdict.ACCEPTED]


def test_every_replica_learns_everything_in_commit_order(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        replicas = [await world.replica(f"r{i}", build=Sequenced, ordered=True) for i in range(3)]

        async def send(i: int) -> None:
            for n in range(40):
                recorded = await replicas[i].writer.record([row(f"e{i}.{n}"), row(f"f{i}.{n}")])
                assert statuses(recorded) == [("learned", False)] * 2
                assert names(replicas[i])[-1:] != []
                for one in recorded:
                    assert one.row is not None
                    assert one.row.event_id in names(replicas[i]), "it does not read its own write"
                    assert replicas[i].learner.includes(one.row.partition, one.row.offset)

        await asyncio.gather(*(send(i) for i in range(3)))
        expected = order(world)
        assert len(expected) == 240
        for replica in replicas:
            await until(lambda replica=replica: len(names(replica)) == 240)  # type: ignore[misc]
            assert names(replica) == expected
            # known at the next look at the journal
            await until(lambda replica=replica: replica.updates_behind == 0)  # type: ignore[misc]
            assert replica.age_ms is not None
        assert len({r.learner.tally.digest for r in replicas}) == 1
        keepers = [r for r in replicas if r.learner.keeper]  # type: ignore[attr-defined]
        assert keepers == replicas[:1]
        for replica in replicas:
            await replica.stop(60)
        server = world.server.status()
        assert sum(server["clock"].values()) == 240
        again = await world.replica("new", build=Sequenced, ordered=True)
        assert names(again) == expected
        assert again.learner.own == 0
        await again.stop(60)

    play(tmp_path, scene)


def test_a_row_that_fails_leaves_every_replica_as_it_was(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        replicas = [await world.replica(f"r{i}", build=Sequenced, ordered=True) for i in range(2)]
        await replicas[0].writer.record([row("a"), row("b")])
        found = await replicas[1].writer.record([row("c"), row("x", feature="bad"), row("d")])
        assert [r.status for r in found] == ["learned", "failed", "learned"]
        again = await replicas[0].writer.record([row("x", feature="bad")])
        assert statuses(again) == [("failed", True)]
        for replica in replicas:
            await until(lambda replica=replica: len(names(replica)) == 4)  # type: ignore[misc]
            assert names(replica) == ["a", "b", "c", "d"]
            assert replica.learner.tally.digest[0] == 4
            await replica.stop(60)

    play(tmp_path, scene)


def test_a_server_that_is_down_holds_up_nothing(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        replicas = [await world.replica(f"r{i}", build=Sequenced, ordered=True) for i in range(2)]
        world.client.down = True
        for n in range(200):
            await replicas[n % 2].writer.record([row(f"e{n}")])
        expected = [f"e{n}" for n in range(200)]
        for replica in replicas:
            await until(lambda replica=replica: names(replica) == expected)  # type: ignore[misc]
            # known at the next look at the journal
            await until(lambda replica=replica: replica.updates_behind == 0)  # type: ignore[misc]
        world.client.down = False
        keeper = replicas[0].learner
        assert isinstance(keeper, OrderedLearner)
        await replicas[0].stop(60)
        assert not keeper.unsent
        await replicas[1].stop(60)

    play(tmp_path, scene)


def test_a_replica_that_dies_is_learned_by_all(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        dying = await world.replica("dying", build=Sequenced, ordered=True)
        other = await world.replica("other", build=Sequenced, ordered=True)
        await dying.writer.record([row("a"), row("b")])
        for task in dying._tasks:
            task.cancel()
        await until(lambda: names(other) == ["a", "b"])
        partition = dying.writer.partition
        await other.exchange._adopt(partition)
        assert world.journal().partition(partition).sealed  # type: ignore[union-attr]
        await other.writer.record([row("c")])
        assert names(other) == ["a", "b", "c"]
        world.server.confirm()
        await until(lambda: not world.server._running.replicas or True)
        await other.stop(60)

    play(tmp_path, scene)


@pytest.mark.parametrize("rows_before", [0, 5, 200])
def test_rollback_takes_out_what_came_after_the_snapshot(tmp_path: Path, rows_before: int) -> None:
    async def scene(world: World) -> None:
        replicas = [await world.replica(f"r{i}", build=Sequenced, ordered=True) for i in range(2)]
        good = [f"g{n}" for n in range(rows_before + 1)]
        for n, name in enumerate(good):
            await replicas[n % 2].writer.record([row(name)])
        keeper = replicas[0]
        keeper.exchange._cut_at = -1e9
        learner = keeper.learner
        assert isinstance(learner, OrderedLearner)
        await until(lambda: len(names(keeper)) == len(good) and not learner.unsent, 240.0)
        snapshot = world.server.snapshot()["name"]
        await replicas[1].writer.record([row("bad1"), row("bad2")])
        keeper.exchange._cut_at = -1e9
        await until(lambda: not learner.unsent and len(names(keeper)) == len(good) + 2, 240.0)
        await replicas[0].writer.record([row("kept")])  # the server has not got it yet
        world.server.rollback(snapshot)
        for replica in replicas:
            await until(
                lambda replica=replica: names(replica) == [*good, "kept"]  # type: ignore[misc]
            )
            assert replica.learner.tally.digest[0] == len(good) + 1
        again = await replicas[0].writer.record([row("bad1")])
        assert statuses(again) == [("undone", True)]
        found = await replicas[1].writer.record([row("next")])
        assert [r.status for r in found] == ["learned"]
        assert names(replicas[1]) == [*good, "kept", "next"]
        for replica in replicas:
            await replica.stop(60)

    play(tmp_path, scene)


def test_frozen_rows_are_not_learned_and_the_version_stands(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        replicas = [await world.replica(f"r{i}", build=Sequenced, ordered=True) for i in range(2)]
        for n in range(6):
            await replicas[n % 2].writer.record([row(f"e{n}")])
        asked = world.server.freeze()
        await until(lambda: all(r.exchange.control == asked["control"] for r in replicas))
        version = world.server.status()["version"]
        found = await replicas[1].writer.record([row("f")])
        assert [r.status for r in found] == ["frozen"]
        assert sum(world.server.status()["clock"].values()) == 6
        world.server.unfreeze()
        await until(lambda: not any(r.learner.frozen for r in replicas))
        assert world.server.status()["version"] == version
        await replicas[0].writer.record([row("g")])
        expected = [*(f"e{n}" for n in range(6)), "g"]
        for replica in replicas:
            await until(lambda replica=replica: names(replica) == expected)  # type: ignore[misc]
            await replica.stop(60)

    play(tmp_path, scene)


def test_a_model_that_merges_can_be_learned_in_order_too(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        replicas = [await world.replica(f"r{i}", ordered=True) for i in range(2)]
        for n in range(150):
            await replicas[n % 2].writer.record([row(f"e{n}")])
        for replica in replicas:
            await until(lambda replica=replica: replica.learner.own <= 150)  # type: ignore[misc]
        keeper = replicas[0].learner
        assert isinstance(keeper, OrderedLearner)
        await until(lambda: keeper.tally.digest[0] == 150)
        replicas[0].exchange._cut_at = -1e9
        await until(lambda: not keeper.unsent)
        await replicas[1].writer.record([row("late")])
        await until(lambda: keeper.tally.digest[0] == 151)
        sent = keeper.state()
        assert sent.base > 0
        assert sent.blocks["weights"].data.keys() == {"late"}
        new = await world.replica("new", ordered=True)
        for replica in (*replicas, new):
            await until(lambda replica=replica: replica.learner.tally.digest[0] == 151)  # type: ignore[misc]
            assert [world.weight(replica, f"e{n}") for n in range(150)] == [1] * 150
            assert world.weight(replica, "late") == 1
        for replica in (*replicas, new):
            await replica.stop(60)

    play(tmp_path, scene)
