"""The chain of filters, which combines their opinions to a verdict on each event.

``decide`` changes nothing; its verdict is final once it is written.  ``observe`` is called for each
written event, in the order of the rows, with the verdict that was written.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from itertools import product
from math import exp, inf, log
from typing import Final

import msgspec

from paramserver.core.blocks import Blocks
from paramserver.evidence.losses import Losses
from paramserver.filters.arrivals import EARNED, Arrivals
from paramserver.filters.base import (
    ACCEPTED,
    CLIPPED,
    EVIDENCE_MAX,
    OFF,
    PASS,
    QUARANTINED,
    REFUSED,
    Event,
    Filter,
    Opinion,
    Source,
    keyed,
)
from paramserver.filters.direction import Direction
from paramserver.filters.favours import Favours
from paramserver.filters.norm import Norm
from paramserver.filters.rate import Rate
from paramserver.filters.reference import Reference
from paramserver.filters.samples import Samples
from paramserver.filters.schema import Schema
from paramserver.filters.sources import SOURCES_MAX, Effects, Sources, condemned_by, has_turned
from paramserver.filters.surprise import Surprise
from paramserver.filters.unlikely import Unlikely

QUARANTINE_AT: Final = -6.0
"""By Wald's bound an honest source is quarantined with probability of about e⁻⁶ = 0.25 %."""

REFRESH_EVERY: Final = 10
RELEASE_AFTER: Final = 20
OFFENCES_MAX: Final = 3
"""From this quarantine on only an operator can release the source."""

DRIFT_SHARE: Final = 0.4
DRIFT_SOURCES_MIN: Final = 4
LATELY_MAX: Final = 512
HEARD_MAX: Final = 256
"""Greatest number of events of a source that are processed at once from other replicas."""

_NOBODY: Final = "no test"
_WHOLE: Final = 0.95
"""Weights from here on count as 1, so that sources in good standing have full weight."""

_CLEAR: Final = log(_WHOLE / (1.0 - _WHOLE)) + 0.01
"""Evidence and credit (nats) from which on the weight certainly counts as 1."""

_ALL: Final = (None, None)
_KINDS_MAX: Final = 64


class Verdict(msgspec.Struct, frozen=True, gc=False):
    """The verdict on an event.

    Attributes:
        verdict: ``accepted``, ``clipped``, ``quarantined`` or ``refused``.
        weight: Factor in [0, 1] for the source's standing and budget.
        clip: Factor in [0, 1] for this event.
        score: Statistic of the deciding test, finite.
        reason: ``test: why``, for people; empty if accepted.
        opinions: Opinions of the filters called, of those that the event concerns; not written, but
            passed back to ``observe``.
    """

    verdict: str
    weight: float
    clip: float
    score: float
    reason: str
    opinions: tuple[Opinion, ...]

    @property
    def factor(self) -> float:
        """The factor on the event's weight when it is learned."""
        return self.weight * self.clip

    @property
    def taken(self) -> bool:
        """Whether the event is learned (accepted or clipped)."""
        return self.verdict in (ACCEPTED, CLIPPED)


