"""Read-only predictions by river estimators whose own predict methods change state.

A prediction must not change the model.  But some of river's estimators keep numbers by name or
group in a ``defaultdict``, which inserts an entry at each look-up, or postpone work until the next
prediction.
"""

from __future__ import annotations

import copy
import inspect
import itertools
import math
import pickle
from collections.abc import Collection, Mapping
from typing import Any, Final

import numpy as np
from river import base, compose, feature_extraction, feature_selection, preprocessing

from online.models.limited import LimitedScaler

_KNOWN_NAMES: Final = {
    preprocessing.StandardScaler: "means",
    preprocessing.MinMaxScaler: "min",
    preprocessing.MaxAbsScaler: "abs_max",
    preprocessing.RobustScaler: "median",
    preprocessing.AdaptiveStandardScaler: "means",
    LimitedScaler: "held",
    preprocessing.SparseRandomProjector: "_projection_matrix",
    feature_extraction.RBFSampler: "weights",
    feature_extraction.RandomTreesEmbedding: "_features",
}
"""Transformers of numbers that insert unknown names, and the attribute that has the known names.

For an unknown name some of them also draw from their generator, and one draws all its trees anew.
"""

_BY_NAME: Final = {
    **_KNOWN_NAMES,
    preprocessing.OrdinalEncoder: "values",
    feature_selection.PoissonInclusion: "included",
}
"""The same, with those that also take texts."""

_MACHINES: Final = "river.facto."
_RULES: Final = "river.rules.amrules"  # names, because importing the modules takes time
_PROJECTOR: Final = preprocessing.GaussianRandomProjector


def needs_numbers(first: Any) -> bool:
    """Return whether an estimator can't take text; ``first`` is the first step of its pipeline.

    AMRules accepts text, but river has no splitter for it there, so it raises at the first one.
    """
    numbers = type(first) in _KNOWN_NAMES or isinstance(first, _PROJECTOR)
    return numbers or type(first).__module__ == _RULES


def transformed(step: Any, x: dict[str, Any]) -> dict[str, Any]:
    """Call ``transform_one`` of a step of a pipeline without changing the step."""
    if isinstance(step, compose.Pipeline):
        for inner in step.steps.values():
            x = transformed(inner, x)
        return x
    if type(step) is compose.TransformerUnion:
        out: dict[str, Any] = {}
        for inner in reversed(step.transformers.values()):
            out.update(transformed(inner, x))
        return out
    if type(step) is compose.TransformerProduct:
        parts = [transformed(inner, x) for inner in step.transformers.values()]
        return {
            "*".join(names): math.prod(part[name] for part, name in zip(parts, names, strict=True))
            for names in itertools.product(*parts)
        }
    if type(step) in (compose.Grouper, ReadOnlyGrouper):
        group = step.transformers.get(step._get_key(x))
        return transformed(copy.deepcopy(step.transformer) if group is None else group, x)
    if (known := _names_of(step)) is not None:
        x = {name: value for name, value in x.items() if name in known}
    if type(step) in _AGGREGATES:
        return _aggregate(step, x)
    if isinstance(step, preprocessing.LDA):
        step = _asked(step)
    answer: dict[str, Any] = step.transform_one(x)
    return answer


def _names_of(step: Any) -> Collection[Any] | None:
    """Return the names that a transformer with numbers by name has; None: it has none."""
    if isinstance(step, _PROJECTOR):
        return {name for _, name in step._projection_matrix}
    names = _BY_NAME.get(type(step))
    known: Collection[Any] | None = None if names is None else getattr(step, names)
    return known


def _aggregate(step: Any, x: dict[str, Any]) -> dict[str, Any]:
    """Return the value of an ``Agg`` or ``TargetAgg``; for a new group, that of an empty one."""
    if any(name not in x for name in step.by or ()):
        return {}
    known = step._groups.get(step._make_key(x))
    return {step._feature_name: (step.how if known is None else known).get()}


def _asked(topics: Any) -> Any:
    """Return a copy of an ``LDA``, which draws and learns words whenever it is asked.

    It shares the words' weights, the largest part, which only learning changes.
    """
    copied = copy.copy(topics)
    copied.word_to_index = dict(topics.word_to_index)
    copied.index_to_word = dict(topics.index_to_word)
    copied.rng = copy.deepcopy(topics.rng)
    return copied


