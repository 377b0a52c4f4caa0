"""A replica that starts without the parameter server, from what another one has pulled."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest
from replica_world import Client, Peers, World, play, row, until

from online.learning.merged import Learner
from online.messages.structs import Prediction, PredictRequest
from online.replica.replica import ModelReplica
from paramserver.core import wire
from paramserver.core.blocks import Blocks


async def _learned(world: World, replica: ModelReplica, *events: str) -> None:
    await replica.writer.record([row(event) for event in events])
    await until(lambda: replica.learner.own == 0)


def _asked(world: World, replica: ModelReplica) -> Prediction:
    answer = world.serving(replica).predict(PredictRequest(features={"a": 1.0}))
    assert isinstance(answer, Prediction)
    return answer


def _away(world: World) -> Client:
    client = Client(world.server)
    client.down = True
    return client


def test_it_takes_a_peers_copy_says_so_and_catches_up(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        old = await world.replica("old")
        await _learned(world, old, "a", "b")
        world.client.down = True  # from here on the first one has rows that it can't push
        await old.writer.record([row("c")])
        client = _away(world)
        new = await world.replica("new", client=client, peers=Peers(old))
        assert [world.weight(new, x) for x in "abc"] == [1, 1, 0]
        assert new.version == old.version
        told = _asked(world, new)
        assert (told.from_peer, told.updates_behind) == (True, None)
        assert told.age_ms is not None
        assert told.age_ms >= (old.age_ms or 0) - 1000
        assert not _asked(world, old).from_peer
        before = new.age_ms
        await asyncio.sleep(0.01)
        assert (new.age_ms or 0) > (before or 0), "it grows until the server has answered"
        await new.writer.record([row("d")])
        assert [world.weight(new, x) for x in "abcd"] == [1, 1, 0, 1]
        client.down = world.client.down = False
        await until(lambda: new.learner.own == old.learner.own == 0)
        await until(lambda: world.weight(new, "c") == world.weight(old, "d") == 1)
        for replica in (old, new):
            assert [world.weight(replica, x) for x in "abcd"] == [1, 1, 1, 1]
        assert not _asked(world, new).from_peer
        assert new.updates_behind == 0
        await asyncio.gather(old.stop(5), new.stop(5))

    play(tmp_path, scene)


def test_without_a_peer_it_waits_and_never_answers_from_an_empty_model(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        client = _away(world)
        starting = asyncio.create_task(world.replica("new", client=client))
        await asyncio.sleep(0.3)
        assert not starting.done()
        client.down = False
        new = await starting
        assert not _asked(world, new).from_peer
        await new.stop(5)

    play(tmp_path, scene)


def test_one_that_does_not_wait_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Control of the test above: it begins at once, and answers from an empty model."""
    always = property(lambda _: True, lambda *_: None)
    monkeypatch.setattr(Learner, "ready", always, raising=False)

    async def scene(world: World) -> None:
        old = await world.replica("old")
        await _learned(world, old, "a")
        new = await world.replica("new", client=_away(world))
        assert (world.weight(old, "a"), world.weight(new, "a")) == (1, 0)
        await asyncio.gather(old.stop(5), new.stop(0.1))

    play(tmp_path, scene)


