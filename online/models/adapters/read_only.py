"""River's estimators are asked here without a trace, where asking them would insert what is new.

An answer changes nothing.  Some of river's parts keep numbers by name or by group in a dict that
makes an entry for whatever it is asked for, or put off work until they are asked.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from river import base, compose, preprocessing

from online.models.limited import LimitedScaler

_KNOWN_NAMES: Final = {
    preprocessing.StandardScaler: "means",
    preprocessing.MinMaxScaler: "min",
    preprocessing.MaxAbsScaler: "abs_max",
    preprocessing.RobustScaler: "median",
    preprocessing.AdaptiveStandardScaler: "means",
    LimitedScaler: "held",
}
"""Scalers that insert a name they have never met when they transform, and where they keep names."""


_AGGREGATES: Final = "river.feature_extraction.agg"
_MACHINES: Final = "river.facto."
_RULES: Final = "river.rules.amrules"  # modules by name: importing them all would take time


def needs_numbers(first: Any) -> bool:
    """Whether an estimator can't take a text; ``first`` of its steps sees the row as it is.

    AMRules would: but river has no splitter for texts in it, and it raises at the first one.
    """
    return type(first) in _KNOWN_NAMES or type(first).__module__ == _RULES


def transformed(step: Any, x: dict[str, Any]) -> dict[str, Any]:
    """``transform_one`` that inserts nothing into scalers and aggregates, also inside unions."""
    if isinstance(step, compose.Pipeline):
        for inner in step.steps.values():
            x = transformed(inner, x)
        return x
    if type(step) is compose.TransformerUnion:
        out: dict[str, Any] = {}
        for inner in reversed(step.transformers.values()):
            out.update(transformed(inner, x))
        return out
    if (names := _KNOWN_NAMES.get(type(step))) is not None:
        known = getattr(step, names)
        x = {name: value for name, value in x.items() if name in known}
    if type(step).__module__ == _AGGREGATES:
        return _aggregate(step, x)
    answer: dict[str, Any] = step.transform_one(x)
    return answer


def _aggregate(step: Any, x: dict[str, Any]) -> dict[str, Any]:
    """Answer of ``Agg`` and ``TargetAgg``: of a group that is new, what an empty one has."""
    if any(name not in x for name in step.by or ()):
        return {}
    known = step._groups.get(step._make_key(x))
    return {step._feature_name: (step.how if known is None else known).get()}


def settle(final: Any) -> None:
    """Do what an estimator has put off until it is asked, now that it has learned a row."""
    if (ensure := getattr(final, "_ensure_m", None)) is not None:  # BayesianLinearRegression
        ensure()


# -- factorisation machines ------------------------------------------------------------------------


def is_factorised(final: Any) -> bool:
    """Whether it is one of river's factorisation machines."""
    return type(final).__module__.startswith(_MACHINES)


def surface(final: Any) -> Any:
    """A copy that shares what was learned, and makes nothing up for a name that is new.

    The machine itself would draw numbers for it, and keep them.
    """
    shown = copy.copy(final)
    nothing: Any = np.zeros(final.n_factors)
    if type(final).__module__.endswith((".ffm", ".hofm")):  # by name, then by field or order
        nothing = _Known({}, nothing)
    shown.latents = _Known(final.latents, nothing)
    if (weights := getattr(final, "interaction_weights", None)) is not None:
        shown.interaction_weights = _Known(weights, 1.0)
    return shown


def number_of(final: Any, x: dict[str, Any]) -> Any:
    """Return what a machine's ``predict_one`` does, also of a row with fewer than two features."""
    shown = surface(final)
    if isinstance(final, base.Classifier):
        return shown.predict_one(x)
    return float(shown._raw_dot(shown._ohe_cat_features(x)))


class _Known:
    """Numbers by name; of a name that is new, those that add nothing."""

    __slots__ = ("_known", "_otherwise")

    def __init__(self, known: Mapping[Any, Any], otherwise: Any) -> None:
        self._known, self._otherwise = known, otherwise

    def __getitem__(self, name: Any) -> Any:
        found = self._known.get(name)
        if found is None:
            return self._otherwise
        if isinstance(found, dict):
            return _Known(found, self._otherwise[name])
        return found


def hides_scaler(value: Any) -> bool:
    """Whether a scaler is anywhere in the parameters of the final estimator."""
    if type(value) in _KNOWN_NAMES:
        return True
    if isinstance(value, compose.Pipeline):
        return any(hides_scaler(step) for step in value.steps.values())
    if isinstance(value, compose.TransformerUnion):
        return any(hides_scaler(step) for step in value.transformers.values())
    if isinstance(value, (list, tuple)):
        return any(hides_scaler(item) for item in value)
    if isinstance(value, base.Base) and hasattr(value, "__init__"):
        names = inspect.signature(type(value).__init__).parameters
        return any(hides_scaler(getattr(value, name, None)) for name in names)
    return False
