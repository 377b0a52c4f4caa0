"""R3: rounds in which every source sends one gradient, beside byzfl's aggregators on the same ones.

Ten honest sources and f hostile ones, 200 rounds, 25 rows a gradient, momentum .9 at the source
(without it no aggregator holds against small deviations).  The rows are dealt so that a share γ of
each source's is random and the rest is sorted by class: γ = 0 is one class a source.  The peer runs
in its own environment, whose Python is given.  Its centred clipping is shown as it comes, which
clips nothing here, and with the radius that does best with another seed, chosen for each γ.

All of the peer's rules but the trimmed mean depend on the vectors' inner products alone, and
answer mixes of them.  So it is asked about n vectors of n numbers with the same inner products,
and its mix is taken of the real ones; times, and that this is the same, are of the real ones.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from queue import Queue
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from benchmarks.studies.peers import PeerGone
from benchmarks.studies.pushes import attacks, byzfl_peer
from benchmarks.studies.pushes import perceptron as net
from benchmarks.studies.pushes.hostile import Images
from benchmarks.studies.pushes.pushes import usual
from paramserver.filters.base import Event
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

TAUS: Final = (1.0, 3.0, 10.0)
"""Radii that byzfl's centred clipping is tried with; its own is 100."""

_TUNED_WITH: Final = 0  # the seed
_AT_ONCE: Final = 2
_TIMED: Final = 9
_SAME: Final = 1e-3  # of the length, in float32
_BY_COORDINATE: Final = ("TrMean",)

ATTACKS: Final[dict[str, Callable[[Vector, Vector], Vector]]] = {
    "sign flip": lambda own, others: -attacks.mean_of(others),
    "IPM 2": lambda own, others: attacks.inner_product(others, 2.0),
    "ALIE 1.5": lambda own, others: attacks.little_is_enough(others, 1.5),
}


def clipping(f: int, tau: float) -> Rule:
    """byzfl's centred clipping of radius ``tau``, after NNM."""
    return [("NNM", {"f": f}), ("CenteredClipping", {"tau": tau})]


def rules(f: int, tau: float) -> dict[str, Rule]:
    """byzfl's rules; the last one of each aggregates.  ``tau``: the radius that was chosen."""
    mixed: list[tuple[str, dict[str, Any]]] = [("Clipping", {"c": 2.0}), ("NNM", {"f": f})]
    arc: list[tuple[str, dict[str, Any]]] = [("ARC", {"f": f}), ("NNM", {"f": f})]
    return {
        "byzfl Average": [("Average", {})],
        "byzfl TrMean": [*mixed, ("TrMean", {"f": f})],
        "byzfl GeometricMedian": [*mixed, ("GeometricMedian", {})],
        "byzfl GeometricMedian, ARC": [*arc, ("GeometricMedian", {})],
        "byzfl MultiKrum": [*mixed, ("MultiKrum", {"f": f})],
        "byzfl CClip, tau 100": clipping(f, 100.0),
        f"byzfl CClip, tau {tau:g}": clipping(f, tau),
    }


@dataclass(frozen=True, slots=True)
class Line:
    """The worst of the attacks, in percent, and the median time of an aggregation.

    Times are taken when nothing else of the table runs.
    """

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

    def combine(self, rule: Rule, x: Vector) -> Vector:
        """The vector that the rules make of ``x``, asked for in few dimensions."""
        last = len(rule) - (rule[-1][0] in _BY_COORDINATE)
        if last:
            small, back = spanned(x)
            x = back(self.ask(rule[:last], small, double=True)[0])
        if rule[last:]:
            x = self.ask(rule[last:], x)[0]
        return np.asarray(x[0])

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


def spanned(x: Vector) -> tuple[Vector, Callable[[Vector], Vector]]:
    """Return as many short vectors with the same inner products, and a function.

    The function makes a mix of those vectors the same mix of ``x``.
    """
    wide = x.astype(np.float64)
    values, vectors = np.linalg.eigh(wide @ wide.T)
    lengths = np.sqrt(np.maximum(values, 0.0))
    small = vectors * lengths
    inverse = np.linalg.pinv(small, rcond=1e-7)
    return small.astype(np.float32), lambda mix: np.asarray(
        (mix.astype(np.float64) @ inverse).astype(np.float32) @ x
    )


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


