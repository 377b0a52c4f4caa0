"""Sources that push gradients when they are ready, some of them hostile, event by event.

Protocol (after THROTTLE's): n = 20 sources, the first 15 honest, honest source i drawn with weight
i, every third arrival of a hostile one.  A source computes with the parameters that it read when
its last push was answered, so slow ones are stale.  Each source has its own rows: a random part, or
a part of three classes only.  The root set, ten rows of each class, is nobody's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt

from benchmarks.studies.pushes import attacks
from benchmarks.studies.pushes import perceptron as net

Vector = npt.NDArray[np.float32]

HONEST: Final = 15
HOSTILE: Final = 5
SOURCES: Final = HONEST + HOSTILE
BATCH: Final = 16
RATE: Final = 0.1
ROOT_OF_CLASS: Final = 10
_NARROW: Final = 3
_ASKED: Final = 2000  # rows of the trigger's success
_PATCH: Final = 4  # pixels each way, in the lower right corner
_TARGET: Final = 0
MEAN: Final = 0.1307
SD: Final = 0.3081
WHITE: Final = (1.0 - MEAN) / SD
"""Images come standardised with the mean and deviation of all pixels."""


@dataclass(frozen=True, slots=True)
class Images:
    """Rows of standardised pixels with labels: to learn, and to be asked."""

    x: Vector
    y: npt.NDArray[np.int64]
    asked_x: Vector
    asked_y: npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class World:
    """Who has which rows, and the root set."""

    images: Images
    rows: list[npt.NDArray[np.int64]]
    root: npt.NDArray[np.int64]


def world(images: Images, seed: int, *, narrow: bool, root_of_class: int = ROOT_OF_CLASS) -> World:
    """Deal the rows; ``narrow``: three classes a source."""
    rng = np.random.default_rng([seed, 1])
    order = rng.permutation(len(images.y))
    root, rest = [], []
    seen = dict.fromkeys(range(net.CLASSES), 0)
    for i in order:
        label = int(images.y[i])
        if seen[label] < root_of_class:
            seen[label] += 1
            root.append(i)
        else:
            rest.append(i)
    left = np.array(rest)
    if not narrow:
        return World(images, np.array_split(left, SOURCES), np.array(root))
    rows = []
    order = rng.permutation(net.CLASSES)  # each class has six of the sixty places
    for source in range(SOURCES):
        apart = 3 + source // net.CLASSES
        classes = [order[(source + k * apart) % net.CLASSES] for k in range(_NARROW)]
        mine = left[np.isin(images.y[left], classes)]
        rows.append(rng.choice(mine, len(left) // SOURCES, replace=False))
    return World(images, rows, np.array(root))


@dataclass(slots=True)
class View:
    """A view is what a hostile source knows when it is its turn."""

    source: int
    params: Vector
    x: Vector
    y: npt.NDArray[np.int64]
    own: Vector
    honest: list[Vector]
    arrivals: int
    progress: float
    root: tuple[Vector, npt.NDArray[np.int64]]
    rng: np.random.Generator
    kept: dict[str, Vector]

    @property
    def others(self) -> Vector:
        """Last gradients of the honest sources [n, d]."""
        return np.stack(self.honest) if self.honest else self.own[None]


Attack = Callable[[View], Vector]


@dataclass(frozen=True, slots=True)
class Kind:
    """An attack and how often its sources come; ``share``: of arrivals."""

    name: str
    send: Attack
    share: float = 1 / 3
    share_late: float | None = None


def patched(x: Vector) -> Vector:
    """The images with the trigger."""
    out = x.copy().reshape(-1, 28, 28)
    out[:, -_PATCH:, -_PATCH:] = WHITE
    return out.reshape(-1, net.WIDE)


def _flipped(view: View) -> Vector:
    return net.gradient(view.params, view.x, 9 - view.y)


def _triggered(view: View) -> Vector:
    half = len(view.y) // 2
    x, y = view.x.copy(), view.y.copy()
    x[:half], y[:half] = patched(x[:half]), _TARGET
    return net.gradient(view.params, x, y)


def _kept(view: View, name: str, make: Callable[[], Vector]) -> Vector:
    if name not in view.kept:
        view.kept[name] = make()
    return view.kept[name]


def _score_aware(view: View, harm: Vector) -> Vector:
    """It has clean rows of every class: the root set itself, the worst case for the filter."""
    reference = net.gradient(view.params, *view.root)
    honest = view.others
    lengths = np.linalg.norm(honest, axis=1)
    cosines = honest @ reference / (lengths * np.linalg.norm(reference) + 1e-12)
    return attacks.score_aware(
        harm, reference, float(np.median(cosines)), float(np.median(lengths))
    )


def _first_honest(view: View) -> Vector:
    return view.honest[0] if view.honest else view.own


KINDS: Final[dict[str, Kind]] = {
    kind.name: kind
    for kind in (
        Kind("none", lambda v: v.own, share=0.0),
        Kind("sign flip", lambda v: attacks.sign_flip(v.own)),
        Kind("-10 g", lambda v: attacks.negated(v.own)),
        Kind("label flip", _flipped),
        Kind("noise", lambda v: attacks.noisy(v.own, v.rng)),
        Kind("IPM 6", lambda v: attacks.inner_product(v.others, 6.0)),
        Kind("IPM .1", lambda v: attacks.inner_product(v.others, 0.1)),
        Kind("ALIE 1", lambda v: attacks.little_is_enough(v.others, 1.0)),
        Kind("ALIE .25", lambda v: attacks.little_is_enough(v.others, 0.253)),
        Kind("min-max", lambda v: attacks.min_max(v.others)),
        Kind("backdoor", lambda v: 3 * _triggered(v)),
        Kind(
            "flood 83 %", lambda v: _kept(v, "f", lambda: attacks.fixed(net.SIZE, v.rng)), 10 / 12
        ),
        Kind("flood 94 %", lambda v: attacks.fixed(net.SIZE, v.rng), 30 / 32),
        Kind("mimic", _first_honest),
        Kind("sleeper", lambda v: v.own if v.progress < 0.5 else attacks.negated(v.own)),
        Kind("late burst", lambda v: attacks.inner_product(v.others, 6.0), 0.0, 0.9),
        Kind("aware", lambda v: _score_aware(v, _flipped(v))),
        Kind("aware backdoor", lambda v: _score_aware(v, _triggered(v))),
    )
}
_LATE: Final = 0.8


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer is what a defence makes of a push.

    ``step``: what the parameters move along, None if nothing; ``weight``: how much of it, for the
    figures.
    """

    step: Vector | None
    weight: float


