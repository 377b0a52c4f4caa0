"""Lowers a served model to an :class:`~online.edge.lowering.ir.EdgeModel`, exactly or not at all.

It reads the attributes of the adapters in :mod:`online.models`, private ones included: like their
blocks it is a view of their state.  Types are compared strictly, because a subclass may predict
differently.  Whatever can't be expressed as the same function is refused by name.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np
from river import base, compose, forest, linear_model, optim, tree

from evaluation.metrics import Task
from online.edge.errors import ExportRefused
from online.edge.lowering.fronts import Front, front_of
from online.edge.lowering.ir import ROWS_MAX, Columns, EdgeModel, Floats, Linear, Link, Tokens
from online.edge.lowering.trees import lower_forest
from online.models.adapters.linear import GLMS
from online.models.adapters.linear import Linear as ServedLinear
from online.models.adapters.opaque import Opaque
from online.models.auto import STEADY, SeveralViews, TwoClasses
from online.models.base import Model
from online.models.entities.personal import Personal
from online.models.experts.linear import EXPERTS
from online.models.features.hashed import Hashed, _name_place
from online.models.features.tents import tent_keys
from online.models.ftrl import FtrlModel
from online.models.limited import LIMIT, Limited
from online.models.rewards import RewardModel
from online.models.selfrate import Regression, SelfRateModel
from online.models.state.scalers import Standard
from online.models.structure import steps
from replay.example import Label

_BIAS: Final = "bias"  # key among hashed rows; no hash is spelled like this
_BIASES: Final = frozenset({_BIAS, f"b{_BIAS}", f"c{_BIAS}", f"{STEADY}{_BIAS}"})
_TREES: Final = (
    tree.HoeffdingTreeClassifier, tree.HoeffdingTreeRegressor, tree.HoeffdingAdaptiveTreeClassifier,
    forest.ARFClassifier, forest.ARFRegressor,
)  # fmt: skip


def lower(model: Model, task: Task) -> EdgeModel:
    """Lower the model in its present state.

    Raises:
        ExportRefused: A part has no exact form here, or nothing was learned yet.
    """
    if isinstance(model, (ServedLinear, Opaque)):
        return _river(model.estimator, task)
    if isinstance(model, FtrlModel):
        return _ftrl(model, task)
    if isinstance(model, SeveralViews):
        return _views(model, task)
    if isinstance(model, SelfRateModel):
        return _experts(model, task)
    if isinstance(model, Personal):
        names = ", ".join(sorted(model.ids))
        problem = f"each {names} has parameters of its own, which a file would disclose"
        raise ExportRefused(f"entity: {names}", problem)
    if isinstance(model, RewardModel):
        problem = (
            "it weighs all actions at once: use `online export`, whose file of choices is no "
            "release; `learner: linear` has one that answers the reward of one action's row, by "
            "which the same action is best in every context"
        )
        raise ExportRefused("rewards", problem)
    network = sys.modules.get("online.models.network")
    if network is not None and isinstance(model, network.NetworkModel):
        from online.edge.lowering.networks import lower_network

        return lower_network(model, task)
    estimators = sys.modules.get("online.models.estimator")
    if estimators is not None and isinstance(model, estimators.LinearEstimator):
        return _sklearn(model, task)
    raise ExportRefused(type(model).__name__, "this class of model can't be exported")


# -- river -------------------------------------------------------------------------------------


def _river(estimator: Any, task: Task) -> EdgeModel:
    if not isinstance(estimator, base.Base):
        raise ExportRefused(type(estimator).__name__, "it is no estimator of river")
    if isinstance(estimator, compose.Pipeline) and type(estimator) is not compose.Pipeline:
        raise ExportRefused(type(estimator).__name__, "it is a subclass of Pipeline")
    *before, final = steps(estimator)
    front = front_of(before)
    if type(final) in GLMS:
        return _glm(final, front, task)
    if type(final) is linear_model.SoftmaxRegression:
        return _softmax(final, front, task)
    if type(final) in _TREES:
        return lower_forest(final, front, task)
    raise ExportRefused(type(final).__name__, "it is no linear model or Hoeffding tree")


def _glm(estimator: Any, front: Front, task: Task) -> EdgeModel:
    kind, loss = type(estimator).__name__, estimator.loss
    if type(loss).__module__ != optim.losses.__name__:
        raise ExportRefused(f"{kind}.loss", f"{type(loss).__name__} is not one of river's")
    if type(loss) is optim.losses.Poisson:
        raise ExportRefused(f"{kind}.loss", "Poisson's exponential can't be exported")
    if task == "multiclass":
        raise ExportRefused(kind, "it has two classes, and the task is multiclass")
    weights = {name: np.array([float(w)]) for name, w in estimator.weights.items()}
    bias = np.array([float(estimator.intercept)])
    link: Link = "identity" if task == "regression" else "sigmoid"
    classes = () if task == "regression" else (False, True)
    return _linear(front, weights, bias, link, task, classes)


def _softmax(estimator: Any, front: Front, task: Task) -> EdgeModel:
    labels = list(estimator.weights)
    if not labels:
        raise ExportRefused("SoftmaxRegression", "it has learned no class yet")
    if task == "binary":
        raise ExportRefused("SoftmaxRegression", "a binary task needs one output")
    names = {name for held in estimator.weights.values() for name in held}
    weights = {
        name: np.array([float(estimator.weights[label].get(name, 0.0)) for label in labels])
        for name in names
    }
    return _linear(front, weights, np.zeros(len(labels)), "softmax", task, tuple(labels))


def _linear(
    front: Front,
    weights: Mapping[Any, Floats],
    bias: Floats,
    link: Link,
    task: Task,
    classes: tuple[Label, ...],
) -> EdgeModel:
    """Make a linear body of weights by name, or by hash if a hasher stands in front."""
    wide = len(bias)
    if front.tokens is not None:
        nonzero = {key: w for key, w in weights.items() if np.any(w != 0)}
        tokens, rows = _token_rows(front.tokens, nonzero)
        columns = Columns((), np.zeros(0), np.zeros(0))
        body = Linear(np.zeros((0, wide)), _stack(rows, wide), bias, np.ones(1), link)
        return EdgeModel(task, classes, columns, tokens, body)
    names = sorted(n for n in weights if isinstance(n, str) and front.knows(n))
    if odd := [n for n in weights if not isinstance(n, str)]:
        raise ExportRefused("weights", f"the name of feature {odd[0]!r} is no text")
    columns = front.columns(names)
    body = Linear(
        _stack([weights[n] for n in names], wide), np.zeros((0, wide)), bias, np.ones(1), link
    )
    return EdgeModel(task, classes, columns, None, body)


def _token_rows(tokens: Tokens, nonzero: Mapping[Any, Floats]) -> tuple[Tokens, list[Floats]]:
    if len(nonzero) > ROWS_MAX:
        raise ExportRefused("weights", f"{len(nonzero):,}, and at most {ROWS_MAX:,} are exported")
    places = sorted(nonzero)
    if tokens.spelling == "onehot":
        return replace(tokens, words=tuple(places)), [nonzero[p] for p in places]
    keys = np.array(places, dtype=np.uint32)
    return replace(tokens, keys=keys), [nonzero[p] for p in places]


def _stack(rows: Sequence[Floats], wide: int) -> Floats:
    return np.array(rows, dtype=np.float64).reshape(len(rows), wide)


# -- the service's own linear models -----------------------------------------------------------


def _ftrl(model: FtrlModel, task: Task) -> EdgeModel:
    outputs = model._outputs
    if not outputs:
        raise ExportRefused("ftrl", "it has learned no class yet")
    labels: tuple[Label, ...] = tuple(outputs) if task == "multiclass" else (False, True)
    by_key: dict[str, Floats] = {}
    for i, output in enumerate(outputs.values()):
        for key in output.z.now:
            if weight := output._weight(key):
                by_key.setdefault(key, np.zeros(len(outputs)))[i] = weight
    links: dict[Task, Link] = {
        "binary": "sigmoid", "multiclass": "softmax", "regression": "identity"
    }  # fmt: skip
    votes = np.ones(1)
    return _hashed(
        model._rows, by_key, len(outputs), votes, links[task], task,
        () if task == "regression" else labels,
    )  # fmt: skip


def _experts(model: SelfRateModel, task: Task) -> EdgeModel:
    votes = np.array(model._mixture.votes())
    held: Any = model._experts
    by_key: dict[str, Floats] = {}
    if task == "multiclass":
        labels = tuple(held.labels)
        if not labels:
            raise ExportRefused("linear", "it has learned no class yet")
        for key, place in held._at.items():
            by_key[key] = held._now[place, : len(votes)].reshape(-1).copy()
        wide = len(votes) * len(labels)
        return _hashed(model._rows, by_key, wide, votes, "softmax", task, labels)
    for key, numbers in held._now.items():
        by_key[key] = np.array(numbers[: len(votes)])
    if task == "binary":
        return _hashed(model._rows, by_key, len(votes), votes, "sigmoid", task, (False, True))
    # The experts' predictions are mean + spread · output, and votes sum to 1: one linear output.
    targets: Any = model
    mean, spread = float(targets._targets.means.get("", 0.0)), float(targets._spread())
    mixed = {key: np.array([spread * float(votes @ w)]) for key, w in by_key.items()}
    mixed[_BIAS] = mixed.get(_BIAS, np.zeros(1)) + mean
    return _hashed(model._rows, mixed, 1, np.ones(1), "identity", task, ())


def _views(model: SeveralViews, task: Task) -> EdgeModel:
    """Lower the active views to further experts on the same columns and tokens."""
    tented, third = model._mixture.active_views()
    if third and model._mixture.crosses:
        raise ExportRefused("auto", "it uses products of features, as with up to four numbers")
    held, rows = model._experts, model._rows
    labels: tuple[Label, ...] = tuple(held.labels) if task == "multiclass" else (False, True)
    if not labels:
        raise ExportRefused("auto", "it has learned no class yet")
    asked = np.repeat([True, tented, third], EXPERTS)
    every = np.array(model._mixture.votes())
    votes = every[asked[: len(every)]]
    scale = votes * model._spread() if isinstance(model, Regression) else None
    counts = model._counts if third and isinstance(model, TwoClasses) else None

    def of(straight: str, bent: str) -> Floats:
        """Return the experts' weights under a key of each view, in one row; "" has none."""
        keys = (straight, bent, straight and f"{STEADY}{straight}")
        there = (True, tented, third and counts is None)
        active = [_held(held, key, task) for key, on in zip(keys, there, strict=True) if on]
        if counts is not None:
            active.append(np.array(counts.factors())[:, None] * counts.weight(bent))
        stacked = np.concatenate(active)
        return stacked.reshape(-1) if scale is None else scale @ stacked

    known = held._at if task == "multiclass" else held._now.keys()
    if counts is not None:
        known = known | counts._now.keys()
    keys = {
        key.removeprefix("b") for key in known if key[0] not in f"c{STEADY}" and key not in _BIASES
    }
    by_key = {_BIAS: of(_BIAS, f"b{_BIAS}"), **{key: of(key, f"b{key}") for key in keys}}
    wide = len(by_key[_BIAS])
    link: Link = "sigmoid" if task == "binary" else "softmax"
    if isinstance(model, Regression):
        by_key[_BIAS] = by_key[_BIAS] + float(model._targets.means.get("", 0.0))
        votes, link, labels = np.ones(1), "identity", ()
    edge = _hashed(rows, by_key, wide, votes, link, task, labels)
    names = edge.columns.names
    weights = _stack([of(_name_place(name, rows._seed, rows._mask), "") for name in names], wide)
    bent = None
    if tented or counts is not None:
        tents = [key for name in names for key in tent_keys(name, rows._seed, rows._mask)]
        bent = _stack([of("", key) for key in tents], wide)
    assert isinstance(edge.body, Linear)
    return replace(edge, body=replace(edge.body, weights=weights, bent=bent))


