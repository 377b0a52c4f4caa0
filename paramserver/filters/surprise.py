"""How often is a source's label a surprise to the model?  A sequential test on the loss.

For every model that answers with a loss, trees too.  A surprise is a loss above the null of its
label: the median over sources of the 90 % quantile of their last taken losses with that label, as
all replicas together have them (:mod:`paramserver.filters.losses`).  Some labels are harder than
others, and honest sources differ in what they send: by one null for all labels, those with the
harder ones were condemned.  A quantile of all losses would be that of those who lie, or flood.
Honest sources surprise at a rate of at most q₀, twice the median over the sources *that send now*
and at least 20 %; hostile ones at 70 %: a Bernoulli test, as sequential as the others.  Who sends
alone is compared with nobody.
A loss of four times the null is rarer (5 %, or twice the median) with honest sources,
still half of what hostile ones send, and counts for more: a model that learns fast believes a lie
that comes often after a few, and then it surprises no more.  While more of the last arrivals are
far off than the median source's are, such events weigh less: the sources are known before they are
believed.  When the world turns all sources surprise, q₀ rises, and from 50 % on the test says
nothing.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Final

import numpy as np

from paramserver.filters.base import OFF, PASS, STEP_MAX, Event, Opinion, Source
from paramserver.filters.losses import SOURCES_MIN, Losses, Null

_KEPT: Final = 1024
_ENOUGH: Final = 64
_RATE_MIN: Final = 0.2
_RATE_MAX: Final = 0.5
_TURNING: Final = 0.4
_LATELY: Final = 5.0
_HOSTILE: Final = 0.7
_ACTIVE: Final = 32
"""Events in which a source has sent if others are compared with it: what it saw, they saw."""

_RHO_MAX: Final = 0.8

_FAR_RATE_MIN: Final = 0.05
_FAR_HOSTILE: Final = 0.5
_RUSH: Final = 1.5  # of twice the median's
_RUSH_MIN: Final = 0.12
_HEARD: Final = 0.3
"""Weight of what is far off in a rush of it: the sources are known before it is believed."""

ABOUT: Final = "surprise about "
"""Name of a test of what is about one label, which follows."""

_Seen = tuple[str, bool, bool]
"""Source, is it a surprise, is it far off."""

_REASON: Final = "surprise: one of many labels at once that are far from what was expected"


class Surprise:
    """The test on losses.  Says nothing before 64 taken events have a loss.

    Parameters
    ----------
    answer
        Judge only events to which the model gave this label (its JSON text): whoever lies about a
        few things is not drowned in what it says of all others.  None: all events.
    about
        Those that were sent with this label, too: whoever lies about it either way is not drowned
        in what else the model is asked.  Evidence only: it weighs no single event down.
    enough
        Taken events before it says anything.
    losses
        Those that another such test counts; None: it counts its own.

    Attributes
    ----------
    losses
        What nulls are drawn from.
    turning
        Whether nearly everybody surprises now: the world has turned.
    """

    name = "surprise"

    def __init__(
        self,
        answer: str | None = None,
        *,
        about: bool = False,
        enough: int = _ENOUGH,
        losses: Losses | None = None,
    ) -> None:
        if answer is not None:
            self.name = f"{ABOUT if about else 'surprise at '}{answer}"
        self._answer, self._about, self._enough = answer, about, enough
        self.losses = Losses() if losses is None else losses
        self._counts = losses is None
        self._lately = _Lately()
        self._window: deque[_Seen] = deque(maxlen=_ACTIVE)
        self._means: dict[str, tuple[float, float]] = {}
        self.bounds: dict[str | None, Null] = {}
        self._fresh = 1.0  # how much of an event is new, after the one before
        self.turning = False

    def judge(self, event: Event, source: Source) -> Opinion:
        if not self.bounds:
            return OFF
        bounds = self.bounds.get(event.label)
        if event.loss is None or bounds is None or not self._concerns(event):
            return PASS
        rates = self._rates(event.source)
        if rates is None or rates[0] >= _RATE_MAX:
            return PASS
        rate, far_rate, rush = rates
        fresh = self._fresh
        bound, far_bound = bounds
        if event.loss > far_bound:
            least = min(math.log(far_rate / _FAR_HOSTILE), math.log(rate / _HOSTILE))
            evidence = max(fresh * least, -STEP_MAX)
            if rush and not self._about:  # the others have weighed it down already
                return Opinion(_HEARD, evidence, event.loss, _REASON)
            return Opinion(1.0, evidence, event.loss)
        if event.loss > bound:
            return Opinion(1.0, fresh * math.log(rate / _HOSTILE), event.loss)
        return Opinion(1.0, fresh * math.log((1.0 - rate) / (1.0 - _HOSTILE)), event.loss)

    def _concerns(self, event: Event) -> bool:
        if self._answer is None or event.answer == self._answer:
            return True
        return self._about and event.label == self._answer

    def _rates(self, source: str) -> tuple[float, float, bool] | None:
        """Of the other sources that send now, as their medians.

        Twice the rate of surprises, twice that of those that are far off, and whether far more of
        all are far off; None: there are too few others.
        """
        others = {name for name, _, _ in self._window if name != source}
        if len(others) < SOURCES_MIN:
            return None
        means = [self._means[name] for name in others]
        rate = max(2.0 * median([m[0] for m in means]), _RATE_MIN)
        far_rate = max(2.0 * median([m[1] for m in means]), _FAR_RATE_MIN)
        far = sum(far for _, _, far in self._window) / len(self._window)
        return rate, far_rate, far > max(_RUSH * far_rate, _RUSH_MIN)

    def _turning(self) -> bool:
        """Whether even those two thirds of the sources surprise that do it least.

        Each counts once, however much it sends: a flood of lies is no turn of the world.
        """
        counts: dict[str, list[int]] = {}
        for name, hit, _ in self._window:
            count = counts.setdefault(name, [0, 0])
            count[0] += 1
            count[1] += hit
        order = sorted(hits / n for n, hits in counts.values())
        kept = order[: len(order) - len(order) // 3]
        return len(kept) >= SOURCES_MIN and sum(kept) >= _TURNING * len(kept)

    def learn(self, event: Event, opinion: Opinion, source: Source, *, taken: bool) -> None:
        if event.loss is None:
            return
        bounds = self.bounds.get(event.label)
        if bounds is not None and self._concerns(event):
            hit, far = event.loss > bounds[0], event.loss > bounds[1]
            if self._answer is None:
                source.mean(self.name, float(hit))
            if not source.quarantined:
                self._window.append((event.source, hit, far))
                old = self._means.pop(event.source, (0.0, 0.0))
                new = (old[0] + (hit - old[0]) / _LATELY, old[1] + (far - old[1]) / _LATELY)
                self._means[event.source] = new
                while len(self._means) > _KEPT:
                    del self._means[next(iter(self._means))]
        if taken:
            self._lately.add(event.source, event.label, event.loss)
            if self._counts:
                self.losses.add(event.source, event.label, event.loss)

    def refresh(self, rng: np.random.Generator, sources: Sequence[Source]) -> None:
        if self.losses.events >= self._enough:
            self.bounds = self.losses.nulls()
            # honest labels that a lie has made the model deny are no turn of the world
            self.turning = not self._about and self._turning()
            self._fresh = self._lately.fresh(self.bounds)


class _Lately:
    """The last taken losses, in arrays: they are looked through at each refresh.

    ``len``: labels that are known.
    """

    def __init__(self) -> None:
        self._loss = np.zeros(2 * _KEPT)
        self._source = np.zeros(2 * _KEPT, np.int64)  # hashes: they are compared, nothing else
        self._label = np.zeros(2 * _KEPT, np.int64)  # places in the list of labels
        self._labels: dict[str | None, int] = {}
        self._n = 0

    def __len__(self) -> int:
        return len(self._labels)

    def add(self, source: str, label: str | None, loss: float) -> None:
        """One more; the oldest is gone."""
        if self._n == 2 * _KEPT:
            for kept in (self._loss, self._source, self._label):
                kept[:_KEPT] = kept[_KEPT:]
            self._n = _KEPT
            labels, left = list(self._labels), np.unique(self._label[:_KEPT])
            self._labels = {labels[at]: i for i, at in enumerate(left)}
            self._label[:_KEPT] = np.searchsorted(left, self._label[:_KEPT])
        at, self._n = self._n, self._n + 1
        self._loss[at], self._source[at] = loss, hash(source)
        self._label[at] = self._labels.setdefault(label, len(self._labels))

    def fresh(self, bounds: Mapping[str | None, Null]) -> float:
        """(1 − ρ) / (1 + ρ) by the correlation ρ of surprises, one and the next of another source.

        Where surprises come in runs, so many events say what one would (the effective sample size
        of an autoregressive series).  ρ is taken within 0 … .8.
        """
        lately = slice(max(self._n - _KEPT, 0), self._n)
        no_bound = (math.nan, math.nan)
        bound = np.array([bounds.get(label, no_bound)[0] for label in self._labels])
        of = bound[self._label[lately]]
        known = ~np.isnan(of)
        hit = (self._loss[lately][known] > of[known]).astype(np.float64)
        mean = float(hit.mean()) if len(hit) else 0.0
        source, off = self._source[lately][known], hit - mean
        pairs = (off[1:] * off[:-1])[source[1:] != source[:-1]]
        if not len(pairs) or not 0.0 < mean < 1.0:
            return 1.0
        rho = min(max(float(pairs.mean()) / (mean * (1.0 - mean)), 0.0), _RHO_MAX)
        return (1.0 - rho) / (1.0 + rho)
