"""A sequential test of each source on how often its labels surprise the model.

It works with every model that has a loss, including trees.  Its rules:

- *A surprise* is a loss above the bound of its label: the median over sources of the 90 % quantile
  of their last taken losses with that label, over all replicas
  (:mod:`paramserver.evidence.sums`).  One bound for all labels would reject honest sources that
  send harder labels; a quantile of all losses would be determined by attackers or floods.
- *The test* is a Bernoulli test.  Honest sources surprise at a rate of at most q₀: twice the median
  over the active established sources (:mod:`paramserver.evidence.voices`), at least 20 %.  Hostile
  ones surprise at 70 % or more.  A source beside which too few are established can only gain trust:
  it is compared with all small sources together.
- *Far off* is a loss above four times the bound.  It is rare with honest sources (5 %, or twice the
  median), half of what hostile ones send, and counts more, because a model that learns fast soon
  believes a frequent lie, which then no longer surprises.  While far-off events are more frequent
  than usual over all sources, they get less weight, until it is known which sources are hostile.
- *When the stream changes*, all sources surprise and q₀ rises; from 60 % on the test is inactive.
- *New sources* are weighted together, as new names are free (:mod:`paramserver.filters.newcomers`).
  While they surprise more often than the established sources at that time, their events together
  get a twentieth of the weight of the established sources' events.  Beside eight established
  sources (fewer may be a flood from the first row on), so do those that do not surprise, such as
  lies that the model believes already, if they surprise clearly more often.

If labels are numbers, weights are reduced only in floods (after a shift of the level, reduced
weights would delay learning), and for errors above the 90 % quantile, which are learned as if equal
to it, because a single lie seven hundred times as large corrupted the model.  Of consecutive rows
of one source the second and later ones count a quarter as evidence, because they belong to one
moment (in the test on unlikely labels the n-th counts 1/n²), and far-off counts like a surprise.

Events that other replicas have taken are processed like own ones, so a replica with few events of
its own judges equally well.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from paramserver.evidence.losses import Losses
from paramserver.evidence.mixes import Mixes
from paramserver.evidence.sums import Null
from paramserver.evidence.voices import Voices
from paramserver.filters.arrivals import EARNED, Arrivals, is_new
from paramserver.filters.base import (
    EVIDENCE_MAX,
    OFF,
    PASS,
    STEP_MAX,
    Event,
    Filter,
    Opinion,
    Source,
)
from paramserver.filters.newcomers import DENIED_LATELY, DENIED_MIN, Newcomers

_KEPT: Final = 1024
_ENOUGH: Final = 64
_RATE_MAX: Final = 0.6
_HOSTILE: Final = 0.7
_APART: Final = 0.2

_RHO_MAX: Final = 0.8
_OF_A_RUN: Final = 0.25

_FAR_HOSTILE: Final = 0.5
_HEARD: Final = 0.3
"""Weight of far-off events while they are frequent over all sources."""

_DENIED_MORE: Final = 0.1
_BESIDE_SMALL_ONES: Final = 4.0
"""Margin for the rate at which a source that only small ones can be compared with is contradicted,
above theirs; and the greatest evidence for it in nats."""

_LARGEST: Final = 1.0
"""Greatest error that is learned with numeric labels, in units of the 90 % quantile."""

ABOUT: Final = "surprise about "
"""Prefix of the names of tests on one label, which the label follows."""

_LARGE: Final = 4.0
"""Size, relative to the median source, from which on a source's own mix of labels counts."""

_LEAST: Final = 0.25
_GOOD: Final = 6.5
"""Least weight of a source without an allowance while it has so much evidence (nats): two surprises
beyond the allowance end that.  A model without weights learns such rows; it never learned honest
rows of a new kind, so they went on surprising."""

_REASON: Final = "surprise: one of many labels at once that are far from what was expected"
_LARGE_REASON: Final = (
    "surprise: an error larger than the usual ones is learned as the largest of them"
)


