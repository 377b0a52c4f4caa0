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
steady    z itself                                          what ``straight`` can, by averages
counted   two of GRAIN tents                                each number for itself, by counts
========= ================================================= =====================================

A *tent* (hat function) is 1 at its own position and falls to 0 at its neighbours', so the answer is
continuous, and the tents of a number add up to 1.  The positions are fixed: with SQUASH the
logistic function nearly equals the normal distribution function, so they are about the quantiles of
a standardised number.  Nothing is chosen from the data, so all replicas use the same tents.

The third view is crossed with two to CROSSED_MAX numeric features, else steady with several
classes and counted with two.  The weights of the steady view are those of the straight one in the
mean of the rows that have the feature, the newest 3,000 rows at most.  If labels come late and in
runs, the weights at the end of a run say that it goes on; their mean over the runs remembers all of
them, as the mean of the iterates of stochastic gradient descent does (Polyak and Juditsky 1992).

The experts of the counted view are naive Bayes classifiers on the entries of the bent view
(:mod:`online.models.experts.naive_bayes`).  A gradient step with a late label leads away from what
was right when the row came; a count does not.  They start with a loss of BEGINNING.

Categories, words, missing values and the bias are in every view.  A view is inactive, with weight 0
and without cost, if it adds nothing: bent and counted while no numeric feature is known, and each
while it sleeps.  The losses of an inactive view's experts are those of the straight view, so that
it starts equal when it becomes active.

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
alike if labels come in runs.  So each of them costs the bent and the crossed view CAUTION in
losses: a richer view generalises worse from a single run, and has to show that it does not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Final, NamedTuple, cast

import numpy as np

from evaluation.metrics import Task
from online.models.base import Before, Prediction
from online.models.experts.exponential_weights import (
    UNANSWERED,
    Mixture,
    NotedClasses,
    NotesFormat,
    logistic,
)
from online.models.experts.label_shift import ClassExperts
from online.models.experts.linear import ADAGRAD, EXPERTS, Floats, OneOutput, Owned, Taken
from online.models.experts.naive_bayes import Counts
from online.models.features.hashed import counted
from online.models.features.tents import Row, bent, bent_owned, crossed, crossed_owned
from online.models.limited import Limited
from online.models.selfrate import AGAIN, Binary, Multiclass, Regression, SelfRate, SelfRateModel
from online.models.sleeping_views import VIEWS, SleepingViews
from paramserver.core.blocks import Blocks
from replay.example import Example, Features, Label, label_text

STEADY: Final = "s"
"""Prefix of the keys of averages."""

_ADAGRAD: Final = (ADAGRAD, (ADAGRAD[0] / 2, ADAGRAD[1]), ADAGRAD)
_THIRD: Final = 2
_TRUE: Final = label_text(True)

_NUMBER: Final = (float, int)
_TAME: Final = 1e100
"""Bound of numbers and targets whose squares can be summed over any number of rows."""


class Views(NamedTuple):
    """A row in each view; None: the view is inactive.  ``crosses``: the third is crossed."""

    straight: Row
    bent: Row | None
    third: Row | None
    crosses: bool


class Auto(SelfRate):
    """A recipe that a factory returns to serve the linear model of several representations."""

    __slots__ = ()
    name = "auto"

    def model_for(self, task: Task) -> SelfRateModel:
        """Make the model for the task."""
        kinds: dict[Task, type[SelfRateModel]] = {
            "binary": TwoClasses, "multiclass": _Multiclass, "regression": _Regression,
        }  # fmt: skip
        return kinds[task](SelfRate(self.text, self.bits, self.seed), task)


def _steady(straight: Row) -> Row:
    """Return the row whose weights are the averages of the straight view's."""
    return {f"{STEADY}{key}": x for key, x in straight.items()}


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
    steadies: ClassVar[bool] = False  # two classes gained nothing
    counts: ClassVar[bool] = False  # several classes gained nothing
    _mixture: SleepingViews
    _experts: Any

    def _unjudged(self) -> Mixture:
        scaler = self._rows.scaler
        assert isinstance(scaler, Limited)
        least = 0 if self.steadies else 1 if self.counts else math.inf
        return SleepingViews(scaler, self.lasting, uncrossed=least)

    def _read(self, features: Features, *, learns: bool) -> Views | Row:
        """Return the row in each active view, or only in the first if all others sleep."""
        if self._mixture.asleep:
            return self._rows.row(features, learns=learns)
        return self._seen(*self._rows.parts(features, learns=learns))

    def _seen(self, shared: Row, numbers: Row) -> Views:
        """Return the row in each active view, from its non-numbers and its scaled numbers."""
        seed, mask = self._recipe.seed, 2**self._recipe.bits - 1
        tented, thirds = self._mixture.active_views()
        straight = self._rows.joined(shared.copy(), numbers)
        third, crosses = None, self._mixture.crosses
        tall = bent(shared, numbers, seed, mask) if tented else None
        if thirds and crosses:
            third = crossed(shared, numbers, seed, mask)
        elif thirds and self.counts:
            third = bent(shared, numbers, seed, mask) if tall is None else tall
        elif thirds:
            third = _steady(straight)
        return Views(straight, tall, third, crosses)

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
        third = None
        if seen.third is not None and seen.crosses:
            third = crossed_owned(words, numbers, seed, mask)
        elif seen.third is not None and self.counts:
            third = bent_owned(words, numbers, seed, mask)
        elif seen.third is not None:
            third = straight._replace(keys=[f"{STEADY}{key}" for key in straight.keys])
        return seen, [straight, tented, third]

    def _experts_of(self, view: int, row: Views | Row) -> Any:
        """Return the experts of a view of the row."""
        return self._experts

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

    def _experts_of(self, view: int, row: Views | Row) -> OneOutput:
        return self._experts

    def _outputs(self, row: Views | Row) -> Sequence[float]:
        if isinstance(row, dict):
            return self._experts.outputs(row)
        straight = self._experts.outputs(row.straight)
        if row.bent is None and row.third is None:
            return straight * len(VIEWS)
        out = list(straight)
        for i, view in enumerate((row.bent, row.third), 1):
            out += straight if view is None else self._experts_of(i, row).outputs(view)
        return out

    def _teach(self, row: Views | Row, slopes: Sequence[float]) -> float:
        if isinstance(row, dict):
            return self._experts.step(row, slopes)
        total = 0.0
        for i, view in enumerate((row.straight, row.bent, row.third)):
            if view is not None and (i != _THIRD or row.crosses):
                own = slopes[EXPERTS * i : EXPERTS * (i + 1)]
                total += self._experts.step(view, own, _ADAGRAD[i])
        return total


