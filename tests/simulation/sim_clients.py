"""Clients: they send events, repeat until they are answered, and repeat some after that."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from sim_loop import Process
from sim_model import Event
from sim_network import answer_of
from sim_processes import Replica

if TYPE_CHECKING:
    from sim_world import World


class Clients:
    """All clients of one seed; each sends one request with one event or some.

    Attributes:
        open: Requests that somebody still wants an answer to.
    """

    def __init__(self, world: World) -> None:
        self._world, self.open = world, 0
        self._since: dict[str, float] = {}  # when each event was sent first
        self._process = Process(world.loop, "clients")
        self._persistent = False
        bursts = [world.r.random() * world.climate.chaos_s for _ in range(world.r.randint(1, 6))]
        self._bursts = bursts
        self._send_all([e for e in world.events.values() if e.kept_s or not world.climate.twice])

    def _send_all(self, events: list[Event]) -> None:
        while events:
            n = self._world.r.choice((1, 1, 1, 2, 4, 8))
            self._start(events[:n])
            events = events[n:]

    def go_on(self) -> None:
        """The second storm has events of its own; nobody knows those of the first any more."""
        self._persistent = False
        self._send_all([e for e in self._world.events.values() if not e.kept_s])

    def persist(self) -> None:
        """From now on nobody gives up."""
        self._persistent = True

    def _start(self, events: Sequence[Event]) -> None:
        self.open += 1
        self._process.spawn(self._guarded(events))

    async def _guarded(self, events: Sequence[Event]) -> None:
        try:
            await self._live(events)
        except Exception as error:
            self._world.fail(error)
        self.open -= 1

    async def _live(self, events: Sequence[Event]) -> None:
        world, r = self._world, self._world.r
        await asyncio.sleep(r.choice(self._bursts) + r.random() * world.climate.spread_s)
        while not self._late(events) and not await self._ask(events):
            if not self._persistent and r.random() < 0.05:
                return
            await asyncio.sleep(r.random() * 0.3)
        while r.random() < 0.3:
            await asyncio.sleep(r.random() * world.climate.chaos_s / 2)
            if self._late(events) or (self._persistent and any(e.kept_s for e in events)):
                return
            same_age = [
                e
                for e in world.events.values()
                if e.kept_s == events[0].kept_s and not self._late([e])
            ]
            mixed = list(events) + r.sample(same_age, r.choice((0, 0, 1)))
            await self._ask(list(dict.fromkeys(mixed)))

    def _late(self, events: Sequence[Event]) -> bool:
        """Whether the rows of some may be gone soon: a request takes time to arrive, too.

        Rows that are kept for longer than a storm are asked for as long as it takes.
        """
        world = self._world
        return any(
            e.kept_s is not None
            and e.kept_s < world.climate.chaos_s
            and world.loop.time() > self._since.get(e.name, math.inf) + e.kept_s / 3
            for e in events
        )

    async def _ask(self, events: Sequence[Event]) -> bool:
        """Send one request; whether it was answered."""
        world = self._world
        replicas = [x for x in world.live(Replica) if x.ready or world.chance(0.1)]
        if not replicas:
            return False
        replica = world.r.choice(replicas)
        known, asked = dict(world.oracle.told), world.answers
        for event in events:
            self._since.setdefault(event.name, world.loop.time())
        step = partial(replica.feedback, events)
        answer = await answer_of(world, self._process, replica, step)
        if answer is None or asked != world.answers:
            return False
        for event, one in zip(events, answer, strict=True):
            place = (one.row.partition, one.row.offset)
            before = known.get(event.name)
            if one.status == "queued":
                elsewhere = world.climate.background or place[0] in world.sealed
                assert elsewhere, f"{event.name} waits for nobody"
            early = one.repeat or place[0] in world.sealed
            world.oracle.answer(event, one.status, place, before=before, early=early)
            assert one.repeat or before is None, f"{event.name} is new again"
        return True
