"""A linear model that needs no learning rate.

Four linear experts learn side by side (:mod:`online.models.experts.linear`), two slow and two fast
ones.  The answer is their mixture, weighted by the loss of each one on recent labels: the
exponential weights of Littlestone and Warmuth 1994, *The weighted majority algorithm*, on losses
that decay::

    S_k ← .995 · S_k + (2 · [expert k was wrong] + Brier score of expert k) / 3
    p   = Σ v_k · p_k,   v_k ∝ exp(−S_k)

This gives two thirds of each weight v; one third uses .99967 instead of .995, except in regression.
An expert's loss is that of its answer when the row was served, which is noted with it: present
answers would favour high rates, which have learned the neighbouring rows since (Elec2 with labels
200 rows late: .7709 against .7221).  For a row without notes they have to do.

With several classes the gradient is that of a softmax with an unknown class beside them.

The log loss would be the wrong loss: high rates are overconfident, and still right more often.
In regression a residual is measured in standard deviations of the target and clipped to ±3, and an
expert's loss is its error in units of the experts' median error, at most 4, divided by 4.  As far
as it pays the newest label is mixed in (:mod:`online.models.experts.newest_label`).

Numbers are standardised and clipped to 8 standard deviations; for other values see
:mod:`online.models.features.hashed`.  The blocks:

================================= ======== =======================================================
``experts``, ``experts/<label>``  additive weights and sums of squares of the experts
``scaler``, ``target``            moments  of the numbers, and of the target in regression
``losses``, ``lasting``           local    S.  A replica keeps its own while it learns: sums of
                                           deltas would discount once for each replica
``shift``, ``shift/<label>``      local    frequency of labels, of several classes
``last_label``                    opaque   newest label and its share of answers, in regression
================================= ======== =======================================================
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from struct import pack
from typing import Any, ClassVar, Final, cast

import numpy as np
from river import preprocessing

from evaluation.metrics import Task
from online.models.base import Before, Prediction
from online.models.errors import StateNotFinite
from online.models.experts.exponential_weights import (
    FADE,
    LONG,
    UNANSWERED,
    Mixture,
    NotedClasses,
    NotesFormat,
    beside_unknown,
    class_losses,
    logistic,
    number_losses,
    softmax,
    towards,
)
from online.models.experts.label_shift import ClassExperts
from online.models.experts.linear import (
    EXPERTS,
    NORMALISED,
    NORMALISED_REGRESSION,
    Floats,
    OneOutput,
    OutputPerClass,
    Owned,
)
from online.models.experts.newest_label import NewestLabel, cut_at
from online.models.features.hashed import Hashed, Words, check_hashing, counted
from online.models.gradients import Hashing
from online.models.limited import Limited
from online.models.state.scalers import Standard
from paramserver.core.blocks import Blocks
from replay.example import Example, Features, Label

RESIDUAL_MAX: Final = 3.0

AGAIN: Final = Example({}, False, provisional=True)
"""Stands for the served answer to a row that is learned again."""

_HALF: Final = np.dtype("<f2")
_NUMERIC: Final = frozenset({float, int})
_TARGET: Final = "target"


@dataclass(frozen=True, slots=True)
class SelfRate:
    """A recipe that a factory returns to serve the linear model that needs no learning rate.

    Attributes:
        text: Names of features that are treated as bags of words.
        bits: Features are hashed to 2^bits buckets, by 32-bit murmur3.
        seed: Seed of the hash, the same in all processes.
    """

    text: Sequence[str] = ()
    bits: int = 22
    seed: int = 0
    name: ClassVar[str] = "linear"

    def __post_init__(self) -> None:
        check_hashing(self.name, self.text, self.bits)

    def model_for(self, task: Task) -> SelfRateModel:
        """Make the model for the task."""
        kinds: dict[Task, type[SelfRateModel]] = {
            "binary": Binary, "multiclass": Multiclass, "regression": Regression,
        }  # fmt: skip
        return kinds[task](self, task)


class SelfRateModel(Hashing):
    """The model that a :class:`SelfRate` recipe describes; subclasses differ by task."""

    kind = "linear 1"
    noted = NotesFormat(EXPERTS)
    lasting = LONG

    def __init__(self, recipe: SelfRate, task: Task) -> None:
        self._recipe = recipe
        self.words = Words(recipe.text, recipe.bits, recipe.seed)
        self._rows = Hashed(recipe.text, recipe.bits, recipe.seed, Limited("scaler"))
        self._mixture = self._unjudged()
        self._experts = self._untrained()
        self.structure = f"{self.kind}, {task}, {recipe!r}"

    def numbers(self, features: Features) -> dict[str, float]:
        """Return the row by hashed feature."""
        return self._rows.row(features, learns=False)

    def predict(self, features: Features) -> Prediction:
        return self._answer(self._read(features, learns=False))

    def learn(self, features: Features, label: Label, weight: float) -> None:
        """Do one step of all experts; their losses are those of their present answers.

        Raises LabelUnknown for one label more than CLASSES_MAX, and StateNotFinite if a number
        becomes infinite or NaN.
        """
        self._learn(features, label, weight, None)

    def learn_noted(self, example: Example, weight: float) -> None:
        """Do one step; the experts' losses are those of the noted answers.  Raises as `learn`."""
        self._learn(example.features, example.label, weight, example)

    def learn_again(self, features: Features, label: Label, weight: float) -> None:
        """Update all experts without counting their losses, which only fresh rows may change."""
        self._meet(label)
        self._check(self._step(self._read(features, learns=False), label, weight, AGAIN, None))

    @property
    def why_not_revised(self) -> str | None:
        """Return None: a learned label can always be replaced."""
        return None

    def learn_provisional(self, example: Example, weight: float) -> None:
        """Do one step of all experts; their losses wait for the final label."""
        self._learn(example.features, example.label, weight, example)

    def revise(self, example: Example, weight: float, before: Before) -> None:
        """Do one step by the difference of both gradients, and add the experts' losses."""
        self._learn(example.features, example.label, weight, example, before)

    def _learn(
        self,
        features: Features,
        label: Label,
        weight: float,
        served: Example | None,
        before: Before | None = None,
    ) -> None:
        self._meet(label)
        if before is not None:
            self._meet(before[0])
        row = self._read(features, learns=before is None)
        self._check(self._step(row, label, weight, served, before))

    def _check(self, total: float) -> None:
        if not math.isfinite(total + sum(self._mixture.losses)):
            raise StateNotFinite(total)

    def learn_alike(self, examples: Sequence[Example], weights: Sequence[float]) -> bool:
        """Learn rows with the same names in the same order, as one by one, in one pass.

        Returns False if nothing was changed and the rows have to be learned one by one.
        """
        names, scaler = list(examples[0].features), self._rows.scaler
        columns = list(zip(*[e.features.values() for e in examples], strict=True))
        numeric = all(_NUMERIC.issuperset(map(type, column)) for column in columns)
        keys = self._rows.keys(names) if numeric else None
        if keys is None or not isinstance(scaler, Limited):
            return False
        try:
            walked = scaler.walk(names, cast(list[list[float]], columns))
            if walked is None or not self._walk(keys, walked.columns, examples, weights):
                return False
        except (ArithmeticError, ValueError):  # raised again when the row is learned alone
            return False
        scaler.put(names, walked)
        return True

    def cut(self) -> Blocks:
        """Return the open delta and empty it."""
        return {**self._rows.cut(), **self._experts.cut(), **self._mixture.cut()}

    def rebase(self, values: Blocks) -> None:
        """Set new values with the open delta on top."""
        self._rows.rebase(values)
        self._experts.rebase(values)
        self._mixture.rebase(values)

    def reset(self, values: Blocks) -> None:
        """Set the whole state to ``values``, with an empty open delta."""
        self._rows.reset(values)
        self._experts, self._mixture = self._untrained(), self._unjudged()
        self._experts.rebase(values)
        self._mixture.rebase(values)

    # -- by how rows are read ----------------------------------------------------------------

    def _read(self, features: Features, *, learns: bool) -> Any:
        """Return the row as the experts read it; if it ``learns``, update the moments first."""
        return self._rows.row(features, learns=learns)

    def _unjudged(self) -> Mixture:
        return Mixture(EXPERTS, lasting=self.lasting)

    def _views(
        self, words: Sequence[tuple[str, str]], numbers: dict[str, float]
    ) -> tuple[Any, list[Owned | None]]:
        """Return the row as :meth:`_read` does, and by view the feature of each entry."""
        return self._rows.joined(counted(words), numbers), [self._rows.owned(words, numbers)]

    # -- by task -----------------------------------------------------------------------------

    def _untrained(self) -> OneOutput | OutputPerClass:
        return OneOutput(NORMALISED)

    def _meet(self, label: Label) -> None:
        """Prepare for the label, before any other change; may raise."""

    def _walk(
        self,
        keys: Sequence[str],
        columns: Sequence[Sequence[float]],
        examples: Sequence[Example],
        weights: Sequence[float],
    ) -> bool:
        """Do :meth:`_step` for rows by column, without the bias; False: nothing was changed."""
        return False

    def _answer(self, row: Any) -> Prediction:
        raise NotImplementedError

    def _step(
        self, row: Any, label: Label, weight: float, served: Example | None, before: Before | None
    ) -> float:
        """Add the experts' losses, unless the label is provisional, and do one step.

        ``before`` is the label that is replaced.  Returns a sum: finite if all numbers are.
        """
        raise NotImplementedError


