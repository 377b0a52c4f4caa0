"""Scores many rows at once, with the same results as the service's single predictions.

======== ====================================================================================
columns  linear models of river: scalers and weights as vectors, one product per batch
trees    Hoeffding trees and adaptive random forests: all rows descend together
batches  torch modules: one tensor per batch
rows     any other model: its ``predict_many``
======== ====================================================================================

Rows whose label could depend on rounding (near ties, large terms that cancel) are predicted one by
one, so that the label is always that of a single prediction.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
from river import linear_model, optim

from evaluation.metrics import Task
from online.models.adapters.linear import Linear, adapted
from online.models.adapters.opaque import Opaque
from online.models.base import Model, Prediction
from online.models.errors import NotAnswered
from online.models.limited import Limited, LimitedScaler
from online.models.state.scalers import SCALERS, MinMax, Standard
from online.models.structure import steps
from online.rescore.trees import Forest, Unlowerable, lower
from online.tables.columns import Floats, Mask, Rows
from replay.example import Label

Method = Literal["columns", "trees", "batches", "rows"]

TOLERANCE: Final[dict[str, float]] = {"columns": 1e-12, "trees": 1e-12, "batches": 1e-6, "rows": 0}
"""Tolerance of a score against the single prediction's, relative to the larger of it and 1."""

_SAFE: Final = 500.0  # sums of terms up to this size have an error of 1e-13 in the probability
_SATURATED: Final = 1.0 - 1e-15
NO_LABEL: Final = -1


@dataclass(frozen=True, slots=True)
class Scores:
    """Answers to n rows.

    Attributes:
        labels: Labels of a classifier.
        codes: int32, shape (n,): indices into ``labels``, ``NO_LABEL`` for none.
        score: float64, shape (n,): the number in regression, the probability of True in a binary
            task, that of the predicted label in a multiclass one; NaN without an answer.
    """

    labels: Sequence[Label]
    codes: npt.NDArray[np.int32]
    score: Floats


class Scorer:
    """Predicts many rows with one model.

    Parameters:
        method: As returned by :func:`choose` for this model and table.
    """

    def __init__(self, model: Model, task: Task, method: Method) -> None:
        self._model, self._task, self._tolerance = model, task, TOLERANCE[method]
        self._raw = None if method == "rows" else _lowered(model, method)

    def score(self, rows: Rows) -> Scores:
        """Predict the rows; the model is not changed.  Raises NotAnswered."""
        if self._raw is None or not rows.n:
            return of_predictions(self._model.predict_many(rows.dicts()) if rows.n else [],
                                  self._task)  # fmt: skip
        labels, values, doubt = self._raw(rows)
        if self._task == "regression":
            scores = Scores((), np.zeros(rows.n, np.int32), values[:, 0])
        else:
            scores, near = _of_shares(labels, values, self._task, 10 * self._tolerance)
            doubt = doubt | near
        return self._with_singles(rows, scores, doubt) if doubt.any() else scores

    def single(self, rows: Rows) -> Scores:
        """Predict row by row with ``predict``: the reference for :meth:`score`."""
        return of_predictions([self._model.predict(x) for x in rows.dicts()], self._task)

    def unanswered(self, rows: Rows) -> dict[int, str]:
        """Return why the model does not answer, by the positions of such rows."""
        why: dict[int, str] = {}
        for i, x in enumerate(rows.dicts()):
            try:
                self._model.predict(x)
            except NotAnswered as error:
                why[i] = str(error)
        return why

    def _with_singles(self, rows: Rows, scores: Scores, doubt: Mask) -> Scores:
        at = np.flatnonzero(doubt)
        one = self.single(rows.take(at))
        labels = list(dict.fromkeys([*scores.labels, *one.labels]))
        codes, values = scores.codes.copy(), scores.score.copy()
        places = np.array([*(labels.index(label) for label in one.labels), NO_LABEL], np.int32)
        codes[at], values[at] = places[one.codes], one.score
        return Scores(labels, codes, values)


def differ(a: Scores, b: Scores, tolerance: float) -> int:
    """Number of rows whose labels differ, or whose scores differ by more than ``tolerance``."""
    names_a, names_b = [*a.labels, None], [*b.labels, None]
    labels = [names_a[i] != names_b[j] for i, j in zip(a.codes, b.codes, strict=True)]
    allowed = tolerance * np.maximum(1.0, np.abs(b.score))
    off = ~(np.abs(a.score - b.score) <= allowed) & ~(np.isnan(a.score) & np.isnan(b.score))
    return int((off | np.array(labels, dtype=np.bool_)).sum())