class ReadOnlyAgg(feature_extraction.Agg):  # type: ignore[misc]
    """The same as river's, which has the value of an empty group for a new one without adding it.

    An ensemble calls its members' steps by itself; copying it for each answer would take as long
    as it has groups.
    """

    def transform_one(self, x: dict[str, Any]) -> dict[str, Any]:
        """Return the value of the row's group."""
        return _aggregate(self, x)


class ReadOnlyTargetAgg(feature_extraction.TargetAgg):  # type: ignore[misc]
    """The same as river's, which adds no group when it is asked (:class:`ReadOnlyAgg`)."""

    def transform_one(self, x: dict[str, Any]) -> dict[str, Any]:
        """Return the value of the row's group."""
        return _aggregate(self, x)


class ReadOnlyGrouper(compose.Grouper):  # type: ignore[misc]
    """The same as river's, which asks an untrained transformer for a new group, and drops that."""

    def transform_one(self, x: dict[str, Any]) -> dict[str, Any]:
        """Return the row as its group's transformer does."""
        return transformed(self, x)


_AGGREGATES: Final = (
    feature_extraction.Agg, feature_extraction.TargetAgg, ReadOnlyAgg, ReadOnlyTargetAgg,
)  # fmt: skip
_READ_ONLY: Final = {
    kind.__base__: kind for kind in (ReadOnlyAgg, ReadOnlyTargetAgg, ReadOnlyGrouper)
}


class ReadOnlyUnpickler(pickle.Unpickler):
    """Makes transformers that insert groups when they are asked to such as do not."""

    def find_class(self, module: str, name: str) -> Any:
        """Return the class of this name, or the one that takes its place."""
        kind = super().find_class(module, name)
        return _READ_ONLY.get(kind, kind) if isinstance(kind, type) else kind


def settle(final: Any) -> None:
    """Do now, after learning, the work that an estimator would postpone to its next prediction."""
    if (ensure := getattr(final, "_ensure_m", None)) is not None:  # BayesianLinearRegression
        ensure()


def is_factorised(final: Any) -> bool:
    """Return whether the estimator is one of river's factorisation machines."""
    return type(final).__module__.startswith(_MACHINES)


def surface(final: Any) -> Any:
    """Return a view of a factorisation machine in which unknown names have zero vectors.

    The machine itself would draw random vectors for them and store these.
    """
    copied = copy.copy(final)
    nothing: Any = np.zeros(final.n_factors)
    if type(final).__module__.endswith((".ffm", ".hofm")):  # by name, then by field or order
        nothing = _Known({}, nothing)
    copied.latents = _Known(final.latents, nothing)
    if (weights := getattr(final, "interaction_weights", None)) is not None:
        copied.interaction_weights = _Known(weights, 1.0)
    return copied


def number_of(final: Any, x: dict[str, Any]) -> Any:
    """Return the answer of ``predict_one``, also for a row with fewer than two features."""
    shown = surface(final)
    if isinstance(final, base.Classifier):
        return shown.predict_one(x)
    return float(shown._raw_dot(shown._ohe_cat_features(x)))


class _Known:
    """A read-only mapping by name with a neutral value for unknown names."""

    __slots__ = ("_known", "_otherwise")

    def __init__(self, known: Mapping[Any, Any], otherwise: Any) -> None:
        self._known, self._otherwise = known, otherwise

    def __getitem__(self, name: Any) -> Any:
        value = self._known.get(name)
        if value is None:
            return self._otherwise
        if isinstance(value, dict):
            return _Known(value, self._otherwise[name])
        return value


def hides_names(value: Any) -> bool:
    """Return whether a transformer that inserts names is anywhere in an estimator's parameters."""
    return _hides(value, (*_BY_NAME, _PROJECTOR))


def hides_groups(value: Any) -> bool:
    """Return the same of a transformer that inserts groups, or changes with each query."""
    return _hides(value, (compose.Grouper, feature_extraction.Agg, preprocessing.LDA))


def _hides(value: Any, kinds: tuple[type, ...]) -> bool:
    if isinstance(value, kinds) and type(value) not in _READ_ONLY.values():
        return True
    if isinstance(value, compose.Pipeline):
        return any(_hides(step, kinds) for step in value.steps.values())
    if isinstance(value, compose.TransformerUnion):
        return any(_hides(step, kinds) for step in value.transformers.values())
    if isinstance(value, (list, tuple)):
        return any(_hides(item, kinds) for item in value)
    if isinstance(value, base.Base) and hasattr(value, "__init__"):
        names = inspect.signature(type(value).__init__).parameters
        return any(_hides(getattr(value, name, None), kinds) for name in names)
    return False
