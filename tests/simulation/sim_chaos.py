"""What goes wrong, and how it is put right again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from sim_actor import Actor, Head
from sim_clerk import Clerk
from sim_loss import OlderJournal
from sim_network import Weather
from sim_operator import Operator
from sim_processes import Replica, Server
from sim_reshard import Resharder

if TYPE_CHECKING:
    from sim_world import World

_REPLICAS = 3


def start(world: World) -> None:
    """The service starts: all at once, as it may."""
    for shard in range(world.shards):
        world.start(partial(Server, shard=shard))
    world.start(Head)
    for _ in range(world.r.randint(1, _REPLICAS)):
        world.start(Replica)
    if world.climate.forgets:
        world.start(Operator)
    if world.climate.labels:
        world.start(Clerk)
    if world.climate.reshards:
        world.start(Resharder)


async def sleep(seconds: float) -> None:
    """Simulated seconds."""
    await asyncio.sleep(seconds)


async def storm(world: World) -> None:
    """Faults of the seed's kinds until its time is over."""
    r, climate = world.r, world.climate
    names = sorted(climate.faults)
    until = world.loop.time() + climate.chaos_s
    loss = OlderJournal(world) if climate.older else None
    if "kill in a step" in names:
        world.kill_at_work = r.choice((0.002, 0.02))
    if "lost answers" in names:
        world.lost_answers = r.choice((0.02, 0.15))
    if "cancel" in names:
        world.cancels = r.choice((0.1, 0.5))
    if climate.ahead and not climate.twice:  # there rows are meant to become old
        world.loop.call_later(0.6 * climate.chaos_s, lambda: _clock_ahead(world))
    while world.loop.time() < until:
        await asyncio.sleep(r.expovariate(1 / climate.fault_s))
        world.check()
        if loss is not None:
            loss.turn()
        if names:
            FAULTS[r.choice(names)](world)
        if r.random() < 0.3:
            supervise(world)


def supervise(world: World) -> None:
    """What is missing is started again."""
    for shard in range(world.shards):
        if not world.servers(shard):
            world.start(partial(Server, shard=shard))
            world.counts["restart"] += 1
    if world.climate.reshards and not world.live(Resharder):
        world.start(Resharder)
    if not world.live(Head):
        world.start(Head)
        world.counts["restart"] += 1
    if world.calm and world.oracle.freezes:
        _unfreeze(world)
    if len(world.live(Replica)) < (1 if world.calm else world.r.randint(1, _REPLICAS)):
        world.start(Replica)
        world.counts["restart"] += 1
    if world.climate.peers and not world.calm and len(world.live(Replica)) < _REPLICAS:
        world.start(Replica)


def heal(world: World) -> None:
    """The faults stop: links and disk are whole, who stands still goes on."""
    world.calm = True
    world.network.weather = Weather()
    world.network.cut.clear()
    world.network.stalled.clear()
    world.disk.error_rate, world.disk.full = 0.0, False
    world.slow_s = world.kill_at_work = world.lost_answers = world.cancels = 0.0
    for actor in world.actors:
        if actor.process.paused:
            actor.process.resume()
    supervise(world)


def _any(world: World, kind: type[Actor]) -> Actor | None:
    live = world.live(kind)
    return world.r.choice(live) if live else None


def _later(world: World, seconds: float, undo: Callable[[], None]) -> None:
    world.loop.call_later(seconds * world.r.random(), undo, context=world.outside)


def _kill(kind: type[Actor]) -> Callable[[World], None]:
    def kill(world: World) -> None:
        actor = _any(world, kind)
        if actor is not None:
            world.counts[f"crash {kind.kind}"] += 1
            world.kill(actor)

    return kill


def _kill_all(world: World) -> None:
    if world.r.random() < 0.3:
        world.counts["crash all"] += 1
        for actor in world.actors:
            world.kill(actor)


def _power_cut(world: World) -> None:
    if world.r.random() < 0.4:
        world.counts["power cut"] += 1
        world.power_cut()


def _pause(kind: type[Actor]) -> Callable[[World], None]:
    def pause(world: World) -> None:
        actor = _any(world, kind)
        if actor is not None and not actor.process.paused:
            world.counts["pause"] += 1
            world.note(f"{actor.name} stands still")
            actor.process.pause()
            _later(world, 3.0, actor.process.resume)

    return pause


