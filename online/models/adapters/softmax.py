"""River's ``SoftmaxRegression`` as blocks: the last step of a pipeline in ``Linear``."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Collection, Mapping
from typing import Any, Final

import numpy as np
from river import optim

from online.models.adapters.weights import Curvature, changes, drop, move, put_back
from online.models.base import Prediction
from online.models.errors import WeightUnsupported
from online.models.state.scalers import Columns
from paramserver.core.blocks import ADDITIVE, Block, Blocks, Touched
from paramserver.core.wire import Curved
from replay.example import Label, label_of

_CLASS: Final = "weights/"


class Softmax:
    """Softmax regression: each row changes the weights of its features in all known classes."""

    has_intercept = False

    def __init__(self, estimator: Any) -> None:
        self._estimator = estimator
        self.built: dict[str, dict[str, float]] = {
            _CLASS + json.dumps(label): dict(weights)
            for label, weights in estimator.weights.items()
        }
        self._start: dict[Label, dict[str, float]] = {}
        self._touched: dict[str, None] = {}
        self._new: dict[Label, None] = {}
        self._curvature: Curvature | None = None

    def compensate(self) -> None:
        if type(self._estimator.loss) is optim.losses.CrossEntropy:
            self._curvature = Curvature()

    def curved(self) -> Curved:
        if (curvature := self._curvature) is None:
            return {}
        starts = {_CLASS + json.dumps(label): start for label, start in self._start.items()}
        return {
            name: curvature.of(name, start, self.built.get(name, {}))
            for name, start in starts.items()
        }

    @property
    def outputs(self) -> Collection[str]:
        return {json.dumps(label) for label in self._estimator.weights}

    def add(self, moves: Mapping[str, Mapping[str, float]], bias: float, weight: float) -> None:
        """Add changes by output and name; ``bias`` is ignored, since there is no intercept."""
        for output, changes_ in moves.items():
            label = label_of(output)
            self._touch(dict.fromkeys(changes_), label)
            held = self._estimator.weights[label]
            for name, change in changes_.items():
                held[name] = held.get(name, 0.0) + weight * change

    def check(self, weight: float) -> None:
        """Raise WeightUnsupported unless the weight is 1: river's class takes no weights."""
        if weight != 1.0:
            raise WeightUnsupported(weight, "SoftmaxRegression")

    def total(self, x: dict[str, Any]) -> float:
        """Sum the weights that a row has changed: finite only if each of them is."""
        weights = self._estimator.weights.values()
        return sum([held.get(name, 0.0) for held in weights for name in x], 0.0)

    def predict(self, x: dict[str, Any]) -> Prediction:
        probabilities = self._estimator.predict_proba_one(x)
        if not probabilities:
            return Prediction(None, {})
        return Prediction(max(probabilities, key=probabilities.__getitem__), probabilities)

    def predict_many(self, names: list[str], x: Columns) -> list[Prediction]:
        known = self._estimator.weights
        if not known:
            return [Prediction(None, {}) for _ in x]
        labels = list(known)
        columns = [[known[label].get(name, 0.0) for label in labels] for name in names]
        raw = x @ np.array(columns, dtype=np.float64).reshape(len(names), len(labels))
        powers = np.exp(raw - raw.max(axis=1, keepdims=True))
        shares = powers / powers.sum(axis=1, keepdims=True)
        best = shares.argmax(axis=1).tolist()
        return [
            Prediction(labels[i], dict(zip(labels, row, strict=True)))
            for i, row in zip(best, shares.tolist(), strict=True)
        ]

    def learn(self, x: dict[str, Any], label: Label, weight: float) -> None:
        known = self._estimator.weights
        if (
            label not in known
            or len(self._start) != len(known)
            or not x.keys() <= self._touched.keys()
        ):
            self._touch(x, label)
        if self._curvature is None:
            self._estimator.learn_one(x, label)
            return
        before = {held: [weights.get(name, 0.0) for name in x] for held, weights in known.items()}
        self._estimator.learn_one(x, label)
        rate = self._estimator.optimizer.lr.learning_rate
        nothing = [0.0] * len(x)
        for held, weights in self._estimator.weights.items():
            was = before.get(held, nothing)
            self._curvature.add(_CLASS + json.dumps(held), x, was, weights, rate)

    def _begin(self) -> None:
        self._start, self._touched, self._new = {}, {}, {}
        if self._curvature is not None:
            self._curvature.clear()

    def _touch(self, x: dict[str, Any], label: Label) -> None:
        """Record the weights of the row's features in all classes, before they change."""
        known = self._estimator.weights
        fresh = [name for name in x if name not in self._touched]
        for held, weights in known.items():
            start = self._start.get(held)
            if start is None:
                # The class came by a merge, or no row was learned since the cut.
                start = self._start[held] = {n: weights.get(n, 0.0) for n in self._touched}
            for name in fresh:
                start[name] = weights.get(name, 0.0)
        self._touched.update(dict.fromkeys(fresh))
        if label not in known:
            self._start[label] = dict.fromkeys(self._touched, 0.0)
            self._new[label] = None

    def cut(self) -> Blocks:
        out: Blocks = {}
        for label, start in self._start.items():
            delta = changes(self._estimator.weights[label], start)
            if delta or label in self._new:  # an empty block still makes the class known
                out[_CLASS + json.dumps(label)] = Block(ADDITIVE, delta)
        self._begin()
        return out

    def rebase(self, values: Blocks) -> None:
        for name, block in values.items():
            if name.startswith(_CLASS):
                label = json.loads(name[len(_CLASS) :])
                weights = self._estimator.weights[label]
                built = self.built.get(name, {})
                move(weights, self._start.get(label, {}), block.data, built)

    def reset(self, values: Blocks) -> None:
        self._begin()
        self._estimator.weights.clear()
        self._estimator.optimizers.clear()
        for name, weights in self.built.items():
            label = json.loads(name[len(_CLASS) :])
            self._estimator.weights[label] = defaultdict(float, weights)
        self.rebase(values)

    def touched(self, names: Collection[str]) -> Touched:
        keys = dict.fromkeys(names)
        return {_CLASS + json.dumps(label): keys for label in self._estimator.weights}

    def mend(self, values: Blocks, names: Collection[str]) -> None:
        self._begin()
        estimator = self._estimator
        for label in list(estimator.weights):
            name = _CLASS + json.dumps(label)
            if name in values or name in self.built:
                put_back(names, estimator.weights[label], self.built.get(name, {}))
            else:  # the class was added by the rows that are undone
                del estimator.weights[label]
        estimator.optimizers.clear()
        self.rebase(values)

    def forget(self, values: Blocks) -> None:
        for name, block in values.items():
            if name.startswith(_CLASS):
                label = json.loads(name[len(_CLASS) :])
                drop(block.data, self._estimator.weights.get(label, {}))
