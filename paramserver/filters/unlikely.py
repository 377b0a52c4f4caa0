"""A sequential test of each source on the likelihood that its labels are honest.

:mod:`paramserver.filters.surprise` tests losses above the 90 % quantile of honest ones.  If the
model is wrong in one of four rows, lies rarely have such losses and that test has no power.  So
this test compares each loss with those of honest labels *and* of wrong ones
(:mod:`paramserver.evidence.odds`): even if the model is right in only three of five rows, a lie is
some evidence.  The share of wrong labels of an honest source is assumed to be that of the median
source *at present* plus 12 %, to allow for differences; that of a hostile one is 75 %, or 25 % more
than an honest one's.  If the honest share is 70 % or more, as when the stream changes, the test is
inactive.  For numbers and rewards no wrong labels are known.  There *unlikely* is an error above
the 80 % quantile of honest ones; honest sources have such errors at the median source's rate (at
least the nominal one) plus 10 %, hostile ones in 70 % of cases, or 20 % more often.

There are three differences to the other test, because a flood of lies is learned after some forty
events, and is likely from then on.  Positive evidence is limited to two nats, so that a source with
good behaviour cannot lie for long.  Evidence is discounted by the time since the source's last
event: what makes sources surprise together passes after some events, so only events in quick
succession count less.  And before there is enough evidence for quarantine, sources in *doubt* (by
the same test with a smaller margin) share an allowance: together they get a tenth of the weight of
the other sources' events.  A single unlucky source hardly uses it up; of many liars each gets
little.  The allowance also covers sources that flood while the test is inactive, and sources on
whose rows the model is suddenly uncertain (:mod:`paramserver.evidence.rising`).  New sources are
weighted together, as in the test on surprise; otherwise lies under ever new names would be learned
where lies rarely surprise.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import log
from typing import Final, NamedTuple

from paramserver.evidence.odds import NONE, Odds, key_of
from paramserver.evidence.rising import Rising
from paramserver.evidence.sums import MILD, Null
from paramserver.evidence.voices import Rates
from paramserver.filters.arrivals import EARNED, Arrivals, is_new
from paramserver.filters.base import OFF, PASS, UNLIKELY, Event, Filter, Opinion, Source
from paramserver.filters.newcomers import Newcomers
from paramserver.filters.surprise import Surprise

_MORE: Final = 0.12
_DOUBT_MORE: Final = 0.05
"""Margin for the share of wrong labels of an honest source above the median; smaller for doubts."""

_LIES: Final = 0.75
_APART: Final = 0.25
_LIES_MAX: Final = 0.7
_POWER_MIN: Final = 0.15
"""Share of wrong labels of a hostile source, and its least distance from an honest one's; honest
share from which on the test is inactive; and the least difference between the rates at which wrong
and honest labels speak for a lie, below which the model knows too little."""

_RATE_MORE: Final = 0.1
_RATE_MIN: Final = 0.3
_RATE_DOUBT_MORE: Final = 0.05
_RATE_DOUBT_MIN: Final = 0.25
_RATE_MAX: Final = 0.6
_RATE_LIES: Final = 0.7
_RATE_APART: Final = 0.2
"""The same for numbers and rewards, as rates of unlikely errors."""

_CREDIT_MAX: Final = 2.0
_DOUBTED: Final = -0.5
_DOUBT_MIN: Final = -2.0
_SHARE: Final = 0.1
_DEPTH: Final = 3.0
"""Allowance of sources in doubt: events refilled per event of another source, and its maximum."""

_UNPROVEN: Final = 1.0 / 16.0
"""Weight of a label that few sources send, from a source whose rows it fits no better than other
rows, or from a doubted source, whose labels are no longer counted."""

_LARGE: Final = 2.0
"""Size, relative to the median source, from which on a trusted source may grow larger still."""

_FITS: Final = 0.25
"""Evidence in nats of a label that hardly anybody else sends and that fits this source's rows."""

_ONE_LABEL: Final = 6.0
"""Evidence in nats above which a source counts as suddenly sending one of two labels only.  With
four, honest sources lost half a point on a stream whose labels come in runs."""

