"""Defences of asynchronous pushes, ours and others', under one signature."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np

from benchmarks.studies.pushes import perceptron as net
from benchmarks.studies.pushes import rules_arriving as arriving
from benchmarks.studies.pushes.hostile import (
    BATCH,
    HOSTILE,
    RATE,
    SOURCES,
    Answer,
    Arena,
    Push,
    Vector,
)
from benchmarks.studies.pushes.inputs import LayerReference
from benchmarks.studies.pushes.pushes import usual
from paramserver.filters.base import Event

Make = Callable[[Arena], Callable[[Push], Answer]]

_CAP: Final = 2.0
"""Longest push of plain clipping: about the length of honest ones at the start."""


def none(arena: Arena) -> Callable[[Push], Answer]:
    """Apply every push as it is."""
    return lambda push: Answer(push.gradient, 1.0)


class Kardam:
    """Lipschitz filter with dampening; one is let through after n rejected in a row."""

    def __init__(self, arena: Arena) -> None:
        self._last: dict[int, tuple[Vector, Vector]] = {}
        self._values: dict[int, list[float]] = {}
        self._rejected = 0

    def __call__(self, push: Push) -> Answer:
        before = self._last.get(push.source)
        self._last[push.source] = (push.gradient, push.base_params)
        good = True
        if before is not None:
            value = arriving.lipschitz(push.gradient, before[0], push.base_params, before[1])
            of_each = [float(np.median(v)) for v in self._values.values()]
            good = arriving.kardam(value, of_each, HOSTILE)
            self._values[push.source] = [*self._values.get(push.source, [])[-24:], value]
        if not good and self._rejected < SOURCES:
            self._rejected += 1
            return Answer(None, 0.0)
        self._rejected = 0
        weight = arriving.damped((push.version - push.base) // SOURCES)
        return Answer(push.gradient * np.float32(weight), weight)


class _Referenced:
    """A gradient of the whole root set, anew every ten pushes."""

    def __init__(self, arena: Arena) -> None:
        self._arena, self._seen = arena, 0
        self.gradient: Vector | None = None

    def fresh(self) -> Vector:
        if self.gradient is None or self._seen % 10 == 0:
            self.gradient = self._arena.root_gradient(np.arange(len(self._arena.world.root)))
        self._seen += 1
        return self.gradient


def zeno(arena: Arena) -> Callable[[Push], Answer]:
    """Zeno++ with its authors' ρ."""
    reference = _Referenced(arena)

    def offer(push: Push) -> Answer:
        step = arriving.zeno(push.gradient, reference.fresh(), rate=RATE)
        return Answer(step, float(step is not None))

    return offer


def aflguard(arena: Arena) -> Callable[[Push], Answer]:
    """AFLGuard with λ = 1.5."""
    reference = _Referenced(arena)

    def offer(push: Push) -> Answer:
        good = arriving.aflguard(push.gradient, reference.fresh(), reach=1.5)
        return Answer(push.gradient if good else None, float(good))

    return offer


class Throttle:
    """Soft weights by how often a source has come in the round, centred clipping on first ones."""

    def __init__(self, arena: Arena, q: float = 1.1, tau: float = _CAP) -> None:
        self._q, self._tau = q, tau
        self._count: dict[int, int] = {}
        self._first: dict[int, Vector] = {}

    def __call__(self, push: Push) -> Answer:
        before = self._count.get(push.source, 0)
        self._count[push.source] = before + 1
        weight = SOURCES * arriving.throttle_weight(before, SOURCES, q=self._q)
        self._first.setdefault(push.source, push.gradient)
        length = float(np.linalg.norm(push.gradient))
        step = push.gradient * np.float32(weight * min(1.0, self._tau / max(length, 1e-12)))
        if len(self._count) == SOURCES:
            self._count.clear()
            self._first.clear()
        return Answer(step, weight)


class Ours:
    """The chain of this project, with its defaults."""

    def __init__(self, arena: Arena) -> None:
        self.reference = LayerReference(
            arena.root_labels, arena.root_gradient, rows=BATCH, layer=net.FIRST
        )
        self.chain = usual(arena.params.size, self.reference)
        self.chain.refresh(b"start", 0)
        self.chain.refresh(b"begin", 0)
        self._seed = arena.seed

    def __call__(self, push: Push) -> Answer:
        key = self._seed.to_bytes(8, "big") + push.number.to_bytes(8, "big")
        event = Event(f"s{push.source}", key, push.gradient, version=push.version, base=push.base)
        verdict = self.chain.decide(event)
        self.chain.observe(event, verdict)
        if not verdict.taken:
            return Answer(None, 0.0)
        return Answer(push.gradient * np.float32(verdict.factor), verdict.factor)


DEFENCES: Final[dict[str, Make]] = {
    "none": none,
    "Kardam": Kardam,
    "Zeno++": zeno,
    "AFLGuard": aflguard,
    "THROTTLE": Throttle,
    "ours": Ours,
}
