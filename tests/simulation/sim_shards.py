"""Several parameter servers of the model, in seeds that have them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from sim_model import counted, sums_of

import paramserver.clients.sharded_client
import paramserver.core.shards
import paramserver.process.sharing
from paramserver.core import wire
from paramserver.core.state import Contained
from paramserver.errors import RollbackRefused, ServerUnavailable
from paramserver.snapshots.history import SnapshotHistory
from paramserver.snapshots.places import lineage_place, open_snapshots
from paramserver.snapshots.store import Retention

if TYPE_CHECKING:
    from sim_disk import SnapshotDisk
    from sim_processes import Server
    from sim_world import World


def shard_of(
    world: World, number: int, server: Callable[[], Any]
) -> paramserver.process.sharing.Shard | None:
    """Tell a server of the others; None: there are none."""
    of = world.shards
    if of == 1:
        return None
    spec = world.spec

    def ask(other: int, method: str, *args: Any) -> Any:
        """Call the actor: it is lost before it came or after, or answered."""
        if world.chance(0.1):
            raise ServerUnavailable("a shard", "the question was lost")
        asked = newest(world, other, spec)
        me, links = server(), world.network.cut
        if asked is None or asked.process.paused or (me.name, asked.name) in links:
            raise ServerUnavailable("a shard", "it does not answer")
        answer = asked.real.shared(method, *args)
        if world.chance(0.1):
            raise ServerUnavailable("a shard", "the answer was lost")
        return answer

    return paramserver.process.sharing.Shard(number, of, ask, tries=1)


def newest(world: World, number: int, spec: str | None = None) -> Server | None:
    """The newest server of a shard that lives."""
    servers = world.servers(number, spec)
    return servers[-1] if servers else None


def client(world: World, clients: list[Any], spec: str) -> Any:
    """The way to all of them; what is durable is what all say."""
    if len(clients) == 1:
        return clients[0]

    class Told(paramserver.clients.sharded_client.ShardedClient):
        """Has the oracle hear what a replica is told."""

        async def sync(self, request: wire.SyncRequest, timeout_s: float) -> wire.SyncReply:
            reply = await super().sync(request, timeout_s)
            for shard, epoch in enumerate(self._newest):
                if spec == world.spec:
                    world.oracle.told_durable(epoch, reply.durable, shard)
            return reply

    return Told("m", clients)


def can_roll_back(server: Server, name: str) -> bool:
    """Whether all shards have a snapshot of these rows; the oracle has to know before it is so."""
    real = server.real
    sharing, history = real._sharing, real._running.history
    if not sharing.leads:
        return True
    try:
        state = history.load(name)
        contained = Contained(state.clock, state.closed, state.control)
        for other in range(1, server.world.shards):
            found = newest(server.world, other)
            if found is None:
                return False
            if found.real.shared("partner", sharing._of(contained), state.control) is None:
                return False
    except (RollbackRefused, Exception):
        return False
    server.world.met["aligned rollback"] += 1
    return True


def publish_aside(
    world: World, history: SnapshotHistory, name: str, state: Any, disk: SnapshotDisk
) -> None:
    """Write a state that was built aside, each shard's part at its own place."""
    of = world.climate.shards
    if of == 1:
        history.publish(name, state)
        return
    parts = paramserver.core.shards.Cut(of).blocks(state.values)
    for number, values in enumerate(parts):
        place = paramserver.core.shards.shard_place("/simulated/snapshots", number)
        mine = SnapshotHistory(
            open_snapshots(lineage_place(place, state.model, state.spec), disk), Retention()
        )
        mine.publish(name, replace(state, values=values))


def note_published(world: World, state: Any) -> None:
    """A snapshot is written; what shard 0's hold is known by the oracle."""
    mine = [actor for actor in world.actors if actor.process is world.disk.worker]
    if all(getattr(actor, "shard", 0) == 0 for actor in mine):
        world.published["-".join(map(str, state.version))] = counted(state.values)


def not_served(servers: list[Server], shards: int, replicas: int) -> str | None:
    """Why not every shard has one server that goes on learning; None: it has."""
    serving = [one for one in servers if one.real.ping() == "serving"]
    each = sorted(one.shard for one in serving)
    if each != [*range(shards)] or len(servers) != len(each) or not replicas:
        return f"{len(servers)} servers, {len(serving)} serve, {replicas} replicas"
    real: Any = [one.real for one in serving]
    return "the model is frozen" if any(one._running.server.frozen for one in real) else None


def held_by(servers: Iterable[Server]) -> tuple[dict[str, float], dict[str, tuple[int, int]]]:
    """The sums that the servers of all shards hold together, and the digest of each."""
    sums: dict[str, float] = {}
    digests: dict[str, tuple[int, int]] = {}
    for one in servers:
        values: Any = one.real._running.server.values
        mine = sums_of(values)
        assert not sums.keys() & mine.keys(), f"on two shards: {sums.keys() & mine.keys()}"
        sums |= mine
        digest = values.get("digest")
        digests[one.name] = (digest.data["count"], digest.data["sum"]) if digest else (0, 0)
    return sums, digests
