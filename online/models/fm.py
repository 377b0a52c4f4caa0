"""A factorization machine of the second order: what a feature adds alone, and each pair together.

Rendle 2010, *Factorization machines*, equation 1, computed as in its lemma 3.1 in time linear in
the features of a row::

    ŷ(x) = w₀ + Σ w_j x_j + Σ_{i<j} ⟨v_i, v_j⟩ x_i x_j
         = w₀ + Σ w_j x_j + ½ Σ_f [(Σ_j v_jf x_j)² − Σ_j v_jf² x_j²]

So a user and a film that never came together are said something of, by what each did with others.
A learned number u (a weight, or one of the ``k`` numbers of a vector) is never sent.  It is worked
out of two sums, as in FTRL-Proximal (McMahan et al. 2013)::

    u = (p · u₀ − z) / (p + s + l2)       p = beta / alpha
    σ = √(s² + (g / alpha)²) − s,  z += g − σ · u,  s += σ       at each gradient g

One learner alone makes the steps of Adagrad by it: s is √Σg² / alpha.  What several have done adds
up: u is a mean of the start, of 0 and of where gradients were taken, less their sum, whatever is
merged in which order, because numerator and denominator are added alike.  (FTRL keeps Σg² in the
place of s, and the root of a sum is less than the sum of roots.)  ``u₀`` is 0 for a weight.  For a
vector it follows from seed and key alone, so each replica has it without being sent it.  A vector
has one s, with the mean of its numbers' squared gradients: one for each of them answers no better
and is half as many numbers again.

In regression the target is standardised, and the residual cut to ±3, as by ``linear``.  The blocks:

================== ======== ====================================================================
``z``, ``s``       additive sums of the weights, by hashed feature; that of w₀ is ``bias``
``z/<f>``, ``s/v`` additive sums of the vectors' f-th numbers; of the vectors
``scaler``         moments  of the numbers
``target``         moments  of the target, in regression
================== ======== ====================================================================
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from river import preprocessing

from evaluation.metrics import Task
from online.models.base import Prediction, by_logit
from online.models.errors import LearnerUnusable, StateNotFinite
from online.models.hashed import Hashed, Words, check_hashing
from online.models.limited import Limited
from online.models.scalers import Standard
from online.models.slopes import Hashing
from paramserver.blocks import ADDITIVE, Block, Blocks
from replay.example import Features, Label, Value

Floats = npt.NDArray[np.float64]

FACTORS_MAX: Final = 256
"""Numbers of a vector: each is a block."""

ALPHAS: Final[Mapping[Task, float]] = {"binary": 0.9, "regression": 0.4}
"""Rates of weights: a log loss is less curved than a squared error in standard deviations."""

RESIDUAL_MAX: Final = 3.0

_VECTOR: Final = 3  # columns before those of a vector's z
_BIAS: Final = "bias"
_TARGET: Final = "target"


@dataclass(frozen=True, slots=True)
class Fm:
    """A recipe that a factory returns to serve a factorization machine.

    Attributes
    ----------
    k
        Numbers of a feature's vector.
    ids
        Names of numbers that stand for something, and are categories.
    text
        Names of features that are taken as bags of words.
    alpha, alpha_v
        Rate of a weight, and of a vector: steps are at most about as long.  None: that of the task
        in :data:`ALPHAS`.
    beta, beta_v
        How much gradient (√Σg²) it takes before the rate is used.
    l2, l2_v
        Penalties: as much of s holds a weight, and a vector, at 0.
    start
        Standard deviation of the numbers that vectors start from.
    bits, seed
        As of :class:`online.models.ftrl.Ftrl`; the vectors' starts follow from the seed, too.
    """

    k: int = 8
    ids: Sequence[str] = ()
    text: Sequence[str] = ()
    alpha: float | None = None
    alpha_v: float = 0.1
    beta: float = 1.0
    beta_v: float = 0.1
    l2: float = 1.0
    l2_v: float = 1.0
    start: float = 0.05
    bits: int = 22
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.k <= FACTORS_MAX:
            raise LearnerUnusable("fm", f"k is {self.k!r}", f"Give 1 to {FACTORS_MAX}")
        for name in ("alpha", "alpha_v", "beta", "beta_v", "l2", "l2_v", "start"):
            value, positive = getattr(self, name), name.startswith(("alpha", "beta"))
            if value is None and name == "alpha":
                continue
            if not 0 <= value < 1e6 or (positive and not value):
                remedy = f"Give a number from 0 to 1000000{', not 0' if positive else ''}"
                raise LearnerUnusable("fm", f"{name} is {value!r}", remedy)
        if isinstance(self.ids, str):
            raise LearnerUnusable("fm", f"ids is {self.ids!r}", "Give a list of names")
        check_hashing("fm", self.text, self.bits)

    def model_for(self, task: Task) -> FmModel:
        """The model behind the learner.  Raises LearnerUnusable for a multiclass task."""
        if task == "multiclass":
            remedy = "Take linear or ftrl, or a binary model for each class"
            raise LearnerUnusable("fm", "task is multiclass, and it has one output", remedy)
        return FmModel(self, task)


def fm(
    k: int = 8,
    ids: Sequence[str] = (),
    text: Sequence[str] = (),
    bits: int = 22,
    seed: int = 0,
) -> Fm:
    """A factorization machine: what features add alone, and in pairs, by vectors of ``k`` numbers.

    ``ids`` are numbers that stand for something; ``text``, ``bits`` and ``seed`` as of ``ftrl``.
    """
    ids, text = (x if isinstance(x, str) else tuple(x) for x in (ids, text))
    return Fm(k, ids, text, bits=bits, seed=seed)


class FmModel(Hashing):
    """Adapter of an :class:`Fm`.

    The slope that filters compare is that of the weights: it tells the gradient of the vectors
    but for what they are.
    """

    mergeable = True
    learns = True
    numeric_only = False
    why_not_mergeable: str | None = None

    def __init__(self, recipe: Fm, task: Task) -> None:
        self._recipe, self._regression = recipe, task == "regression"
        self.ids: Collection[str] = frozenset(recipe.ids)
        self.words = _Words(recipe)
        self._rows = Hashed(recipe.text, recipe.bits, recipe.seed, Limited("scaler"))
        self._targets = preprocessing.StandardScaler()
        self._target = Standard(self._targets, _TARGET)
        self._machine = Machine(recipe, recipe.alpha or ALPHAS[task])
        self.structure = f"fm 1, {task}, {recipe!r}"

    # -- answering ---------------------------------------------------------------------------

    def numbers(self, features: Features) -> dict[str, float]:
        """A row by hashed feature."""
        return self._rows.row(self._spelled(features), learns=False)

    def predict(self, features: Features) -> Prediction:
        """Answer for one row; a feature that was never learned has no part in it."""
        raw = self._machine.output(self.numbers(features))
        return Prediction(self._number(raw), None) if self._regression else by_logit(raw)

    def predict_many(self, rows: Sequence[Features]) -> list[Prediction]:
        """Return the answer that :meth:`predict` gives to each row."""
        return [self.predict(x) for x in rows]

    def _spelled(self, features: Features) -> Features:
        """The row with its ids as texts."""
        if not self.ids:
            return features
        return {n: spelled(x) if n in self.ids else x for n, x in features.items()}

    def _number(self, raw: float) -> float:
        return float(self._targets.means.get("", 0.0)) + self._spread() * raw

    def _spread(self) -> float:
        return math.sqrt(self._targets.vars.get("", 0.0))

    # -- learning ----------------------------------------------------------------------------

    def learn(self, features: Features, label: Label, weight: float) -> None:
        """Learn one row in one step.  Raises StateNotFinite if a sum leaves the finite numbers."""
        if self._regression:
            self._target.learn({"": float(label)})
        self._step(self._rows.row(self._spelled(features), learns=True), label, weight)

    def learn_again(self, features: Features, label: Label, weight: float) -> None:
        """Learn as :meth:`learn` does, with the moments left as they are."""
        self._step(self.numbers(features), label, weight)

    def _step(self, row: Mapping[str, float], label: Label, weight: float) -> None:
        seen = self._machine.read(row)
        if self._regression:
            error = (self._number(seen.output) - float(label)) / (self._spread() or 1.0)
            slope = max(-RESIDUAL_MAX, min(RESIDUAL_MAX, error))
        else:
            shares = by_logit(seen.output).probabilities or {}
            slope = shares[True] - float(label)
        self._machine.step(seen, slope * weight)

    def cut(self) -> Blocks:
        """The open delta, and reset it."""
        return {**self._rows.cut(), **self._target.cut(), **self._machine.cut()}

    def rebase(self, values: Blocks) -> None:
        """Take new values with the open delta on top."""
        for part in (self._rows, self._target, self._machine):
            part.rebase(values)

    def reset(self, values: Blocks) -> None:
        """Become exactly ``values``, with an empty open delta."""
        for part in (self._rows, self._target, self._machine):
            part.reset(values)


@dataclass(frozen=True, slots=True)
class Seen:
    """A row as the machine has taken it.

    Attributes
    ----------
    keys, x
        Its features and their numbers; ``pairs``: the same with 0 for w₀, which is in no pair.
    held
        The sums of each, a line a feature.
    weights, vectors
        What they are worked out to.
    summed
        The vectors times the numbers, added up.
    output
        ŷ.
    """

    keys: list[str]
    x: Floats
    pairs: Floats
    held: Floats
    weights: Floats
    vectors: Floats
    summed: Floats
    output: float

    def by_weights(self, slope: float) -> Floats:
        """Gradient of the loss by the weights, from its slope at the output."""
        return slope * self.x

    def by_vectors(self, slope: float) -> Floats:
        """Gradient of the loss by the vectors, a line a feature."""
        x = self.pairs[:, None]
        return slope * x * (self.summed - x * self.vectors)


class Machine:
    """The sums by feature, and what they were at their first touch since the cut.

    A line is z and s of the weight, s and z of the vector, and the vector's start, which is not
    learned.
    """

    def __init__(self, recipe: Fm, alpha: float) -> None:
        self._recipe, self._alpha = recipe, alpha
        k = self._k = recipe.k
        self._learned = _VECTOR + k
        self._names = ["z", "s", "s/v", *(f"z/{f}" for f in range(k))]
        self._columns = {name: i for i, name in enumerate(self._names)}
        self._prior = recipe.beta / alpha
        self._prior_v = recipe.beta_v / recipe.alpha_v
        self._now: dict[str, Floats] = {}
        self._start: dict[str, Floats] = {}

    def output(self, row: Mapping[str, float]) -> float:
        """ŷ of the features that were learned."""
        known = {key: x for key, x in row.items() if key in self._now}
        return self.read(known).output if known else 0.0

    def read(self, row: Mapping[str, float]) -> Seen:
        """Take a row; a feature that is new is as it starts.  Changes nothing."""
        learned, recipe, keys = self._learned, self._recipe, list(row)
        x = np.array(list(row.values()), dtype=np.float64)
        pairs = x.copy()
        if _BIAS in row:
            pairs[keys.index(_BIAS)] = 0.0
        held = np.array([self._line(key) for key in keys])
        with np.errstate(over="ignore", invalid="ignore"):
            weights = -held[:, 0] / (self._prior + held[:, 1] + recipe.l2)
            above = self._prior_v * held[:, learned:] - held[:, _VECTOR:learned]
            vectors = above / (self._prior_v + held[:, 2:_VECTOR] + recipe.l2_v)
            summed = pairs @ vectors
            squares = pairs * pairs @ (vectors * vectors)
            output = float(x @ weights) + 0.5 * float((summed * summed - squares).sum())
        return Seen(keys, x, pairs, held, weights, vectors, summed, output)

    def step(self, seen: Seen, slope: float) -> None:
        """Learn a row by the slope of its loss.  Raises StateNotFinite, and has changed nothing."""
        recipe, held = self._recipe, seen.held.copy()
        with np.errstate(over="ignore", invalid="ignore"):
            gradient, gradients = seen.by_weights(slope), seen.by_vectors(slope)
            added = _added(held[:, 1], gradient / self._alpha)
            held[:, 0] += gradient - added * seen.weights
            held[:, 1] += added
            length = np.sqrt((gradients * gradients).mean(axis=1))
            added = _added(held[:, 2], length / recipe.alpha_v)
            held[:, _VECTOR : self._learned] += gradients - added[:, None] * seen.vectors
            held[:, 2] += added
            total = float(held.sum())
        if not math.isfinite(total):
            raise StateNotFinite(total)
        for key, line, before in zip(seen.keys, held, seen.held, strict=True):
            if (line != before).any():
                self._put(key, line.copy(), before)

    def _line(self, key: str) -> Floats:
        """Return what is held of a feature, or what a new one starts from."""
        found = self._now.get(key)
        if found is not None:
            return found
        new = np.zeros(self._learned + self._k)
        if key != _BIAS:
            recipe = self._recipe
            new[self._learned :] = first_vector(recipe.seed, key, self._k, recipe.start)
        return new

    def _put(self, key: str, line: Floats, before: Floats) -> None:
        if key not in self._start:
            self._start[key] = before[: self._learned].copy()
        self._now[key] = line

    def cut(self) -> Blocks:
        """Return what has changed since the last cut, and begin anew."""
        out: dict[str, dict[str, float]] = {}
        for key, start in self._start.items():
            delta = (self._now[key][: self._learned] - start).tolist()
            for name, change in zip(self._names, delta, strict=True):
                if change != 0.0:
                    out.setdefault(name, {})[key] = change
        self._start = {}
        return {name: Block(ADDITIVE, data) for name, data in out.items()}

    def rebase(self, values: Blocks) -> None:
        """New numbers under what has changed; blocks of others are ignored."""
        for name, block in values.items():
            if (column := self._columns.get(name)) is not None:
                self._take(column, block.data.items())

    def _take(self, column: int, values: Iterable[tuple[str, float]]) -> None:
        for key, value in values:
            line = self._now.get(key)
            if line is None:
                line = self._now[key] = self._line(key)
            start = self._start.get(key)
            if start is None:
                line[column] = value
            elif value != start[column]:
                line[column] = value + (line[column] - start[column])
                start[column] = value

    def reset(self, values: Blocks) -> None:
        """Become exactly ``values``, with nothing changed since."""
        self._now, self._start = {}, {}
        self.rebase(values)


def first_vector(seed: int, key: str, k: int, deviation: float) -> Floats:
    """Numbers that a feature's vector starts from: uniform, the same in each process."""
    drawn = hashlib.shake_128(f"{seed}\0{key}".encode()).digest(4 * k)
    shares = np.frombuffer(drawn, dtype="<u4").astype(np.float64) / 2.0**32
    return np.asarray((shares - 0.5) * (math.sqrt(12.0) * deviation))


def spelled(value: Value) -> Value:
    """An id as text: 17, 17.0 and "17" are the same one."""
    if value is None or isinstance(value, (bool, str)):
        return value
    return str(int(value)) if float(value).is_integer() else repr(value)


def _added(s: Floats, g: Floats) -> Floats:
    """σ: what a gradient (in units of its rate) adds to s."""
    return np.asarray(np.hypot(s, g) - s)


class _Words(Words):
    """How the machine makes names of values, ids among them."""

    def __init__(self, recipe: Fm) -> None:
        super().__init__(recipe.text, recipe.bits, recipe.seed)
        self.ids = frozenset(recipe.ids)

    def keys(self, name: str, value: Value) -> Sequence[str]:
        """The names in one value."""
        return super().keys(name, spelled(value) if name in self.ids else value)
