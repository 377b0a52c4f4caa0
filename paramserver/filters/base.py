"""The interface of a filter: its input (event and source), its opinion, and the source record.

A filter has no access to models, clocks or networks.  It judges an :class:`Event` without changing
anything.  Its measurements are passed back to it in :meth:`Filter.learn` once the event's row is
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
    from paramserver.evidence.losses import Losses
    from paramserver.evidence.sums import Null
    from paramserver.filters.arrivals import Arrivals

Gradient = npt.NDArray[np.float32]

ACCEPTED: Final = "accepted"
CLIPPED: Final = "clipped"
QUARANTINED: Final = "quarantined"
REFUSED: Final = "refused"
"""Verdicts.  ``refused`` events are invalid: they are answered and counted, but not written."""

EVIDENCE_MAX: Final = 8.0
"""Greatest absolute evidence (log likelihood ratio, nats) of one test on a source."""

STEP_MAX: Final = 2.0
"""Greatest absolute evidence of one event, in nats."""

UNLIKELY: Final = "unlikely"
"""Name of the test on unlikely labels, which keeps little positive evidence."""

_OF_ONE_LABEL: Final = "surprise "
"""Prefix of the names of tests on a single label."""

_DOUBTED: Final = -1.0
_TRUSTED: Final = 2.0

_LINE: Final = 16
_LIGHTEST: Final = 1e-6


class Favour(NamedTuple):
    """The reward of a choice and its expectation, both scaled to [0, 1].

    ``action`` is a hash of the chosen action's id.
    """

    action: int
    reward: float
    expected: float


class Event(msgspec.Struct, frozen=True, eq=False):
    """One feedback event, or one push from an untrusted sender.

    Attributes:
        source: Name of the sender, 1 to 256 characters.
        key: Id of the event, at most 64 bytes, which seeds all randomness.
        gradient: Gradient of the loss, float32 [d]; None for models without one (trees).
        loss: Loss of the model's prediction before the label was learned, finite, ≥ 0 (log loss:
            −log p(label)); None without a prediction.
        version, base: Version of the parameters when the event came, and of those with which the
            gradient was computed: equal for feedback, older for pushes.
        label: The label's JSON text; None for pushes.
        digest: Hash of features and label text; None for pushes.
        features_digest: Hash of the features alone.
        answer: JSON text of the predicted label; None without a prediction.
        weight: Weight of the event, > 0, which the ``gradient`` includes and budgets count.
        favour: The reward, if the event is one, or None.
        other: Another label than the event's, and the loss that it would have had.  None for two
            labels, where it is the other one, and for numbers, where there is none.
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
    _square: list[tuple[Gradient, float]] = []

    @property
    def square(self) -> float:
        """The squared norm of the gradient in float32, computed once.

        It is ∞ above 10³⁸, NaN if an element of the gradient is NaN, and 0 without a gradient.
        """
        x, known = self.gradient, self._square
        if x is None:
            return 0.0
        if not known or known[0][0] is not x:  # a copy of an event with another gradient
            with np.errstate(over="ignore", invalid="ignore"):
                known[:] = [(x, float(x @ x))]
        return known[0][1]