def choose(model: Model, task: Task, sample: Rows) -> Method:
    """The fastest method with the same results as ``predict`` on the sample."""
    for method in ("columns", "trees", "batches"):
        try:
            scorer = Scorer(model, task, method)
            if not differ(scorer.score(sample), scorer.single(sample), TOLERANCE[method]):
                return method
        except (Unlowerable, NotAnswered, TypeError, KeyError, ValueError, RuntimeError):
            continue  # the method does not fit the model or the table
    return "rows"


def of_predictions(answers: Sequence[Prediction], task: Task) -> Scores:
    """Convert single predictions to scores."""
    n = len(answers)
    if task == "regression":
        numbers = [np.nan if a.label is None else float(a.label) for a in answers]
        return Scores((), np.zeros(n, np.int32), np.array(numbers, dtype=np.float64))
    places: dict[Label, int] = {}
    codes, score = np.empty(n, np.int32), np.empty(n, np.float64)
    for i, answer in enumerate(answers):
        label, shares = answer.label, answer.probabilities
        codes[i] = NO_LABEL if label is None else places.setdefault(label, len(places))
        if shares is None:  # no probabilities: only the label is known
            score[i] = np.nan if label is None else float(label is not False)
        elif task == "binary":
            score[i] = shares.get(True, 0.0) if label is not None else np.nan
        else:
            score[i] = np.nan if label is None else shares.get(label, np.nan)
    return Scores(list(places), codes, score)


def _of_shares(labels: Sequence[Label], shares: Floats, task: Task, near: float) -> tuple[
    Scores, Mask
]:  # fmt: skip
    """Convert probabilities to scores, and mark rows with a near tie."""
    best = shares.argmax(axis=1)
    top = shares[np.arange(len(shares)), best]
    second = np.partition(shares, -2, axis=1)[:, -2] if shares.shape[1] > 1 else np.zeros(len(top))
    score = top
    if task == "binary":
        places = [i for i, label in enumerate(labels) if label is True]
        score = shares[:, places[0]] if places else np.zeros(len(top))
    return Scores(labels, best.astype(np.int32), score), top - second <= near


_Raw = Callable[[Rows], tuple[Sequence[Label], Floats, Mask]]
"""Returns labels, probabilities of shape (n, labels), and a mask of doubtful rows.

For regression: (), numbers of shape (n, 1), and the mask.
"""


def _lowered(model: Model, method: Method) -> _Raw:
    if method == "columns":
        if not isinstance(model, Linear):
            raise Unlowerable("no linear model")
        return _linear(model.estimator)
    if method == "batches":
        return _network(model)
    if not isinstance(model, Opaque) or model._names is not None:
        raise Unlowerable("no tree whose rows are taken as they are")
    *scalers, final = steps(model.estimator)
    trees = lower(final)
    labels = [model._canonical(label) for label in trees.labels]
    return _scaled_trees(_scalers(scalers), trees, labels)


def _scalers(steps: Sequence[Any]) -> list[Standard | Limited | MinMax]:
    for step in steps:
        if type(step) not in (*SCALERS, LimitedScaler):
            raise Unlowerable(f"{type(step).__name__} stands before the model")
    return [adapted(step, "") for step in steps]


def _transformed(
    scalers: Sequence[Standard | Limited | MinMax], rows: Rows
) -> tuple[list[str], Floats, Mask | None]:
    """Names, numbers and presence after the scalers; absent numbers are 0."""
    before = list(rows.columns)
    names, (x, present) = before, rows.matrix(before)
    for scaler in scalers:
        names, x = scaler.transform_many(names, x)
    if present is not None:
        present = present[:, [before.index(name) for name in names]]
        x = np.where(present, x, 0.0)
    return names, x, present


def _scaled_trees(
    scalers: Sequence[Standard | Limited | MinMax], trees: Forest, labels: Sequence[Label]
) -> _Raw:
    from online.tables.columns import Numbers

    def raw(rows: Rows) -> tuple[Sequence[Label], Floats, Mask]:
        if scalers:
            names, x, present = _transformed(scalers, rows)
            columns = {
                name: Numbers("number", x[:, j], None if present is None else present[:, j])
                for j, name in enumerate(names)
            }
            rows = Rows(rows.n, columns)
        return labels, *trees.shares(rows)

    return raw