class Chain:
    """The filters of one model's feedback in one process.  Not thread-safe.

    Parameters:
        filters: The filters, in the order in which they are called.
        reference: The root set, sampled at each refresh, or None.
        sources_max: Greatest number of sources with statistics.
        refresh_every: Number of arrivals between two refreshes.
        credit: Evidence in nats that every source is credited with when its weight is computed.
            With 0, an unknown source has half of the weight.

    Attributes:
        sources: Statistics of the sources.
        losses: Losses of taken events.
        arrivals: The last arrivals, here and at other replicas.
        drift: Whether many sources have turned at once, so that the stream has changed.  Meanwhile
            no source is quarantined; clipping, quarantine of single events, and budgets go on.
    """

    def __init__(
        self,
        filters: Sequence[Filter],
        *,
        reference: Reference | None = None,
        sources_max: int = SOURCES_MAX,
        refresh_every: int = REFRESH_EVERY,
        credit: float = 0.0,
    ) -> None:
        self._credit, self._clear = credit, _CLEAR - credit
        self.filters = tuple(filters)
        self.reference = reference
        self.sources = Sources(sources_max)
        kept = (test.losses for test in self.filters if test.losses is not None)
        self.losses = next(kept, Losses())
        self.drift = False
        self.alarms = 0
        self._every = refresh_every
        self._arrivals = 0
        self.arrivals = Arrivals()
        self._concerned: dict[tuple[str | None, str | None], tuple[Filter, ...]] = {}
        self._concern_all = all(test.concerns == _ALL for test in self.filters)
        for test in self.filters:
            test.watch(self.arrivals)

    def _asked(self, event: Event) -> tuple[Filter, ...]:
        """Return the filters that an event concerns."""
        if self._concern_all:
            return self.filters
        kind = event.answer, event.label
        asked = self._concerned.get(kind)
        if asked is None:
            if len(self._concerned) >= _KINDS_MAX:
                self._concerned = {}
            its = _ALL, (event.answer, None), (None, event.label)
            asked = tuple([test for test in self.filters if test.concerns in its])
            self._concerned[kind] = asked
        return asked

    def decide(self, event: Event) -> Verdict:
        """Return the verdict on an event.  Changes nothing."""
        source = self.sources.get(event.source)
        opinions, plain = list[Opinion](), not source.quarantined
        for test in self._asked(event):
            opinion = test.judge(event, source)
            opinions.append(opinion)
            if opinion is PASS:
                continue
            if opinion.stop:
                kind = REFUSED if opinion.refuse else QUARANTINED
                return Verdict(kind, 0.0, 0.0, opinion.score, opinion.reason, tuple(opinions))
            if opinion.factor != 1.0 or opinion.evidence < 0.0:
                plain = False
        # nothing is against it: its standing is at least what is known of its source
        if plain and min(source.evidence.values(), default=EVIDENCE_MAX) >= self._clear:
            return Verdict(ACCEPTED, 1.0, 1.0, 0.0, "", tuple(opinions))
        return self._combined(event, source, tuple(opinions))

    def _combined(self, event: Event, source: Source, asked: tuple[Opinion, ...]) -> Verdict:
        """Return the verdict by all opinions and by what is known of the source."""
        weight, clip, worst = 1.0, 1.0, PASS
        standing, test_name = EVIDENCE_MAX, _NOBODY  # the lowest evidence, this event's included
        evidence, shares = source.evidence, self.arrivals.shares(source, event.weight)
        judged = zip(self._asked(event), asked, strict=True)
        known = {test.name: opinion for test, opinion in judged}
        for test in self.filters:
            nats, opinion = evidence.get(test.name), known.get(test.name)
            if opinion is None:  # the event does not concern it
                opinion = PASS if test.bounds is None or test.bounds else OFF
            if opinion is PASS:
                if nats is not None and nats <= standing:
                    standing, test_name = nats, test.name
                continue
            if test.budgets:
                weight *= opinion.factor
            else:
                clip *= opinion.factor
            if opinion.factor < worst.factor:
                worst = opinion
            if opinion.evidence != 0.0:
                share = shares[opinion.evidence < 0.0]
                nats = min((nats or 0.0) + opinion.evidence * share, EVIDENCE_MAX)
            if nats is not None and nats <= standing and not opinion.off:
                standing, test_name = nats, test.name
        standing = 0.0 if test_name == _NOBODY else standing
        if source.quarantined or (standing < QUARANTINE_AT and not self.drift):
            reason = f"{test_name}: the source is quarantined"
            return Verdict(QUARANTINED, 0.0, 0.0, standing, reason, asked)
        # without evidence a source has full weight, not 1/2
        trust = 1.0 if test_name == _NOBODY else 1.0 / (1.0 + exp(-standing - self._credit))
        weight *= 1.0 if trust >= _WHOLE else trust
        if weight * clip == 1.0:
            return Verdict(ACCEPTED, 1.0, 1.0, worst.score, "", asked)
        reason = worst.reason or f"{test_name}: the source's standing is {standing:.1f}"
        return Verdict(CLIPPED, weight, clip, worst.score or standing, reason, asked)

    def observe(self, event: Event, verdict: Verdict) -> None:
        """Learn from an event that was written with this verdict, in the order of the rows."""
        if verdict.verdict == REFUSED:
            return
        source, taken, drift = self.sources.begin(event.source), verdict.taken, self.drift
        self._arrivals += 1
        new = source.taken < EARNED and not source.quarantined
        self.arrivals.add(event.source, new=new, weight=event.weight)
        shares: tuple[float, float] | None = None
        source.lately += (event.weight - source.lately) / (8.0 if source.lately else 1.0)
        for test, opinion in zip(self._asked(event), verdict.opinions, strict=False):
            test.learn(event, opinion, source, taken=taken)
            # evidence against sources does not count while the stream changes
            if (evidence := opinion.evidence) > 0.0 or (evidence < 0.0 and not drift):
                shares = shares or self.arrivals.shares(source, event.weight)
                nats = evidence * shares[evidence < 0.0]
                self.sources.add(source, test.name, nats, self._arrivals)
        if source.turned_at == self._arrivals and not drift:
            self._look_for_drift(self._seen_lately())  # before the first is condemned for it
        if taken:
            self.sources.take(source, event.weight)
        elif source.quarantined:
            self._shadow(source)
        elif source.unblamed and self._is_over_budget(event, verdict):
            source.aside += 1
        if source.standing < QUARANTINE_AT and not self.drift:
            self.sources.quarantine(source)
        if self._arrivals % self._every == 0:
            self.refresh(event.key, event.version)

    def _is_over_budget(self, event: Event, verdict: Verdict) -> bool:
        asked = zip(self._asked(event), verdict.opinions, strict=False)
        return any(test.budgets and opinion.factor < 1.0 for test, opinion in asked)

    def take_back(self, source: str, evidence: Mapping[str, float]) -> None:
        """Revert the evidence of an event that a later one has corrected."""
        if evidence and not self.drift:
            known = self.sources.get(source)
            for test, nats in evidence.items():
                self.sources.add(known, test, -nats, self._arrivals)

    def catch_up(self, key: bytes, version: int) -> None:
        """Process events that other replicas have taken, before the event with this key is decided.

        So a replica with few events of its own judges as one that receives all.  ``version``: as in
        :meth:`refresh`.
        """
        if not self.sources.heard and not self.losses.heard:
            return
        taken, self.sources.heard = self.sources.heard, {}
        heard, self.losses.heard = self.losses.heard, []
        if not taken:  # a starting replica has only losses
            taken = Counter(name for name, _, _ in heard)
        before = self._arrivals // self._every
        for name, n in taken.items():
            source, n = self.sources.get(name), min(n, HEARD_MAX)
            self._arrivals += n
            for before in range(source.taken - n, source.taken):
                new = before < EARNED and not source.quarantined
                self.arrivals.add(name, new=new, weight=source.weight)
        tests = [test for test in self.filters if test.bounds is not None]
        if any(not test.bounds for test in tests):
            self.refresh(key, version)
        left = Counter(name for name, _, _ in heard)
        for name, label, loss in heard:
            source = self.sources.get(name)
            total, source.taken = source.taken, max(source.taken - left[name], 0)
            for test in tests:  # the source was as new as it was at that event
                test.hear(source, label, loss)
            source.taken, left[name] = total, left[name] - 1
        if self._arrivals // self._every > before:
            self.refresh(key, version)

    def cut(self) -> Blocks:
        """Return the increments of the observed events, to be pushed with their range of rows."""
        return self.sources.cut() | self.losses.cut()  # their block names differ

    def effects(self) -> Effects:
        """Return the effects of the event observed last, in place of :meth:`cut`."""
        effects = self.sources.end()
        effects.more.update(self.losses.cut())
        return effects

    def rebase(self, values: Blocks) -> None:
        """Replace statistics by the server's plus open increments; quarantine by the result."""
        for name in self.losses.blocks:
            if (block := values.get(name)) is not None:
                self.losses.rebase(block.data)
        for source in self.sources.rebase(values, self._arrivals):
            if source.standing < QUARANTINE_AT and not self.drift:
                self.sources.quarantine(source)

    def reset(self, values: Blocks) -> None:
        """Replace all statistics by ``values``, with no open increments."""
        self.losses.reset()
        self.sources.reset({}, self._arrivals)
        self.rebase(values)

    def _shadow(self, source: Source) -> None:
        source.shadow += 1
        redeemed = source.shadow >= RELEASE_AFTER and source.standing > 0.0
        if redeemed and source.offences < OFFENCES_MAX:
            self.sources.release(source)

    def refresh(self, key: bytes, version: int) -> None:
        """Recompute null distributions, seeded by the last event's key, and check for drift.

        Parameters:
            version: Version of the parameters with which the root set's gradients are computed.
        """
        if self.reference is not None:
            self.reference.refresh(keyed(key), version)
        lately = self._seen_lately()
        self.arrivals.refresh(lately)
        for test in self.filters:
            test.refresh(lately)
        self._look_for_drift(lately)
        for name in (test.name for test in self.filters if test.wrong):
            for source in lately:  # quarantined before the test was known to be wrong
                mistaken = source.quarantined and condemned_by(source, name)
                if mistaken and source.offences < OFFENCES_MAX:
                    self.sources.pardon(source)

    def _seen_lately(self) -> list[Source]:
        return [self.sources.get(name) for name in self.arrivals.lately(LATELY_MAX)]

    def _look_for_drift(self, lately: Sequence[Source]) -> None:
        since = max(self._arrivals - len(self.arrivals), 0)
        voting = [s for s in lately if s.name not in self.arrivals.flooding]
        turned = [s for s in voting if s.turned_at > since and has_turned(s)]
        many = len(turned) >= max(DRIFT_SOURCES_MIN, DRIFT_SHARE * len(voting))
        # the largest senders reach quarantine before the others have sent enough to turn
        turning = {test.name for test in self.filters if test.turning}
        drift = many or bool(turning)
        if drift and not self.drift:
            self.alarms += 1
            for source in turned if many or Surprise.name in turning else ():
                self.sources.pardon(source)
        self.drift = drift