class _OneAnswer(SelfRateModel):
    """Base class of the models with one output: log odds, or standard deviations of the target."""

    _experts: OneOutput

    def _outputs(self, row: Any) -> Sequence[float]:
        """Return the output of each expert."""
        return self._experts.outputs(row)

    def _teach(self, row: Any, slopes: Sequence[float]) -> float:
        """Do one step with the gradient at each expert's output; the sum is finite if all is."""
        return self._experts.step(row, slopes)


class Binary(_OneAnswer):
    """The model for two labels."""

    def _answer(self, row: Any, by: float = 0.0) -> Prediction:
        shares = self._shares(row, by)
        return self._said(shares, self._mixture.of(shares))

    def _said(self, shares: Sequence[float], p: float) -> Prediction:
        """Make the answer with ``p`` as the probability of True and ``shares`` as its notes."""
        notes = pack(self.noted.halves[_HALF.itemsize * len(shares)], *shares)
        return Prediction(p > 0.5, {False: 1.0 - p, True: p}, notes)

    def _shares(self, row: Any, by: float = 0.0) -> list[float]:
        """Return each expert's probability of True."""
        return [logistic(z + by) for z in self._outputs(row)]

    def _step(
        self,
        row: Any,
        label: Label,
        weight: float,
        served: Example | None,
        before: Before | None,
        by: float = 0.0,
    ) -> float:
        shares, y = self._shares(row, by), float(label)
        if served is None or served.scored:
            judged = self.noted.probabilities(served) or shares
            self._judge(self._mixture, judged, y, weight)
        slopes = [(p - y) * weight for p in shares]
        if before is not None:
            y, weight = float(before[0]), before[1]
            slopes = [slope - (p - y) * weight for slope, p in zip(slopes, shares, strict=True)]
        return self._teach(row, slopes)

    @staticmethod
    def _judge(mixture: Mixture, judged: Sequence[float], y: float, weight: float) -> None:
        losses = [  # the Brier score is twice the square
            (((miss := abs(y - p)) > 0.5) + miss * miss) * (2.0 / 3.0) for p in judged
        ]
        mixture.judge(losses, weight)

    def _walk(
        self,
        keys: Sequence[str],
        columns: Sequence[Sequence[float]],
        examples: Sequence[Example],
        weights: Sequence[float],
    ) -> bool:
        experts, mixture = self._experts, self._mixture.apart()
        held = experts.held(keys)
        rows = zip([1.0] * len(examples), *columns, strict=True)
        for x, example, weight in zip(rows, examples, weights, strict=True):
            a = b = c = d = 0.0
            for (h0, h1, h2, h3, _, _), v in zip(held, x, strict=True):
                a += h0 * v
                b += h1 * v
                c += h2 * v
                d += h3 * v
            shares = [logistic(a), logistic(b), logistic(c), logistic(d)]
            y = float(example.label)
            self._judge(mixture, self.noted.probabilities(example) or shares, y, weight)
            experts.walk(held, x, [(p - y) * weight for p in shares])
        finite = math.isfinite(sum(map(sum, held), sum(mixture.losses)))
        if not (finite and self._mixture.has_same_experts(mixture)):
            return False
        experts.put(keys, held)
        self._mixture.take(mixture)
        return True

    def predict_columns(self, names: list[str], x: Floats) -> list[Prediction]:
        """Predict rows of numbers, shape (rows, names), as :meth:`predict` does within rounding."""
        keys, scaler = self._rows.keys(names), self._rows.scaler
        if keys is None or not isinstance(scaler, Limited):
            return [self.predict(dict(zip(names, row, strict=True))) for row in x.tolist()]
        names, x = scaler.transform_many(names, x)
        held = np.array(self._experts.held(self._rows.keys(names) or []))[:, :EXPERTS]
        with np.errstate(over="ignore"):
            shares = 1.0 / (1.0 + np.exp(-(held[0] + x @ held[1:])))
        mixed = (shares @ np.array(self._mixture.votes())).tolist()
        notes = shares.astype(_HALF).tobytes()
        size = shares.shape[1] * _HALF.itemsize
        return [
            Prediction(p > 0.5, {False: 1.0 - p, True: p}, notes[i * size : i * size + size])
            for i, p in enumerate(mixed)
        ]


