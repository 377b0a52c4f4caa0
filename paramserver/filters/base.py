"""This module says what a filter is told, what it answers, and what it may keep of a source.

A filter never sees models, clocks or networks.  It judges an :class:`Event` without changing
anything; what it has measured comes back to it in :meth:`Filter.learn` once the event's row is
written, in the order of the rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Final, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:  # they tell of events and sources themselves
    from paramserver.filters.arrivals import Arrivals
    from paramserver.filters.losses import Losses, Null

Gradient = npt.NDArray[np.float32]

ACCEPTED: Final = "accepted"
CLIPPED: Final = "clipped"
QUARANTINED: Final = "quarantined"
REFUSED: Final = "refused"
"""Verdicts.  ``refused`` is for what no row may hold: it is answered, counted, not written."""

EVIDENCE_MAX: Final = 8.0
"""Most log likelihood ratio that a test keeps for or against a source, in nats."""

STEP_MAX: Final = 2.0
"""Most that one event adds to it."""

UNLIKELY: Final = "unlikely"
"""Name of the test on unlikely labels, which keeps little for a source."""

_DOUBTED: Final = -1.0


_LINE: Final = 16


class Favour(NamedTuple):
    """A reward of a choice, and what was expected of the action; both as shares of the range.

    ``action`` is a hash of its id.
    """

    action: int
    reward: float
    expected: float


@dataclass(frozen=True, slots=True)
class Event:
    """One piece of feedback, or one push of an untrusted pusher.

    Attributes:
        source: Who sent it, 1 to 256 characters.
        key: Its id, at most 64 bytes; all randomness is keyed by it.
        gradient: float32 [d]: of the loss, by the parameters.  None for models without one (trees).
        loss: Of the model's answer before this label was learned, finite, ≥ 0 (log loss: −log
            p(label)); None if nothing was predicted.
        version, base: Number of the parameters when it came, and of those that the gradient was
            computed with: the same for feedback, earlier for pushes.
        label: The label's JSON text; None for pushes.
        digest: Hash of features and label text; None for pushes.
        features_digest: Hash of the features alone.
        answer: JSON text of the label that the model gave; None if nothing was predicted.
        weight: Of the event, > 0: ``gradient`` has it already, budgets count it.
        favour: Of a reward; None: the event is none.
        other: A label that was not said, and the loss that it would have had; None: of two labels
            it is the other one, and of numbers there is none.
    """

    source: str
    key: bytes
    gradient: Gradient | None = None
    loss: float | None = None
    version: int = 0
    base: int = 0
    label: str | None = None
    digest: int | None = None
    features_digest: int | None = None
    answer: str | None = None
    weight: float = 1.0
    favour: Favour | None = None
    other: tuple[str, float] | None = None
    _squares: list[float] = field(default_factory=list, init=False, repr=False, compare=False)

    @property
    def square(self) -> float:
        """Return the square of the gradient's length, in float32.

        It is ∞ from 10³⁸ on, NaN if a number of the gradient is NaN, and 0 if there is no gradient.
        All numbers are walked over, once.
        """
        if not self._squares:
            x = self.gradient
            with np.errstate(over="ignore", invalid="ignore"):
                self._squares.append(0.0 if x is None else float(x @ x))
        return self._squares[0]


@dataclass(slots=True)
class Source:
    """A record of what is known of a source.  It is bounded: a few hundred bytes.

    Attributes:
        name: Who it is.
        evidence: For each test the log likelihood ratio of honest to hostile, within
            ±``EVIDENCE_MAX``.
        means: Moving mean of what each test has measured of its events, over about 9.
        taken: Events that were accepted or clipped.
        offences, releases: Highest number of a quarantine and of a release; quarantined while the
            first is larger.
        shadow: Events scored since it was quarantined.
        good: Whether some test has spoken clearly for it (evidence ≥ 4) since it last turned.
        turned_at: Number of the arrival at which it went from good to evidence below −2; 0: never.
        recent: ``(features, event)`` digests of its last events, for the sample checks.
        labels: How often it gave each label; the least common ones are forgotten beyond eight.
    """

    name: str
    evidence: dict[str, float] = field(default_factory=dict)
    means: dict[str, float] = field(default_factory=dict)
    taken: int = 0
    offences: int = 0
    releases: int = 0
    shadow: int = 0
    good: bool = False
    turned_at: int = 0
    recent: tuple[tuple[int, int], ...] = ()
    labels: dict[str, int] = field(default_factory=dict)

    @property
    def quarantined(self) -> bool:
        """Whether its events are set aside."""
        return self.offences > self.releases

    @property
    def standing(self) -> float:
        """The worst of the tests' evidence; 0 if there is none."""
        return min(self.evidence.values(), default=0.0)

    @property
    def trust(self) -> float:
        """The same of the tests that keep much for a source."""
        return min((e for test, e in self.evidence.items() if test != UNLIKELY), default=0.0)

    @property
    def doubted(self) -> bool:
        """Whether its labels are so often unlikely that nobody is to be measured by them."""
        return self.evidence.get(UNLIKELY, 0.0) < _DOUBTED

    def mean(self, test: str, x: float) -> None:
        """Take one more measurement of a test into its moving mean."""
        old = self.means.get(test)
        self.means[test] = x if old is None else old + (x - old) / 5.0