class TwoClasses(_Listed, Binary):
    """The model for two labels."""

    counts = True

    def __init__(self, recipe: SelfRate, task: Task) -> None:
        super().__init__(recipe, task)
        self._counts = Counts()

    def cut(self) -> Blocks:
        return {**super().cut(), **self._counts.cut()}

    def rebase(self, values: Blocks) -> None:
        super().rebase(values)
        self._counts.rebase(values)

    def reset(self, values: Blocks) -> None:
        super().reset(values)
        self._counts = Counts()
        self._counts.rebase(values)

    def _experts_of(self, view: int, row: Views | Row) -> OneOutput:
        counted = view == _THIRD and isinstance(row, Views) and not row.crosses
        return self._counts if counted else self._experts

    def _step(
        self,
        row: Views | Row,
        label: Label,
        weight: float,
        served: Example | None,
        before: Before | None,
        by: float = 0.0,
    ) -> float:
        if isinstance(row, dict) or row.third is None or row.crosses:
            return super()._step(row, label, weight, served, before, by)
        # classifiers have no slopes: what they answer is asked only if no answers were noted
        noted = served is not None and len(served.notes or b"") in self.noted.halves
        seen = Views(row.straight, row.bent, None, False) if noted or served is AGAIN else row
        total = super()._step(seen, label, weight, served, before, by)
        if served is AGAIN:
            return total
        if self._counts.empty:
            self._mixture.begin_counting()
        if before is not None:
            self._counts.count(row.third, bool(before[0]), -before[1])
        return total + self._counts.count(row.third, bool(label), weight)

    def _shares(self, row: Views | Row, by: float = 0.0) -> list[float]:
        if isinstance(row, dict):  # without a detour: asleep it is to cost what `linear` does
            return [logistic(z + by) for z in self._experts.outputs(row)]
        outputs: list[float] = [*self._experts.outputs(row.straight)]
        if row.bent is not None:
            outputs += self._experts.outputs(row.bent)
        if row.third is not None:
            outputs += self._experts_of(_THIRD, row).outputs(row.third)
        shares = [logistic(z + by) for z in outputs]
        if row.bent is None:
            shares[EXPERTS:EXPERTS] = shares[:EXPERTS]
        return shares if row.third is not None else shares + shares[:EXPERTS]

    def predict_columns(self, names: list[str], x: Floats) -> list[Prediction]:
        """Predict rows of numbers, shape (rows, names), as :meth:`predict` does."""
        if self._mixture.asleep:
            return super().predict_columns(names, x)
        return [self.predict(dict(zip(names, row, strict=True))) for row in x.tolist()]


class _Regression(_Listed, Regression):
    def _is_tame(self, example: Example) -> bool:
        return -_TAME < float(example.label) < _TAME and super()._is_tame(example)


class _TakenViews(NamedTuple):
    """A row's indices and values in each active view.  ``crosses``: the third is crossed."""

    views: tuple[Taken | None, ...]
    crosses: bool

    def outputs(self) -> Floats:
        """Return the output of each expert for each class."""
        first = self.views[0]
        assert first is not None
        straight = first.outputs()
        others = [straight if view is None else view.outputs() for view in self.views[1:]]
        return np.concatenate([straight, *others])


class _Multiclass(SeveralViews, Multiclass):
    heeds_shift = steadies = True
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
        views = (row.straight, row.bent, row.third)
        taken = tuple(None if view is None else take(view, learns=learns) for view in views)
        return _TakenViews(taken, row.crosses)

    def _teach(self, taken: _TakenViews | Taken, slopes: Floats) -> float:
        if isinstance(taken, Taken):
            return self._experts.step(taken, slopes)
        total = 0.0
        for i, view in enumerate(taken.views):
            if view is None:
                continue
            if i == _THIRD and not taken.crosses:
                assert taken.views[0] is not None
                self._experts.average(taken.views[0], view)
            else:
                own = slopes[EXPERTS * i : EXPERTS * (i + 1)]
                total += self._experts.step(view, own, _ADAGRAD[i])
        return total