class Multiclass(SelfRateModel):
    """The model for any number of labels."""

    heeds_shift: ClassVar[bool] = False  # corrects answers to late labels in runs; costs a tenth
    _experts: ClassExperts

    def plain(self, features: Features) -> Prediction:
        """Predict without the correction by recent labels."""
        return self._answer(self._read(features, learns=False), corrects=False)

    def _untrained(self) -> ClassExperts:
        return ClassExperts()

    def _meet(self, label: Label) -> None:
        self._experts.meet(label)

    def _take(self, row: Any, *, learns: bool) -> Any:
        """Look the row up in the experts' weights; returns a ``Taken``."""
        return self._experts.take(row, learns=learns)

    def _teach(self, taken: Any, slopes: Floats) -> float:
        """Do one step with the gradients at the experts' outputs."""
        return self._experts.step(taken, slopes)

    def _answer(self, row: Any, *, corrects: bool = True) -> Prediction:
        if not (labels := self._experts.labels):
            return Prediction(None, {}, UNANSWERED)
        shares = softmax(self._take(row, learns=False).outputs())
        answer, factors = self._mixture.votes() @ shares, None
        if corrects and self.heeds_shift:
            answer, factors = self._experts.shift.correct(answer)
        if factors is not None:
            shares = np.vstack((shares, factors))
        mixed = dict(zip(labels, answer.tolist(), strict=True))
        return Prediction(max(mixed, key=mixed.__getitem__), mixed, shares.astype(_HALF).tobytes())

    def _step(
        self, row: Any, label: Label, weight: float, served: Example | None, before: Before | None
    ) -> float:
        taken, labels = self._take(row, learns=True), self._experts.labels
        outputs, column = taken.outputs(), labels[label]
        if served is None or served.scored:
            noted = self.noted.of_classes(served)
            judged, own = (
                (softmax(outputs), column) if noted is None else (self._judged(noted), noted.own)
            )
            self._mixture.judge(class_losses(judged, own).tolist(), weight)
            if self.heeds_shift:
                self._experts.shift.learn(column, len(labels), noted, weight)
        shares = beside_unknown(outputs)
        slopes = towards(shares, column) * weight
        if before is not None:
            slopes -= towards(shares, labels[before[0]]) * before[1]
        return self._teach(taken, slopes)

    def _judged(self, noted: NotedClasses) -> Floats:
        """Return the noted answers that the mixture judges."""
        return noted.shares