def _held(experts: Any, key: str, task: Task) -> Floats:
    """The weights of one view's experts under a key, shape (EXPERTS, outputs)."""
    if task == "multiclass":
        numbers: Floats = experts._now[experts._at.get(key, 0), :EXPERTS]
        return numbers
    return np.array(experts._now.get(key, [0.0] * EXPERTS)[:EXPERTS])[:, None]


def _hashed(
    rows: Hashed,
    by_key: dict[str, Floats],
    wide: int,
    votes: Floats,
    link: Link,
    task: Task,
    classes: tuple[Label, ...],
) -> EdgeModel:
    """Make a linear body of hashed weights: standardised numbers by name, the rest by token."""
    scaler, limit = rows._scaler, math.inf
    names: list[str] = []
    moments: list[tuple[float, float]] = []
    if isinstance(scaler, Limited):
        limit = LIMIT
        names = sorted(scaler._now)
        moments = [scaler.affine(n) for n in names]
    elif isinstance(scaler, Standard):
        front = front_of([scaler._scaler])
        names = sorted(scaler._scaler.counts)
        moments = [front.affine(n) for n in names]
    nothing = np.zeros(wide)
    bias = by_key.get(_BIAS, nothing)
    weights = [by_key.get(_name_place(n, rows._seed, rows._mask), nothing) for n in names]
    nonzero = {int(k): w for k, w in by_key.items() if k != _BIAS and np.any(w != 0)}
    empty = Tokens(
        "service", tuple(sorted(rows._text)), rows._mask + 1, rows._seed, numbers=scaler is None
    )
    tokens, table = _token_rows(empty, nonzero)
    columns = Columns(
        tuple(names),
        np.array([m for m, _ in moments]), np.array([f for _, f in moments]), limit,
    )  # fmt: skip
    body = Linear(_stack(weights, wide), _stack(table, wide), bias, votes, link)
    return EdgeModel(task, classes, columns, tokens, body)


# -- scikit-learn ------------------------------------------------------------------------------


def _sklearn(model: Any, task: Task) -> EdgeModel:
    """Lower an SGDRegressor, or an SGDClassifier of two classes with log loss."""
    estimator = model._estimator
    kind = type(estimator).__name__
    if task == "multiclass":
        raise ExportRefused(kind, "one classifier per class can't be exported")
    if task == "binary":
        if getattr(estimator, "loss", None) != "log_loss":
            raise ExportRefused(f"{kind}.loss", "only log_loss gives probabilities")
        if list(model.labels) != [False, True]:
            raise ExportRefused(f"{kind}.labels", f"they are {model.labels!r}, not false and true")
    inputs = model._rows.inputs
    scaler = inputs._scaler
    front = front_of([] if scaler is None else [scaler._scaler])
    columns = front.columns(list(inputs.names))
    body = Linear(
        model._get("coef").reshape(-1, 1), np.zeros((0, 1)), model._get("intercept"), np.ones(1),
        "identity" if task == "regression" else "sigmoid",
    )  # fmt: skip
    return EdgeModel(task, () if task == "regression" else (False, True), columns, None, body)
