"""R3: rounds in which every source sends one gradient, beside byzfl's aggregators on the same ones.

Ten honest sources and f hostile ones, 200 rounds, 25 rows a gradient, momentum .9 at the source
(without it no aggregator holds against small deviations).  The rows are dealt so that a share γ of
each source's is random and the rest is sorted by class: γ = 0 is one class a source.  The peer runs
in its own environment, whose Python is given.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from evaluation.benchmarks import byzfl_peer
from evaluation.benchmarks import perceptron as net
from evaluation.benchmarks.hostile import Images
from evaluation.errors import PeerGone
from paramserver import attacks
from paramserver.filters.base import Event
from paramserver.filters.chain import usual
from paramserver.filters.reference import Reference

Vector = npt.NDArray[np.float32]
Rule = Sequence[tuple[str, dict[str, Any]]]
Aggregate = Callable[[Vector, Vector, int], Vector]

HONEST: Final = 10
BATCH: Final = 25
ROUNDS: Final = 200
RATE: Final = 0.1
MOMENTUM: Final = 0.9
_ROOT_OF_CLASS: Final = 10

ATTACKS: Final[dict[str, Callable[[Vector, Vector], Vector]]] = {
    "sign flip": lambda own, others: -attacks.mean_of(others),
    "IPM 2": lambda own, others: attacks.inner_product(others, 2.0),
    "ALIE 1.5": lambda own, others: attacks.little_is_enough(others, 1.5),
}


def rules(f: int, tau: float) -> dict[str, Rule]:
    """byzfl's rules; the last one aggregates."""
    mixed: list[tuple[str, dict[str, Any]]] = [("Clipping", {"c": 2.0}), ("NNM", {"f": f})]
    arc: list[tuple[str, dict[str, Any]]] = [("ARC", {"f": f}), ("NNM", {"f": f})]
    return {
        "byzfl Average": [("Average", {})],
        "byzfl TrMean": [*mixed, ("TrMean", {"f": f})],
        "byzfl GeometricMedian": [*mixed, ("GeometricMedian", {})],
        "byzfl GeometricMedian, ARC": [*arc, ("GeometricMedian", {})],
        "byzfl MultiKrum": [*mixed, ("MultiKrum", {"f": f})],
        "byzfl CClip, tau 100": [("NNM", {"f": f}), ("CenteredClipping", {"tau": 100.0})],
        f"byzfl CClip, tau {tau:g}": [("NNM", {"f": f}), ("CenteredClipping", {"tau": tau})],
    }


@dataclass(frozen=True, slots=True)
class Line:
    """The worst of the attacks, in percent, and the median time of an aggregation."""

    what: str
    hostile: int
    gamma: float
    worst: float
    worst_attack: str
    ms: float


class Peer:
    """byzfl in another process."""

    def __init__(self, process: subprocess.Popen[bytes], python: str) -> None:
        self._process, self._python = process, python

    def ask(self, rule: Rule, x: Vector, *, double: bool = False) -> tuple[Vector, float]:
        """Rows that the rules make of ``x``, and their seconds."""
        asking, answering = self._process.stdin, self._process.stdout
        assert asking is not None
        assert answering is not None
        head = {"rules": rule, "n": len(x), "d": x.shape[1], "double": double}
        asking.write(json.dumps(head).encode() + b"\n" + np.ascontiguousarray(x).tobytes())
        asking.flush()
        line = answering.readline()
        if not line:
            raise PeerGone(self._python, "byzfl==0.0.11")
        answer = json.loads(line)
        data = answering.read(4 * answer["n"] * x.shape[1])
        rows = np.frombuffer(data, np.float32).reshape(answer["n"], -1)
        return rows, answer["seconds"]