@dataclass(slots=True)
class Source:
    """Statistics of one source, bounded to a few hundred bytes.

    Attributes:
        name: Name of the source.
        evidence: For each test, the log likelihood ratio of honest to hostile, within
            ±``EVIDENCE_MAX``.
        means: Moving average of each test's measurements over about 9 events.
        taken: Number of events that were accepted or clipped.
        aside: Number of events that its budget alone kept from being taken here.
        offences, releases: Number of the last quarantine and of the last release; the source is
            quarantined while the first is larger.
        shadow: Number of events scored since it was quarantined.
        good: Whether a test had clear evidence for it (≥ 4) since it last turned.
        turned_at: Number of the arrival at which it went from good to evidence below −2; 0: never.
        recent: ``(features, event)`` digests of its last events, for the sample checks.
        labels: Count of each label it sent; beyond eight labels the rarest is dropped.
        extra: Sum over its taken events of weight − 1, at all replicas.
        denied: Rate at which the model lately found another label likelier than its own, here, of
            labels that others send, too.
        lately: Mean weight of its last events here; 0: there was none.
    """

    name: str
    evidence: dict[str, float] = field(default_factory=dict)
    means: dict[str, float] = field(default_factory=dict)
    taken: int = 0
    aside: int = 0
    offences: int = 0
    releases: int = 0
    shadow: int = 0
    good: bool = False
    turned_at: int = 0
    recent: tuple[tuple[int, int], ...] = ()
    labels: dict[str, int] = field(default_factory=dict)
    extra: float = 0.0
    denied: float = 0.0
    lately: float = 0.0

    @property
    def quarantined(self) -> bool:
        """Whether the source is quarantined."""
        return self.offences > self.releases

    @property
    def standing(self) -> float:
        """The lowest evidence of any test; 0 without evidence."""
        return min(self.evidence.values(), default=0.0)

    @property
    def sent(self) -> int:
        """Number of events that measures the source's size; a budget does not reduce it."""
        return self.taken + self.aside

    @property
    def trusted(self) -> bool:
        """Whether the tests are clearly for it: one (not only ``UNLIKELY``) or all that judged it.

        None may be against it.
        """
        nats = max([e for test, e in self.evidence.items() if test != UNLIKELY], default=0.0)
        return self.unblamed and max(nats, self.standing) >= _TRUSTED

    @property
    def unblamed(self) -> bool:
        """Whether no test has evidence against it that is worth mentioning.

        Tests of a single label count together: a source that mostly sends one label contradicts
        predictions of the others more often, and its own label less.
        """
        of_one_label = 0.0
        for test, nats in self.evidence.items():
            if test.startswith(_OF_ONE_LABEL):
                of_one_label += nats
            elif nats < _DOUBTED:
                return False
        return of_one_label >= _DOUBTED

    @property
    def doubted(self) -> bool:
        """Whether its labels are so often unlikely that reference statistics leave them out."""
        return self.evidence.get(UNLIKELY, 0.0) < _DOUBTED

    @property
    def weight(self) -> float:
        """The mean weight of its taken events at all replicas; 1 before the first."""
        return max(1.0 + self.extra / self.taken, _LIGHTEST) if self.extra and self.taken else 1.0

    def shares(self, weight: float, usual: float) -> tuple[float, float]:
        """Return how much an event of this weight says for and against the source, at most 2.

        It counts as a multiple of the source's own mean.  Against the source it counts at least as
        a multiple of the ``usual`` weight of all sources, up to 1, so that heavy true events do not
        make its false ones light.
        """
        if not self.taken or (weight == 1.0 and not self.extra):
            return 1.0, 1.0
        share = min(weight / self.weight, 2.0)
        return share, max(share, min(weight / usual, 1.0))

    def mean(self, test: str, x: float) -> None:
        """Update a test's moving average with one measurement."""
        old = self.means.get(test)
        self.means[test] = x if old is None else old + (x - old) / 5.0


