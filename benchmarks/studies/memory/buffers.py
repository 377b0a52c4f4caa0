"""This benchmark measures what a rehearsal step costs a buffer: 10 fresh items in, 10 drawn.

Three questions: does the cost grow with the number of items kept, does it grow with the length of
the stream, and how does it compare with the reservoir of Avalanche 0.6.0, a library for continual
learning.  The peer runs in its own environment, whose Python is given; its turns alternate with
ours.
"""

from __future__ import annotations

import gc
import json
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Final

from benchmarks.studies.memory import avalanche_peer
from evaluation.errors import EvaluationError
from replay.buffers.balanced import ClassBalanced
from replay.buffers.base import Buffer
from replay.buffers.compartments import TwoCompartments
from replay.buffers.item import Item
from replay.buffers.reservoir import Reservoir
from replay.buffers.ring import Ring

SIZES: Final = (1_000, 10_000, 100_000, 1_000_000)
FRESH: Final = 10
DRAWN: Final = 10
FLAT_MAX: Final = 3.0
"""Most times that a step may cost at any size what it costs at the smallest.  The work is the same;
of a thousand times as many items fewer are in the processor's caches."""

Progress = Callable[[str], None]

POLICIES: Final[dict[str, Callable[[int], Buffer]]] = {
    "reservoir": lambda n: Reservoir(n, 1),
    "reservoir, cap and minimum": lambda n: Reservoir(
        n, 1, source_share_max=0.1, class_share_min=0.02
    ),
    "class-balancing": lambda n: ClassBalanced(n, 1),
    "ring": lambda n: Ring(n),
    "two compartments": lambda n: TwoCompartments(Reservoir(n - n // 5, 1), Ring(n // 5)),
}


class PeerGone(EvaluationError):
    """The peer ended without an answer; ``python`` is what it was run with."""

    python: str
    text = (
        "the peer that {python} runs ended without an answer (its message is above); give the "
        "Python of an environment with avalanche-lib==0.6.0"
    )


@dataclass(frozen=True, slots=True)
class Cost:
    """A step at one size, in µs, and the ratio to the smallest size.

    The best of the rounds: what else the machine does only adds to it.  ``what`` is the policy.
    ``items`` are those kept, or those offered so far to 1,000 slots, as the table says.
    """

    what: str
    items: int
    step_us: float
    ratio: float


@dataclass(frozen=True, slots=True)
class Beside:
    """A step of our reservoir and of the peer's with as many items; medians of the rounds."""

    items: int
    step_us: float
    peer_us: float
    ratio: float


@dataclass(frozen=True, slots=True)
class Found:
    """Steps by number of items kept, by length of the stream, and beside the peer (if any)."""

    kept: list[Cost]
    offered: list[Cost]
    beside: list[Beside]

    @property
    def good(self) -> bool:
        """No step grows, and none is slower than the peer's."""
        flat = all(cost.ratio <= FLAT_MAX for cost in (*self.kept, *self.offered))
        return flat and all(row.ratio > 1 for row in self.beside)


def run(
    *,
    sizes: Sequence[int] = SIZES,
    rounds: int = 5,
    steps: int = 1_000,
    peer: Path | None = None,
    progress: Progress = lambda line: None,
) -> Found:
    """Measure every policy at every size.

    Parameters:
        sizes: Items kept, and lengths of the stream, the smallest first.
        rounds: Turns of each size.
        steps: Steps in a turn.
        peer: Python of an environment with ``avalanche-lib==0.6.0``; None: no comparison.
        progress: Told what is measured next.
    """
    items = _items(sizes[-1] + rounds * steps * FRESH)
    kept, offered = [], []
    for name, make in POLICIES.items():
        progress(name)
        kept += _by_kept(name, make, items, sizes, rounds, steps)
        offered += _by_offered(name, make, items, sizes, rounds, steps)
    beside = [] if peer is None else _beside(peer, items, sizes, rounds, steps, progress)
    return Found(kept, offered, beside)


def _items(n: int) -> list[Item]:
    """Ten classes and 37 sources; features as of a small table."""
    names = [f"source-{i}" for i in range(37)]
    return [
        Item(i.to_bytes(16, "big"), {"x": float(i)}, i * 7919 % 10, source=names[i * 101 % 37])
        for i in range(n)
    ]


def _filled(make: Callable[[int], Buffer], items: list[Item], n: int) -> Buffer:
    buffer = make(n)
    for item in items[:n]:
        buffer.insert(item)
    return buffer


def _by_kept(
    name: str,
    make: Callable[[int], Buffer],
    items: list[Item],
    sizes: Sequence[int],
    rounds: int,
    steps: int,
) -> list[Cost]:
    """Just filled: nearly every item is taken, which is the dear case.

    A buffer is left after a tenth of its size has been offered to it, at any size: otherwise a
    small one would take few of a turn's items, and a large one all.
    """
    times: dict[int, list[float]] = {n: [] for n in sizes}
    for _ in range(rounds):
        for n in sizes:
            span = min(max(n // 10, FRESH), steps * FRESH)
            turns = range(0, steps * FRESH, span)
            after = items[n : n + span]
            seconds = [_turn(_filled(make, items, n), after) for _ in turns]
            times[n].append(sum(seconds) / len(seconds))
    return _costs(name, times)


def _by_offered(
    name: str,
    make: Callable[[int], Buffer],
    items: list[Item],
    sizes: Sequence[int],
    rounds: int,
    steps: int,
) -> list[Cost]:
    """A thousand slots; as the stream goes on."""
    times: dict[int, list[float]] = {n: [] for n in sizes}
    for _ in range(rounds):
        buffer, at = make(1_000), 0
        for n in sizes:
            for item in items[at:n]:
                buffer.insert(item)
            at = min(n + steps * FRESH, len(items))
            times[n].append(_turn(buffer, items[n:at]))
    return _costs(name, times)


def _turn(buffer: Buffer, items: list[Item]) -> float:
    """Seconds of a step, on average, with as many steps as there are items for."""
    rng = Random(5)
    begun = time.perf_counter()
    for first in range(0, len(items), FRESH):
        for item in items[first : first + FRESH]:
            buffer.insert(item)
        buffer.sample(DRAWN, rng)
    return (time.perf_counter() - begun) / (len(items) // FRESH)


def _costs(name: str, times: dict[int, list[float]]) -> list[Cost]:
    best = {n: min(own) for n, own in times.items()}
    smallest = next(iter(best.values()))
    return [Cost(name, n, 1e6 * own, own / smallest) for n, own in best.items()]


def _beside(
    peer: Path, items: list[Item], sizes: Sequence[int], rounds: int, steps: int, progress: Progress
) -> list[Beside]:
    rows = []
    with _asked(peer) as ask:
        for n in sizes:
            progress(f"beside Avalanche, {n:,} items")
            buffer = _filled(POLICIES["reservoir"], items, n)
            ask({"fill": n})
            ours, theirs = [], []
            for i in range(rounds):
                start = n + i * steps * FRESH
                ours.append(_turn(buffer, items[start : start + steps * FRESH]))
                theirs.append(ask({"steps": steps, "fresh": FRESH, "drawn": DRAWN}))
            ratio = statistics.median(b / a for a, b in zip(ours, theirs, strict=True))
            our_us, peer_us = 1e6 * statistics.median(ours), 1e6 * statistics.median(theirs)
            rows.append(Beside(n, our_us, peer_us, ratio))
            gc.collect()
    return rows


@contextmanager
def _asked(python: Path) -> Iterator[Callable[[dict[str, int]], float]]:
    """A function that hands the peer a question and waits for its number."""
    with subprocess.Popen(
        [str(python), avalanche_peer.__file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        asking, answering = process.stdin, process.stdout
        assert asking is not None
        assert answering is not None

        def ask(question: dict[str, int]) -> float:
            print(json.dumps(question), file=asking, flush=True)
            answer = answering.readline()
            if not answer:
                raise PeerGone(str(python))
            return float(answer)

        try:
            yield ask
        finally:
            process.kill()
