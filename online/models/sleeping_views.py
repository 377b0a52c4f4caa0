"""The weights of the experts of several views, some of which sleep.

Which views there are, and why they sleep, is in :mod:`online.models.auto`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import numpy as np

from online.models.experts.exponential_weights import FADE, LONG, LONG_SHARE, Mixture, shares_of
from online.models.experts.linear import EXPERTS
from online.models.limited import Limited
from paramserver.core.blocks import LOCAL, Block, Blocks, array_bytes, array_of

CROSSED_MAX: Final = 4
"""Most numeric features whose pairs are crossed: six pairs of four products each."""

VIEWS: Final = ("straight", "bent", "crossed, steady or counted")

SHARP: Final = 1.0 / len(VIEWS)
"""Factor of losses in the exponent of the weights, relative to that of a single view."""

SPELL: Final = 1_000
"""Labels after which the weights of the views are checked."""

SHARE_MIN: Final = 0.02
QUIET: Final = 3
NAP: Final = 8
"""QUIET: consecutive spells below SHARE_MIN after which a view sleeps; NAP: spells it sleeps."""

RISE: Final = 10.0
"""Rise of the best expert's discounted loss (window of 200 labels) at which all views wake up.

It corresponds to five percentage points."""

ODDS: Final = 0.01
"""Odds, before any label, that the long-run losses alone give the better weights."""

CAUTION: Final = 0.02
"""Loss of the bent and the crossed view at each row that came before any label was known."""

BEGINNING: Final = 6.0
"""Loss of the counted view when it counts its first row."""

_NAPS: Final = "naps"
_ANSWERED: Final = "answered"
_BEHIND_MAX: Final = 50.0  # in the exponent
_SILENT: Final = (0.0,) * EXPERTS


class SleepingViews(Mixture):
    """The discounted losses of all experts, and which views sleep.

    ``scaler`` knows the names of the numeric features; ``uncrossed``: from how many of them on
    there is a third view if it is not crossed.

    Attributes:
        slept: For each view but the first: if positive, the spells that it has slept; if 0 or
            negative, it is awake, and −slept consecutive spells were below SHARE_MIN.
        asleep: Whether all views but the first sleep.
        rested: The best expert's least loss since a view fell asleep.
        labels: Labels since the last check of the views.
        answered: Long-run discounted loss of the answers as they were served.
    """

    def __init__(
        self, scaler: Limited, lasting: float = LONG, *, uncrossed: float = math.inf
    ) -> None:
        super().__init__(EXPERTS * len(VIEWS), SHARP, lasting)
        self._scaler, self._uncrossed = scaler, uncrossed
        self.labels = 0
        self.asleep = self._napping = False
        self.slept = [0] * (len(VIEWS) - 1)
        self.rested = self.answered = 0.0

    @property
    def slept(self) -> list[int]:
        return self._slept

    @slept.setter
    def slept(self, spells: list[int]) -> None:
        self._slept, self.asleep, self._napping = spells, min(spells) > 0, max(spells) > 0

    def active_views(self) -> tuple[bool, bool]:
        """Return whether the bent view and the third view are active.

        This depends on the numeric features known so far and never on the row, so that predictions
        between two learning steps are one fixed function of the row.
        """
        bent_slept, third_slept = self.slept
        known = len(self._scaler.known)
        third = known >= self._uncrossed or self.crosses
        return known > 0 and bent_slept <= 0, third and third_slept <= 0

    @property
    def crosses(self) -> bool:
        """Whether the third view is crossed, by the numeric features known so far."""
        return 1 < len(self._scaler.known) <= CROSSED_MAX

    def apart(self) -> SleepingViews:
        made = SleepingViews(self._scaler, self._lasting, uncrossed=self._uncrossed)
        made.take(self)
        return made

    def has_same_experts(self, other: Mixture) -> bool:
        return isinstance(other, SleepingViews) and other.slept == self.slept

    def take(self, other: Mixture) -> None:
        assert isinstance(other, SleepingViews)
        super().take(other)
        self.labels, self.slept, self.rested = other.labels, other.slept, other.rested
        self.answered = other.answered

    def votes(self) -> list[float]:
        """Return each expert's weight, 0 in inactive views; they sum to 1.

        While all other views sleep, only the weights of the first view are returned.
        """
        losses, long, sharp = self.losses, self.long, self._sharp
        if self.asleep:
            return shares_of(losses[:EXPERTS], long[:EXPERTS], sharp)
        tented, paired = self.active_views()
        if not (tented and paired):
            end, begin = EXPERTS * (1 + tented), EXPERTS * (2 if paired else len(VIEWS))
            losses, long = losses[:end] + losses[begin:], long[:end] + long[begin:]
        share = LONG_SHARE
        if tented or paired:
            behind = min(sharp * (self.answered - min(long)), _BEHIND_MAX)
            share = 1.0 - (1.0 - LONG_SHARE) / (1.0 + ODDS * math.exp(behind))
        votes = shares_of(losses, long, sharp, share)
        if tented and paired:
            return votes
        if paired:
            votes[EXPERTS:EXPERTS] = _SILENT
        return votes + [0.0] * (EXPERTS * len(VIEWS) - len(votes))

    def judge(self, losses: Sequence[float], weight: float) -> None:
        """Add losses at a label; at the end of a spell or after a rise, change who sleeps.

        If only losses of the first view are given, since all others sleep, they count for all
        views.  The loss of the answer as it was served may follow those of all experts.
        """
        answer: float | None = None
        asleep = min(self._slept) > 0
        if len(losses) % EXPERTS:
            *losses, answer = losses
        if len(losses) > EXPERTS:
            super().judge(losses, weight)
        elif weight == 1.0:
            self.losses = _faded(self.losses, losses, FADE)
            self.long = _faded(self.long, losses, self._lasting)
            self._judged = True
        else:
            super().judge([*losses] * len(VIEWS), weight)
        if not asleep:
            self._judge_answer(answer, losses, weight)
        self.labels += 1
        if self._napping:
            least = min(self.losses)
            if least < self.rested:
                self.rested = least
            elif least > self.rested + RISE:
                self.labels, self.slept = 0, [0] * len(self.slept)
        if self.labels >= SPELL:
            self.labels = 0
            votes = self.votes()
            self.slept = [
                self._after(slept, sum(votes[EXPERTS * i : EXPERTS * (i + 1)]))
                for i, slept in enumerate(self.slept, 1)
            ]
        if asleep and min(self._slept) <= 0:
            self.answered = min(self.long)

    def be_cautious(self) -> None:
        """Add CAUTION to the losses of all views that are richer than the first."""
        self._add(CAUTION, CAUTION if self.crosses else 0.0)

    def begin_counting(self) -> None:
        """Add BEGINNING to the losses of the third view."""
        self._add(0.0, BEGINNING)

    def _add(self, bent: float, third: float) -> None:
        added = [0.0] * EXPERTS + [bent] * EXPERTS + [third] * EXPERTS
        self.losses = [loss + more for loss, more in zip(self.losses, added, strict=True)]
        self.long = [loss + more for loss, more in zip(self.long, added, strict=True)]

    def _judge_answer(self, loss: float | None, losses: Sequence[float], weight: float) -> None:
        """Add the loss of a served answer; None: unknown, so it counts as the best expert's."""
        if loss is None:
            loss = losses[self.long.index(min(self.long)) % len(losses)]
        fade = self._lasting**weight
        self.answered = fade * self.answered + loss * (1.0 - fade) / (1.0 - self._lasting)

    def _after(self, slept: int, share: float) -> int:
        """Return the new ``slept`` of a view with this share of the weights at a spell's end."""
        if slept > 0:
            return 0 if slept >= NAP else slept + 1
        if share >= SHARE_MIN:
            return 0
        if slept - 1 > -QUIET:
            return slept - 1
        self.rested = min(self.losses)
        return 1

    def cut(self) -> Blocks:
        """Return losses and sleep, if a label came since the last cut."""
        blocks = super().cut()
        if blocks:
            held = np.array([self.rested, self.labels, *self.slept], dtype=np.float64)
            blocks[_NAPS] = Block(LOCAL, array_bytes(held))
            blocks[_ANSWERED] = Block(LOCAL, array_bytes(np.array([self.answered])))
        return blocks

    def rebase(self, values: Blocks) -> None:
        """Set losses and sleep of other replicas, unless a label came since the last cut."""
        naps = None if self._judged else values.get(_NAPS)
        super().rebase(values)
        if naps is not None:
            # in a snapshot it is a mean over replicas: round the whole numbers
            self.rested, *others = array_of(naps.data).tolist()
            self.labels, *self.slept = map(round, others)
            block = values.get(_ANSWERED)  # older versions do not judge answers
            self.answered = min(self.long) if block is None else float(array_of(block.data)[0])


def _faded(kept: Sequence[float], losses: Sequence[float], z: float) -> list[float]:
    """Return the twelve discounted losses after a label with the same four losses in each view."""
    a, b, c, d = losses
    e, f, g, h, i, j, k, m, n, o, p, q = kept
    return [
        z * e + a, z * f + b, z * g + c, z * h + d,
        z * i + a, z * j + b, z * k + c, z * m + d,
        z * n + a, z * o + b, z * p + c, z * q + d,
    ]  # fmt: skip
