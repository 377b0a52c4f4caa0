"""Reads the steps in front of a model: river's scalers, a hasher or a one-hot encoder."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from river import preprocessing

from online.edge.errors import ExportRefused
from online.edge.lowering.ir import Columns, Tokens
from online.models.limited import LIMIT, LimitedScaler

_KNOWN: Final = {
    preprocessing.StandardScaler: "counts",
    preprocessing.MinMaxScaler: "min",
    preprocessing.MaxAbsScaler: "abs_max",
    LimitedScaler: "held",
}
"""Scalers, with the attribute that contains the names they have seen."""


class Front:
    """Scalers in their order, and how tokens are made, if they are.

    Attributes:
        tokens: How values become tokens, without rows; None: values are columns.
    """

    def __init__(self, scalers: Sequence[Any], tokens: Tokens | None) -> None:
        self._scalers = list(scalers)
        self.tokens = tokens

    @property
    def scaled(self) -> bool:
        """Whether there is a scaler."""
        return bool(self._scalers)

    @property
    def limited(self) -> bool:
        """Whether the scaler's output is clipped at the limit."""
        return any(type(scaler) is LimitedScaler for scaler in self._scalers)

    def knows(self, name: str) -> bool:
        """Whether all scalers have seen the name; other names of rows are ignored."""
        return all(name in getattr(s, _KNOWN[type(s)]) for s in self._scalers)

    def transform(self, name: str, value: float) -> float:
        """Transform one value with river's own scalers."""
        x: dict[str, Any] = {name: value}
        for scaler in self._scalers:
            x = scaler.transform_one(x)
        return float(x[name])

    def affine(self, name: str) -> tuple[float, float]:
        """Center and factor of a column; 0 and 0 for a name that was never seen."""
        center, factor = 0.0, 1.0
        if not self.knows(name):
            return 0.0, 0.0
        for scaler in self._scalers:
            c, f = _affine(scaler, name)
            if factor == 0.0:
                if c != 0.0:
                    raise ExportRefused(f"scaler of {name!r}", "a scaler before made it constant")
                continue
            center, factor = center + c / factor, factor * f
        return center, factor

    def columns(self, names: Sequence[str]) -> Columns:
        """The columns of these names."""
        pairs = [self.affine(n) for n in names]
        return Columns(
            tuple(names),
            np.array([c for c, _ in pairs]),
            np.array([f for _, f in pairs]),
            LIMIT if self.limited else math.inf,
        )


def front_of(before: Sequence[Any]) -> Front:
    """Read the steps before the last one.  Raises ExportRefused for any unknown step."""
    scalers: list[Any] = []
    for step in before:
        name = type(step).__name__
        if type(step) in _KNOWN:
            scalers.append(step)
        elif len(before) > 1 and type(step) in (
            preprocessing.FeatureHasher, preprocessing.OneHotEncoder
        ):  # fmt: skip
            raise ExportRefused(name, "it is exported as the only step before the model")
        elif type(step) is preprocessing.FeatureHasher:
            return Front([], _river_hasher(step))
        elif type(step) is preprocessing.OneHotEncoder:
            return Front([], _one_hot(step))
        else:
            raise ExportRefused(name, "this preprocessing step can't be exported")
    if len(scalers) > 1 and any(type(scaler) is LimitedScaler for scaler in scalers):
        raise ExportRefused("LimitedScaler", "it is exported as the only scaler")
    return Front(scalers, None)


def _river_hasher(step: Any) -> Tokens:
    return Tokens(
        "river", buckets=int(step.n_features), seed=int(step._seed),
        signed=bool(step.alternate_sign), numbers=True,
    )  # fmt: skip


def _one_hot(step: Any) -> Tokens:
    if step.categories is not None:
        raise ExportRefused("OneHotEncoder.categories", "fixed categories add zeros")
    return Tokens("onehot", numbers=True)


def _affine(scaler: Any, name: str) -> tuple[float, float]:
    """Center and factor at this moment: moments of a rolling window are frozen in an export."""
    if type(scaler) is preprocessing.StandardScaler:
        rolling = scaler.window_size is not None
        mean, var = scaler.means[name], 1.0
        if rolling:
            mean = mean.get()
        if scaler.with_std:
            var = scaler.vars[name].get() if rolling else scaler.vars[name]
        return float(mean), 1.0 / float(var) ** 0.5 if var else 0.0
    if type(scaler) is LimitedScaler:
        return scaler.affine(name)
    if type(scaler) is preprocessing.MinMaxScaler:
        low, high = float(scaler.min[name].get()), float(scaler.max[name].get())
        return low, 1.0 / (high - low) if high != low else 0.0
    most = float(scaler.abs_max[name].get())
    return 0.0, 1.0 / most if most else 0.0