class Surprise(Filter):
    """The test on losses.  It is inactive before 64 taken events have a loss.

    Parameters:
        answer: Judge only events for which the model predicted this label (its JSON text), so that
            a source's lies about few things are not diluted by its other events.  None: all events.
        about: Also judge events that were sent with this label, so that lies in both directions are
            not diluted.  Such a test only gives evidence and reduces no event's weight.
        enough: Number of taken events before the test is active.
        losses: Losses counted by another such test; None: this test counts them.
        like: The test on all events, which counts losses, mixes and recent losses for a test of one
            label; None: it counts its own.
        numbers: Whether labels are numbers, in the form of :class:`Losses`.
        answers: The two labels, if there are two, for :class:`Losses`.
        mixes: Another test's label mixes; None: own ones.

    Attributes:
        losses: Losses from which the bounds are computed.
        every: The last taken losses, also those of sources that have had their share.
        voices: Rates of surprises by source.
        mixes: Label mixes by source.
        bounds: Bounds by label.
        again: Correlation between surprises of consecutive events of different sources.
        turning: Whether nearly all sources surprise now, so that the stream has changed.
        arrivals: The last arrivals, which the chain counts.
    """

    name = "surprise"

    def __init__(
        self,
        answer: str | None = None,
        *,
        about: bool = False,
        enough: int = _ENOUGH,
        losses: Losses | None = None,
        like: Surprise | None = None,
        numbers: bool = False,
        answers: Sequence[str] = (),
        mixes: Mixes | None = None,
    ) -> None:
        if answer is not None:
            self.name = f"{ABOUT if about else 'surprise at '}{answer}"
            self.concerns = (None, answer) if about else (answer, None)
        self._answer, self._about, self._enough = answer, about, enough
        if like is not None:
            losses, mixes = like.losses, like.mixes
        self._counts, self._adds = losses is None, like is None
        self.losses: Losses = Losses(numbers=numbers, answers=answers) if losses is None else losses
        self._numbers = self.losses.sums.numbers
        self.mixes: Mixes = Mixes(answers) if mixes is None else mixes
        self.every = _Lately()
        self._lately: _Lately = _Lately() if like is None else like.every
        self.arrivals = Arrivals()
        self.voices = Voices()
        self._new = Newcomers()
        self.bounds: dict[str | None, Null] = {}
        self.again = 0.0
        self._fresh = 1.0  # factor on evidence because surprises are correlated
        self.turning = False
        self._judged: tuple[Event | None, Null | None] = None, None  # last, and its label's bounds

    def judge(self, event: Event, source: Source) -> Opinion:
        if not self.bounds:
            return self._beside_small_ones(event, source)
        of_all, loss, name = self._answer is None, event.loss, source.name
        bounds = self._bounds_of(event.label)
        self._judged = event, bounds
        if loss is None or bounds is None:
            return self._beside_small_ones(event, source)
        calm = loss <= bounds.high and source.evidence.get(self.name) == EVIDENCE_MAX
        if calm and self._is_sure(source):
            return PASS
        rate, numbers = self.voices.rate(name), self._numbers
        if rate is None:
            return self._beside_small_ones(event, source)
        flooding, size = name in self.voices.flooding, self.voices.size(source.sent)
        if self._answer is not None:
            large = size >= _LARGE and not flooding
            rate = self.mixes.rate(rate, name, self._answer, large=large)
        if rate >= _RATE_MAX:
            return PASS
        hostile, fresh = rate + _APART, self._fresh
        if hostile < _HOSTILE:
            hostile = _HOSTILE
        if size > 1.0:
            fresh /= size**0.5  # its events between two events of others are correlated
        if numbers:
            fresh *= max(1.0 / self.voices.run(source.name) ** 2, _OF_A_RUN)
        hit, far = loss > bounds.high, loss > bounds.far
        allowed, weight, reason = 1.0, 1.0, ""
        if flooding or (of_all and not numbers):
            allowed = self._allowed(source, flooding=flooding)
        if of_all:
            weight, reason = allowed, _OFTEN_REASON
            if is_new(source):
                weight = self._new.most(event.weight)
                weight *= self._new.weight(rate, hit=hit, compared=self.arrivals.compares)
                reason = _NEW_REASON
            if numbers and (most := _LARGEST * bounds.high) < weight * loss:
                weight, reason = most / loss, _LARGE_REASON
        if hit and (loss <= bounds.against or self.voices.is_hard(event.label)):
            evidence = 0.0
        elif far:
            far_rate, rush = self.voices.far(event.source)
            least = math.log(rate / hostile)
            if not numbers:  # numeric errors have heavy tails
                least = min(math.log(far_rate / _FAR_HOSTILE), least)
            evidence = max(fresh * least, -STEP_MAX)
            if rush and not self._about and weight > _HEARD:
                weight, reason = _HEARD, _REASON  # the tests by label need not reduce it again
        elif hit:
            evidence = fresh * math.log(rate / hostile)
        else:
            evidence = fresh * math.log((1.0 - rate) / (1.0 - hostile))
            if flooding:
                evidence *= allowed  # a flood must not earn positive evidence by its volume
        return Opinion(weight, evidence, loss, "" if weight == 1.0 else reason)

    def _bounds_of(self, label: str | None) -> Null | None:
        """Return the bounds of a label, or of a number's fifth and side."""
        if not self._numbers and (bounds := self.bounds.get(label)) is not None:
            return bounds  # the label is short, as most are
        return self.bounds.get(self.losses.sums.kind(label))

    def _is_sure(self, source: Source) -> bool:
        """Return whether an event that does not surprise changes nothing.

        There is no more evidence for the source to be had; so its weight has to be whole.
        """
        name = source.name
        if not source.good or name in self.voices.flooding:
            return False
        if self._answer is not None:
            return True
        return not is_new(source) and self.voices.weight(name, source.sent) == 1.0

    def _beside_small_ones(self, event: Event, source: Source) -> Opinion:
        """Judge a source beside all small and new ones together, if too few can be compared.

        So a large source is soon trusted.  New names are free: for what they say no source is
        condemned, and it is trusted with little more than it takes.
        """
        known, denied = source.evidence.get(self.name, 0.0), self._is_denied(event)
        apart = source.taken >= EARNED and self.voices.run(source.name) == 1
        if denied is None or not apart or not 0.0 <= known <= _BESIDE_SMALL_ONES:
            return PASS if self.bounds else OFF
        usual = min(self._new.denied + _DENIED_MORE, 0.5)
        nats = 0.5 * math.log(usual / (1.0 - usual))
        gain, loss = self.arrivals.shares(source, event.weight)
        most = (_BESIDE_SMALL_ONES - known) / gain
        nats = max(nats, -known / loss) if denied else min(-nats, most)  # within both bounds
        return Opinion(1.0, nats, event.loss or 0.0)

    def _is_denied(self, event: Event) -> bool | None:
        """Return whether another label would have been likelier; None: unknown, as for numbers."""
        if event.loss is None or self._answer is not None:
            return None
        if self.losses.sums.two:
            return event.loss > math.log(2.0)
        return None if event.other is None else event.loss > event.other[1]

    def watch(self, arrivals: Arrivals) -> None:
        """Use the chain's arrivals, by which flooding sources get less weight."""
        self.arrivals = arrivals
        if self._answer is None:
            arrivals.newcomers.append(self._new)  # a budget asks whether they agree

    def _allowed(self, source: Source, *, flooding: bool) -> float:
        """Return the weight of the source's events from its surprises and its rate."""
        new = source.taken < EARNED
        allowed = 1.0 if new else self.voices.weight(source.name, source.sent)
        if allowed < _LEAST and not flooding and source.evidence.get(self.name, 0.0) >= _GOOD:
            allowed = _LEAST
        if flooding and (most := self.arrivals.own_budget(source.name)) is not None:
            allowed = min(allowed, most / max(self.arrivals.count(source.name), most))
        return allowed

    def _concerns(self, answer: str | None, label: str | None) -> bool:
        if self._answer is None or (answer == self._answer and not self._about):
            return True
        return self._about and label == self._answer

    def learn(self, event: Event, opinion: Opinion, source: Source, *, taken: bool) -> None:
        loss, label = event.loss, event.label
        if loss is None:
            return
        if self._answer is None:
            if self._counts:
                self.mixes.hear(source.name, label, loss)
            if (denied := self._is_denied(event)) is not None:
                self._note_denied(source, label, denied=denied)
        judged, bounds = self._judged
        if judged is not event:
            bounds = self._bounds_of(label)
        if bounds is not None:
            hit = loss > bounds.high
            if self._answer is None:
                source.mean(self.name, 1.0 if hit else 0.0)
            self._count(source, label, event.weight, hit=hit, far=loss > bounds.far)
        elif not self.bounds:
            self.voices.pass_by(source.name)
        if self._adds and taken and not source.doubted:
            self._add(event, loss)

    def _add(self, event: Event, loss: float) -> None:
        """Count a taken loss."""
        losses, kind = self.losses, self.losses.sums.kind(event.label)
        if losses.sums.two:
            self.every.add(event.source, kind, loss)
        if not self._counts or losses.add(event.source, event.label, loss, event.other):
            self._lately.add(event.source, kind, loss)

    def _note_denied(self, source: Source, label: str | None, *, denied: bool) -> None:
        if self.losses.sums.is_shared(label):
            source.denied += (denied - source.denied) / DENIED_LATELY
        small = source.sent <= self.voices.usual
        if small or source.taken < EARNED:
            self._new.note(denied=denied)
        if small and (source.taken >= EARNED or self.voices.many < EARNED):  # new names are free
            usual = self.arrivals.denied
            self.arrivals.denied += (max(denied, DENIED_MIN) - usual) / DENIED_LATELY
            if self.losses.sums.two:
                before = self.arrivals.denied_long
                before = 0.5 if before is None else before
                self.arrivals.denied_long = before + (denied - before) / _DENIED_LONG

    def hear(self, source: Source, label: str | None, loss: float) -> None:
        """Learn from an event that another replica has taken.

        Tests of one predicted label exist only with two labels; so if the loss exceeds ln 2, the
        model predicted the other label.
        """
        if self._answer is None and self.losses.sums.two:
            self._note_denied(source, label, denied=loss > math.log(2.0))
        bounds = self._bounds_of(label)
        if bounds is None:
            return
        if self._counts:
            self.mixes.hear(source.name, label, loss)
        denied = self._answer is not None and loss > math.log(2.0)
        answer = self._answer if denied != (label == self._answer) else None
        if self._concerns(answer, label):
            weight = source.weight
            self._count(source, label, weight, hit=loss > bounds.high, far=loss > bounds.far)

    def _count(
        self, source: Source, label: str | None, weight: float, *, hit: bool, far: bool
    ) -> None:
        if source.quarantined:
            return
        new = source.taken < EARNED
        if self._answer is None:
            blamed = source.doubted or source.name in self.voices.flooding
            self._new.count(new=is_new(source), hit=hit, weight=weight, blamed=blamed)
        if new:
            self.voices.pass_by(source.name)
        else:
            self.voices.hear(source.name, source.sent, hit=hit, far=far, label=label)

    def refresh(self, sources: Sequence[Source]) -> None:
        if self._counts:
            self.mixes.refresh()
        if self.losses.events >= self._enough:
            self.bounds = self.losses.sums.nulls()
            # honest labels that contradict learned poison are no change of the stream
            self.turning = not self._about and self.voices.turning()
            if self.turning:
                self.voices.forgive()
            self.again = self._lately.again(self.bounds)
            # correlated surprises carry less evidence: effective sample size of an AR(1) series
            self._fresh = (1.0 - self.again) / (1.0 + self.again)
        self.voices.flooding, self.voices.sizes = self.arrivals.flooding, self.arrivals.sizes
        sent = sorted([s.sent for s in sources if s.taken >= EARNED])
        if sent:
            self.voices.many, self.voices.usual = len(sent), sent[len(sent) // 2]


_DENIED_LONG: Final = 128.0
_OFTEN_REASON: Final = "surprise: the source often says what others that send now do not"
_NEW_REASON: Final = (
    "surprise: new sources together say what established ones do not, or with a larger weight"
)


class _Lately:
    """The last taken losses, in arrays that are scanned at each refresh.

    ``len`` is the number of known labels.
    """

    def __init__(self) -> None:
        self._fresh: list[tuple[str, str | None, float]] = []  # not in the arrays yet
        self._loss = np.zeros(2 * _KEPT)
        self._source = np.zeros(2 * _KEPT, np.int64)  # hashes: they are compared, nothing else
        self._label = np.zeros(2 * _KEPT, np.int64)  # places in the list of labels
        self._labels: dict[str | None, int] = {}
        self._n = 0
        self._again: tuple[Mapping[str | None, Null], float] | None = None

    def __len__(self) -> int:
        self._take()
        return len(self._labels)

    def add(self, source: str, label: str | None, loss: float) -> None:
        """Add a loss, dropping the oldest."""
        self._again = None
        self._fresh.append((source, label, loss))
        if len(self._fresh) == _KEPT:
            self._take()

    def _take(self) -> None:
        """Move new losses to the arrays."""
        fresh, self._fresh = self._fresh, []
        if self._n + len(fresh) > 2 * _KEPT:
            lately = slice(self._n - _KEPT, self._n)
            for kept in (self._loss, self._source, self._label):
                kept[:_KEPT] = kept[lately]
            self._n = _KEPT
            labels, left = list(self._labels), sorted(set(self._label[:_KEPT].tolist()))
            self._labels = {labels[at]: i for i, at in enumerate(left)}
            self._label[:_KEPT] = np.searchsorted(left, self._label[:_KEPT])
        new, self._n = slice(self._n, self._n + len(fresh)), self._n + len(fresh)
        self._loss[new] = [loss for _, _, loss in fresh]
        self._source[new] = [hash(source) for source, _, _ in fresh]
        place = self._labels.setdefault
        self._label[new] = [place(label, len(self._labels)) for _, label, _ in fresh]

    def again(self, bounds: Mapping[str | None, Null]) -> float:
        """Return the correlation of surprises of consecutive events of different sources.

        It is clipped to 0 … 0.8.
        """
        if self._again is None or self._again[0] is not bounds:
            self._take()
            self._again = bounds, self._correlation(bounds)
        return self._again[1]

    def _correlation(self, bounds: Mapping[str | None, Null]) -> float:
        lately = slice(max(self._n - _KEPT, 0), self._n)
        bound = np.array([bounds[x].high if x in bounds else math.nan for x in self._labels])
        of = bound[self._label[lately]]
        known = of == of  # NaN: such a label is compared with nothing
        hit, source = self._loss[lately] > of, self._source[lately]
        if not known.all():
            hit, source = hit[known], source[known]
        others = source[1:] != source[:-1]
        first, second = hit[1:] & others, hit[:-1] & others
        both, one, n, hits = map(int, map(np.count_nonzero, (first & second, first, others, hit)))
        one += int(np.count_nonzero(second))
        if not n or not 0 < hits < len(hit):
            return 0.0
        mean = hits / len(hit)
        of_pairs = both / n - mean * one / n + mean * mean
        return min(max(of_pairs / (mean * (1.0 - mean)), 0.0), _RHO_MAX)