def _linear(estimator: Any) -> _Raw:
    *steps_before, final = steps(estimator)
    scalers = _scalers(steps_before)
    if type(final) is linear_model.SoftmaxRegression:
        return _softmax(scalers, final)
    weights = dict(final.weights)
    intercept, mean = float(final.intercept), final.loss.mean_func
    numbers = type(final) is linear_model.LinearRegression
    log_loss = type(final.loss) is optim.losses.Log

    def raw(rows: Rows) -> tuple[Sequence[Label], Floats, Mask]:
        names, x, _ = _transformed(scalers, rows)
        w = np.array([weights.get(name, 0.0) for name in names], dtype=np.float64)
        logits = _sums(x, w) + intercept
        sizes = _sums(np.abs(x), np.abs(w)) + abs(intercept)
        if log_loss:
            values = _river_sigmoid(logits)
        else:
            values = np.fromiter(map(mean, logits.tolist()), np.float64, rows.n)
        if numbers:
            return (), values[:, None], sizes > _SAFE * np.maximum(1.0, np.abs(values))
        doubt = (sizes > _SAFE) & (np.abs(logits) < 40.0)
        return [False, True], np.stack([1.0 - values, values], axis=1), doubt

    return raw


def _sums(x: Floats, w: Floats) -> Floats:
    """Sum the terms of each row in a fixed order, independent of the other rows.

    A matrix product would differ in the last bits for batches of other sizes, so that leaving a row
    out of a batch (see :mod:`online.rescore.sparse`) would change the others.
    """
    sums: Floats = np.einsum("ij,j->i", np.ascontiguousarray(x), w)
    return sums


def _softmax(scalers: Sequence[Standard | Limited | MinMax], final: Any) -> _Raw:
    known = {label: dict(weights) for label, weights in final.weights.items()}
    if not known:
        raise Unlowerable("no label is known")

    def raw(rows: Rows) -> tuple[Sequence[Label], Floats, Mask]:
        names, x, _ = _transformed(scalers, rows)
        by_label = [[weights.get(name, 0.0) for name in names] for weights in known.values()]
        w = np.array(by_label, dtype=np.float64).reshape(len(known), len(names))
        logits = np.stack([_sums(x, one) for one in w], axis=1)
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        shares = powers / powers.sum(axis=1, keepdims=True)
        sizes = np.stack([_sums(np.abs(x), np.abs(one)) for one in w], axis=1).max(axis=1)
        return list(known), shares, (sizes > _SAFE) & (shares.max(axis=1) < _SATURATED)

    return raw


def _network(model: Any) -> _Raw:
    """Lower a torch module; its adapter is not imported where torch is not installed."""
    if not hasattr(model, "answering") or not hasattr(model, "_head"):
        raise Unlowerable("no torch module")
    import torch

    inputs, head, module = model.inputs, model._head, model.answering
    scaler = model._inputs._scaler

    def raw(rows: Rows) -> tuple[Sequence[Label], Floats, Mask]:
        names = [name for name in inputs if name in rows.columns]
        x, present = rows.matrix(names)
        used = names
        if scaler is not None:
            used, x = scaler.transform_many(names, x)
            if present is not None:
                present = present[:, [names.index(name) for name in used]]
        if present is not None:
            x = np.where(present, x, 0.0)
        wide = np.zeros((rows.n, len(inputs)))
        wide[:, [inputs.index(name) for name in used]] = x
        with torch.no_grad():
            out = module(torch.tensor(wide, dtype=model._dtype)).to(torch.float64).numpy()
        doubt = np.zeros(rows.n, dtype=np.bool_)
        if head._single:
            p = out[:, 0] if head._is_probability else _sigmoid(out[:, 0])
            return [False, True], np.stack([1.0 - p, p], axis=1), doubt
        if head.labels is None:
            return (), out, doubt
        powers = np.exp(out - out.max(axis=1, keepdims=True))
        return head.labels, powers / powers.sum(axis=1, keepdims=True), doubt

    return raw


def _river_sigmoid(x: Floats) -> Floats:
    """River's sigmoid function, which is exactly 0 and 1 beyond ±30."""
    out: Floats = 1.0 / (1.0 + np.exp(-np.clip(x, -31.0, 31.0)))
    out[x < -30.0] = 0.0
    out[x > 30.0] = 1.0
    return out


def _sigmoid(x: Floats) -> Floats:
    power = np.exp(-np.abs(x))
    out: Floats = np.where(x >= 0, 1.0 / (1.0 + power), power / (1.0 + power))
    return out
