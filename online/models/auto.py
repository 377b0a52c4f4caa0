"""A linear model on three representations of a row, for numbers, categories and texts alike.

Each representation, called a *view*, has four experts as in :mod:`online.models.selfrate`, and one
mixture weights all twelve by their discounted losses:

========= ================================================= =====================================
view      a standardised number z becomes                   what it can represent
========= ================================================= =====================================
straight  z itself                                          the functions of ``linear``
bent      two of GRAIN tents, those around its position p,  any function of each number, as a sum
          where p = (GRAIN − 1) / (1 + exp(−SQUASH · z))
crossed   products of such tents (CROSSED_GRAIN for each    any function of each pair of numbers
          number), for each pair of numbers
========= ================================================= =====================================

A *tent* (hat function) is 1 at its own position and falls to 0 at its neighbours', so the answer is
continuous, and the tents of a number add up to 1.  The positions are fixed: with SQUASH the
logistic function nearly equals the normal distribution function, so they are about the quantiles of
a standardised number.  Nothing is chosen from the data, so all replicas use the same tents.

Categories, words, missing values and the bias are in every view.  A view is inactive, with weight 0
and without cost, if it adds nothing: bent and crossed while no numeric feature is known, crossed
also with one numeric feature or more than CROSSED_MAX, and each while it sleeps.  The losses of an
inactive view's experts are those of the straight view, so that it starts equal when it becomes
active.

The slower AdaGrad expert of the bent view has half the rate of the others, because a row has more
entries there.

A view falls asleep when its experts have less than SHARE_MIN of the weights at the end of QUIET
consecutive spells of SPELL labels.  It wakes up after NAP spells, or at once if the best expert's
loss rises, which indicates drift.  Sleep is local to a replica and stored with the losses.

While a view is awake, the answers as they were served are judged beside the experts.  Where they
have a greater long-run loss than the best expert, recent losses mislead, as they do where labels
come in runs and late: the share of the weights that follows from the long-run losses then rises
from LONG_SHARE to 1.

Where labels are late, a model of several classes learns rows that it could not answer, because it
knew no label when they came.  They are judged by the present answers, which flatter all experts
alike if labels come in runs.  So each of them costs the views but the first CAUTION in losses: a
richer view generalises worse from a single run, and has to show that it does not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final, NamedTuple, cast

import numpy as np

from evaluation.metrics import Task
from online.models.base import Before, Prediction
from online.models.experts.exponential_weights import (
    FADE,
    LONG,
    LONG_SHARE,
    UNANSWERED,
    Mixture,
    NotedClasses,
    NotesFormat,
    logistic,
    shares_of,
)
from online.models.experts.label_shift import ClassExperts
from online.models.experts.linear import (
    ADAGRAD,
    EXPERTS,
    Floats,
    OneOutput,
    Owned,
    Taken,
)
from online.models.features.hashed import counted
from online.models.features.tents import Row, bent, bent_owned, crossed, crossed_owned
from online.models.limited import Limited
from online.models.selfrate import (
    Binary,
    Multiclass,
    Regression,
    SelfRate,
    SelfRateModel,
)
from paramserver.core.blocks import LOCAL, Block, Blocks, array_bytes, array_of
from replay.example import Example, Features, Label, label_text

CROSSED_MAX: Final = 4
"""Most numeric features whose pairs are crossed: six pairs of four products each."""

VIEWS: Final = ("straight", "bent", "crossed")

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
"""Loss of all views but the first at each row that came before any label was known."""

_ADAGRAD: Final = (ADAGRAD, (ADAGRAD[0] / 2, ADAGRAD[1]), ADAGRAD)
_NAPS: Final = "naps"
_ANSWERED: Final = "answered"
_BEHIND_MAX: Final = 50.0  # in the exponent
_SILENT: Final = (0.0,) * EXPERTS
_TRUE: Final = label_text(True)

_NUMBER: Final = (float, int)
_TAME: Final = 1e100
"""Bound of numbers and targets whose squares can be summed over any number of rows."""


class Views(NamedTuple):
    """A row in each view; None: the view is inactive."""

    straight: Row
    bent: Row | None
    crossed: Row | None


class Auto(SelfRate):
    """A recipe that a factory returns to serve the linear model of several representations."""

    __slots__ = ()
    name = "auto"

    def model_for(self, task: Task) -> SelfRateModel:
        """Make the model for the task."""
        kinds: dict[Task, type[SelfRateModel]] = {
            "binary": _Binary, "multiclass": _Multiclass, "regression": _Regression,
        }  # fmt: skip
        return kinds[task](SelfRate(self.text, self.bits, self.seed), task)


class SleepingViews(Mixture):
    """The discounted losses of all experts, and which views sleep.

    ``scaler`` knows the names of the numeric features.

    Attributes:
        slept: For each view but the first: if positive, the spells that it has slept; if 0 or
            negative, it is awake, and −slept consecutive spells were below SHARE_MIN.
        asleep: Whether all views but the first sleep.
        rested: The best expert's least loss since a view fell asleep.
        labels: Labels since the last check of the views.
        answered: Long-run discounted loss of the answers as they were served.
    """

    def __init__(self, scaler: Limited, lasting: float = LONG) -> None:
        super().__init__(EXPERTS * len(VIEWS), SHARP, lasting)
        self._scaler = scaler
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
        """Return whether the bent view and the crossed view are active.

        This depends on the numeric features known so far and never on the row, so that predictions
        between two learning steps are one fixed function of the row.
        """
        names, (bent_slept, crossed_slept) = len(self._scaler.known), self.slept
        return names > 0 and bent_slept <= 0, 1 < names <= CROSSED_MAX and crossed_slept <= 0

    def apart(self) -> SleepingViews:
        made = SleepingViews(self._scaler, self._lasting)
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
        if paired and not tented:
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
        """Add CAUTION to the losses of all views but the first."""
        added = [0.0] * EXPERTS + [CAUTION] * (EXPERTS * (len(VIEWS) - 1))
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


class _Answered(NotesFormat):
    """The notes of all experts, and the answer that was served beside them."""

    def probabilities(self, row: Example | None) -> Sequence[float] | None:
        """Return the noted probabilities of True, and the answer's unless all views but one sleep.

        Returns None if the row has none.
        """
        noted = super().probabilities(row)
        if noted is None or len(noted) == EXPERTS or row is None or not row.score:
            return noted
        answer = row.score.get(_TRUE, -1.0)
        return (*noted, answer) if 0.0 <= answer <= 1.0 else noted


class SeveralViews(SelfRateModel):
    """Base class of the models with three views; subclasses differ by task."""

    kind = "auto 1"
    noted = _Answered(EXPERTS, EXPERTS * len(VIEWS))
    _mixture: SleepingViews
    _experts: Any

    def _unjudged(self) -> Mixture:
        scaler = self._rows.scaler
        assert isinstance(scaler, Limited)
        return SleepingViews(scaler, self.lasting)

    def _read(self, features: Features, *, learns: bool) -> Views | Row:
        """Return the row in each active view, or only in the first if all others sleep."""
        if self._mixture.asleep:
            return self._rows.row(features, learns=learns)
        return self._seen(*self._rows.parts(features, learns=learns))

    def _seen(self, shared: Row, numbers: Row) -> Views:
        """Return the row in each active view, from its non-numbers and its scaled numbers."""
        seed, mask = self._recipe.seed, 2**self._recipe.bits - 1
        tented, paired = self._mixture.active_views()
        return Views(
            self._rows.joined(shared.copy(), numbers),
            bent(shared, numbers, seed, mask) if tented else None,
            crossed(shared, numbers, seed, mask) if paired else None,
        )

    def _views(
        self, words: Sequence[tuple[str, str]], numbers: Row
    ) -> tuple[Views | Row, list[Owned | None]]:
        if self._mixture.asleep:
            straight_row: tuple[Row, list[Owned | None]] = super()._views(words, numbers)
            return straight_row
        seen = self._seen(counted(words), numbers)
        seed, mask = self._recipe.seed, 2**self._recipe.bits - 1
        straight = self._rows.owned(words, numbers)
        tented = None if seen.bent is None else bent_owned(words, numbers, seed, mask)
        paired = None if seen.crossed is None else crossed_owned(words, numbers, seed, mask)
        return seen, [straight, tented, paired]

    def learn_alike(self, examples: Sequence[Example], weights: Sequence[float]) -> bool:
        """Learn rows of moderate numbers, none of which can raise; False for any other rows.

        They are learned one by one, or in one pass while all views but the first sleep.
        """
        if self._mixture.asleep and super().learn_alike(examples, weights):
            return True
        if not all(self._is_tame(example) for example in examples):
            return False
        for example, weight in zip(examples, weights, strict=True):
            self._learn(example.features, example.label, weight, example)
        return True

    def _is_tame(self, example: Example) -> bool:
        """Return whether the row can be learned in any state of the model."""
        return all(
            type(x) in _NUMBER and -_TAME < cast(float, x) < _TAME
            for x in example.features.values()
        )


class _Listed(SeveralViews):
    """Base class of the models with one output."""

    _experts: OneOutput

    def _outputs(self, row: Views | Row) -> Sequence[float]:
        if isinstance(row, dict):
            return self._experts.outputs(row)
        straight = self._experts.outputs(row.straight)
        if row.bent is None and row.crossed is None:
            return straight * len(VIEWS)
        out = list(straight)
        for view in row[1:]:
            out += straight if view is None else self._experts.outputs(view)
        return out

    def _teach(self, row: Views | Row, slopes: Sequence[float]) -> float:
        if isinstance(row, dict):
            return self._experts.step(row, slopes)
        total = 0.0
        for i, view in enumerate(row):
            if view is not None:
                own = slopes[EXPERTS * i : EXPERTS * (i + 1)]
                total += self._experts.step(view, own, _ADAGRAD[i])
        return total


class _Binary(_Listed, Binary):
    def _shares(self, row: Views | Row, by: float = 0.0) -> list[float]:
        if isinstance(row, dict):  # without a detour: asleep it is to cost what `linear` does
            return [logistic(z + by) for z in self._experts.outputs(row)]
        if row.bent is None and row.crossed is None:
            straight = self._experts.outputs(row.straight)
            return [logistic(z + by) for z in straight] * len(VIEWS)
        return super()._shares(row, by)

    def predict_columns(self, names: list[str], x: Floats) -> list[Prediction]:
        """Predict rows of numbers, shape (rows, names), as :meth:`predict` does."""
        if self._mixture.asleep:
            return super().predict_columns(names, x)
        return [self.predict(dict(zip(names, row, strict=True))) for row in x.tolist()]


class _Regression(_Listed, Regression):
    def _is_tame(self, example: Example) -> bool:
        return -_TAME < float(example.label) < _TAME and super()._is_tame(example)


class _TakenViews(NamedTuple):
    """A row's indices and values in each active view."""

    views: tuple[Taken | None, ...]

    def outputs(self) -> Floats:
        """Return the output of each expert for each class."""
        first = self.views[0]
        assert first is not None
        straight = first.outputs()
        others = [straight if view is None else view.outputs() for view in self.views[1:]]
        return np.concatenate([straight, *others])


