"""Asynchronous pushes as they come, and behind the chain of filters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np

from benchmarks.studies.pushes import perceptron as net
from benchmarks.studies.pushes.hostile import (
    BATCH,
    Answer,
    Arena,
    Push,
)
from benchmarks.studies.pushes.inputs import LayerReference
from benchmarks.studies.pushes.pushes import usual
from paramserver.filters.base import Event

Make = Callable[[Arena], Callable[[Push], Answer]]


def none(arena: Arena) -> Callable[[Push], Answer]:
    """Apply every push as it is."""
    return lambda push: Answer(push.gradient, 1.0)


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
    "ours": Ours,
}
