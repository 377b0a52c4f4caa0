"""A sequential test of each source on the direction of its gradients.

c is the score of a gradient (:mod:`paramserver.filters.reference`).  Scores of honest gradients are
modelled as N(μ, σ) and of hostile ones as N(ν, σ), so one event adds
(c − (μ + ν)/2) · (μ − ν) / σ² nats (Wald 1945), clipped to ±2, to the evidence of its source.  μ is
the median over the sources of their mean c, at most the null draws' upper quartile; before there
are sources it is the null draws' lower quartile.  σ is that of the null draws.  The decision
boundary (μ + ν)/2 is ``line`` · μ.

When the root set loses its power, late in training or after a change of the stream, μ falls with
the median source, and the test no longer rejects anything (it fails open).
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Final

from paramserver.filters.base import (
    OFF,
    PASS,
    Event,
    Filter,
    Opinion,
    Source,
    clipped_step,
    quantile,
)
from paramserver.filters.reference import Reference, Score

_NULLS_MIN: Final = 8
_SOURCES_MIN: Final = 8
_SD_MIN: Final = 0.02
_POWER_MIN: Final = 0.05
"""Least μ; below it honest gradients cannot be distinguished from noise."""

_AGAINST: Final = 0.2
"""If the negated gradient scores higher by this much, the event is quarantined."""

_HEARD: Final = 0.25
"""Weight of such an event if its source has positive evidence, as the stream may have changed."""

_RATIO: Final = "direction / usual"
_TURNED: Final = "direction, turned"
_APART: Final = 2.0
_LINE_MAX: Final = 0.8
_MAD: Final = 1.4826  # of a normal distribution: deviation / median absolute deviation
_SLACK: Final = 1.5
_AMPLIFIED: Final = 1.0
"""Nats against a source whose gradient has more than ``_SLACK`` times the null draws' mass; the
gradient is scaled down.  The norm alone does not show this, as honest norms vary by more."""

_REASON: Final = "direction: against the root set"


class Direction(Filter):
    """The test on directions; inactive if the reference is.

    Parameters:
        line: Fraction of μ below which a score is evidence against its source.  Higher values
            detect faster and endanger honest sources that differ from the others.
        alone: Whether a single event may be quarantined or scaled down.  Too many honest single
            rows point against the root set, so for them this is off and they are only evidence.

    Attributes:
        wrong: Whether most sources disagree with the root set, which is then wrong or outdated; the
            test is inactive.
    """

    name = "direction"

    def __init__(self, reference: Reference, *, line: float = 0.7, alone: bool = True) -> None:
        self._reference = reference
        self._alone = alone
        self._line = line
        self.mu = 0.0
        self.below = 0.0
        self.sd = 1.0
        self.against = 1.0
        self.heavy = float("inf")
        self.wrong = False

    def judge(self, event: Event, source: Source) -> Opinion:
        if self.mu < _POWER_MIN:
            return OFF
        score = self._score(event)
        if score is None:
            return PASS
        c = score.as_is
        step = clipped_step((c - self.below) * 2.0 * (self.mu - self.below) / self.sd**2)
        turned = score.turned - c
        if turned > self.against and self._alone:
            known = source.evidence.get(self.name, 0.0) + step >= 0.0
            factor = _HEARD if known else 0.0
            return Opinion(factor, step, c, _REASON, stop=not known, detail=turned)
        if score.mass > self.heavy and self._alone:
            step = clipped_step(step - _AMPLIFIED)
            factor = self.heavy / score.mass
            return Opinion(factor, step, c, "direction: amplified", detail=turned)
        return Opinion(1.0, step, c, detail=turned)

    def _score(self, event: Event) -> Score | None:
        if event.gradient is None or event.square == 0.0:
            return None
        return self._reference.score(event.gradient, event.base, event.label)

    def learn(self, event: Event, opinion: Opinion, source: Source, *, taken: bool) -> None:
        """Update the source's own means, also with events that were not taken."""
        if not opinion.off and opinion is not PASS:
            source.mean(self.name, opinion.score)
            source.mean(_TURNED, opinion.detail)
            old = source.means.get(_RATIO, 1.0)
            source.means[_RATIO] = old + (opinion.score / self.mu - old) / 16.0
            return
        score = self._score(event)  # the test was off; the means decide when it resumes
        if score is not None:
            source.mean(self.name, score.as_is)
            source.mean(_TURNED, score.turned - score.as_is)

    def refresh(self, sources: Sequence[Source]) -> None:
        nulls = self._reference.nulls
        if len(nulls) < _NULLS_MIN:
            self.mu = 0.0
            return
        as_is, turned, mass = nulls.T
        scores = as_is.tolist()
        self.sd = max(float(as_is.std()), _SD_MIN)
        self.against = max(quantile((turned - as_is).tolist(), 0.99), _AGAINST)
        self.heavy = _SLACK * max(quantile(mass.tolist(), 0.95), 1.0)
        means = [s.means[self.name] for s in sources if self.name in s.means]
        if len(means) < _SOURCES_MIN:
            self.mu = quantile(scores, 0.25)
        else:
            self.mu = min(median(means), quantile(scores, 0.75))
        turned_round = [s.means[_TURNED] for s in sources if _TURNED in s.means]
        self.wrong = len(turned_round) >= _SOURCES_MIN and median(turned_round) > 0.0
        if self.wrong:
            self.mu = 0.0
        self.below = self.mu * self._line_between(sources)

    def _line_between(self, sources: Sequence[Source]) -> float:
        """Return the fraction for the boundary, lower the more the sources differ (by MAD)."""
        ratios = [s.means[_RATIO] for s in sources if _RATIO in s.means]
        if len(ratios) < _SOURCES_MIN:
            return self._line
        middle = median(ratios)
        apart = _MAD * median([abs(ratio - middle) for ratio in ratios])
        return min(max(1.0 - _APART * apart, self._line), _LINE_MAX)