def test_who_has_begun_asks_no_peer(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        old = await world.replica("old")
        peers = Peers(old)
        new = await world.replica("new", peers=peers)
        world.client.down = True
        await until(lambda: new.updates_behind is None)
        assert peers.kinds == []
        world.client.down = False
        await asyncio.gather(old.stop(5), new.stop(5))

    play(tmp_path, scene)


def _held(replica: ModelReplica) -> Blocks:
    values = replica.learner.pulled
    assert values is not None
    return values


async def _with_many(world: World) -> ModelReplica:
    old = await world.replica("old")
    names = [f"k{i}" for i in range(5_000)]
    for i in range(0, 5_000, 500):
        await old.writer.record([row(name) for name in names[i : i + 500]])
    await until(lambda: old.learner.own == 0)
    return old


def test_many_values_come_in_pieces_of_one_version(tmp_path: Path) -> None:
    """While the peer goes on pulling: what it got meanwhile comes last."""

    async def scene(world: World) -> None:
        old = await _with_many(world)
        told: Any = old.answer_peer
        peer = told.__self__

        class Busy(Peers):
            async def sync(self, request: wire.SyncRequest, timeout_s: float) -> wire.SyncReply:
                await _learned(world, old, f"before {len(self.kinds)}")
                weights = _held(old)["weights"].data
                was, asking = weights["k4999"], asyncio.create_task(super().sync(request, 1.0))
                while not (peer._one.locked() or asking.done()):
                    await asyncio.sleep(0)
                while not asking.done():  # it is another one while pieces are cut
                    weights["k4999"] = 7.0
                    await asyncio.sleep(0)
                    weights["k4999"] = was
                return await asking

        peers = Busy(old)
        new = await world.replica("new", client=_away(world), peers=peers)
        assert peers.kinds == ["part", "changes"]
        names = (f"k{i}" for i in range(0, 5_000, 100))
        for name in (*names, "k4999", "before 0", "before 1"):
            assert world.weight(new, name) == 1, name
        assert _held(new).keys() == _held(old).keys()
        assert new.learner.tally.digest == old.learner.tally.digest
        await asyncio.gather(old.stop(5), new.stop(5))

    play(tmp_path, scene)


def test_all_values_come_whoever_of_several_peers_answers(tmp_path: Path) -> None:
    """Each has the same keys in an order of its own: where one stopped, another can't go on."""

    async def scene(world: World) -> None:
        old = await _with_many(world)
        second = await world.replica("second")
        weights = _held(second)["weights"].data
        turned = dict(reversed(weights.items()))
        weights.clear()
        weights.update(turned)

        class Balanced(Peers):
            async def sync(self, request: wire.SyncRequest, timeout_s: float) -> wire.SyncReply:
                self.other = second if self.other is old else old
                return await super().sync(request, timeout_s)

        new = await world.replica("new", client=_away(world), peers=Balanced(old))
        assert len(_held(new)["weights"].data) == len(weights) >= 5_000
        assert all(world.weight(new, f"k{i}") == 1 for i in range(5_000))
        await asyncio.gather(*(one.stop(5) for one in (old, second, new)))

    play(tmp_path, scene)


def test_a_peer_of_another_spec_is_not_believed(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        old = await world.replica("old")

        class Other(Peers):
            async def sync(self, request: wire.SyncRequest, timeout_s: float) -> wire.SyncReply:
                reply = await super().sync(request, timeout_s)
                return wire.decode_reply(wire.encode(_with_spec(reply, "e" * 64)))

        peers, client = Other(old), _away(world)
        starting = asyncio.create_task(world.replica("new", client=client, peers=peers))
        await until(lambda: len(peers.kinds) >= 2)
        assert not starting.done()
        client.down = False
        new = await starting
        await asyncio.gather(old.stop(5), new.stop(5))

    play(tmp_path, scene)


def _with_spec(reply: wire.SyncReply, spec: str) -> wire.SyncReply:
    return msgspec.structs.replace(reply, spec=spec)


@pytest.mark.parametrize("ordered", [False, True])
def test_a_replica_that_has_nothing_or_learns_in_order_tells_nothing(
    tmp_path: Path, ordered: bool
) -> None:
    async def scene(world: World) -> None:
        one = await world.replica("one", ordered=ordered)
        one.learner.ready = one.learner.ready and ordered
        assert await one.answer_peer(wire.encode(_request())) is None
        one.learner.ready = True
        await one.stop(5)

    play(tmp_path, scene)


def _request() -> wire.SyncRequest:
    return wire.SyncRequest(wire.FORMAT, "new", 9, [], None, True, [])