NAMES: Final = ("rate", "samples", "norm", "direction", "surprise")
"""Names of the tests that can be requested, in the order in which they are called."""

NEED_GRADIENT: Final = frozenset({"norm", "direction"})

_ROWS_REFRESH: Final = 50
_ROWS_ENOUGH: Final = 32
_ROWS_CREDIT: Final = 5.0
_ROWS_LEVEL: Final = 0.99


def by_name(
    names: Collection[str],
    size: int | None,
    reference: Reference | None,
    *,
    answers: Sequence[str] = (),
    rewards: bool = False,
    numbers: bool = False,
    sources_max: int = SOURCES_MAX,
) -> Chain:
    """Return a chain of the named tests for single rows, omitting tests whose inputs are missing.

    The gradient of a single row is not an average: its norm depends on how wrong the model was.  So
    only the longest 1 % are clipped, and no event is quarantined by itself; each is only evidence.
    Budgets reduce weights and quarantine nothing, because the total weight of a flood is bounded.
    Sources are trusted at first.

    Parameters:
        size: Length of gradients, or None.
        answers: A few labels whose predictions are also tested separately.
        rewards: Whether events are rewards of choices, which are also tested by action.
        numbers: Whether labels are numbers, prefixed by the sign of their error (+ or -).
    """
    filters: list[Filter] = [Schema(size, numbers=numbers)]
    for name in NAMES:
        if name not in names or (size is None and name in NEED_GRADIENT):
            continue
        if name == Rate.name:
            filters.append(Rate(refuse_at=inf))
        elif name == Samples.name:
            filters.append(Samples())
        elif name == Norm.name:
            filters.append(Norm(reference, level=_ROWS_LEVEL, alone=False))
        elif name == Surprise.name:
            of_all = Surprise(numbers=numbers, answers=answers)
            filters.append(of_all)
            for about, answer in product((False, True), answers):
                filters.append(Surprise(answer, about=about, enough=_ROWS_ENOUGH, like=of_all))
            filters.append(Unlikely(of_all, rewards=rewards))
            if rewards:
                filters.append(Favours())
        elif name == Direction.name:
            if reference is not None and reference.problem is None:
                filters.append(Direction(reference, alone=False))
        else:
            raise ValueError(f"nothing makes the test {name!r}: add it here as well as to NAMES")
    return Chain(
        filters,
        reference=reference,
        sources_max=sources_max,
        refresh_every=_ROWS_REFRESH,
        credit=_ROWS_CREDIT,
    )