class _Multiclass(SeveralViews, Multiclass):
    heeds_shift = True
    _experts: ClassExperts

    def _step(
        self, row: Any, label: Label, weight: float, served: Example | None, before: Before | None
    ) -> float:
        total = super()._step(row, label, weight, served, before)
        if served is not None and served.notes == UNANSWERED and served.scored:
            self._mixture.be_cautious()
        return total

    def _is_tame(self, example: Example) -> bool:
        return example.label in self._experts.labels and super()._is_tame(example)

    def _judged(self, noted: NotedClasses) -> Floats:
        """Return the noted answers; unless all views but one sleep the mixture's follows."""
        if len(noted.shares) == EXPERTS or noted.answer is None:
            return noted.shares
        return np.vstack((noted.shares, noted.answer))

    def _take(self, row: Views | Row, *, learns: bool) -> _TakenViews | Taken:
        take = self._experts.take
        if isinstance(row, dict):
            return take(row, learns=learns)
        return _TakenViews(
            tuple(None if view is None else take(view, learns=learns) for view in row)
        )

    def _teach(self, taken: _TakenViews | Taken, slopes: Floats) -> float:
        if isinstance(taken, Taken):
            return self._experts.step(taken, slopes)
        total = 0.0
        for i, view in enumerate(taken.views):
            if view is not None:
                own = slopes[EXPERTS * i : EXPERTS * (i + 1)]
                total += self._experts.step(view, own, _ADAGRAD[i])
        return total