class Opinion(msgspec.Struct, frozen=True, gc=False):
    """A filter's opinion on one event.

    Attributes:
        factor: Factor on the event's weight, in [0, 1].
        evidence: Nats for (> 0) or against (< 0) the source, within ±``STEP_MAX``.
        score: The measured statistic, finite, for display.
        detail: A second measurement, passed back in :meth:`Filter.learn`.
        reason: Why the factor is below 1; empty otherwise.
        stop: Quarantine the event at once; later filters are not called.
        refuse: The event is invalid (not finite, wrong shape); nothing is learned from it.
        off: The test is inactive now, and its earlier evidence does not count.
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
"""The opinion of an inactive test."""


class Filter:
    """The base class of tests; the chain uses no more than this interface.

    Attributes:
        name: Key of its evidence and its means.
        budgets: Whether its factor limits how much a source sends, rather than a single event.
        wrong: Whether it was mistaken, so that sources quarantined because of it are pardoned.
        turning: Whether it reports that the stream has changed, not the sources.
        concerns: The predicted label, or the label, whose events alone concern the test; on others
            it has no opinion, and learns nothing.  Both None: all do.
        bounds: Bounds on losses (empty at first: the test is off); None: the test does not use
            losses of other replicas' events.
        losses: Losses that it counts for the chain, or None.
    """

    name: str
    budgets: ClassVar[bool] = False
    wrong: bool = False
    turning: bool = False
    concerns: tuple[str | None, str | None] = None, None
    bounds: Mapping[str | None, Null] | None = None
    losses: Losses | None = None

    def watch(self, arrivals: Arrivals) -> None:
        """Receive the chain's arrival statistics; called once at the start."""

    def judge(self, event: Event, source: Source) -> Opinion:
        """Return an opinion on an event that concerns it.  Changes nothing and never raises."""
        raise NotImplementedError

    def learn(self, event: Event, opinion: Opinion, source: Source, *, taken: bool) -> None:
        """Learn from an event that concerns it and was written; ``taken``: accepted or clipped.

        Statistics by which other sources are judged are learned from taken events only.
        """

    def hear(self, source: Source, label: str | None, loss: float) -> None:
        """Learn the loss of an event that another replica has taken (only with ``bounds``)."""

    def refresh(self, sources: Sequence[Source]) -> None:
        """Recompute null distributions; ``sources`` are those of the last arrivals."""


def clipped_step(evidence: float) -> float:
    """Return ``evidence`` clipped to ±``STEP_MAX``; 0 for NaN."""
    if -STEP_MAX <= evidence <= STEP_MAX:
        return evidence
    return 0.0 if evidence != evidence else STEP_MAX if evidence > 0.0 else -STEP_MAX


class Probes:
    """A fixed random sample of a gradient's elements: ``n`` of ``size``, or all if fewer.

    Runs of sixteen elements are sampled, the size of a cache line, because reading a single element
    loads a whole line.
    """

    def __init__(self, size: int, n: int, rng: np.random.Generator) -> None:
        self._start = int(rng.integers(size % _LINE + 1))  # so that the last ones can be sampled
        self._stop = self._start + size // _LINE * _LINE
        self._lines: npt.NDArray[np.intp] | None = None
        if size > n:
            self._lines = np.sort(rng.choice(size // _LINE, n // _LINE, replace=False))

    def of(self, gradient: Gradient) -> Gradient:
        """Return the sampled elements of a gradient in their order."""
        if self._lines is None:
            return gradient
        lines = gradient[self._start : self._stop].reshape(-1, _LINE)
        return lines.take(self._lines, axis=0).reshape(-1)

    def of_each(self, gradients: Sequence[Gradient]) -> Gradient:
        """Return the sampled elements of several gradients, shape [n, m]."""
        if self._lines is None:
            return np.stack(gradients)
        out = np.empty((len(gradients), len(self._lines), _LINE), np.float32)
        for gradient, row in zip(gradients, out, strict=True):
            lines = gradient[self._start : self._stop].reshape(-1, _LINE)
            lines.take(self._lines, axis=0, out=row, mode="clip")  # other modes use a buffer
        return out.reshape(len(gradients), -1)


def quantile(values: Iterable[float], level: float) -> float:
    """Return a quantile of one or more numbers, interpolated; numpy's takes 26 µs for eighty."""
    order = sorted(values)
    at = level * (len(order) - 1)
    below = order[int(at)]
    return below + (order[min(int(at) + 1, len(order) - 1)] - below) * (at - int(at))


def keyed(key: bytes) -> np.random.Generator:
    """Return a counter-based generator (Philox) seeded by the key only.

    So an event gives the same draws in every process and every replay.
    """
    words = np.frombuffer(key.ljust(16, b"\0")[:16], dtype="<u8")
    return np.random.Generator(np.random.Philox(key=words))
