"""R4: what a filter's answer costs, by size of the gradient, and what sources take of memory."""

from __future__ import annotations

import statistics
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass
from itertools import cycle
from typing import Final

import numpy as np
from msgspec.structs import replace

from benchmarks.studies.pushes.inputs import Layer, LayerReference
from benchmarks.studies.pushes.pushes import usual
from paramserver.filters.base import Event, Filter, Gradient, Source
from paramserver.filters.sources import Sources

SIZES: Final = (1_000, 80_000, 1_000_000)
ASKED_AT: Final = 80_000
US_MAX: Final = 150.0
SOURCES: Final = 100_000
MB_MAX: Final = 300.0


@dataclass(frozen=True, slots=True)
class Cost:
    """µs of each part of one update, the median of the rounds.

    ``decide`` and ``observe`` are the whole chain; ``refresh`` is spread over the ten updates that
    it comes with, without the model's gradients of root rows, which are the model's cost.
    """

    what: str
    parameters: int
    us: float
    asked: str
    good: bool


def _timed(call: Callable[[], object], rounds: int) -> float:
    times = []
    for _ in range(rounds):
        begun = time.perf_counter()
        call()
        times.append(time.perf_counter() - begun)
    return 1e6 * statistics.median(times)


def _layer(size: int) -> Layer:
    """A first layer of nearly all numbers; a third of its inputs will stand still."""
    outputs = min(100, size // 10)
    inputs = size // outputs - 1
    return Layer(inputs, outputs, 0, inputs * outputs)


def costs(size: int, rounds: int = 201) -> list[Cost]:
    """Parts of the chain at this size."""
    rng = np.random.default_rng(0)
    base = rng.standard_normal(size).astype(np.float32)
    drawn: list[Gradient] = [base + rng.standard_normal(size).astype(np.float32) for _ in range(40)]
    labels = [i % 10 for i in range(100)]
    turn = cycle(drawn)  # no draw is another's copy, or the test on copies would be off
    layer = _layer(size)
    for gradient in drawn:
        weights, bias = layer.parts(gradient)
        weights[: layer.inputs // 3] = np.float32(-0.4) * bias
    reference = LayerReference(labels, lambda rows: next(turn), rows=16, layer=layer)
    chain = usual(size, reference)
    for i in range(6):
        chain.refresh(bytes([i]), 0)
    events = [Event(f"s{i % 20}", i.to_bytes(16, "little"), drawn[i % 40], 0.5) for i in range(400)]
    for event in events[:200]:
        chain.observe(event, chain.decide(event))
    source = chain.sources.get("s1")
    out = [_of_filter(test, events[200], source, size, rounds) for test in chain.filters]
    anew = iter([replace(events[201]) for _ in range(rounds)])  # an event remembers its length
    decide = _timed(lambda: chain.decide(next(anew)), rounds)
    refresh = _timed(lambda: chain.refresh(b"x", 0), max(rounds // 10, 5)) / 10
    verdicts = iter([(e, chain.decide(e)) for e in events[200:]] * (rounds // 200 + 1))
    observe = _timed(lambda: chain.observe(*next(verdicts)), rounds)
    out.append(Cost("observe", size, observe, "", True))
    out.append(Cost("refresh, a tenth", size, refresh, "", True))
    whole = decide + observe + refresh
    asked = size == ASKED_AT
    out.append(
        Cost(
            "all of an update",
            size,
            whole,
            f"<= {US_MAX:g}" if asked else "",
            not asked or whole <= US_MAX,
        )
    )
    return out


def _of_filter(test: Filter, event: Event, source: Source, size: int, rounds: int) -> Cost:
    anew = iter([replace(event) for _ in range(rounds)])
    return Cost(test.name, size, _timed(lambda: test.judge(next(anew), source), rounds), "", True)


@dataclass(frozen=True, slots=True)
class Memory:
    """MB of the table of sources: evidence of five tests, means, eight digests, eight labels."""

    what: str
    sources: int
    mb: float
    asked: str
    good: bool


def memory(many: int = SOURCES) -> Memory:
    """Measured by what Python allocates."""
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        table = Sources(2 * many)
        for i in range(many):
            source = table.touch(f"source-{i:010d}")
            for test in ("direction", "support", "surprise", "norm", "samples"):
                table.add(source, test, -1.0, i)
                source.mean(test, 0.1 * i)
            for _ in range(8):
                table.take(source)
            source.recent = tuple((hash((i, j)), hash((j, i))) for j in range(8))
            source.labels = {str(j): i + j for j in range(8)}
        table.cut()
        used = (tracemalloc.get_traced_memory()[0] - before) / 1e6
        assert len(table) == many
    finally:
        tracemalloc.stop()
    return Memory("sources", many, used, f"<= {MB_MAX:g} MB", used <= MB_MAX)
