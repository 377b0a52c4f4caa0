"""Checks each source's events for duplicates, contradictory labels, and an unusual label mix.

None of these alone leads to quarantine: honest sensors repeat themselves, and honest users may know
three classes of ten.  Duplicates get less weight; so do rows that other sources have sent with the
same label, where the median source hardly ever sends such: several liars who send the same few rows
until the model knows them by heart look honest to it.  There is a little evidence against a source
that contradicts itself, and against one whose label mix differs from the others' and whose labels
also surprise the model more often.  Contradictions *between* sources are not considered, because
the first sender could incriminate the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import log
from statistics import median
from typing import Final

from paramserver.filters.base import PASS, Event, Filter, Opinion, Source

_REMEMBERED: Final = 8
_LABELS_MAX: Final = 8
_EVENTS_MIN: Final = 20
_SOURCES_MIN: Final = 8
_CONTRADICTION: Final = -0.5
_USUAL_MIN: Final = 0.1
_USUAL_MAX: Final = 0.5
_MIX: Final = -0.25
_COPIED: Final = "copied"
_COPIED_MAX: Final = 0.02
_SENT_MAX: Final = 4096
_COPIED_REASON: Final = "samples: others have sent this row with this label before"
"""Key of the mean rate at which a source sends what was sent before; the median source's rate below
which such rows get less weight; and how many rows are remembered."""

_UNLIKE: Final = 25.0
"""Threshold of G − 2 · labels, exceeded by chance by less than one honest source in 10,000."""


class Samples(Filter):
    """Tests duplicates, contradictions and label mix (G-test against the mean source)."""

    name = "samples"

    def __init__(self) -> None:
        self._shares: dict[str, float] = {}
        self._surprise = 1.0
        self._sent: dict[int, int] = {}  # how often each row was sent, the latest at the end
        self._copied = 1.0  # rate at which the median source sends such again
        self._usual = _USUAL_MIN  # twice the rate at which the median source contradicts itself

    def judge(self, event: Event, source: Source) -> Opinion:
        if event.digest is None:
            return PASS
        recent = [digest for features, digest in source.recent if features == event.features_digest]
        if repeats := recent.count(event.digest):
            return Opinion(1.0 / (1 + repeats), 0.0, float(repeats), "samples: sent before")
        if recent:
            evidence = _CONTRADICTION if self._usual < _USUAL_MAX else 0.0
            return Opinion(
                0.5, evidence, 1.0, "samples: another label for the same row", detail=1.0
            )
        surprises = source.means.get("surprise", 0.0) > 2.0 * self._surprise
        if surprises and source.evidence.get("surprise", 0.0) < 0.0:
            unlike = self._unlike(source)
            if unlike > _UNLIKE:
                return Opinion(1.0, _MIX, unlike)
        made_good = self._made_good(source)
        copies = self._sent.get(event.digest, 0)
        if copies and self._copied < _COPIED_MAX:
            return Opinion(1.0 / (1 + copies), made_good, float(copies), _COPIED_REASON)
        return PASS if made_good == 0.0 else Opinion(1.0, made_good)

    def _made_good(self, source: Source) -> float:
        """Return positive evidence that offsets contradictions at the usual rate."""
        against = -source.evidence.get(self.name, 0.0)
        return (
            min(-_CONTRADICTION * self._usual / (1.0 - self._usual), against)
            if against > 0.0
            else 0.0
        )

    def _unlike(self, source: Source) -> float:
        n = sum(source.labels.values())
        if n < _EVENTS_MIN or not self._shares:
            return 0.0
        g = 0.0
        for label, count in source.labels.items():
            expected = n * self._shares.get(label, 0.5 / n)
            g += 2.0 * count * log(count / expected)
        return g - 2.0 * len(self._shares)

    def learn(self, event: Event, opinion: Opinion, source: Source, *, taken: bool) -> None:
        if event.digest is not None and event.features_digest is not None:
            source.mean(self.name, opinion.detail)
            copies = self._sent.pop(event.digest, 0)
            source.mean(_COPIED, float(copies > 0))
            self._sent[event.digest] = copies + 1
            if len(self._sent) > _SENT_MAX:
                del self._sent[next(iter(self._sent))]
            new = (event.features_digest, event.digest)
            source.recent = (*source.recent[1 - _REMEMBERED :], new)
        if event.label is not None:
            if event.label not in source.labels and len(source.labels) >= _LABELS_MAX:
                del source.labels[min(source.labels, key=source.labels.__getitem__)]
            source.labels[event.label] = source.labels.get(event.label, 0) + 1

    def refresh(self, sources: Sequence[Source]) -> None:
        mixes = [s.labels for s in sources if sum(s.labels.values()) >= _EVENTS_MIN]
        if len(mixes) < _SOURCES_MIN:
            return
        shares: dict[str, float] = {}
        for mix in mixes:
            n = sum(mix.values())
            for label, count in mix.items():
                shares[label] = shares.get(label, 0.0) + count / n / len(mixes)
        self._shares = shares
        rates = [s.means["surprise"] for s in sources if "surprise" in s.means]
        self._surprise = max(median(rates), 0.05) if rates else 1.0
        copied = [s.means[_COPIED] for s in sources if _COPIED in s.means]
        self._copied = median(copied) if copied else 1.0
        contradicts = [s.means[self.name] for s in sources if self.name in s.means]
        usual = 2.0 * median(contradicts) if contradicts else 0.0
        self._usual = min(max(usual, _USUAL_MIN), _USUAL_MAX)
