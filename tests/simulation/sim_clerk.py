"""Those who send labels that change, and an operator who bans, releases and has events learned."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from sim_actor import MODEL, Actor
from sim_defaults import half_of
from sim_labels import FINAL, GUESSING, Labels, Part
from sim_loop import Process
from sim_network import answer_of
from sim_processes import Replica

import online.errors
from online.rows.history import Listed
from online.serving.operating.held_events import HeldEvents
from replay.errors import ReplayError

if TYPE_CHECKING:
    from sim_world import World


class LabelClients:
    """Each sends a provisional label, and a final one: before it, with it, or later.

    Attributes:
        open: Requests that somebody still wants an answer to.
    """

    def __init__(self, world: World) -> None:
        self._world, self.open, self._persistent = world, 0, False
        self._dice = random.Random(f"labels sent {world.seed}")
        self._process = Process(world.loop, "labels")
        dice, span = self._dice, world.climate.chaos_s
        soon = dice.choice((0.05, 0.5, span / 2))
        for event in world.labels.events.values():
            at_s = dice.random() * span
            first, final = Part(event, False), Part(event, True)
            if dice.random() < 0.1:
                self._start([first, final], at_s)
                continue
            if self._waits(first):
                self._process.spawn(self._predict(first, at_s))
            elif dice.random() < 0.9:
                self._start([first], at_s)
            if dice.random() < 0.85:
                self._start([final], max(at_s + soon * (dice.random() - 0.1), 0.0))

    def persist(self) -> None:
        """From now on nobody gives up."""
        self._persistent = True

    def _start(self, parts: Sequence[Part], at_s: float) -> None:
        self.open += 1
        self._process.spawn(self._guarded(parts, at_s))

    async def _guarded(self, parts: Sequence[Part], at_s: float) -> None:
        try:
            await self._live(parts, at_s)
        except Exception as error:
            self._world.fail(error)
        self.open -= 1

    def _waits(self, first: Part) -> bool:
        """Whether nobody sends the first label: a replica gives it if no other comes in time."""
        whole = first.event.factor == 1.0 and not first.event.poison
        return self._world.climate.defaults and whole and self._world.labels.wait.random() < 0.8

    async def _predict(self, first: Part, at_s: float) -> None:
        """Ask one replica, which writes down what it has answered."""
        world = self._world
        await asyncio.sleep(at_s)
        if replicas := [replica for replica in world.live(Replica) if replica.ready]:
            model = world.labels.wait.choice(replicas).model
            model.writer.keep(half_of(first, model.now_s()))

    async def _live(self, parts: Sequence[Part], at_s: float) -> None:
        dice = self._dice
        await asyncio.sleep(at_s)
        while True:
            # the same label at several replicas at once
            asked = [self._ask(parts) for _ in range(dice.choice((1, 1, 1, 2, 3)))]
            if any(await asyncio.gather(*asked)):
                break
            if not self._persistent and dice.random() < 0.05:
                return
            await asyncio.sleep(dice.random() * 0.3)
        while dice.random() < 0.4:
            await asyncio.sleep(dice.random() * self._world.climate.chaos_s / 2)
            await self._ask(parts)

    async def _ask(self, parts: Sequence[Part]) -> bool:
        """Send one request; whether it was answered."""
        world, finals = self._world, dict(self._world.labels.finals)
        replicas = [replica for replica in world.live(Replica) if replica.ready]
        if not replicas:
            return False
        replica = self._dice.choice(replicas)
        asked = partial(replica.feedback, parts)
        if (answer := await answer_of(world, self._process, replica, asked)) is None:
            return False
        for part, one in zip(parts, answer, strict=True):
            place = (one.row.partition, one.row.offset)
            world.labels.answer(part, one.status, place, finals.get(part.name))
        return True


class _Of(HeldEvents):
    """Events of one source alone, without a log of decisions."""

    source: str | None = None
    labels: Labels

    async def _page(self, model: str, status: str, after: str | None, limit: int, *_: Any) -> Any:
        return await super()._page(model, status, after, limit, self.source)

    async def note(self, *_: Any) -> None:
        """There is no log."""

    async def _again(self, model: str, events: Sequence[Listed]) -> dict[str, int]:
        self.labels.again |= {self.labels.event_of(event.row) or "" for event in events}
        return await super()._again(model, events)


class Clerk(Actor):
    """An operator at work while labels come: bans and lifts them, releases, has events taught.

    Attributes:
        busy: It may still decide something.
    """

    kind = "clerk"

    def __init__(self, world: World, number: int) -> None:
        self.dice, self.busy = random.Random(f"clerk {world.seed}"), True
        super().__init__(world, number)

    async def live(self) -> None:
        dice, world = self.dice, self.world
        banned = dice.choice((*GUESSING, *GUESSING, *FINAL))
        steps = [self._release, self._discard, self._teach, self._teach, self._teach]
        until = world.loop.time() + world.climate.chaos_s * 1.2
        bans = dice.random() < 0.7
        if bans:
            await asyncio.sleep(dice.random() * world.climate.chaos_s / 2)
            await self._ban(banned, True)
        lifted = not bans
        while world.loop.time() < until or not lifted:
            await asyncio.sleep(dice.random() * world.climate.chaos_s / 4)
            if not lifted and dice.random() < 0.3:
                lifted = await self._ban(banned, False)
                continue
            await self._do(dice.choice(steps), dice.choice((*GUESSING, *FINAL)))
        self.busy = False

    async def _ban(self, source: str, on: bool) -> bool:
        """Whether the server has done it."""
        servers = self.world.servers()
        if not servers:
            return False
        try:
            await servers[-1].thread("operator", servers[-1].real.ban, source, on)
        except Exception as error:  # as whoever gives the command would see it
            self.world.note(f"{self.name}: {error!r}")
            return False
        self.world.counts["label ban"] += on
        self.world.note(f"{self.name}: {source} is banned: {on}")
        return True

    async def _do(self, step: Any, source: str) -> None:
        world = self.world
        replicas = [replica for replica in world.live(Replica) if replica.ready]
        if not replicas:
            return
        replica = self.dice.choice(replicas)
        kept = _Of({MODEL: replica.model}, {MODEL: replica.model.store.journal}, lambda _: {})
        kept.source, kept.labels = source, world.labels
        done = world.loop.create_future()

        async def act() -> None:
            try:
                world.note(f"{self.name} at {replica.name}: {source} {await step(kept)}")
            except (online.errors.RequestError, ReplayError, TimeoutError) as error:
                world.note(f"{self.name} at {replica.name}: {error!r}")
            if not done.done():
                done.set_result(None)

        replica.process.spawn(act())
        try:
            async with asyncio.timeout(5.0):  # it may die
                await done
        except TimeoutError:
            return

    async def _release(self, kept: _Of) -> Any:
        self.world.counts["release"] += 1
        return await kept.decide_source(MODEL, "released", kept.source or "", None, 100)

    async def _discard(self, kept: _Of) -> Any:
        return await kept.decide_source(MODEL, "discarded", kept.source or "", None, 3)

    async def _teach(self, kept: _Of) -> Any:
        self.world.counts["taught again"] += 1
        status = self.dice.choice(("undone", "undone", "frozen"))
        return status, await kept.relearn(MODEL, status, None, 100)
