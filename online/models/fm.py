"""A second-order factorization machine: a weight for each feature and a term for each pair.

The model is equation 1 of Rendle 2010, *Factorization machines*, computed as in its lemma 3.1, in
time linear in the number of features of a row::

    ŷ(x) = w₀ + Σ w_j x_j + Σ_{i<j} ⟨v_i, v_j⟩ x_i x_j
         = w₀ + Σ w_j x_j + ½ Σ_f [(Σ_j v_jf x_j)² − Σ_j v_jf² x_j²]

So the model can rate a user and a film that never occurred together.  A parameter u (a weight, or
one of the ``k`` numbers of a vector) is never sent.  It is computed from two sums, as in
FTRL-Proximal (McMahan et al. 2013)::

    u = (p · u₀ − z) / (p + s + l2)       p = beta / alpha
    σ = √(s² + (g / alpha)²) − s,  z += g − σ · u,  s += σ       at each gradient g

For a single learner these are the steps of Adagrad, with s = √Σg² / alpha.  The sums of several
learners add up in any order: numerator and denominator of u are both sums, so u stays a weighted
mean of its start, of 0 and of the points where gradients were taken, minus the sum of gradients.
(FTRL stores Σg² instead of s; the root of a sum is less than the sum of roots.)  ``u₀`` is 0 for a
weight.  For a vector it follows from seed and key, so that each replica can compute it.  A vector
has a single s, with the mean of its numbers' squared gradients: one s for each number predicts no
better and takes half as much memory again.

In regression the target is standardised, and the residual clipped to ±3, as in ``linear``.  Blocks:

================== ======== ====================================================================
``z``, ``s``       additive sums of the weights, by hashed feature; that of w₀ is ``bias``
``z/<f>``, ``s/v`` additive sums of the vectors' f-th numbers; of the vectors
``scaler``         moments  of the numbers
``target``         moments  of the target, in regression
================== ======== ====================================================================

With ``table`` all sums of a feature are one row of the block ``table`` (of kind ``rows``) in
float32, in the order z, s, s/v, z/0 …: see :mod:`online.models.state.factors`.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from river import preprocessing

from evaluation.metrics import Task
from online.models.base import Prediction, by_logit
from online.models.errors import LearnerUnusable, StateNotFinite
from online.models.features.hashed import Hashed, Words, check_hashing
from online.models.gradients import Hashing
from online.models.limited import Limited
from online.models.state.composite import Composite
from online.models.state.factors import BIAS, TABLE, NamedLines, Starts, TableLines, id_of
from online.models.state.scalers import Standard
from paramserver.core.blocks import Blocks, Touched
from paramserver.core.tables.rows import Rows
from replay.example import Features, Label, Value

Floats = npt.NDArray[np.float64]

FACTORS_MAX: Final = 256
"""Greatest length of a vector: each of its numbers is a block."""

ALPHAS: Final[Mapping[Task, float]] = {"binary": 0.9, "regression": 0.4}
"""Default ``alpha`` by task: the log loss has less curvature than a standardised squared error."""

RESIDUAL_MAX: Final = 3.0

_VECTOR: Final = 3  # first column of a vector's z in a line
_TARGET: Final = "target"
_NEWEST_MAX: Final = 256


@dataclass(frozen=True, slots=True)
class Fm:
    """A recipe that a factory returns to serve a factorization machine.

    Attributes:
        k: Length of a feature's vector.
        ids: Names of numeric features that are identifiers: they are treated as categories.
        text: Names of features that are treated as bags of words.
        alpha, alpha_v: Learning rate of weights and of vectors, about the longest step.  None:
            that of the task in :data:`ALPHAS`.
        beta, beta_v: Added to √Σg² in the denominator of the learning rate.
        l2, l2_v: L2 penalties of weights and of vectors: added to s in the denominator.
        start: Standard deviation of the initial vectors.
        bits, seed: As for :class:`online.models.ftrl.Ftrl`; the seed also determines the initial
            vectors.
        table: Whether the sums are in one table of float32, for millions of identifiers.
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
    table: bool = False

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
        """Make the model.  Raises LearnerUnusable for a multiclass task."""
        if task == "multiclass":
            remedy = "Take linear or ftrl, or a binary model for each class"
            raise LearnerUnusable("fm", "task is multiclass, and it has one output", remedy)
        return FmTable(self, task) if self.table else FmModel(self, task)


