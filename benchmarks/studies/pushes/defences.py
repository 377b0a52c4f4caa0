"""Defences of asynchronous pushes, ours and others', under one signature."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np

from benchmarks.studies.pushes import perceptron as net
from benchmarks.studies.pushes import rules_arriving as arriving
from benchmarks.studies.pushes import rules_stacked as stacked
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


def clipping(arena: Arena) -> Callable[[Push], Answer]:
    """Pushes are scaled down to a fixed length."""

    def offer(push: Push) -> Answer:
        length = float(np.linalg.norm(push.gradient))
        return Answer(push.gradient * np.float32(min(1.0, _CAP / max(length, 1e-12))), 1.0)

    return offer


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


class Basgd:
    """Buffers by source; when all have something, the trimmed mean of their means is applied."""

    def __init__(self, arena: Arena, momentum: float = 0.0) -> None:
        self._buffers: list[list[Vector]] = [[] for _ in range(SOURCES // 2)]
        self._momentum = momentum
        self._velocity: Vector | None = None

    def __call__(self, push: Push) -> Answer:
        self._buffers[arriving.basgd_buffer(push.source, len(self._buffers))].append(push.gradient)
        if not all(self._buffers):
            return Answer(None, 1.0)
        means = np.stack([np.mean(buffer, axis=0) for buffer in self._buffers])
        self._buffers = [[] for _ in self._buffers]
        step = stacked.trimmed_mean(means, 4).astype(np.float32)
        if self._momentum:
            old = step if self._velocity is None else self._velocity
            self._velocity = step = np.float32(self._momentum) * old + step
        return Answer(step, 1.0)


def basgdm(arena: Arena) -> Callable[[Push], Answer]:
    """The same with momentum."""
    return Basgd(arena, 0.9)


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
    "clipping": clipping,
    "Kardam": Kardam,
    "BASGD": Basgd,
    "BASGDm": basgdm,
    "Zeno++": zeno,
    "AFLGuard": aflguard,
    "THROTTLE": Throttle,
    "ours": Ours,
}