@contextmanager
def peer(python: Path) -> Iterator[Peer]:
    """byzfl, until the end of the block."""
    with subprocess.Popen(
        [str(python), byzfl_peer.__file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        try:
            yield Peer(process, str(python))
        finally:
            process.kill()


def dealt(images: Images, gamma: float, seed: int) -> tuple[list[npt.NDArray[np.intp]], Vector]:
    """Rows of each honest source, and the root set's."""
    rng = np.random.default_rng([seed, 1])
    order = rng.permutation(len(images.y))
    of_class = [order[images.y[order] == c] for c in range(net.CLASSES)]
    root = np.concatenate([rows[:_ROOT_OF_CLASS] for rows in of_class])
    left = np.setdiff1d(order, root)
    left = rng.permutation(left)
    many = int(gamma * len(left))
    alike = np.array_split(left[:many], HONEST)
    by_class = left[many:][np.argsort(images.y[left[many:]], kind="stable")]
    sorted_ones = np.array_split(by_class, HONEST)
    return [np.concatenate(pair) for pair in zip(alike, sorted_ones, strict=True)], root


class Ours:
    """The chain on the same vectors: the mean of what it lets through."""

    def __init__(self, images: Images, root: Any) -> None:
        self._images, self._root = images, root
        self._labels = [int(y) for y in images.y[root]]
        self._params = np.zeros(net.SIZE, np.float32)
        reference = Reference(self._labels, self._gradient, rows=BATCH)
        self._chain = usual(net.SIZE, reference)
        self._n = 0

    def _gradient(self, rows: npt.NDArray[np.intp]) -> Vector:
        at = self._root[rows]
        return net.gradient(self._params, self._images.x[at], self._images.y[at])

    def __call__(self, x: Vector, params: Vector) -> Vector:
        first, self._params = self._n == 0, params
        if first:
            self._chain.refresh(b"start", 0)
            self._chain.refresh(b"begin", 0)
        total, weight = np.zeros(net.SIZE, np.float32), 0.0
        for source, gradient in enumerate(x):
            self._n += 1
            event = Event(f"s{source}", self._n.to_bytes(16, "little"), gradient)
            verdict = self._chain.decide(event)
            self._chain.observe(event, verdict)
            total += np.float32(verdict.factor) * gradient
            weight += verdict.factor
        return np.asarray(total / np.float32(max(weight, 1.0)))


def rounds(
    images: Images, gamma: float, f: int, attack: str, combine: Callable[[Vector, Vector], Vector],
    seed: int, many: int = ROUNDS,
) -> float:  # fmt: skip
    """Accuracy after so many rounds."""
    rows, _ = dealt(images, gamma, seed)
    rng = np.random.default_rng([seed, 2])
    params = net.drawn(np.random.default_rng([seed, 3]))
    momenta = [np.zeros(net.SIZE, np.float32) for _ in range(HONEST)]
    for _ in range(many):
        for i, own in enumerate(rows):
            at = own[rng.integers(len(own), size=BATCH)]
            gradient = net.gradient(params, images.x[at], images.y[at])
            momenta[i] = np.float32(MOMENTUM) * momenta[i] + np.float32(1 - MOMENTUM) * gradient
        honest = np.stack(momenta)
        bad = ATTACKS[attack](honest[0], honest)
        step = combine(np.vstack([honest, np.repeat(bad[None], f, axis=0)]), params)
        params = params - np.float32(RATE) * step
    return net.accuracy(params, images.asked_x, images.asked_y)


def run(
    images: Images,
    python: Path,
    *,
    hostile: Sequence[int] = (2, 4),
    gammas: Sequence[float] = (1.0, 0.33, 0.0),
    tau: float = 1.0,
    seed: int = 10,
    progress: Callable[[str], None] = lambda line: None,
) -> list[Line]:
    """byzfl's rules and our chain, the worst attack each."""
    lines = []
    with peer(python) as ask:
        for gamma in gammas:
            for f in hostile:
                for name, rule in rules(f, tau).items():
                    lines.append(_theirs(images, gamma, f, name, rule, ask, seed))
                    progress(str(lines[-1]))
                lines.append(_ours(images, gamma, f, seed))
                progress(str(lines[-1]))
    return lines


def _theirs(
    images: Images, gamma: float, f: int, name: str, rule: Rule, ask: Peer, seed: int
) -> Line:
    seconds: list[float] = []

    def combine(x: Vector, params: Vector) -> Vector:
        rows, spent = ask.ask(rule, x)
        seconds.append(spent)
        return np.asarray(rows[0])

    found = {attack: rounds(images, gamma, f, attack, combine, seed) for attack in ATTACKS}
    worst = min(found, key=found.__getitem__)
    return Line(name, f, gamma, found[worst], worst, 1e3 * float(np.median(seconds)))


def _ours(images: Images, gamma: float, f: int, seed: int) -> Line:
    seconds: list[float] = []
    found = {}
    for attack in ATTACKS:
        ours = Ours(images, dealt(images, gamma, seed)[1])

        def combine(x: Vector, params: Vector, ours: Ours = ours) -> Vector:
            begun = time.perf_counter()
            out = ours(x, params)
            seconds.append(time.perf_counter() - begun)
            return out

        found[attack] = rounds(images, gamma, f, attack, combine, seed)
    worst = min(found, key=found.__getitem__)
    return Line("ours", f, gamma, found[worst], worst, 1e3 * float(np.median(seconds)))
