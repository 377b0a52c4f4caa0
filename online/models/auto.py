"""A linear model of several representations: one word for numbers, categories and texts.

The experts of :mod:`online.models.selfrate` learn three views of the same row side by side, four
on each, and one mixture weighs all twelve by how they did of late:

========= ================================================= =====================================
view      a number z behind the limited scaler becomes      what it can say
========= ================================================= =====================================
straight  z itself                                          what ``linear`` says
bent      two of GRAIN tents, those beside its place p,     any function of each number, as a sum
          where p = (GRAIN − 1) / (1 + exp(−SQUASH · z))
crossed   products of such tents of CROSSED_GRAIN, for      any function of each pair of numbers
          each pair of numbers
========= ================================================= =====================================

A tent is 1 at its own place and falls to 0 at its neighbours', so the answer is continuous, and a
number's tents add up to 1.  The places are fixed: SQUASH makes the logistic function nearly the
normal distribution's, so they are about the quantiles of a standardised number.  Nothing is chosen
from the data, so replicas need not agree on anything, and no delta is of other tents.

Categories, words, missing values and the bias are in each view.  A view that has nothing of its own
to say has no vote and costs nothing: both do while no name of a number is known, the crossed one
with one name or more than CROSSED_MAX, and each while it sleeps.  Its experts are then judged as
the straight ones, so that it begins as these are when it has something to say.

The slower AdaGrad expert of the bent view has half the rate of the others': it has more numbers a
row.

A view falls asleep when its experts have less than SHARE_MIN of the votes at the end of QUIET
spells of SPELL labels, one after the other.  It is tried again after NAP spells, and at once if the
best expert's loss rises: the world has changed.  Who sleeps is each replica's own, as the losses
are, and travels with them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple, cast

import numpy as np

from evaluation.metrics import Task
from online.models.base import Prediction
from online.models.experts import (
    ADAGRAD,
    EXPERTS,
    Floats,
    OneOutput,
    OutputPerClass,
    Owned,
    Taken,
)
from online.models.hashed import counted
from online.models.limited import Limited
from online.models.selfrate import (
    Binary,
    Multiclass,
    Regression,
    SelfRate,
    SelfRateModel,
)
from online.models.tents import Row, bent, bent_owned, crossed, crossed_owned
from online.models.votes import FADE, LONG, Mixture, Noted, logistic, shares_of
from paramserver.core.blocks import LOCAL, Block, Blocks, array_bytes, array_of
from replay.example import Example, Features

CROSSED_MAX: Final = 4
"""Names of numbers whose pairs are crossed: six pairs of four tents each."""

VIEWS: Final = ("straight", "bent", "crossed")

SHARP: Final = 1.0 / len(VIEWS)
"""How much a difference of losses counts, of what it does among the experts of one view."""

SPELL: Final = 1_000
"""Labels after which it is looked at who pays."""

SHARE_MIN: Final = 0.02
QUIET: Final = 3
NAP: Final = 8
"""Spells: on end with a smaller share than SHARE_MIN before a view sleeps, and how long it does."""

RISE: Final = 10.0
"""Of the best expert's loss, over some 200 labels, at which all wake up: five points."""

_ADAGRAD: Final = (ADAGRAD, (ADAGRAD[0] / 2, ADAGRAD[1]), ADAGRAD)
_NAPS: Final = "naps"
_SILENT: Final = (0.0,) * EXPERTS

_NUMBER: Final = (float, int)
_TAME: Final = 1e100
"""Numbers and targets whose squares, and their sums over all rows that there can be, are finite."""


class Views(NamedTuple):
    """A row as each view has it; None: the view has nothing of its own to say."""

    straight: Row
    bent: Row | None
    crossed: Row | None


class Auto(SelfRate):
    """A recipe that a factory returns to serve the linear model of several representations."""

    __slots__ = ()
    name = "auto"

    def model_for(self, task: Task) -> SelfRateModel:
        """The model behind the learner."""
        kinds: dict[Task, type[SelfRateModel]] = {
            "binary": _Binary, "multiclass": _Multiclass, "regression": _Regression,
        }  # fmt: skip
        return kinds[task](SelfRate(self.text, self.bits, self.seed), task)