class Opinion(msgspec.Struct, frozen=True, gc=False):
    """A filter's answer on one event.

    Attributes:
        factor: In [0, 1]: how much of the event this filter lets through.
        evidence: Nats for (> 0) or against (< 0) the source, within ±``STEP_MAX``.
        score: What was measured, finite; to be shown.
        detail: A second measurement that the filter wants back in :meth:`Filter.learn`.
        reason: Why it is not let through whole; empty if it is.
        stop: Set the event aside at once; later filters are not asked.
        refuse: It can't be judged at all (not finite, wrong shape); nothing is learned from it.
        off: The test says nothing about anybody now, and what it said of a source before doesn't
            count.
    """

    factor: float = 1.0
    evidence: float = 0.0
    score: float = 0.0
    reason: str = ""
    stop: bool = False
    refuse: bool = False
    detail: float = 0.0
    off: bool = False


PASS: Final = Opinion()
OFF: Final = Opinion(off=True)
"""Of a test that can say nothing about anybody now."""


class Filter:
    """One test.  What it does not say of itself is as here, and the chain knows it by no more.

    Attributes:
        name: Key of its evidence and its means.
        budgets: Its factor is for how much a source sends, not for what an event is.
        wrong: It was mistaken: sources that it condemned are pardoned.
        turning: It says that the world has turned, not its sources.
        bounds: Bounds on losses, none yet if it is empty; None: losses that others have taken are
            nothing to it.
        losses: Those that it keeps for the chain; None: it keeps none.
    """

    name: str
    budgets: ClassVar[bool] = False
    wrong: bool = False
    turning: bool = False
    bounds: Mapping[str | None, Null] | None = None
    losses: Losses | None = None

    def watch(self, arrivals: Arrivals) -> None:
        """Who sends now, as the chain counts it; told once."""

    def judge(self, event: Event, source: Source) -> Opinion:
        """Answer on the event.  Changes nothing, takes any gradient, raises nothing."""
        raise NotImplementedError

    def learn(self, event: Event, opinion: Opinion, source: Source, *, taken: bool) -> None:
        """The event is written; ``taken``: it was accepted or clipped.

        Statistics that others are judged by are learned from taken events only.
        """

    def hear(self, source: Source, label: str | None, loss: float) -> None:
        """Another replica has taken an event with this loss; asked of those with ``bounds``."""

    def refresh(self, rng: np.random.Generator, sources: Sequence[Source]) -> None:
        """Draw nulls again; ``sources`` are those of the last arrivals."""


def clipped_step(evidence: float) -> float:
    """``evidence`` within ±``STEP_MAX``; 0 for NaN."""
    if evidence != evidence:
        return 0.0
    return min(max(evidence, -STEP_MAX), STEP_MAX)


class Probes:
    """Some of a gradient's numbers, drawn once: ``n`` of ``size``, or all if there are no more.

    Lines of sixteen, as memory is read: of single ones, spread out, each would read a line.
    """

    def __init__(self, size: int, n: int, rng: np.random.Generator) -> None:
        self._start = int(rng.integers(size % _LINE + 1))  # lest the last ones are never looked at
        self._stop = self._start + size // _LINE * _LINE
        self._lines: npt.NDArray[np.intp] | None = None
        if size > n:
            self._lines = np.sort(rng.choice(size // _LINE, n // _LINE, replace=False))

    def of(self, gradient: Gradient) -> Gradient:
        """These numbers, in the order of their places."""
        if self._lines is None:
            return gradient
        lines = gradient[self._start : self._stop].reshape(-1, _LINE)
        return lines.take(self._lines, axis=0).reshape(-1)

    def of_each(self, gradients: Sequence[Gradient]) -> Gradient:
        """Those of some gradients, [n, m]."""
        if self._lines is None:
            return np.stack(gradients)
        out = np.empty((len(gradients), len(self._lines), _LINE), np.float32)
        for gradient, row in zip(gradients, out, strict=True):
            lines = gradient[self._start : self._stop].reshape(-1, _LINE)
            lines.take(self._lines, axis=0, out=row, mode="clip")  # others are buffered
        return out.reshape(len(gradients), -1)


def quantile(values: Iterable[float], level: float) -> float:
    """Linear between the two nearest of one number or more; numpy's takes 26 µs for eighty."""
    order = sorted(values)
    at = level * (len(order) - 1)
    below = order[int(at)]
    return below + (order[min(int(at) + 1, len(order) - 1)] - below) * (at - int(at))


def keyed(key: bytes) -> np.random.Generator:
    """A counter-based generator (Philox) that only the key decides.

    The same event gives the same draws in every process and every repeat of learning.
    """
    words = np.frombuffer(key.ljust(16, b"\0")[:16], dtype="<u8")
    return np.random.Generator(np.random.Philox(key=words))