@dataclass(frozen=True, slots=True)
class Setting:
    """How sources are dealt to, how many are hostile, and how many rounds there are."""

    images: Images
    gamma: float
    f: int
    many: int
    seed: int

    def worst(self, what: str, make: Callable[[], Callable[[Vector, Vector], Vector]]) -> Line:
        """A rule's line, without its time; ``make`` makes the rule anew for each attack."""
        found = {
            attack: rounds(self.images, self.gamma, self.f, attack, make(), self.seed, self.many)
            for attack in ATTACKS
        }
        worst = min(found, key=found.__getitem__)
        return Line(what, self.f, self.gamma, found[worst], worst, float("nan"))


def run(
    images: Images,
    python: Path,
    *,
    hostile: Sequence[int] = (1, 2, 3, 4),
    gammas: Sequence[float] = (1.0, 0.33, 0.0),
    taus: Sequence[float] = TAUS,
    many: int = ROUNDS,
    seed: int = 10,
    at_once: int = _AT_ONCE,
    progress: Callable[[str], None] = lambda line: None,
) -> list[Line]:
    """byzfl's rules and our chain, the worst attack each; ``at_once`` peers beside each other.

    Raises PeerGone.
    """
    with contextlib.ExitStack() as stack:
        peers = Queue[Peer]()
        for _ in range(at_once):
            peers.put(stack.enter_context(peer(python)))
        pool = stack.enter_context(ThreadPoolExecutor(at_once))

        def theirs(setting: Setting, name: str, rule: Rule) -> Line:
            ask = peers.get()
            try:
                line = setting.worst(name, lambda: lambda x, _: ask.combine(rule, x))
            finally:
                peers.put(ask)
            progress(str(line))
            return line

        def tuned(gamma: float) -> float:
            setting = Setting(images, gamma, max(hostile), many // 2, _TUNED_WITH)
            name = "tau {:g}, seed 0, half of the rounds".format
            tried = {t: theirs(setting, name(t), clipping(setting.f, t)) for t in taus}
            return max(tried, key=lambda tau: tried[tau].worst)

        radii = dict(zip(gammas, pool.map(tuned, gammas), strict=True))
        found = []
        for gamma in gammas:
            settings = [Setting(images, gamma, f, many, seed) for f in hostile]
            jobs = [(s, *named) for s in settings for named in rules(s.f, radii[gamma]).items()]
            lines = list(pool.map(lambda job: theirs(*job), jobs))
            ask = peers.get()
            for setting in settings:
                own, last = _ours(setting)
                for (of, _, rule), line in zip(jobs, lines, strict=True):
                    if of is setting:
                        found.append(replace(line, ms=_ms(ask, rule, last)))
                        progress(str(found[-1]))
                found.append(own)
                progress(str(own))
            peers.put(ask)
    return found


def _ms(ask: Peer, rule: Rule, x: Vector) -> float:
    """Median of the peer's milliseconds, whole vectors; what it was asked in short is the same."""
    asked = [ask.ask(rule, x) for _ in range(_TIMED)]
    whole, short = asked[0][0][0], ask.combine(rule, x)
    apart = float(np.linalg.norm(whole - short) / np.linalg.norm(whole))
    assert apart < _SAME, f"{rule}: {apart:.2g} of its length apart"
    return 1e3 * float(np.median([seconds for _, seconds in asked]))


def _ours(setting: Setting) -> tuple[Line, Vector]:
    """Our line, and the vectors of the last round."""
    seconds: list[float] = []
    last: list[Vector] = []

    def make() -> Callable[[Vector, Vector], Vector]:
        ours = Ours(setting.images, dealt(setting.images, setting.gamma, setting.seed)[1])

        def combine(x: Vector, params: Vector) -> Vector:
            begun = time.perf_counter()
            out = ours(x, params)
            seconds.append(time.perf_counter() - begun)
            last[:] = [x]
            return out

        return combine

    line = setting.worst("ours", make)
    return replace(line, ms=1e3 * float(np.median(seconds))), last[0]