_KNOWN: Final = 1024

_REASON: Final = "unlikely: sources in doubt together say what others find unlikely"
_UNPROVEN_REASON: Final = (
    "unlikely: hardly anybody else sends this label, and it fits these rows no better than others"
)
_NEW_REASON: Final = "unlikely: new sources together say what others find unlikely"


class Unlikely(Filter):
    """The test on unlikely labels.  It is inactive while the test on surprise is.

    Parameters:
        surprise: The test on all events, whose bounds it shares; it must be refreshed first.
        rewards: Whether events are rewards, for which no wrong labels are known, as for numbers.

    Attributes:
        voices: Rates of unlikely labels by source.
    """

    name = UNLIKELY

    def __init__(self, surprise: Surprise, *, rewards: bool = False) -> None:
        self._surprise, self._rates = surprise, rewards or surprise.losses.sums.numbers
        self._odds = NONE
        self._asked: tuple[Odds, str | None, float, tuple[float, float] | None]
        self._asked = NONE, None, 0.0, None
        self.bounds: dict[str | None, Null] = {}
        self.voices = Rates()
        self._of_label: dict[str, Rates] = {}  # the same for each label, if there are two
        self._doubts: dict[str, float] = {}  # nats by source, last judged at the end
        self._left = _DEPTH
        self._new = Newcomers()
        # with more than two labels a single lie is enough evidence
        two = surprise.losses.sums.two and not self._rates
        self._rising = Rising() if two else None
        self._one_label = {
            label: Rising(_ONE_LABEL) for label in surprise.losses.sums.answers if two
        }
        self._all_rising = () if self._rising is None else (self._rising, *self._one_label.values())

    def judge(self, event: Event, source: Source) -> Opinion:
        if not self.bounds:
            return OFF
        if event.loss is None:
            return PASS
        odds = self._odds
        if (odds.unlearned or odds.alone) and self._is_unproven(event.label, source):
            return Opinion(_UNPROVEN, 0.0, event.loss, _UNPROVEN_REASON)
        lies = self._lies(event.source, event.label)
        flooding = self._floods(source) or self._rises(event.source)
        if lies is not None and not flooding and self._is_sure(event, source):
            return _SURE
        says = None if lies is None else self._says(event.label, event.loss, *lies)
        if says is None:
            if self._is_proven(event.label, source.name):
                says = _PROVEN
            elif not flooding or self._rates:
                return PASS
            else:
                says = _NOTHING
        if says.doubt < 0.0 and self._surprise.voices.is_hard(event.label):
            says = _NOTHING
        again = self._surprise.again ** self.voices.gap(event.source)
        fresh = (1.0 - again) / (1.0 + again)
        if (size := self.voices.size(source.sent)) > 1.0:
            fresh /= size**0.5
        if self._surprise.losses.sums.numbers:
            fresh /= self.voices.run(event.source) ** 2
        evidence = fresh * says.evidence
        if evidence > 0.0:
            evidence = min(evidence, max(_CREDIT_MAX - source.evidence.get(self.name, 0.0), 0.0))
        if is_new(source):
            hit = says.hit or self._odds.is_new(event.label, event.loss)  # new names cost nothing
            compared = self._surprise.arrivals.compares
            weight = self._new.weight(says.usual, hit=hit, compared=compared)
            return Opinion(weight, evidence, event.loss, "" if weight == 1.0 else _NEW_REASON)
        doubt = min(self._doubts.get(event.source, 0.0) + fresh * says.doubt, _CREDIT_MAX)
        in_doubt = doubt < _DOUBTED or flooding
        weight = min(self._left, 1.0) if in_doubt else 1.0
        reason = "" if weight == 1.0 else _REASON
        return Opinion(weight, evidence, doubt, reason, detail=-1.0 if in_doubt else 1.0)

    def watch(self, arrivals: Arrivals) -> None:
        """Let the arrivals know the new sources, as a budget asks whether they agree."""
        arrivals.newcomers.append(self._new)

    def _is_sure(self, event: Event, source: Source) -> bool:
        """Return whether a likely label can change nothing: there is no more credit to be had."""
        credit = source.evidence.get(self.name, 0.0), self._doubts.get(source.name, 0.0)
        if self._rates or min(credit) < _CREDIT_MAX or is_new(source) or event.loss is None:
            return False
        found = self._found(event.label, event.loss)
        return found is not None and found[0] >= found[1]

    def _is_unproven(self, label: str | None, source: Source) -> bool:
        key = key_of(label or "")
        unlearned = self._odds.unlearned.get(key)
        if unlearned is not None and (source.name in unlearned or source.taken < EARNED):
            return True
        alone = self._odds.alone.get(key)
        return alone is not None and (source.name in alone or source.doubted)

    def _is_proven(self, label: str | None, source: str) -> bool:
        odds = self._odds
        return source in odds.proven and key_of(label or "") in odds.alone

    def _floods(self, source: Source) -> bool:
        """Return whether a source floods that was not large before, or is not trusted."""
        size = self._surprise.arrivals.sizes.get(source.name)
        return size is not None and not (source.trusted and size >= _LARGE)

    def _rises(self, source: str) -> bool:
        return True in [source in rising.risen for rising in self._all_rising]

    def _lies(self, source: str, label: str | None) -> tuple[float, float] | None:
        """Return the share of wrong labels of the median source, and its rate of likely lies.

        None: a label of this source cannot be judged.  Of numbers only the rate is known.
        """
        middle = self._middle(source, label)
        if middle is None or self._rates:
            return None if middle is None else (0.0, middle)
        honest, wrong = self._odds.honest, self._odds.wrong
        if wrong - honest < _POWER_MIN:
            return None
        lies = max((middle - honest) / (wrong - honest), 0.0)
        return None if lies >= _LIES_MAX else (lies, middle)

    def _says(self, label: str | None, loss: float, lies: float, middle: float) -> _Says | None:
        """Return the evidence of a loss on its source; None: it cannot be judged."""
        if self._rates:
            bounds = self.bounds.get(self._surprise.losses.sums.kind(label))
            return None if bounds is None else _of_number(loss > bounds.unlikely, middle)
        if (found := self._found(label, loss)) is None:
            return None
        said, unsaid = found
        sure, less = _ratio(said, unsaid, lies + _MORE), _ratio(said, unsaid, lies + _DOUBT_MORE)
        return _Says(said < unsaid, sure, less, max(middle, self._odds.honest) + _RATE_MORE)

    def _middle(self, source: str, label: str | None) -> float | None:
        """Return the median source's rate of labels that suggest a lie; None: too few sources.

        If nearly only a few sources send the label, or this one sends hardly any other, it is at
        least the rate with that label, which may be hard at present.
        """
        middle = self.voices.middle(source)
        if middle is None or label is None or (same := self._of_label.get(label)) is None:
            return middle
        held = key_of(label) in self._odds.held
        if held or self._surprise.mixes.is_nearly_all(source, label):
            return max(middle, same.middle(source) or 0.0)
        return middle

    def _hit(self, label: str | None, loss: float) -> bool | None:
        """Return whether a loss suggests a lie; None: unknown."""
        if self._rates:
            bounds = self.bounds.get(self._surprise.losses.sums.kind(label))
            return None if bounds is None else loss > bounds.unlikely
        found = self._found(label, loss)
        return None if found is None else found[0] < found[1]

    def _found(self, label: str | None, loss: float) -> tuple[float, float] | None:
        """Return the odds of a loss, which judging and learning both ask for."""
        asked = self._asked
        if asked[0] is not self._odds or asked[1] != label or asked[2] != loss:
            asked = self._asked = self._odds, label, loss, self._odds.of(label, loss)
        return asked[3]

    def learn(self, event: Event, opinion: Opinion, source: Source, *, taken: bool) -> None:
        if opinion.detail:
            self._doubts.pop(event.source, None)
            score = opinion.score
            self._doubts[event.source] = score if score > _DOUBT_MIN else _DOUBT_MIN
            if len(self._doubts) > _KNOWN:
                del self._doubts[next(iter(self._doubts))]
            if opinion.detail > 0.0:
                self._refill()
            elif taken:
                self._left = max(self._left - opinion.factor, 0.0)
        if (loss := event.loss) is not None:
            self._hear_rate(source, event.label, loss)
            if (hit := self._hit(event.label, loss)) is not None:
                self._count(source, event.label, loss, event.weight, hit=hit)

    def hear(self, source: Source, label: str | None, loss: float) -> None:
        """Learn from an event that another replica has taken."""
        self._hear_rate(source, label, loss)
        if (hit := self._hit(label, loss)) is not None:
            if self._doubts.get(source.name, 0.0) >= _DOUBTED:
                self._refill()
            self._count(source, label, loss, source.weight, hit=hit)

    def _hear_rate(self, source: Source, label: str | None, loss: float) -> None:
        if self._rising is not None and not source.quarantined:
            size = self.voices.size(source.sent)
            self._rising.hear(source.name, loss, size)
            for one, rising in self._one_label.items():
                rising.note(source.name, label == one, size)

    def _refill(self) -> None:
        self._left = min(self._left + _SHARE, _DEPTH)

    def _count(
        self, source: Source, label: str | None, loss: float, weight: float, *, hit: bool
    ) -> None:
        if source.quarantined:
            return
        new = is_new(source)
        hit_new = hit or (new and self._odds.is_new(label, loss))
        blamed = source.doubted or source.name in self.voices.flooding
        self._new.count(new=new, hit=hit_new, weight=weight, blamed=blamed)
        if source.taken < EARNED:
            self.voices.pass_by(source.name)
        else:
            self.voices.note(source.name, hit=hit)
            if self._surprise.losses.sums.two and label:
                if (same := self._of_label.get(label)) is None and len(self._of_label) < 2:
                    same = self._of_label[label] = Rates()
                if same is not None:
                    same.note(source.name, hit=hit)

    def refresh(self, sources: Sequence[Source]) -> None:
        for test in self._all_rising:
            test.refresh()
        surprise = self._surprise
        self.bounds = surprise.bounds
        if self.bounds and not self._rates:
            self._odds = surprise.losses.sums.odds()
        for voices in (self.voices, *self._of_label.values()):
            voices.flooding, voices.usual = surprise.voices.flooding, surprise.voices.usual
        if surprise.turning:
            self._doubts = {}
            for test in self._all_rising:
                test.forgive()


