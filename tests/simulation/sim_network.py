"""The network: messages that are late, lost, doubled and out of order, and links that are cut."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sim_loop import Process, SimLoop

if TYPE_CHECKING:
    from sim_actor import Actor
    from sim_world import World


@dataclass
class Weather:
    """How bad the network is at present: chances by message, and the longest delay in seconds."""

    drop: float = 0.0
    double: float = 0.0
    delay_s: float = 0.002


class Network:
    """Carries calls to processes, in the context of whom they reach."""

    def __init__(self, loop: SimLoop, r: random.Random, counts: Counter[str]) -> None:
        self._loop, self._r, self._counts = loop, r, counts
        self.weather = Weather()
        self.cut: set[tuple[str, str]] = set()  # from, to
        self.stalled: dict[tuple[str, str], float] = {}  # until when nothing gets through
        self._sent = 0
        self._newest: dict[tuple[str, str], int] = {}

    def send(self, sender: Process, target: Process, deliver: Callable[[], Any]) -> None:
        """Bring it to the target, once, twice or never."""
        r, weather, link = self._r, self.weather, (sender.name, target.name)
        self._sent += 1
        if link in self.cut:
            self._counts["cut"] += 1
            return
        if r.random() < weather.drop:
            self._counts["drop"] += 1
            return
        copies = 1
        if r.random() < weather.double:
            self._counts["duplicate"] += 1
            copies = 2
        for _ in range(copies):
            delay_s = r.random() * 0.002
            if weather.delay_s > 0.002 and r.random() < 0.2:
                delay_s = r.random() * weather.delay_s
                self._counts["delay"] += 1
            stalled_s = self.stalled.get(link, 0.0) - self._loop.time()
            if stalled_s > 0:
                self._counts["stall"] += 1
                delay_s += stalled_s
            self._loop.call_later(
                delay_s, self._arrive, link, self._sent, deliver, context=target.context
            )

    def _arrive(self, link: tuple[str, str], number: int, deliver: Callable[[], Any]) -> None:
        if number < self._newest.get(link, 0):
            self._counts["reorder"] += 1
        self._newest[link] = max(number, self._newest.get(link, 0))
        deliver()


async def answer_of(
    world: World, caller: Process, replica: Actor, ask: Callable[[Callable[[Any], None]], object]
) -> Any:
    """Return what a replica says to one request; None: nothing in time, or an error.

    ``ask`` hands the request over, with what takes the answer.
    """
    arrived = world.loop.create_future()

    def deliver(answer: Any) -> None:
        if not arrived.done():
            arrived.set_result(answer)

    def reply(answer: Any) -> None:
        world.network.send(replica.process, caller, lambda: deliver(answer))

    world.network.send(caller, replica.process, lambda: ask(reply))
    try:
        async with asyncio.timeout(world.patience_s(5.0)):
            answer = await arrived
    except TimeoutError:
        return None
    return None if isinstance(answer, Exception) else answer