class Regression(_OneAnswer):
    """The model for a number."""

    lasting = FADE  # long-run losses were worse where the target drifts

    def __init__(self, recipe: SelfRate, task: Task) -> None:
        super().__init__(recipe, task)
        self._targets = preprocessing.StandardScaler()
        self._target = Standard(self._targets, _TARGET)
        self._newest = NewestLabel()

    def plain(self, features: Features) -> Prediction:
        """Predict without the newest label."""
        return Prediction(self._mixture.of(self._numbers(self._read(features, learns=False))), None)

    def _untrained(self) -> OneOutput:
        return OneOutput(NORMALISED_REGRESSION)

    def cut(self) -> Blocks:
        return {**super().cut(), **self._target.cut(), **self._newest.cut()}

    def rebase(self, values: Blocks) -> None:
        super().rebase(values)
        self._target.rebase(values)
        self._newest.rebase(values)

    def reset(self, values: Blocks) -> None:
        super().reset(values)
        self._target.reset(values)
        self._newest = NewestLabel()
        self._newest.rebase(values)

    def _answer(self, row: Any) -> Prediction:
        numbers = self._numbers(row)
        answer, newest = self._mixture.of(numbers), self._newest
        notes = self.noted.of_numbers((*numbers, *newest.note(answer)))
        return Prediction(newest.mixed_in(answer), None, notes)

    def _numbers(self, row: Any) -> list[float]:
        """Return each expert's prediction of the target."""
        mean, spread = self._targets.means.get("", 0.0), self._spread()
        return [mean + spread * z for z in self._outputs(row)]

    def _spread(self) -> float:
        return math.sqrt(self._targets.vars.get("", 0.0))

    def _step(
        self, row: Any, label: Label, weight: float, served: Example | None, before: Before | None
    ) -> float:
        y = float(label)
        if before is None and served is not AGAIN:  # the first label stays in the moments
            self._target.learn({"": y})
        numbers, spread = self._numbers(row), self._spread() or 1.0
        if served is None or served.scored:
            noted = self.noted.numbers(served) or ()
            experts = len(noted) // EXPERTS * EXPERTS  # what was noted of the newest label follows
            if before is None or before[0] != label:
                self._newest.learn(y, noted[experts:], weight)
            judged = noted[:experts] or numbers
            errors = [abs(number - y) / spread for number in judged]
            self._mixture.judge(number_losses(errors), weight)
        slopes = [cut_at((number - y) / spread, RESIDUAL_MAX) * weight for number in numbers]
        if before is not None:
            y, weight = float(before[0]), before[1]
            taken = [cut_at((number - y) / spread, RESIDUAL_MAX) * weight for number in numbers]
            slopes = [slope - back for slope, back in zip(slopes, taken, strict=True)]
        return self._teach(row, slopes) + self._newest.total