class _Says(NamedTuple):
    """Evidence of one event (nats), with the larger and the smaller margin; usual rate of hits."""

    hit: bool
    evidence: float
    doubt: float
    usual: float


_SURE: Final = Opinion(1.0, 0.0, _CREDIT_MAX, detail=1.0)
_NOTHING: Final = _Says(hit=False, evidence=0.0, doubt=0.0, usual=1.0)
_PROVEN: Final = _NOTHING._replace(evidence=_FITS, doubt=_FITS)


def _ratio(said: float, unsaid: float, honest: float) -> float:
    """Return nats for honesty, given the share of wrong labels of an honest source."""
    hostile = min(max(_LIES, honest + _APART), 1.0)
    return log((said + honest * (unsaid - said)) / (said + hostile * (unsaid - said)))


def _of_number(hit: bool, middle: float) -> _Says | None:
    """Return the evidence of a number's error, given the median source's rate of unlikely ones."""
    usual = max(middle, 1.0 - MILD)
    rate = max(usual + _RATE_MORE, _RATE_MIN)
    if rate >= _RATE_MAX:
        return None
    doubt = max(usual + _RATE_DOUBT_MORE, _RATE_DOUBT_MIN)
    return _Says(hit, _by_rate(hit, rate), _by_rate(hit, doubt), usual + _RATE_MORE)


def _by_rate(hit: bool, rate: float) -> float:
    """Return nats for honesty, given an honest source's rate of unlikely errors."""
    hostile = max(_RATE_LIES, rate + _RATE_APART)
    return log(rate / hostile) if hit else log((1.0 - rate) / (1.0 - hostile))