def fm(
    k: int = 8,
    ids: Sequence[str] = (),
    text: Sequence[str] = (),
    bits: int = 22,
    seed: int = 0,
    table: bool = False,
) -> Fm:
    """A factorization machine: what features add alone, and in pairs, by vectors of ``k`` numbers.

    ``ids`` are numbers that stand for something; ``text``, ``bits`` and ``seed`` as of ``ftrl``.
    ``table``: keep what was learned in one table of float32, for millions of ids.
    """
    ids, text = (x if isinstance(x, str) else tuple(x) for x in (ids, text))
    return Fm(k, ids, text, bits=bits, seed=seed, table=table)


class FmModel(Composite, Hashing):
    """The model that an :class:`Fm` recipe describes.

    The gradient that filters compare is that of the weights only.  The gradient of the vectors is
    proportional to it, with factors that depend on the vectors.
    """

    def __init__(self, recipe: Fm, task: Task) -> None:
        self._recipe, self._regression = recipe, task == "regression"
        self.ids: Collection[str] = frozenset(recipe.ids)
        self.words = _Words(recipe)
        self._scaler = Limited("scaler")
        self._rows = Hashed(recipe.text, recipe.bits, recipe.seed, self._scaler)
        self._targets = preprocessing.StandardScaler()
        self._target = Standard(self._targets, _TARGET)
        self._machine = Machine(recipe, recipe.alpha or ALPHAS[task])
        self._parts = (self._rows, self._target, self._machine.lines)
        self.structure = f"fm 1, {task}, {_spec_text(recipe)}"

    # -- answering ---------------------------------------------------------------------------

    def numbers(self, features: Features) -> dict[str, float]:
        """Return the row by hashed feature."""
        return self._row(features, learns=False)

    def _row(self, features: Features, *, learns: bool) -> dict[str, float]:
        return self._rows.row(self._spelled(features), learns=learns)

    def predict(self, features: Features) -> Prediction:
        """Predict one row; features that were never learned are ignored."""
        raw = self._machine.output(self.numbers(features))
        return Prediction(self._number(raw), None) if self._regression else by_logit(raw)

    def _spelled(self, features: Features) -> Features:
        """Return the row with its identifiers as texts."""
        if not self.ids:
            return features
        return {n: spelled(x) if n in self.ids else x for n, x in features.items()}

    def _number(self, raw: float) -> float:
        return float(self._targets.means.get("", 0.0)) + self._spread() * raw

    def _spread(self) -> float:
        return math.sqrt(self._targets.vars.get("", 0.0))

    # -- learning ----------------------------------------------------------------------------

    def learn(self, features: Features, label: Label, weight: float) -> None:
        """Learn one row in one step.  Raises StateNotFinite if a sum becomes infinite or NaN."""
        if self._regression:
            self._target.learn({"": float(label)})
        self._step(self._row(features, learns=True), label, weight)

    def learn_again(self, features: Features, label: Label, weight: float) -> None:
        """Learn as :meth:`learn` does, without updating the moments."""
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


class FmTable(FmModel):
    """The model with its sums in a table, which can undo a bad row without a rebuild.

    Rounded deltas (:class:`~online.models.base.Rounding`) keep the sums of the weight, and the
    vector's s, in float32.
    """

    table = TABLE

    def __init__(self, recipe: Fm, task: Task) -> None:
        super().__init__(recipe, task)
        self._newest: dict[int, tuple[Features, Collection[str]]] = {}  # cache of `row_ids`

    def __getstate__(self) -> dict[str, object]:
        """Return the state without the cache, so that a query does not change it."""
        return {**self.__dict__, "_newest": {}}

    def touched(self, names: Collection[str]) -> Touched:
        """Return the keys outside the table that learning rows with these features may change."""
        return {**self._scaler.touched(names), **self._target.touched([""])}

    def mend(self, values: Blocks, names: Collection[str]) -> None:
        """Restore the state that ``reset`` would set, given only the touched values."""
        self._scaler.mend(values, names)
        self._target.mend(values, [""])
        self._table.revert()

    def round_deltas(self) -> None:
        """Round the vectors' numbers in deltas to float16; those of weights stay as they are."""
        self._table.round_from(_VECTOR)

    def drop_rest(self) -> None:
        """Drop what rounding has left over."""
        self._table.drop_rest()

    def rest_on(self, tables: Mapping[str, Rows]) -> Iterator[None]:
        """Read the sums that have no value of their own from the table of the server's host."""
        return self._table.rest_on(tables[TABLE]) if TABLE in tables else iter(())

    @property
    def _table(self) -> TableLines:
        lines = self._machine.lines
        assert isinstance(lines, TableLines)
        return lines

    def row_ids(self, features: Features) -> list[int]:
        """Return the ids of the rows that predicting or learning a row reads.

        One of the newest rows, which must not be changed, is not hashed again.
        """
        known = self._newest.get(id(features))
        keys = super()._row(features, learns=False) if known is None else known[1]
        return [id_of(key) for key in keys]

    def _row(self, features: Features, *, learns: bool) -> dict[str, float]:
        row, newest = super()._row(features, learns=learns), self._newest
        newest[id(features)] = features, row.keys()  # whose id is not used again while it is here
        if len(newest) > _NEWEST_MAX:
            del newest[next(iter(newest))]
        return row


