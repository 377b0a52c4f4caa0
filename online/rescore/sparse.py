"""Which rows can have another score than in the run before: those with a feature that moved.

A linear model's score is a sum with a term a feature.  If nothing that is in every score has moved
(a scaler, the intercept, a new class), a row without any of the changed features has the very sum
that it had: its terms with other weights are zero in both.  :mod:`online.rescore.scorer` adds up
each row by itself and in one order, so that this is so to the last bit.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

import msgspec
import numpy as np
from river import linear_model, preprocessing

from online.models.adapters.linear import Linear
from online.models.base import Model
from online.models.limited import LimitedScaler
from online.models.structure import steps
from online.tables.columns import Mask, Rows, Text
from replay.example import label_text

FORMAT: Final = 1
"""Of the sums, too: raise it when a row's terms are added up in another order."""


class Weights(msgspec.Struct, frozen=True):
    """A linear model as its scores see it.

    Attributes:
        dense: What is in every score, by name: a text that changes with it.
        sparse: By feature: its weight, or one for each class in the order of their names; those of
            all zeros are left out.
        scaled: Whether a feature of 0 is no term of 0.
    """

    format: int
    dense: dict[str, str]
    sparse: dict[str, tuple[float, ...]]
    scaled: bool


def weights_of(model: Model) -> Weights | None:
    """Return the weights of a linear model; None if the model is none."""
    if not isinstance(model, Linear):
        return None
    *scalers, final = steps(model.estimator)
    dense = {f"the scaler {type(step).__name__}": _scaler(step) for step in scalers}
    if type(final) is linear_model.SoftmaxRegression:
        known = {label_text(label): weights for label, weights in final.weights.items()}
        dense["the set of classes"] = repr(list(known))
        columns = list(known.values())
    else:
        dense["the intercept"] = repr(float(final.intercept))
        columns = [final.weights]
    names = sorted({name for weights in columns for name in weights})
    rows = ((name, tuple(float(w.get(name, 0.0)) for w in columns)) for name in names)
    return Weights(FORMAT, dense, {name: row for name, row in rows if any(row)}, bool(scalers))


def _scaler(step: Any) -> str:
    if type(step) is preprocessing.StandardScaler:
        parts: list[Any] = [dict(step.counts), dict(step.means), dict(step.vars)]
    elif type(step) is LimitedScaler:
        parts = [dict(step.held)]
    else:
        parts = [{name: held.get() for name, held in part.items()} for part in (step.min, step.max)]
    digest = hashlib.sha256(repr([sorted(part.items()) for part in parts]).encode())
    return digest.hexdigest()


def changed(before: Weights, now: Weights) -> tuple[list[str] | None, str]:
    """Features whose weights moved, in order; None, and why: every score can have moved."""
    if before.format != now.format:
        return None, "they were added up in another way"
    for name in sorted({*before.dense, *now.dense}):
        if before.dense.get(name) != now.dense.get(name):
            return None, f"{name} has moved"
    names = {
        name
        for name in {*before.sparse, *now.sparse}
        if before.sparse.get(name) != now.sparse.get(name)
    }
    numbers = (w for held in (before, now) for name in names for w in held.sparse.get(name, ()))
    if not all(map(math.isfinite, numbers)):  # 0 times infinity is no 0
        return None, "a weight is not finite"
    return sorted(names), ""


def moved_ends(
    before: Mapping[str, Sequence[float]], now: Mapping[str, Sequence[float]]
) -> list[str] | None:
    """Features whose bounds moved; None: those of one of them leave out 0, which was no term."""
    names = sorted(name for name in {*before, *now} if before.get(name) != now.get(name))
    both = [held[name] for held in (before, now) for name in names if name in held]
    return names if all(low <= 0.0 <= high for low, high, *_ in both) else None


def touched(rows: Rows, names: Collection[str], *, scaled: bool) -> Mask:
    """Rows that have one of these features, with another value than 0 if those are no terms."""
    out = np.zeros(rows.n, dtype=np.bool_)
    for name in names:
        column = rows.columns.get(name)
        if column is None:
            continue
        if isinstance(column, Text) or scaled:
            out |= True if column.present is None else column.present
        else:
            out |= column.values != 0  # absent ones are 0
    return out


encode = msgspec.msgpack.Encoder().encode
decode = msgspec.msgpack.Decoder(Weights).decode
