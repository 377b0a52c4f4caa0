"""Finds the rows whose score may have changed since the previous run, by their changed features.

The score of a linear model is a sum with one term per feature.  If nothing that is part of every
score has changed (a scaler, the intercept, a new class), a row without any of the changed features
has exactly the same sum as before: its terms with changed weights are zero in both.
:mod:`online.rescore.scorer` sums each row separately and in a fixed order, so that this holds to
the last bit.
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
"""Version of weights and sums: raise it if a row's terms are summed in another order."""


class Weights(msgspec.Struct, frozen=True):
    """The weights of a linear model that determine its scores.

    Attributes:
        dense: Parts of every score, by name, as texts that change with them.
        sparse: By feature: its weight, or one per class in the order of their names; features with
            only zeros are left out.
        scaled: Whether a feature with value 0 contributes a non-zero term.
    """

    format: int
    dense: dict[str, str]
    sparse: dict[str, tuple[float, ...]]
    scaled: bool


def weights_of(model: Model) -> Weights | None:
    """Return the weights of a linear model; None for other models."""
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
        parts = [dict(step.held), {"lacking": step.lacking}]
    else:
        parts = [{name: held.get() for name, held in part.items()} for part in (step.min, step.max)]
    digest = hashlib.sha256(repr([sorted(part.items()) for part in parts]).encode())
    return digest.hexdigest()


def changed(before: Weights, now: Weights) -> tuple[list[str] | None, str]:
    """Features with changed weights, in order; or None and the reason why all scores may change."""
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
    if not all(map(math.isfinite, numbers)):  # 0 times infinity is not 0
        return None, "a weight is not finite"
    return sorted(names), ""


def moved_ends(
    before: Mapping[str, Sequence[float]], now: Mapping[str, Sequence[float]]
) -> list[str] | None:
    """Features with changed bounds; None if such bounds exclude 0, so absent features matter."""
    names = sorted(name for name in {*before, *now} if before.get(name) != now.get(name))
    both = [held[name] for held in (before, now) for name in names if name in held]
    return names if all(low <= 0.0 <= high for low, high, *_ in both) else None


def touched(rows: Rows, names: Collection[str], *, scaled: bool) -> Mask:
    """Rows that have one of these features, unless it is 0 and contributes nothing."""
    out = np.zeros(rows.n, dtype=np.bool_)
    for name in names:
        column = rows.columns.get(name)
        if column is None:
            continue
        if isinstance(column, Text) or scaled:
            out |= True if column.present is None else column.present
        else:
            out |= column.values != 0  # absent values are 0
    return out


encode = msgspec.msgpack.Encoder().encode
decode = msgspec.msgpack.Decoder(Weights).decode
