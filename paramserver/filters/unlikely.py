"""How often is a source's label one that the model finds less likely than most?

:mod:`paramserver.filters.surprise` looks at losses that nine of ten honest ones are not above.
Where the model is wrong in one of four, a lie is seldom so far off, and that test has no power.  So
this one asks for less and compares more closely.  *Unlikely* is a label whose loss four of five
honest ones with this label are not above, or that the model finds less likely than not: a lie is
that in most cases wherever the model knows something.  Honest sources say such a thing as often as
the median one does *now*, or as is usual for the label, and a tenth more, as each is different;
hostile ones in 70 % of cases, or a fifth more often than that.  From a rate of 60 % on the test
says nothing, as when the world turns.

Three things differ from the other test, all because a flood of lies is believed after some forty
and is likely from then on.  Good behaviour counts for two nats at most: who has behaved is not free
to lie for long.  Events of one source are compared with how long ago its last one was: what makes
sources surprise together is over after some events, so only who sends at once says less.  And
before there is evidence enough to set anybody aside, those in *doubt* (the same test, less careful)
share an allowance: together they weigh a tenth of what the others send.  One unlucky source among
many hardly uses it; liars of whom there are many have little of it each.  New sources are weighed
together, as by the test on surprise: where lies seldom surprise, new names for ever were believed.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import log
from typing import Final

import numpy as np

from paramserver.filters.arrivals import EARNED
from paramserver.filters.base import (
    EVIDENCE_MAX,
    OFF,
    PASS,
    UNLIKELY,
    Event,
    Filter,
    Opinion,
    Source,
)
from paramserver.filters.losses import Null
from paramserver.filters.surprise import Newcomers, Surprise
from paramserver.filters.voices import Voices

_MORE: Final = 0.1
_RATE_MIN: Final = 0.3
_DOUBT_MORE: Final = 0.05
_DOUBT_RATE_MIN: Final = 0.25
"""What is different about an honest source, and its rate at least; for doubts there is less."""

_RATE_MAX: Final = 0.6
_HOSTILE: Final = 0.7
_APART: Final = 0.2
_CREDIT_MAX: Final = 2.0
_DOUBTED: Final = -0.5
_SHARE: Final = 0.1
_DEPTH: Final = 3.0
"""Allowance of those in doubt: so much of an event for each of the others; events at most."""

_KNOWN: Final = 1024

_REASON: Final = "unlikely: sources in doubt together say what others find unlikely"
_NEW_REASON: Final = "unlikely: new sources together say what others find unlikely"


class Unlikely(Filter):
    """The test on unlikely labels.  Says nothing before the test on surprise does.

    Parameters:
        surprise: The test on all events, whose nulls it shares.  It is to be refreshed first.

    Attributes:
        voices: How often each source says what is unlikely.
    """

    name = UNLIKELY

    def __init__(self, surprise: Surprise) -> None:
        self._surprise = surprise
        self.bounds: dict[str | None, Null] = {}
        self.voices = Voices()
        self._doubts: dict[str, float] = {}  # nats, last judged at the end
        self._left = _DEPTH
        self._new = Newcomers()

    def judge(self, event: Event, source: Source) -> Opinion:
        if not self.bounds:
            return OFF
        bounds = self.bounds.get(self._surprise.losses.kind(event.label))
        if event.loss is None or bounds is None:
            return PASS
        middle = self.voices.middle(event.source)
        if middle is None:
            return PASS
        usual = max(middle, bounds.share)
        rate = max(usual + _MORE, _RATE_MIN)
        if rate >= _RATE_MAX:
            return PASS
        again = self._surprise.again ** self.voices.gap(event.source)
        fresh = (1.0 - again) / (1.0 + again) / self.voices.size(source.taken) ** 0.5
        if self._surprise.losses.numbers:
            fresh /= self.voices.run(event.source) ** 2
        hit = event.loss > bounds.unlikely
        evidence = fresh * _says(hit, rate)
        if not hit:
            evidence = min(evidence, max(_CREDIT_MAX - source.evidence.get(self.name, 0.0), 0.0))
        if source.taken < EARNED:
            weight = self._new.weight(usual + _MORE) if hit else 1.0
            return Opinion(weight, evidence, event.loss, "" if weight == 1.0 else _NEW_REASON)
        doubt = fresh * _says(hit, max(usual + _DOUBT_MORE, _DOUBT_RATE_MIN))
        doubt = min(self._doubts.get(event.source, 0.0) + doubt, _CREDIT_MAX)
        in_doubt = doubt < _DOUBTED or event.source in self.voices.flooding
        weight = min(self._left, 1.0) if in_doubt else 1.0
        reason = "" if weight == 1.0 else _REASON
        return Opinion(weight, evidence, doubt, reason, detail=-1.0 if in_doubt else 1.0)

    def learn(self, event: Event, opinion: Opinion, source: Source, *, taken: bool) -> None:
        if opinion.detail:
            self._doubts.pop(event.source, None)
            self._doubts[event.source] = max(opinion.score, -EVIDENCE_MAX)
            if len(self._doubts) > _KNOWN:
                del self._doubts[next(iter(self._doubts))]
            if opinion.detail > 0.0:
                self._refill()
            elif taken:
                self._left = max(self._left - opinion.factor, 0.0)
        bounds = self.bounds.get(self._surprise.losses.kind(event.label))
        if event.loss is not None and bounds is not None:
            self._count(source, hit=event.loss > bounds.unlikely)

    def hear(self, source: Source, label: str | None, loss: float) -> None:
        """Another replica has taken an event with this loss."""
        bounds = self.bounds.get(self._surprise.losses.kind(label))
        if bounds is not None:
            if self._doubts.get(source.name, 0.0) >= _DOUBTED:
                self._refill()
            self._count(source, hit=loss > bounds.unlikely)

    def _refill(self) -> None:
        self._left = min(self._left + _SHARE, _DEPTH)

    def _count(self, source: Source, *, hit: bool) -> None:
        if source.quarantined:
            return
        self._new.count(new=source.taken < EARNED, hit=hit)
        if source.taken < EARNED:
            self.voices.pass_by(source.name)
        else:
            self.voices.hear(source.name, source.taken, hit=hit, far=False)

    def refresh(self, rng: np.random.Generator, sources: Sequence[Source]) -> None:
        surprise = self._surprise
        self.bounds = surprise.bounds
        self.voices.flooding = surprise.voices.flooding
        self.voices.many, self.voices.usual = surprise.voices.many, surprise.voices.usual
        if surprise.turning:
            self._doubts = {}


def _says(hit: bool, rate: float) -> float:
    """Nats for honesty, if honest sources say what is unlikely at this rate."""
    hostile = max(_HOSTILE, rate + _APART)
    return log(rate / hostile) if hit else log((1.0 - rate) / (1.0 - hostile))