class Naps(Mixture):
    """The losses of all experts, and which views sleep.

    ``scaler``: knows the names of numbers.
    ``slept``: of each view but the first, the spells that it has slept; 0 and less: it is awake,
    and has not paid for so many spells on end.  ``asleep``: no view but the first is awake.
    ``rested``: the best expert's least loss since a view fell asleep.
    """

    def __init__(self, scaler: Limited, lasting: float = LONG) -> None:
        super().__init__(EXPERTS * len(VIEWS), SHARP, lasting)
        self._scaler = scaler
        self.labels = 0
        self.asleep = self._napping = False
        self.slept = [0] * (len(VIEWS) - 1)
        self.rested = 0.0

    @property
    def slept(self) -> list[int]:
        return self._slept

    @slept.setter
    def slept(self, spells: list[int]) -> None:
        self._slept, self.asleep, self._napping = spells, min(spells) > 0, max(spells) > 0

    def speaking(self) -> tuple[bool, bool]:
        """Whether the bent view and the crossed one have something of their own to say.

        It depends on the names of numbers that are known, never on the row, so that the model is
        one function of its rows until it learns.
        """
        names, (bent_slept, crossed_slept) = len(self._scaler.known), self.slept
        return names > 0 and bent_slept <= 0, 1 < names <= CROSSED_MAX and crossed_slept <= 0

    def apart(self) -> Naps:
        made = Naps(self._scaler, self._lasting)
        made.take(self)
        return made

    def heard_as(self, other: Mixture) -> bool:
        return isinstance(other, Naps) and other.slept == self.slept

    def take(self, other: Mixture) -> None:
        assert isinstance(other, Naps)
        super().take(other)
        self.labels, self.slept, self.rested = other.labels, other.slept, other.rested

    def votes(self) -> list[float]:
        """Each expert's share in the answer; none of those of a view that is silent.

        Of the first view's alone while no other one is awake.
        """
        losses, long, sharp = self.losses, self.long, self._sharp
        if self.asleep:
            return shares_of(losses[:EXPERTS], long[:EXPERTS], sharp)
        tented, paired = self.speaking()
        if not (tented and paired):
            end, begin = EXPERTS * (1 + tented), EXPERTS * (2 if paired else len(VIEWS))
            losses, long = losses[:end] + losses[begin:], long[:end] + long[begin:]
        votes = shares_of(losses, long, sharp)
        if paired and not tented:
            votes[EXPERTS:EXPERTS] = _SILENT
        return votes + [0.0] * (EXPERTS * len(VIEWS) - len(votes))

    def judge(self, losses: Sequence[float], weight: float) -> None:
        """A label came; at the end of a spell views fall asleep or wake up, and all at a drift.

        Losses of the first view's experts alone are all views': no other one was awake.
        """
        if len(losses) > EXPERTS:
            super().judge(losses, weight)
        elif weight == 1.0:
            self.losses = _faded(self.losses, losses, FADE)
            self.long = _faded(self.long, losses, self._lasting)
            self._judged = True
        else:
            super().judge([*losses] * len(VIEWS), weight)
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

    def _after(self, slept: int, share: float) -> int:
        """Return ``slept`` of a view after a spell at whose end it has this share of the votes."""
        if slept > 0:
            return 0 if slept >= NAP else slept + 1
        if share >= SHARE_MIN:
            return 0
        if slept - 1 > -QUIET:
            return slept - 1
        self.rested = min(self.losses)
        return 1

    def cut(self) -> Blocks:
        """The losses and the naps, if a label came since the last cut."""
        blocks = super().cut()
        if blocks:
            held = np.array([self.rested, self.labels, *self.slept], dtype=np.float64)
            blocks[_NAPS] = Block(LOCAL, array_bytes(held))
        return blocks

    def rebase(self, values: Blocks) -> None:
        """Take those of other replicas, as long as no label has come here."""
        if not self._judged and (block := values.get(_NAPS)) is not None:
            # a mean of several replicas, in snapshots
            self.rested, *others = array_of(block.data).tolist()
            self.labels, *self.slept = map(round, others)
        super().rebase(values)


def _faded(kept: Sequence[float], losses: Sequence[float], z: float) -> list[float]:
    """Return what is kept of the losses of all views after a label that all have the same of."""
    a, b, c, d = losses
    e, f, g, h, i, j, k, m, n, o, p, q = kept
    return [
        z * e + a, z * f + b, z * g + c, z * h + d,
        z * i + a, z * j + b, z * k + c, z * m + d,
        z * n + a, z * o + b, z * p + c, z * q + d,
    ]  # fmt: skip


class SeveralViews(SelfRateModel):
    """Rows in three views; what differs by task is in the subclasses."""

    kind = "auto 1"
    noted = Noted(EXPERTS, EXPERTS * len(VIEWS))
    _mixture: Naps
    _experts: Any

    def _unjudged(self) -> Mixture:
        scaler = self._rows.scaler
        assert isinstance(scaler, Limited)
        return Naps(scaler, self.lasting)

    def _read(self, features: Features, *, learns: bool) -> Views | Row:
        """A row in each view that has something to say; in the first one if no other is awake."""
        if self._mixture.asleep:
            return self._rows.row(features, learns=learns)
        return self._seen(*self._rows.parts(features, learns=learns))

    def _seen(self, shared: Row, numbers: Row) -> Views:
        """The row in each view that has something to say, by what is no number and the numbers."""
        seed, mask = self._recipe.seed, 2**self._recipe.bits - 1
        tented, paired = self._mixture.speaking()
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
        """Learn rows of tame numbers one by one, as :meth:`learn` does: none of them can raise.

        While no view but the first is awake, in one pass.
        """
        if self._mixture.asleep and super().learn_alike(examples, weights):
            return True
        if not all(self._is_tame(example) for example in examples):
            return False
        for example, weight in zip(examples, weights, strict=True):
            self._learn(example.features, example.label, weight, example)
        return True

    def _is_tame(self, example: Example) -> bool:
        """Whether the row can be learned whatever the model has learned before."""
        return all(
            type(x) in _NUMBER and -_TAME < cast(float, x) < _TAME
            for x in example.features.values()
        )


class _Listed(SeveralViews):
    """The same for a model of one output."""

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
        """Answers of :meth:`predict` to rows of one number a name."""
        if self._mixture.asleep:
            return super().predict_columns(names, x)
        return [self.predict(dict(zip(names, row, strict=True))) for row in x.tolist()]


class _Regression(_Listed, Regression):
    def _is_tame(self, example: Example) -> bool:
        return -_TAME < float(example.label) < _TAME and super()._is_tame(example)


class _TakenViews(NamedTuple):
    """The numbers of a row in each view that has something to say."""

    views: tuple[Taken | None, ...]

    def outputs(self) -> Floats:
        """Return what each expert makes of the row, for each class."""
        first = self.views[0]
        assert first is not None
        straight = first.outputs()
        others = [straight if view is None else view.outputs() for view in self.views[1:]]
        return np.concatenate([straight, *others])


class _Multiclass(SeveralViews, Multiclass):
    _experts: OutputPerClass

    def _is_tame(self, example: Example) -> bool:
        return example.label in self._experts.labels and super()._is_tame(example)

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
