"""Predictions that wait for a label, and the labels by default that replicas give them."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace
from sim_labels import FIRST, Part

import online.serving.default_labels
import online.serving.defaults
from online.errors import RequestError
from replay import codec
from replay.errors import ReplayError
from replay.example import PredictionHalf
from replay.journal.base import Half, NewRow, Stored, Verdict

if TYPE_CHECKING:
    from sim_processes import Replica
    from sim_world import World

_WINDOW_S = 0.4


def half_of(part: Part, at: float) -> NewRow:
    """The prediction of an event, to be written behind its answer."""
    event = part.event
    made = PredictionHalf({"event": event.name, "poison": event.poison, "deadly": False})
    return NewRow(
        event.key, event.name, event.sources[False], Verdict.ACCEPTED,
        codec.encode_prediction(made), at, half=Half.PREDICTION,
    )  # fmt: skip


class Rule:
    """The real rule; the label by default weighs as the provisional one of its event would."""

    counted = "labels_defaulted"
    wait_s, leftovers = _WINDOW_S, False

    def __init__(self, world: World) -> None:
        self._world = world
        nothing: Any = None
        # looked up now: a mutant may stand there
        self._real = online.serving.default_labels.DefaultLabels(_WINDOW_S, (), lambda: nothing)

    def settled(self, key: bytes, half: Stored, made: PredictionHalf, at: float) -> NewRow | None:
        row = self._real.settled(key, half, made, at)
        if row is None:
            return None
        event = self._world.labels.events[half.event_id]
        example = replace(codec.decode(row.payload), label=1.0, weight=FIRST * event.weight)
        return replace(row, payload=codec.encode(example))


async def give(replica: Replica) -> None:
    """Look again and again for what has waited long enough, as each replica does."""
    world = replica.world
    defaults = online.serving.defaults.Defaults(
        replica.model, Rule(world), world.wall, world.loop.time
    )
    while True:
        await asyncio.sleep(0.1 + 0.1 * world.labels.wait.random())
        try:
            given = await defaults.give()
        except (RequestError, ReplayError) as error:
            world.note(f"{replica.name} gives no default: {error!r}")
            continue
        world.counts["label by default"] += given
        if given:
            world.note(f"{replica.name} has given {given} labels by default")
