"""Adapter of river's linear models, alone or behind scalers, with blocks that merge.

The adapter calls ``learn_one``, ``transform_one`` and ``predict_proba_one`` of the river objects in
the order of river's pipeline, so a single replica gives exactly the probabilities of the plain
library.  The blocks are views of the objects' state:

============================ ======== ===================================================
``weights``, ``intercept``   additive ``LogisticRegression``, ``LinearRegression``,
                                      ``Perceptron``; the intercept's key is ``""``
``weights/<label>``          additive ``SoftmaxRegression``, one for each class; the label is
                                      JSON text
``scaler<i>``                moments  ``StandardScaler`` or ``LimitedScaler`` at step i of the
                                      pipeline
``scaler<i>``                extrema  ``MinMaxScaler`` at step i of the pipeline
============================ ======== ===================================================

A value is relative to the estimator *as built*: a factory may return a trained one, whose weights
are never sent.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from math import isfinite
from operator import itemgetter
from typing import Any, Final, NamedTuple

import numpy as np
from river import compose, linear_model, optim, preprocessing

from online.models.adapters.label_revision import RevisedLinear
from online.models.adapters.softmax import Softmax
from online.models.adapters.weights import Curvature, changes, drop, move, put_back
from online.models.base import Prediction
from online.models.device_delta import by_output, numbers
from online.models.errors import StateNotFinite
from online.models.gradients import Slope, hashed
from online.models.limited import Limited, LimitedScaler
from online.models.state.scalers import SCALERS, Columns, MinMax, Standard, Walked
from online.models.structure import describe, steps
from paramserver.core.blocks import ADDITIVE, Block, Blocks, Touched
from paramserver.core.rewrites import HALVED, halvings
from paramserver.core.wire import Curved
from replay.example import Example, Features, Label, Moved

GLMS: Final = (
    linear_model.LogisticRegression,
    linear_model.LinearRegression,
    linear_model.Perceptron,
)
_CLASS: Final = "weights/"
_SATURATED: Final = 30.0  # beyond it river's sigmoid is 0 or 1
_COLUMNS_FROM: Final = 4  # with fewer rows, numpy's calls cost more than they save


def why_not_mergeable(estimator: Any) -> str | None:
    """Return why deltas of the estimator can't be merged; None if they can.

    Types must match exactly: a subclass may have state that is in no block.
    """
    if isinstance(estimator, compose.Pipeline) and type(estimator) is not compose.Pipeline:
        return f"{type(estimator).__name__} is a pipeline of another class"
    *before, final = steps(estimator)
    for step in before:
        if type(step) is LimitedScaler:
            continue
        if type(step) not in SCALERS:
            return f"{type(step).__name__} in front has no merge"
        if step.window_size is not None:
            return f"{type(step).__name__}(window_size={step.window_size}) forgets rows"
    if type(final) not in (*GLMS, linear_model.SoftmaxRegression):
        return f"{type(final).__name__} has no merge"
    optimizer = final.optimizer
    if type(optimizer) is not optim.SGD:
        return f"optimizer {type(optimizer).__name__} keeps state of its own"
    if type(optimizer.lr) is not optim.schedulers.Constant:
        return f"learning rate {type(optimizer.lr).__name__} depends on the rows seen"
    if type(final.loss).__module__ != optim.losses.__name__:
        return f"loss {type(final.loss).__name__} is not one of river's"
    if type(final) is linear_model.SoftmaxRegression:
        return None
    if final.l1 != 0:
        return f"l1={final.l1} keeps a penalty per feature"
    if type(final.intercept_lr) is not optim.schedulers.Constant:
        return f"intercept_lr {type(final.intercept_lr).__name__} depends on the rows seen"
    if type(final.initializer) is not optim.initializers.Zeros:
        return f"initializer {type(final.initializer).__name__} does not start at 0"
    return None


class Linear(RevisedLinear):
    """Adapter of an estimator for which :func:`why_not_mergeable` returns None.

    Attributes:
        estimator: The river object.  It must learn only through the adapter.
        numeric_only: Features must be numbers; requests with text are refused.
        halves: True: the block :data:`paramserver.core.rewrites.HALVED` halves its learning rate.
    """

    numeric_only = True
    halves = True
    by_column = True

    def __init__(self, estimator: Any) -> None:
        self.estimator = estimator
        *scalers, final = steps(estimator)
        self._scalers = [adapted(step, f"scaler{i}") for i, step in enumerate(scalers)]
        self._final: _Glm | Softmax
        self.takes_weight = type(final) is not linear_model.SoftmaxRegression
        if type(final) is linear_model.SoftmaxRegression:
            self._final = Softmax(final)
        else:
            self._final = _Glm(final)
        self._parts = (*self._scalers, self._final)
        self._rates = [(held, held.learning_rate) for held in _rates_of(final)]
        self.structure = describe(estimator)
        if built := sorted((name, sorted(data.items())) for name, data in self._built()):
            digest = hashlib.sha256(repr(built).encode()).hexdigest()
            self.structure += f" trained before, sha256 {digest}"

    def _built(self) -> list[tuple[str, dict[str, Any]]]:
        return [item for part in self._parts for item in part.built.items() if any(item[1])]

    def numbers(self, features: Features) -> dict[str, Any]:
        """Return the row after the scalers, without names that they have not learned."""
        x: dict[str, Any] = features
        for scaler in self._scalers:
            x = scaler.transform(x)
        return x

    def predict(self, features: Features) -> Prediction:
        return self._final.predict(self.numbers(features))

    def predict_many(self, rows: Sequence[Features]) -> list[Prediction]:
        """Predict rows as :meth:`predict` does within rounding; by column if names agree."""
        names = list(rows[0])
        if len(rows) < _COLUMNS_FROM or any(x.keys() != rows[0].keys() for x in rows):
            return [self.predict(x) for x in rows]
        picked = map(itemgetter(*names), rows)
        x = np.array(list(picked), dtype=np.float64).reshape(len(rows), len(names))
        return self.predict_columns(names, x)

    def predict_columns(self, names: list[str], x: Columns) -> list[Prediction]:
        """Predict rows of numbers, shape (rows, names), as :meth:`predict` does within rounding."""
        for scaler in self._scalers:
            names, x = scaler.transform_many(names, x)
        return self._final.predict_many(names, x)

    def learn(self, features: Features, label: Label, weight: float) -> None:
        """Learn one row as river's ``Pipeline.learn_one`` does, step by step.

        Raises StateNotFinite if a weight becomes infinite or NaN: river continues with NaN, but it
        can't be merged.
        """
        self._final.check(weight)
        x: dict[str, Any] = features
        for scaler in self._scalers:
            x = scaler.learn(x)
        self._final.learn(x, label, weight)
        if not isfinite(total := self._final.total(x)):
            raise StateNotFinite(total)

    def learn_alike(self, examples: Sequence[Example], weights: Sequence[float]) -> bool:
        """Learn rows that have the same names in the same order, in one pass.

        The result is, bit for bit, that of :meth:`learn` row by row.  Returns False if nothing was
        changed and the rows have to be learned one by one.
        """
        final = self._final
        if isinstance(final, Softmax):
            return False
        names, labels = list(examples[0].features), [example.label for example in examples]
        rows = [example.features.values() for example in examples]
        columns: Sequence[Sequence[Any]] = list(zip(*rows, strict=True))
        walks: list[tuple[Standard | Limited, Walked]] = []
        try:
            for scaler in self._scalers:
                walked = None if isinstance(scaler, MinMax) else scaler.walk(names, columns)
                if walked is None or isinstance(scaler, MinMax):
                    return False
                walks.append((scaler, walked))
                columns = walked.columns
            stepped = final.walk(names, columns, labels, weights)
        except (ArithmeticError, TypeError, ValueError):  # raised again when the row learns alone
            return False
        if stepped is None or not isfinite(sum(stepped.weights, stepped.intercept)):
            return False
        for scaler, walked in walks:
            scaler.put(names, walked)
        final.put(names, stepped, len(examples))
        return True

    @property
    def why_no_replay(self) -> str | None:
        """Return why rows can't be rehearsed; None if they can."""
        if isinstance(self._final, Softmax):
            return "river's SoftmaxRegression takes no weights, which drawn rows need"
        return None

    def learn_again(self, features: Features, label: Label, weight: float) -> None:
        """Learn as :meth:`learn` does, without updating the scalers."""
        x = self.numbers(features)
        self._final.learn(x, label, weight)
        if not isfinite(total := self._final.total(x)):
            raise StateNotFinite(total)

    def misfit(self, moved: Moved) -> str | None:
        """Return why a device's delta does not fit the parameters; None if it does."""
        shape, known = (len(moved.columns), len(moved.outputs)), self._final.outputs
        if not moved.columns or numbers(moved.weights).size != shape[0] * shape[1]:
            return f"{numbers(moved.weights).size} weights, {shape[0]} columns x {shape[1]} outputs"
        bias = numbers(moved.bias)
        if bias.size != len(moved.outputs):
            return f"{bias.size} numbers of bias, {len(moved.outputs)} outputs"
        if bias.any() and not self._final.has_intercept:
            return "a bias that is not 0, of a model that has none"
        if odd := [output for output in moved.outputs if output not in known]:
            return f"an output {odd[0]!r}, the model knows {sorted(known)[:10]}"
        return None

    def move(self, moved: Moved, weight: float) -> None:
        """Add a device's delta to the weights.  Raises StateNotFinite."""
        self._final.add(by_output(moved), float(numbers(moved.bias)[0]), weight)
        if not isfinite(total := self._final.total(dict.fromkeys(moved.columns))):
            raise StateNotFinite(total)

    def moved_slope(self, moved: Moved) -> Slope:
        """Return a device's negated delta, hashed by name as the gradient of a row is."""
        out = np.zeros(self.slope_size, dtype=np.float32)
        for output, moves in by_output(moved).items():
            out -= hashed(moves, {output: 1.0})
        return out

    def cut(self) -> Blocks:
        """Return the open delta and empty it."""
        return {name: block for part in self._parts for name, block in part.cut().items()}

    def compensate(self) -> None:
        """Start to measure the curvature of rows, if the loss is a log loss."""
        self._final.compensate()

    def curved(self) -> Curved:
        """Return start values and curvature of the open delta; empty if not measured."""
        return self._final.curved()

    def rebase(self, values: Blocks) -> None:
        """Set new values with the open delta on top; blocks with other names are ignored."""
        for part in self._parts:
            part.rebase(values)
        if HALVED in values:
            self._halve(halvings(values))

    def _halve(self, times: int) -> None:
        for held, rate in self._rates:
            held.learning_rate = rate * 0.5**times

    def reset(self, values: Blocks) -> None:
        """Set the state to that of the estimator as built plus ``values``."""
        for part in self._parts:
            part.reset(values)
        self._halve(halvings(values))

    def forget(self, values: Blocks) -> None:
        """Drop the given keys.  The model is not used after the first call."""
        for part in self._parts:
            part.forget(values)

    def touched(self, names: Collection[str]) -> Touched:
        """Return all blocks and keys that learning rows with these features may change."""
        return {name: keys for part in self._parts for name, keys in part.touched(names).items()}

    def mend(self, values: Blocks, names: Collection[str]) -> None:
        """Restore the state that ``reset`` would set, given only the touched values."""
        for part in self._parts:
            part.mend(values, names)


