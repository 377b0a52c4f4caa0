"""Is it what another source has just sent?  For pushes, which are means of many rows.

Honest gradients scatter: the rows behind them differ.  On digits, 16 rows a push, the cosine of an
honest one to the nearest of the last 32 by others is .4 in the median and .96 at most; those who
collude send one vector, with .92 to 1.0 in the median for inner-product, little-is-enough and
min-max attacks and for mimics.  Late in training, when honest gradients are small and their mean
turned round is nearly a mix of classes again, nothing else tells them apart.  After FoolsGold (Fung
et al. 2020), which compares the sums of what sources sent; here single pushes are, and only who
sends later is held to have copied, so that nobody is framed by what comes after.

A copy is learned with 1 / (1 + those before it), and is evidence.  Where honest gradients are alike
themselves (few numbers, many rows) the test is off: the root set's nulls tell.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from paramserver.filters.base import (
    OFF,
    PASS,
    Event,
    Filter,
    Gradient,
    Opinion,
    Probes,
    Source,
    keyed,
)
from paramserver.filters.reference import Reference

_KEPT: Final = 32
_PROBES: Final = 1024
_COPY: Final = 0.97
_ALIKE: Final = 0.95
"""Largest cosine of two nulls; above it honest ones can't be told from copies."""

_PAIRS_MIN: Final = 12
_AGAINST: Final = -1.5
_FOR: Final = 0.25
_REASON: Final = "copies: what another source has just sent"


class Copies(Filter):
    """The test on copies; off without nulls."""

    name = "copies"

    def __init__(self, reference: Reference) -> None:
        self._reference = reference
        self._probes: Probes | None = None
        self._sent = np.zeros((_KEPT, 0), np.float32)
        self._by: list[str] = [""] * _KEPT
        self._judged: tuple[bytes, Gradient | None] = b"", None  # saves a walk when it is learned
        self._n = 0
        self._on = False

    def judge(self, event: Event, source: Source) -> Opinion:
        if not self._on:
            return OFF
        unit = self._unit(event.gradient)
        if unit is None:
            return PASS
        self._judged = event.key, unit
        near = np.flatnonzero(self._sent @ unit > _COPY)
        copied = sum(self._by[i] not in ("", event.source) for i in near)
        if copied:
            return Opinion(1.0 / (1 + copied), _AGAINST, float(copied), _REASON)
        owed = -source.evidence.get(self.name, 0.0)  # never more: it would say who is good
        return Opinion(1.0, min(_FOR, owed)) if owed > 0.0 else PASS

    def _unit(self, gradient: Gradient | None) -> Gradient | None:
        """Some of its numbers, of length one; None: there is no direction."""
        if gradient is None or self._probes is None or len(gradient) != self._reference.size:
            return None
        some = self._probes.of(gradient)
        length = float(some @ some) ** 0.5
        return some / np.float32(length) if 0.0 < length < float("inf") else None

    def learn(self, event: Event, opinion: Opinion, source: Source, *, taken: bool) -> None:
        """Every push is remembered, taken or not."""
        key, unit = self._judged
        if key != event.key or unit is None:
            unit = self._unit(event.gradient)
        if unit is not None:
            place = self._n % _KEPT
            self._sent[place], self._by[place] = unit, event.source
            self._n += 1

    def refresh(self, sources: Sequence[Source]) -> None:
        pairs = self._reference.alike
        if self._probes is None and (size := self._reference.size):
            self._probes = Probes(size, _PROBES, keyed(b""))
            self._sent = np.zeros(
                (_KEPT, len(self._probes.of(np.zeros(size, np.float32)))), np.float32
            )
        self._on = len(pairs) >= _PAIRS_MIN and max(pairs) <= _ALIKE