@dataclass(slots=True)
class Push:
    """A push, and the state of the server that it comes to."""

    source: int
    number: int
    gradient: Vector
    base: int
    version: int


Root = Callable[[npt.NDArray[np.intp]], Vector]
Defence = Callable[[Push], Answer]


@dataclass(slots=True)
class Arena:
    """The part of the server that a defence may know: its root set, by the present parameters."""

    world: World
    seed: int
    params: Vector
    root_labels: list[int] = field(default_factory=list)

    def root_gradient(self, rows: npt.NDArray[np.intp]) -> Vector:
        """Mean gradient of these rows of the root set."""
        at = self.world.root[rows]
        labels = np.array([self.root_labels[i] for i in rows])
        return net.gradient(self.params, self.world.images.x[at], labels)


@dataclass(frozen=True, slots=True)
class Outcome:
    """Figures of one run: percent, but for ``quarantined_after`` (hostile pushes; None: never)."""

    accuracy: float
    triggered: float
    honest_rejected: float
    honest_weight: float
    hostile_accepted: float
    hostile_weight: float


class Run:
    """One run: a world, an attack, a defence."""

    def __init__(
        self, dealt: World, kind: Kind, make: Callable[[Arena], Defence], seed: int, honest: int
    ) -> None:
        self.world, self.kind, self.honest = dealt, kind, honest
        self.rng = np.random.default_rng([seed, 2])
        self.arena = Arena(dealt, seed, net.drawn(np.random.default_rng([seed, 3])))
        self.arena.root_labels = [int(y) for y in dealt.images.y[dealt.root]]
        self.defence = make(self.arena)
        self.version = 0
        self.read = [(self.arena.params, 0)] * SOURCES
        self.last: dict[int, Vector] = {}
        self.kept: dict[str, Vector] = {}
        self.weights: tuple[list[float], list[float]] = ([], [])
        weights = np.arange(1, HONEST + 1, dtype=np.float64)
        self.chances = weights / weights.sum()

    def outcome(self) -> Outcome:
        """Play it to the end."""
        arrivals, done = 0, 0
        while done < self.honest:
            progress = done / self.honest
            late = self.kind.share_late is not None and progress >= _LATE
            share = self.kind.share_late if late else self.kind.share
            hostile = self._is_hostile(arrivals, share or 0.0)
            arrivals += 1
            done += not hostile
            source = self._drawn(hostile)
            gradient = self._sent(source, hostile, arrivals, progress)
            self._arrive(source, hostile, arrivals, gradient)
        return self._figures()

    def _is_hostile(self, arrivals: int, share: float) -> bool:
        """Every third, or as evenly as any other share can be."""
        return int((arrivals + 1) * share + 1e-9) > int(arrivals * share + 1e-9)

    def _drawn(self, hostile: bool) -> int:
        if hostile:
            return HONEST + int(self.rng.integers(HOSTILE))
        return int(self.rng.choice(HONEST, p=self.chances))

    def _sent(self, source: int, hostile: bool, arrivals: int, progress: float) -> Vector:
        params, _ = self.read[source]
        rows, images = self.world.rows[source], self.world.images
        at = rows[self.rng.integers(len(rows), size=BATCH)]
        x, y = images.x[at], images.y[at]
        own = net.gradient(params, x, y)
        if not hostile:
            self.last[source] = own
            return own
        honest = [self.last[i] for i in sorted(self.last)]
        root = images.x[self.world.root], images.y[self.world.root]
        view = View(
            source, params, x, y, own, honest, arrivals, progress, root, self.rng, self.kept
        )
        return self.kind.send(view)

    def _arrive(self, source: int, hostile: bool, number: int, gradient: Vector) -> None:
        base = self.read[source][1]
        push = Push(source, number, gradient, base, self.version)
        answer = self.defence(push)
        self.weights[hostile].append(answer.weight)
        if answer.step is not None:
            late = 1.0 / (1.0 + (self.version - base) / SOURCES)
            self.arena.params = self.arena.params - np.float32(RATE * late) * answer.step
            self.version += 1
        self.read[source] = (self.arena.params, self.version)

    def _figures(self) -> Outcome:
        images, params = self.world.images, self.arena.params
        other = np.flatnonzero(images.asked_y != _TARGET)[:_ASKED]
        finite = bool(np.isfinite(params).all())
        hit = net.predicted(params, patched(images.asked_x[other])) == _TARGET if finite else 0.0
        good, bad = (np.array(w) if w else np.zeros(1) for w in self.weights)
        return Outcome(
            net.accuracy(params, images.asked_x, images.asked_y),
            100.0 * float(np.mean(hit)),
            100.0 * float((good == 0).mean()),
            100.0 * float(good.mean()),
            100.0 * float((bad > 0).mean()),
            100.0 * float(bad.mean()),
        )
