"""How likely is it that a source says what honest ones say?  A sequential test.

:mod:`paramserver.filters.surprise` looks at losses that nine of ten honest ones are not above.
Where the model is wrong in one of four, a lie is seldom so far off, and that test has no power.  So
this one compares each loss with those of honest labels *and* of wrong ones
(:mod:`paramserver.filters.odds`): where the model is right in three of five, a lie still says
something, if less than where it is nearly always right.  An honest source is one of whose
labels so many are wrong as of the median one *now*, and an eighth more, as each is different; of a
hostile one three in four are, or a quarter more than of an honest one.  From seven of ten on the
test says nothing, as when the world turns.  Of numbers and rewards no wrong ones are known: there
*unlikely* is an error that four of five honest ones are not above.  Honest sources say it as often
as the median one does, or is usual, and a tenth more; hostile ones in 70 % of cases, or a fifth
more often.

Three things differ from the other test, all because a flood of lies is believed after some forty
and is likely from then on.  Good behaviour counts for two nats at most: who has behaved is not free
to lie for long.  Events of one source are compared with how long ago its last one was: what makes
sources surprise together is over after some events, so only who sends at once says less.  And
before there is evidence enough to set anybody aside, those in *doubt* (the same test, less careful)
share an allowance: together they weigh a tenth of what the others send.  One unlucky source among
many hardly uses it; liars of whom there are many have little of it each.  So do those that flood,
where the test says nothing, and those of whose rows the model is suddenly unsure
(:mod:`paramserver.filters.rising`), too.  New sources are weighed together, as by the test on
surprise: where lies seldom surprise, new names for ever were believed.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import log
from typing import Final, NamedTuple

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
from paramserver.filters.losses import MILD, Null
from paramserver.filters.odds import NONE, key_of
from paramserver.filters.rising import Rising
from paramserver.filters.surprise import Newcomers, Surprise
from paramserver.filters.voices import Voices

_MORE: Final = 0.12
_DOUBT_MORE: Final = 0.05
"""Wrong labels of an honest source beyond those of the median one; for doubts there is less."""

_LIES: Final = 0.75
_APART: Final = 0.25
_LIES_MAX: Final = 0.7
_POWER_MIN: Final = 0.15
"""Wrong labels of a hostile one; of honest ones, from where on nothing is said; and how much more
often wrong ones are denied than honest ones, below which the model knows too little."""

_RATE_MORE: Final = 0.1
_RATE_MIN: Final = 0.3
_RATE_DOUBT_MORE: Final = 0.05
_RATE_DOUBT_MIN: Final = 0.25
_RATE_MAX: Final = 0.6
_RATE_LIES: Final = 0.7
_RATE_APART: Final = 0.2
"""The same of numbers and rewards, as rates of what is unlikely."""

_CREDIT_MAX: Final = 2.0
_DOUBTED: Final = -0.5
_SHARE: Final = 0.1
_DEPTH: Final = 3.0
"""Allowance of those in doubt: so much of an event for each of the others; events at most."""

_UNPROVEN: Final = 1.0 / 16.0
"""Weight of a label that few send, of a source whose rows it fits no better than others, or that
is doubted, as its labels are counted no more."""

_ONE_LABEL: Final = 6.0
"""Nats from where on a source suddenly sends one of two labels only.  With four, honest ones of a
stream whose labels come in runs lost half a point."""

_KNOWN: Final = 1024

_REASON: Final = "unlikely: sources in doubt together say what others find unlikely"
_UNPROVEN_REASON: Final = (
    "unlikely: hardly anybody else sends this label, and it fits these rows no better than others"
)
_NEW_REASON: Final = "unlikely: new sources together say what others find unlikely"


class Unlikely(Filter):
    """The test on unlikely labels.  Says nothing before the test on surprise does.

    Parameters:
        surprise: The test on all events, whose nulls it shares.  It is to be refreshed first.
        rewards: Events are rewards, of which no wrong ones are known, as of numbers.

    Attributes:
        voices: How often each source says what is unlikely.
    """

    name = UNLIKELY

    def __init__(self, surprise: Surprise, *, rewards: bool = False) -> None:
        self._surprise, self._rates = surprise, rewards or surprise.losses.numbers
        self._odds = NONE
        self.bounds: dict[str | None, Null] = {}
        self.voices = Voices()
        self._of_label: dict[str, Voices] = {}  # the same of each label, if there are two
        self._doubts: dict[str, float] = {}  # nats, last judged at the end
        self._left = _DEPTH
        self._new = Newcomers()
        # of several labels a lie says enough by itself
        two = surprise.losses.two and not self._rates
        self._rising = Rising() if two else None
        self._one_label = {label: Rising(_ONE_LABEL) for label in surprise.losses.answers if two}

    def judge(self, event: Event, source: Source) -> Opinion:
        if not self.bounds:
            return OFF
        if event.loss is None:
            return PASS
        if self._is_unproven(event.label, source):
            return Opinion(_UNPROVEN, 0.0, event.loss, _UNPROVEN_REASON)
        says = self._says(event.source, event.label, event.loss)
        flooding = event.source in self.voices.flooding or self._rises(event.source)
        if says is None:
            if not flooding or self._rates:
                return PASS
            says = _NOTHING
        again = self._surprise.again ** self.voices.gap(event.source)
        fresh = (1.0 - again) / (1.0 + again) / self.voices.size(source.taken) ** 0.5
        if self._surprise.losses.numbers:
            fresh /= self.voices.run(event.source) ** 2
        evidence = fresh * says.evidence
        if evidence > 0.0:
            evidence = min(evidence, max(_CREDIT_MAX - source.evidence.get(self.name, 0.0), 0.0))
        if source.taken < EARNED:
            hit = says.hit or self._odds.is_new(event.label, event.loss)  # names are cheap
            weight = self._new.weight(says.usual) if hit else 1.0
            return Opinion(weight, evidence, event.loss, "" if weight == 1.0 else _NEW_REASON)
        doubt = min(self._doubts.get(event.source, 0.0) + fresh * says.doubt, _CREDIT_MAX)
        in_doubt = doubt < _DOUBTED or flooding
        weight = min(self._left, 1.0) if in_doubt else 1.0
        reason = "" if weight == 1.0 else _REASON
        return Opinion(weight, evidence, doubt, reason, detail=-1.0 if in_doubt else 1.0)

    def _is_unproven(self, label: str | None, source: Source) -> bool:
        key = key_of(label or "")
        unlearned = self._odds.unlearned.get(key)
        if unlearned is not None and (source.name in unlearned or source.taken < EARNED):
            return True
        alone = self._odds.alone.get(key)
        return alone is not None and (source.name in alone or source.doubted)

    def _rises(self, source: str) -> bool:
        return self._rising is not None and (
            self._rising.rises(source) or any(x.rises(source) for x in self._one_label.values())
        )

    def _says(self, source: str, label: str | None, loss: float) -> _Says | None:
        """Tell what a loss says of its source; None: nothing, where nobody knows better."""
        middle = self._middle(source, label)
        if middle is None:
            return None
        if self._rates:
            bounds = self.bounds.get(self._surprise.losses.kind(label))
            return None if bounds is None else _of_number(loss > bounds.unlikely, middle)
        found, honest, wrong = self._odds.of(label, loss), self._odds.honest, self._odds.wrong
        if found is None or wrong - honest < _POWER_MIN:
            return None
        lies = max((middle - honest) / (wrong - honest), 0.0)
        if lies >= _LIES_MAX:
            return None
        said, unsaid = found
        sure, less = (_ratio(said, unsaid, lies + more) for more in (_MORE, _DOUBT_MORE))
        return _Says(said < unsaid, sure, less, max(middle, honest) + _RATE_MORE)

    def _middle(self, source: str, label: str | None) -> float | None:
        """Return how often the median source says what speaks for a lie; None: there are too few.

        With this label, if that is more often and hardly anybody else sends it: all is hard with
        it now.
        """
        middle, same = self.voices.middle(source), self._of_label.get(label or "")
        if middle is None or same is None or key_of(label or "") not in self._odds.held:
            return middle
        return max(middle, same.middle(source) or 0.0)

    def _hit(self, label: str | None, loss: float) -> bool | None:
        """Whether a loss speaks for a lie; None: it is not known."""
        if self._rates:
            bounds = self.bounds.get(self._surprise.losses.kind(label))
            return None if bounds is None else loss > bounds.unlikely
        found = self._odds.of(label, loss)
        return None if found is None else found[0] < found[1]

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
        if event.loss is not None:
            self._hear_rate(source, event.label, event.loss)
        if event.loss is not None and (hit := self._hit(event.label, event.loss)) is not None:
            self._count(source, event.label, event.loss, hit=hit)

    def hear(self, source: Source, label: str | None, loss: float) -> None:
        """Another replica has taken an event with this loss."""
        self._hear_rate(source, label, loss)
        if (hit := self._hit(label, loss)) is not None:
            if self._doubts.get(source.name, 0.0) >= _DOUBTED:
                self._refill()
            self._count(source, label, loss, hit=hit)

    def _hear_rate(self, source: Source, label: str | None, loss: float) -> None:
        if self._rising is not None and not source.quarantined:
            size = self.voices.size(source.taken)
            self._rising.hear(source.name, loss, size)
            for one, rising in self._one_label.items():
                rising.note(source.name, label == one, size)

    def _refill(self) -> None:
        self._left = min(self._left + _SHARE, _DEPTH)

    def _count(self, source: Source, label: str | None, loss: float, *, hit: bool) -> None:
        if source.quarantined:
            return
        new = source.taken < EARNED
        self._new.count(new=new, hit=hit or (new and self._odds.is_new(label, loss)))
        if new:
            self.voices.pass_by(source.name)
        else:
            self.voices.hear(source.name, source.taken, hit=hit, far=False)
            if self._surprise.losses.two and label:
                if (same := self._of_label.get(label)) is None and len(self._of_label) < 2:
                    same = self._of_label[label] = Voices()
                if same is not None:
                    same.hear(source.name, source.taken, hit=hit, far=False)

    def refresh(self, rng: np.random.Generator, sources: Sequence[Source]) -> None:
        rising = [] if self._rising is None else [self._rising, *self._one_label.values()]
        for test in rising:
            test.refresh()
        surprise = self._surprise
        self.bounds = surprise.bounds
        if self.bounds and not self._rates:
            self._odds = surprise.losses.odds()
        for voices in (self.voices, *self._of_label.values()):
            voices.flooding = surprise.voices.flooding
            voices.many, voices.usual = surprise.voices.many, surprise.voices.usual
        if surprise.turning:
            self._doubts = {}
            for test in rising:
                test.forgive()


class _Says(NamedTuple):
    """Nats of one event for honesty, carefully and less so; how often such a *hit* is usual."""

    hit: bool
    evidence: float
    doubt: float
    usual: float


_NOTHING: Final = _Says(hit=False, evidence=0.0, doubt=0.0, usual=1.0)


def _ratio(said: float, unsaid: float, honest: float) -> float:
    """Nats for honesty, if so many labels of an honest source are wrong."""
    hostile = min(max(_LIES, honest + _APART), 1.0)
    return log((said + honest * (unsaid - said)) / (said + hostile * (unsaid - said)))


def _of_number(hit: bool, middle: float) -> _Says | None:
    """The same of a number, by what is unlikely of the median source."""
    usual = max(middle, 1.0 - MILD)
    rate = max(usual + _RATE_MORE, _RATE_MIN)
    if rate >= _RATE_MAX:
        return None
    doubt = max(usual + _RATE_DOUBT_MORE, _RATE_DOUBT_MIN)
    return _Says(hit, _by_rate(hit, rate), _by_rate(hit, doubt), usual + _RATE_MORE)


def _by_rate(hit: bool, rate: float) -> float:
    """Nats for honesty, if honest sources say what is unlikely at this rate."""
    hostile = max(_RATE_LIES, rate + _RATE_APART)
    return log(rate / hostile) if hit else log((1.0 - rate) / (1.0 - hostile))