@dataclass(frozen=True, slots=True)
class Seen:
    """A row with the parameters of its features, and the machine's output.

    Attributes:
        keys, x: Keys and values of the features.
        pairs: The values with 0 for w₀, which is in no pair.
        held: The sums of the features: shape (features, columns of a line).
        weights, vectors: The parameters computed from them.
        summed: Σ_j v_j x_j over ``pairs``.
        output: ŷ.
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
        """Return the gradient by the weights; ``slope`` is the derivative by the output."""
        return slope * self.x

    def by_vectors(self, slope: float) -> Floats:
        """Return the gradient by the vectors: shape (features, k)."""
        x = self.pairs[:, None]
        return slope * x * (self.summed - x * self.vectors)


class Machine:
    """The arithmetic of the machine on its table of lines.

    A line has z and s of the weight, s and z of the vector, and the initial vector.
    """

    def __init__(self, recipe: Fm, alpha: float) -> None:
        self._recipe, self._alpha = recipe, alpha
        self._learned = _VECTOR + recipe.k
        self._prior = recipe.beta / alpha
        self._prior_v = recipe.beta_v / recipe.alpha_v
        starts = Starts(recipe.seed, recipe.k, recipe.start)
        names = ["z", "s", "s/v", *(f"z/{f}" for f in range(recipe.k))]
        self.lines: NamedLines | TableLines = (
            TableLines(self._learned, starts) if recipe.table else NamedLines(names, starts)
        )

    def output(self, row: Mapping[str, float]) -> float:
        """Compute ŷ from the features that were learned."""
        keys = list(row)
        held, known = self.lines.held(keys)
        x = np.array(list(row.values()), dtype=np.float64)
        if not known.all():
            keys = [key for key, one in zip(keys, known.tolist(), strict=True) if one]
            held, x = held[known], x[known]
        return self._seen(keys, x, held).output if keys else 0.0

    def read(self, row: Mapping[str, float]) -> Seen:
        """Look up a row; a new feature has its initial parameters.  Changes no state."""
        keys = list(row)
        held, _ = self.lines.held(keys)
        return self._seen(keys, np.array(list(row.values()), dtype=np.float64), held)

    def _seen(self, keys: list[str], x: Floats, held: Floats) -> Seen:
        learned, recipe = self._learned, self._recipe
        pairs = x.copy()
        if BIAS in keys:
            pairs[keys.index(BIAS)] = 0.0
        with np.errstate(over="ignore", invalid="ignore"):
            weights = -held[:, 0] / (self._prior + held[:, 1] + recipe.l2)
            above = self._prior_v * held[:, learned:] - held[:, _VECTOR:learned]
            vectors = above / (self._prior_v + held[:, 2:_VECTOR] + recipe.l2_v)
            summed = pairs @ vectors
            squares = pairs * pairs @ (vectors * vectors)
            output = float(x @ weights) + 0.5 * float((summed * summed - squares).sum())
        return Seen(keys, x, pairs, held, weights, vectors, summed, output)

    def step(self, seen: Seen, slope: float) -> None:
        """Learn a row, given the derivative of its loss by the output.

        Raises StateNotFinite, without a change of state.
        """
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
        self.lines.put(seen.keys, held, seen.held)


def _spec_text(recipe: Fm) -> str:
    """Return the recipe as text for the spec: without ``table`` it is that of older versions."""
    return repr(recipe).replace(", table=False)", ")")


def spelled(value: Value) -> Value:
    """Return an identifier as text; 17, 17.0 and "17" are the same."""
    if value is None or isinstance(value, (bool, str)):
        return value
    return str(int(value)) if float(value).is_integer() else repr(value)


def _added(s: Floats, g: Floats) -> Floats:
    """Return σ, by which a gradient (divided by alpha) increases s."""
    return np.asarray(np.hypot(s, g) - s)


class _Words(Words):
    """The keys under which the machine stores the values of a row."""

    def __init__(self, recipe: Fm) -> None:
        super().__init__(recipe.text, recipe.bits, recipe.seed)
        self.ids = frozenset(recipe.ids)
        self._table = recipe.table

    def keys(self, name: str, value: Value) -> Sequence[str]:
        """Return the keys of one value; hashed ones of a table don't count: it has a fixed size."""
        if self._table and (name in self.ids or type(value) not in (int, float)):
            return ()
        return super().keys(name, spelled(value) if name in self.ids else value)
