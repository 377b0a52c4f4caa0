"""FTRL-Proximal on hashed features: numbers, categories, words, missing values, new names.

The algorithm is number 1 of McMahan et al. 2013, *Ad click prediction: a view from the trenches*,
with a softmax over the classes in a multiclass task and the squared loss in regression.  The blocks
are ``z`` and ``n`` (``z/<label>`` and ``n/<label>`` for each class), additive, by hashed feature.
Weights are computed from them at each prediction and never sent, because differences of weights do
not add up.  For the values of a row see :mod:`online.models.features.hashed`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from evaluation.metrics import Task
from online.models.base import Before, Prediction, by_logit, by_scores
from online.models.errors import LabelUnknown, LearnerUnusable, StateNotFinite
from online.models.features.hashed import Hashed, Words, check_hashing
from online.models.gradients import Hashing
from online.models.limited import Scale, scaler_of
from paramserver.core.blocks import ADDITIVE, Block, Blocks
from replay.example import Example, Features, Label, label_text

CLASSES_MAX: Final = 256
"""Most labels of a multiclass task: each row updates all of them, and each has two blocks."""

_ONE: Final = ""  # the only output of a binary task and of regression


@dataclass(frozen=True, slots=True)
class Ftrl:
    """A recipe that a factory returns to serve FTRL.

    Attributes:
        alpha, beta: The learning rate of a weight is alpha / (beta + √n), where n is its sum of
            squared gradients.
        l1, l2: Penalties; with ``l1`` weights of rare features stay 0.
        bits: Features are hashed to 2^bits buckets, by 32-bit murmur3.
        seed: Seed of the hash, the same in all processes.
        text: Names of features that are treated as bags of words.
        scale: Whether numbers are standardised by the moments of the rows learned so far;
            ``"limited"``: by the scaler of :mod:`online.models.limited`.
    """

    alpha: float = 0.5
    beta: float = 1.0
    l1: float = 0.0
    l2: float = 0.0
    bits: int = 22
    seed: int = 0
    text: Sequence[str] = ()
    scale: Scale = True

    def __post_init__(self) -> None:
        for name in ("alpha", "beta", "l1", "l2"):
            if not 0 <= getattr(self, name) < 1e6 or (name == "alpha" and not self.alpha):
                problem = f"{name} is {getattr(self, name)!r}"
                raise LearnerUnusable("ftrl", problem, "Give a number from 0 to 1000000, alpha > 0")
        check_hashing("ftrl", self.text, self.bits)

    def model_for(self, task: Task) -> FtrlModel:
        """Make the model for the task."""
        return FtrlModel(self, task)


class FtrlModel(Hashing):
    """The model that an :class:`Ftrl` recipe describes."""

    def __init__(self, recipe: Ftrl, task: Task) -> None:
        self._recipe, self._task = recipe, task
        scaler = scaler_of(recipe.scale, "scaler")
        self.words = Words(recipe.text, recipe.bits, recipe.seed)
        self._rows = Hashed(recipe.text, recipe.bits, recipe.seed, scaler)
        self._outputs: dict[Label, _Output] = {}
        self._new: dict[Label, None] = {}  # classes that are in no delta yet
        if task != "multiclass":
            self._outputs[_ONE] = _Output(recipe)
        self.structure = f"ftrl 1, {task}, {recipe!r}"

    # -- answering ---------------------------------------------------------------------------

    def numbers(self, features: Features) -> dict[str, float]:
        """Return the row by hashed feature."""
        return self._rows.row(features, learns=False)

    def predict(self, features: Features) -> Prediction:
        return self._answer(self.numbers(features))

    def _answer(self, row: Mapping[str, float]) -> Prediction:
        raw = {label: output.dot(row) for label, output in self._outputs.items()}
        if self._task == "regression":
            return Prediction(raw[_ONE], None)
        if self._task == "binary":
            return by_logit(raw[_ONE])
        return by_scores(raw)

    # -- learning ----------------------------------------------------------------------------

    def learn(self, features: Features, label: Label, weight: float) -> None:
        """Learn one row in one step.

        Raises LabelUnknown for one label more than CLASSES_MAX, and StateNotFinite if a sum becomes
        infinite or NaN.
        """
        self._meet(label)
        self._step(self._rows.row(features, learns=True), label, weight)

    def _meet(self, label: Label) -> None:
        """Add an output for the label if it is a new class."""
        if self._task == "multiclass" and label not in self._outputs:
            if len(self._outputs) >= CLASSES_MAX:
                raise LabelUnknown(label, list(self._outputs))
            self._outputs[label] = _Output(self._recipe)
            self._new[label] = None

    def learn_again(self, features: Features, label: Label, weight: float) -> None:
        """Learn a row again as :meth:`learn` does, without updating the scaler."""
        self._step(self._rows.row(features, learns=False), label, weight)

    @property
    def why_not_revised(self) -> str | None:
        """Return None: a learned label can always be replaced."""
        return None

    def learn_provisional(self, example: Example, weight: float) -> None:
        """Learn the row as any other.  The scaler counts it now, and not at its final label."""
        self.learn(example.features, example.label, weight)

    def revise(self, example: Example, weight: float, before: Before) -> None:
        """Do a step by the difference of both gradients; raises as :meth:`learn` does."""
        for label in (before[0], example.label):
            self._meet(label)
        row = self._rows.row(example.features, learns=False)
        self._step(row, example.label, weight, before)

    def _step(
        self, row: Mapping[str, float], label: Label, weight: float, before: Before | None = None
    ) -> None:
        answer = self._answer(row)
        total = 0.0
        for name, output in self._outputs.items():
            slope = self._slope(answer, name, label) * weight
            if before is not None:
                slope -= self._slope(answer, name, before[0]) * before[1]
            total += output.step(row, slope)
        if not math.isfinite(total):
            raise StateNotFinite(total)

    def _slope(self, answer: Prediction, name: Label, label: Label) -> float:
        """Return the derivative of the loss by the output ``name``."""
        if answer.probabilities is None:
            return float(answer.label or 0.0) - float(label)
        if self._task == "binary":
            return answer.probabilities[True] - float(label)
        return answer.probabilities[name] - (name == label)

    def cut(self) -> Blocks:
        """Return the open delta and empty it."""
        blocks = self._rows.cut()
        for label, output in self._outputs.items():
            for kind, sums in (("z", output.z), ("n", output.n)):
                if (delta := sums.cut()) or label in self._new:
                    blocks[self._block(kind, label)] = Block(ADDITIVE, delta)
        self._new = {}
        return blocks

    def rebase(self, values: Blocks) -> None:
        """Set new values with the open delta on top."""
        self._rows.rebase(values)
        self._take(values)

    def reset(self, values: Blocks) -> None:
        """Set the whole state to ``values``, with an empty open delta."""
        self._rows.reset(values)
        self._new = {}
        self._outputs = {} if self._task == "multiclass" else {_ONE: _Output(self._recipe)}
        self._take(values)

    def _take(self, values: Blocks) -> None:
        for name, block in values.items():
            if (sums := self._sums(name)) is not None:
                sums.rebase(block.data)

    def _block(self, kind: str, label: Label) -> str:
        return f"{kind}/{label_text(label)}" if self._task == "multiclass" else kind

    def _sums(self, name: str) -> _Sums | None:
        """Return the sums of a block, adding an output for a new class; None for other blocks."""
        kind, slash, text = name.partition("/")
        if kind not in ("z", "n") or bool(slash) != (self._task == "multiclass"):
            return None
        label: Label = json.loads(text) if slash else _ONE
        if label not in self._outputs:
            self._outputs[label] = _Output(self._recipe)
        output = self._outputs[label]
        return output.z if kind == "z" else output.n


class _Output:
    """A linear output that computes its weights from its sums ``z`` and ``n``."""

    def __init__(self, recipe: Ftrl) -> None:
        self._alpha, self._beta = recipe.alpha, recipe.beta
        self._l1, self._l2 = recipe.l1, recipe.l2
        self.z, self.n = _Sums(), _Sums()

    def dot(self, row: Mapping[str, float]) -> float:
        return sum([self._weight(key) * number for key, number in row.items()], 0.0)

    def _weight(self, key: str) -> float:
        z = self.z.now.get(key, 0.0)
        if abs(z) <= self._l1:
            return 0.0
        root = math.sqrt(max(self.n.now.get(key, 0.0), 0.0))
        return -(z - math.copysign(self._l1, z)) / ((self._beta + root) / self._alpha + self._l2)

    def step(self, row: Mapping[str, float], slope: float) -> float:
        """Learn a row.  Returns a sum of the changed numbers: not finite if one of them is not."""
        total = 0.0
        for key, number in row.items():
            gradient = slope * number
            before = max(self.n.now.get(key, 0.0), 0.0)
            after = before + gradient * gradient
            sigma = (math.sqrt(after) - math.sqrt(before)) / self._alpha
            z = self.z.now.get(key, 0.0) + gradient - sigma * self._weight(key)
            self.z.put(key, z)
            self.n.put(key, after)
            total += abs(z) + after
        return total


class _Sums:
    """Numbers by key, with their values before the first change since the cut."""

    def __init__(self) -> None:
        self.now: dict[str, float] = {}
        self._start: dict[str, float] = {}

    def put(self, key: str, number: float) -> None:
        """Set the number of a key."""
        if key not in self._start:
            self._start[key] = self.now.get(key, 0.0)
        self.now[key] = number

    def cut(self) -> dict[str, float]:
        """Return the open delta and empty it."""
        delta = {key: self.now[key] - s for key, s in self._start.items() if self.now[key] != s}
        self._start = {}
        return delta

    def rebase(self, values: Mapping[str, float]) -> None:
        """Set new values with the open delta on top."""
        for key, value in values.items():
            before = self._start.get(key)
            if before is None:
                self.now[key] = value
            elif value != before:
                self.now[key] = value + (self.now[key] - before)
                self._start[key] = value
