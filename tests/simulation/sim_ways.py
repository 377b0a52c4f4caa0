"""The ways of a replica to the servers of the model, and to other replicas."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from sim_actor import MODEL

from paramserver.core import wire
from paramserver.errors import ParamServerError, ServerUnavailable

if TYPE_CHECKING:
    from sim_processes import Learner


class Peers:
    """A replica's way to another one, in the server's place."""

    def __init__(self, replica: Learner) -> None:
        self._replica = replica

    async def sync(self, request: wire.SyncRequest, timeout_s: float) -> wire.SyncReply:
        """Values of one of those that answer."""
        world, me = self._replica.world, self._replica
        others = [one for one in world.live(type(me)) if one.ready and one is not me]
        if not others:
            raise ServerUnavailable("a peer", "there is no other replica")
        peer = world.dice.choice(others)
        data, arrived = wire.encode(request), world.loop.create_future()

        def deliver(answer: bytes | None) -> None:
            if not arrived.done():
                arrived.set_result(answer)

        tasks: list[asyncio.Task[None]] = []

        async def tell() -> None:
            told = await peer.model.answer_peer(data) if peer.alive else None
            world.network.send(peer.process, me.process, lambda: deliver(told))

        def ask() -> None:
            tasks.append(world.loop.create_task(tell()))

        world.network.send(me.process, peer.process, ask)
        try:
            async with asyncio.timeout(world.patience_s(timeout_s)):
                answer = await arrived
        except TimeoutError as error:
            raise ServerUnavailable("a peer", "no answer") from error
        if answer is None:
            raise ServerUnavailable("a peer", "it has nothing")
        return wire.decode_reply(answer)


class Client:
    """A replica's way to whoever it takes for the server."""

    def __init__(self, replica: Learner, shard: int) -> None:
        self._replica, self._shard = replica, shard

    async def sync(self, request: wire.SyncRequest, timeout_s: float) -> wire.SyncReply:
        """As the real client: an answer, the server's own error, or no answer."""
        world, me = self._replica.world, self._replica
        server = world.server_of(me, self._shard)
        if server is None or not server.alive:
            await asyncio.sleep(0.05)
            raise ServerUnavailable(MODEL, "no actor has that name")
        data, arrived = wire.encode(request), world.loop.create_future()

        def reply(answer: Any) -> None:
            def deliver() -> None:
                if not arrived.done():
                    arrived.set_result(answer)

            world.network.send(server.process, me.process, deliver)

        world.network.send(me.process, server.process, lambda: server.receive(data, reply))
        try:
            async with asyncio.timeout(world.patience_s(timeout_s)):
                answer = await arrived
        except TimeoutError as error:
            raise ServerUnavailable(MODEL, "no answer") from error
        if isinstance(answer, ParamServerError):
            raise answer
        told = wire.decode_reply(answer)
        alone = me.spec == world.spec and world.shards == 1
        if alone:  # else what all of them have is told
            world.oracle.told_durable(told.epoch, told.durable)
        return told