def _second_server(world: World) -> None:
    """Another one starts, and the old one lives on for some."""
    shard = world.r.randrange(world.shards) if world.shards > 1 else 0
    old = world.servers(shard)
    if not old or len(old) > 2:
        return
    world.counts["second server"] += 1
    for replica in world.live(Replica):
        if world.r.random() < 0.5:
            world.servers_of[replica.name, shard] = old[-1]
    world.start(partial(Server, shard=shard))


def _cut(world: World) -> None:
    replica, server = _any(world, Replica), _any(world, Server)
    if replica is None or server is None:
        return
    there, back = (replica.name, server.name), (server.name, replica.name)
    links = world.r.choice(({there}, {back}, {there, back}))
    world.network.cut |= links
    _later(world, 3.0, lambda: world.network.cut.difference_update(links))


def _stall(world: World) -> None:
    """What a replica sends lies in a buffer, and arrives when it is long out of date."""
    replica, server = _any(world, Replica), _any(world, Server)
    if replica is not None and server is not None:
        until = world.loop.time() + 3.0 * world.r.random()
        world.network.stalled[replica.name, server.name] = until


def _bad_weather(world: World) -> None:
    r = world.r
    world.network.weather = Weather(
        drop=r.choice((0.0, 0.02, 0.2)),
        double=r.choice((0.0, 0.05, 0.3)),
        delay_s=r.choice((0.002, 0.05, 1.0)),
    )


def _slow_disk(world: World) -> None:
    world.slow_s = world.r.choice((0.05, 0.5, 2.0))

    def undo() -> None:
        world.slow_s = 0.0

    _later(world, 2.0, undo)


def _full_disk(world: World) -> None:
    world.disk.full = True

    def undo() -> None:
        world.disk.full = False

    _later(world, 1.0, undo)


def _bad_disk(world: World) -> None:
    world.disk.error_rate = world.r.choice((0.02, 0.2, 1.0))

    def undo() -> None:
        world.disk.error_rate = 0.0

    _later(world, 0.5, undo)


def _cancel(world: World) -> None:
    """The client has gone: the handler is cancelled, wherever it is."""
    tasks = [t for replica in world.live(Replica) for t in replica.handlers if not t.done()]
    for task in tasks:
        if world.r.random() < 0.5:
            world.counts["cancelled handler"] += 1
            task.cancel()


def _stop(world: World) -> None:
    ready = [replica for replica in world.live(Replica) if replica.ready]
    if ready and world.r.random() < 0.3:
        world.counts["stop replica"] += 1
        world.r.choice(ready).stop()


def _rollback(world: World) -> None:
    servers = world.servers()
    if servers and world.r.random() < 0.5:
        server = world.r.choice(servers)
        server.decide(server.roll_back)


def _freeze(world: World) -> None:
    servers = world.servers()
    if servers and world.r.random() < 0.3:
        server = world.r.choice(servers)
        server.decide(server.freeze)
        _later(world, 2.0, lambda: _unfreeze(world))


def _unfreeze(world: World) -> None:
    servers = world.servers()
    if servers:
        servers[-1].decide(servers[-1].real.unfreeze)


def _clock_back(world: World) -> None:
    world.counts["clock set back"] += 1
    world.wall_offset_s -= world.r.choice((1.0, 3600.0))


def _clock_ahead(world: World) -> None:
    """For a while it is a month later: nothing becomes old by that."""
    month_s = 30 * 86_400.0
    world.counts["clock a month ahead"] += 1
    world.wall_offset_s += month_s

    def undo() -> None:
        world.wall_offset_s -= month_s

    world.loop.call_later(0.3 * world.climate.chaos_s, undo, context=world.outside)


def _all_the_time(world: World) -> None:
    """Its chance is set for the whole storm."""


FAULTS: dict[str, Callable[[World], None]] = {
    "kill replica": _kill(Replica),
    "kill server": _kill(Server),
    "kill head": _kill(Head),
    "kill all": _kill_all,
    "kill in a step": _all_the_time,
    "lost answers": _all_the_time,
    "power cut": _power_cut,
    "pause replica": _pause(Replica),
    "pause server": _pause(Server),
    "second server": _second_server,
    "cut": _cut,
    "stall": _stall,
    "bad weather": _bad_weather,
    "slow disk": _slow_disk,
    "full disk": _full_disk,
    "bad disk": _bad_disk,
    "cancel": _cancel,
    "stop replica": _stop,
    "clock": _clock_back,
    "rollback": _rollback,
    "freeze": _freeze,
}