def adapted(step: Any, name: str) -> Standard | Limited | MinMax:
    """Wrap a river scaler as a part with a block of this name."""
    if type(step) is LimitedScaler:
        return Limited(name, step)
    return (Standard if type(step) is preprocessing.StandardScaler else MinMax)(step, name)


def _rates_of(final: Any) -> list[Any]:
    """Return the constant learning rate schedules of an estimator."""
    held = [final.optimizer.lr, getattr(final, "intercept_lr", None)]
    return [one for one in held if one is not None]


class _Stepped(NamedTuple):
    """Weights and intercept after some steps, and the accumulated curvature of each."""

    weights: list[float]
    intercept: float
    curvature: list[float]
    of_intercept: float


class _Glm:
    """A generalised linear model, with its weights before the first change since the cut."""

    has_intercept = True
    outputs: Collection[str] = ("",)

    def __init__(self, estimator: Any) -> None:
        self._estimator = estimator
        self._regression = type(estimator) is linear_model.LinearRegression
        self._logistic = type(estimator.loss) is optim.losses.Log
        weights = {name: w for name, w in estimator.weights.items() if w != 0}
        # A zero intercept is left out: what was built without training has no state.
        intercept = {"": float(estimator.intercept)} if estimator.intercept else {}
        self.built: dict[str, dict[str, float]] = {"weights": weights, "intercept": intercept}
        self._start: dict[str, float] = {}
        self._start_intercept = float(estimator.intercept)
        self._curvature: Curvature | None = None

    def compensate(self) -> None:
        if type(self._estimator.loss) is optim.losses.Log:
            self._curvature = Curvature()

    def curved(self) -> Curved:
        if (curvature := self._curvature) is None:
            return {}
        start = {"": self._start_intercept}
        return {
            "weights": curvature.of("weights", self._start, self.built["weights"]),
            "intercept": curvature.of("intercept", start, self.built["intercept"]),
        }

    def check(self, weight: float) -> None:
        """Accept a row's weight: any is supported."""

    def total(self, x: dict[str, Any]) -> float:
        """Sum the weights that a row has changed: finite only if each of them is."""
        weights = self._estimator._weights
        return sum([weights.get(name, 0.0) for name in x], float(self._estimator.intercept))

    def predict(self, x: dict[str, Any]) -> Prediction:
        if self._regression:
            return Prediction(float(self._estimator.predict_one(x)), None)
        probabilities = self._estimator.predict_proba_one(x)
        return Prediction(max(probabilities, key=probabilities.__getitem__), probabilities)

    def predict_many(self, names: list[str], x: Columns) -> list[Prediction]:
        weights = self._estimator._weights
        column = np.array([weights.get(name, 0.0) for name in names], dtype=np.float64)
        raw = x @ column + self._estimator.intercept
        mean = self._estimator.loss.mean_func
        if self._regression:
            return [Prediction(float(mean(value)), None) for value in raw.tolist()]
        if self._logistic:  # river's sigmoid, by column
            with np.errstate(over="ignore"):
                inner = 1.0 / (1.0 + np.exp(-raw))
            shares = np.where(np.abs(raw) > _SATURATED, raw > 0.0, inner).tolist()
        else:
            shares = list(map(mean, raw.tolist()))
        return [Prediction(p > 0.5, {False: 1.0 - p, True: p}) for p in shares]

    def add(self, moves: Mapping[str, Mapping[str, float]], bias: float, weight: float) -> None:
        weights, start = self._estimator._weights, self._start
        for name, change in moves[""].items():
            start.setdefault(name, weights.get(name, 0.0))
            weights[name] = weights.get(name, 0.0) + weight * change
        self._estimator.intercept += weight * bias

    def learn(self, x: dict[str, Any], label: Label, weight: float) -> None:
        start = self._start
        if not x.keys() <= start.keys():
            weights = self._estimator._weights
            for name in x:
                if name not in start:
                    start[name] = weights.get(name, 0.0)
        if self._curvature is None:
            self._estimator.learn_one(x, label, w=weight)
        else:
            self._learn_measured(x, label, weight, self._curvature)

    def walk(
        self,
        names: Sequence[str],
        columns: Sequence[Sequence[Any]],
        labels: Sequence[Label],
        weights: Sequence[float],
    ) -> _Stepped | None:
        """Compute what :meth:`learn` would do to rows with these names, without changing state.

        The arithmetic is river's, in its order: the dot product in the order of the row, then the
        intercept.  Returns None if the estimator has to learn row by row.
        """
        estimator = self._estimator
        if estimator.l1 or estimator.l2 or not names:
            return None
        rate, slow = estimator.optimizer.lr.learning_rate, estimator.intercept_lr.learning_rate
        gradient, most = estimator.loss.gradient, estimator.clip_gradient
        now = [estimator._weights.get(name, 0.0) for name in names]
        bias, curvature = float(estimator.intercept), self._curvature
        used, of_bias = [0.0] * len(now), 0.0
        if curvature is not None:
            if not (rate > 0.0 and slow > 0.0):
                return None
            used = [curvature.sum("weights", name) for name in names]
            of_bias = curvature.sum("intercept", "")
        for x, y, weight in zip(zip(*columns, strict=True), labels, weights, strict=True):
            raw = 0.0
            for w, number in zip(now, x, strict=True):
                raw += w * number
            slope = gradient(y_true=y, y_pred=raw + bias)
            slope *= weight
            slope = float(max(min(slope, most), -most))
            before, was = now, bias
            bias -= slow * slope
            now = [w - number * slope * rate for w, number in zip(now, x, strict=True)]
            if curvature is not None:
                moved = zip(used, before, now, strict=True)
                used = [u + (b - a) * (b - a) / rate for u, a, b in moved]
                of_bias += (bias - was) * (bias - was) / slow
        return _Stepped(now, bias, used, of_bias)

    def put(self, names: Sequence[str], stepped: _Stepped, n: int) -> None:
        """Set the state to the result of :meth:`walk` for ``n`` rows."""
        estimator, start = self._estimator, self._start
        weights = estimator._weights
        for name, weight in zip(names, stepped.weights, strict=True):
            if name not in start:
                start[name] = weights.get(name, 0.0)
            weights[name] = weight
        estimator.intercept = stepped.intercept
        estimator.optimizer.n_iterations += n
        if self._curvature is not None:
            self._curvature.put("weights", dict(zip(names, stepped.curvature, strict=True)))
            self._curvature.put("intercept", {"": stepped.of_intercept})

    def _learn_measured(
        self, x: dict[str, Any], label: Label, weight: float, curvature: Curvature
    ) -> None:
        estimator = self._estimator
        weights = estimator._weights
        before = [weights.get(name, 0.0) for name in x]
        intercept = float(estimator.intercept)
        estimator.learn_one(x, label, w=weight)
        rate = estimator.optimizer.lr.learning_rate
        curvature.add("weights", x, before, estimator._weights, rate)
        now = {"": float(estimator.intercept)}
        rate = estimator.intercept_lr.learning_rate
        curvature.add("intercept", now, [intercept], now, rate)

    def _begin(self) -> None:
        self._start = {}
        if self._curvature is not None:
            self._curvature.clear()

    def cut(self) -> Blocks:
        out: Blocks = {}
        weights = self._estimator._weights
        if delta := changes(weights, self._start):
            out["weights"] = Block(ADDITIVE, delta)
        if (now := float(self._estimator.intercept)) != self._start_intercept:
            out["intercept"] = Block(ADDITIVE, {"": now - self._start_intercept})
        self._start_intercept = now
        self._begin()
        return out

    def rebase(self, values: Blocks) -> None:
        if "weights" in values:
            weights = self._estimator._weights
            move(weights, self._start, values["weights"].data, self.built["weights"])
        if (block := values.get("intercept")) is not None and "" in block.data:
            new = self.built["intercept"].get("", 0.0) + block.data[""]
            if new != self._start_intercept:
                self._estimator.intercept += new - self._start_intercept
                self._start_intercept = new

    def reset(self, values: Blocks) -> None:
        self._begin()
        weights = self._estimator._weights
        weights.clear()
        for name, w in self.built["weights"].items():
            weights[name] = w
        self._estimator.intercept = self._start_intercept = self.built["intercept"].get("", 0.0)
        self.rebase(values)

    def touched(self, names: Collection[str]) -> Touched:
        return {"weights": dict.fromkeys(names), "intercept": {"": None}}

    def mend(self, values: Blocks, names: Collection[str]) -> None:
        self._begin()
        put_back(names, self._estimator._weights, self.built["weights"])
        self._estimator.intercept = self._start_intercept = self.built["intercept"].get("", 0.0)
        self.rebase(values)

    def forget(self, values: Blocks) -> None:
        if "weights" in values:
            drop(values["weights"].data, self._estimator._weights)
