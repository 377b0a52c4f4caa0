"""Generalised linear mixed model: a shared model plus offsets for each user, film or machine.

The structure is that of Zhang et al. 2016, *GLMix*.  The shared model (fixed effects) is the
built-in that the settings name; it never sees the keys.  Each key has an intercept, and weights on
the features that the settings name (:mod:`online.models.entities.offsets`).  Both predict one sum
(:mod:`online.models.entities.shared_model`).  A key that is new, missing or null adds nothing.
Beside the shared model's blocks there are:

==================== ======= ====================================================================
``entity/…``         moments observations by key, of the intercept (block named by the entity)
                             and of each weight (named by entity and feature, as a JSON list)
``entity.scaler``    moments of the features that have weights, if there are any
``entity.proved``    count   rows, their squared errors, and the sums for the factor a of offsets
==================== ======= ====================================================================

Keys count as names of the model (:mod:`online.learning.vocabulary`): ``limits.names_max`` bounds
them, overall and by source.  Whether there is room for a key is decided before its row is written;
without room the row is written without the key, so that every learner leaves out the same keys.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Final, NamedTuple

import mmh3
import msgspec

from evaluation.metrics import Task
from online.models.base import Compensable, Forgetful, Model, Prediction
from online.models.entities.offsets import PROVED, Moments, Offsets
from online.models.entities.shared_model import shifted
from online.models.errors import LearnerUnusable
from online.models.features.hashed import Words
from online.models.fm import spelled
from online.models.gradients import Hashing
from online.models.limited import Limited
from online.models.loaded import Loaded
from paramserver.core.blocks import Blocks
from paramserver.core.sums import Sums
from paramserver.core.wire import Curved
from replay.example import Example, Features, Label, Value

Entity = Mapping[str, Sequence[str]]
"""Features that are keys, each with the features that have weights by that key."""

ALONE: Final = 200.0
"""Rows that only the shared model learns at first: it should learn what keys have in common."""

CURVATURE_MIN: Final = 0.05
"""Lower bound of the curvature p (1 − p), for probabilities near 0 or 1."""

FAR: Final = 4.0
"""Bound to which errors in regression are clipped, in standard deviations of the errors."""

_NEAR: Final = 1e-6  # a smaller value gives no information about its weight
_PROVED: Final = "entity.proved"
_SCALER: Final = "entity.scaler"
_SEED: Final = 20_271
_BETWEEN: Final = "\0"


def key_of(entity: str, value: Value) -> str | None:
    """Return the key for a value of an entity; 17, 17.0 and "17" are the same; None for null."""
    if value is None:
        return None
    text = value if type(value) is str else str(spelled(value))
    return f"{mmh3.hash64(entity + _BETWEEN + text, _SEED, True, False)[0]:x}"


class _Part(NamedTuple):
    """One offset in a row: index of its block, its key, and the value that multiplies it."""

    place: int
    key: str
    x: float


class Personal(Hashing):
    """The shared model with the offsets by key.

    Parameters:
        shared: A model that :func:`~online.models.entities.shared_model.shifted` accepts.
        learner: Its name in the settings.

    Attributes:
        ids, entities: Names of the features that are keys: numbers or texts that are identifiers.
        halves: Whether the shared model's learning rate can be halved.
    """

    why_no_replay = "offsets by key would count the rows that are learned again twice"

    def __init__(self, shared: Model, task: Task, entity: Entity, learner: str) -> None:
        beside = None if task == "multiclass" else shifted(shared, task)
        if beside is None or not isinstance(shared, Hashing):
            raise LearnerUnusable(
                learner,
                f"it takes no offsets by key (entity: {', '.join(entity)}) in a {task} task",
                "Take linear, auto, logreg or linreg in a binary or regression task, or leave "
                "`entity` out: ftrl and fm read a key as a category",
            )
        self._shared, self._beside, self._regression = shared, beside, task == "regression"
        self._slopes: Hashing = shared
        self.numeric_only = shared.numeric_only
        self.halves = bool(getattr(shared, "halves", False))
        self.ids: Collection[str] = frozenset(entity)
        self.entities = self.ids
        self.words = _Words(self.ids, getattr(shared, "words", None))
        curvature = 1.0 if self._regression else 0.25
        self._places: list[tuple[str, list[tuple[int, str, Offsets]]]] = []
        self._offsets: list[Offsets] = []
        for name, features in entity.items():
            places = []
            for feature in ("", *features):
                offsets = Offsets(_block(name, feature), curvature)
                places.append((len(self._offsets), feature, offsets))
                self._offsets.append(offsets)
            self._places.append((name, places))
        self._chosen = frozenset(f for features in entity.values() for f in features)
        self._scaler = Limited(_SCALER)
        self._proved = Sums(_PROVED)
        self._own: list[Limited | Sums | Offsets] = [self._scaler, self._proved, *self._offsets]
        self._believed = [1.0] * len(self._offsets)
        written = {name: list(features) for name, features in entity.items()}
        self.structure = f"{shared.structure} entity 1 {json.dumps(written)}"

    # -- answering -------------------------------------------------------------------------------

    def numbers(self, features: Features) -> Mapping[str, float]:
        """Return the values that the weights multiply: the shared model's, and 1 for each key."""
        values = dict(self._slopes.numbers(self._without_keys(features)))
        for name in self.ids:
            if (key := key_of(name, features.get(name))) is not None:
                values[key] = 1.0
        return values

    def predict(self, features: Features) -> Prediction:
        rest, by, believed = dict(features), 0.0, self._believed
        x = self._numbers(features, learns=False) if self._chosen else {}
        for name, places in self._places:
            if (key := key_of(name, rest.pop(name, None))) is None:
                continue
            for place, feature, offsets in places:
                number = 1.0 if not feature else x.get(feature, 0.0)
                by += believed[place] * offsets.of(key) * number
        return self._beside.answer(rest, by)

    def _without_keys(self, features: Features) -> Features:
        rest = dict(features)
        for name in self.ids:
            rest.pop(name, None)
        return rest

    def _numbers(self, features: Features, *, learns: bool) -> Mapping[str, float]:
        """Return the standardised features with weights by key; first learn their moments."""
        numbers = {n: float(v) for n in self._chosen if _is_number(v := features.get(n))}  # type: ignore[arg-type]
        return self._scaler.learn(numbers) if learns else self._scaler.transform(numbers)

    def _parts(self, features: Features) -> list[_Part]:
        """Return the offsets that are used by a row to be learned."""
        x = self._numbers(features, learns=True) if self._chosen else {}
        parts = []
        for name, places in self._places:
            if (key := key_of(name, features.get(name))) is None:
                continue
            for place, feature, _ in places:
                number = 1.0 if not feature else x.get(feature, 0.0)
                if abs(number) > _NEAR:
                    parts.append(_Part(place, key, number))
        return parts

    # -- learning --------------------------------------------------------------------------------

    def learn(self, features: Features, label: Label, weight: float) -> None:
        """Learn one row; raises as the shared model does, and StateNotFinite."""
        self.learn_noted(Example(features, label), weight)

    def learn_noted(self, example: Example, weight: float) -> None:
        """Learn one row with the shared model's notes; raises as ``learn``."""
        rest = self._without_keys(example.features)
        alone = self._proved.now.get("rows", 0.0) < ALONE
        parts = self._parts(example.features)
        if alone:
            parts = []
        now = [self._offsets[place].of(key) for place, key, _ in parts]
        adds = [self._believed[p.place] * c for p, c in zip(parts, now, strict=True)]
        by = sum([c * p.x for p, c in zip(parts, adds, strict=True)])
        left, curvature = (0.0, 0.0) if alone else self._left(rest, example.label, by)
        self._beside.learn(msgspec.structs.replace(example, features=rest), weight, by)
        learned: list[tuple[_Part, tuple[Moments, Moments]]] = []
        sums = {"rows": weight}
        if not alone:
            sums["square"] = curvature * left * left * weight
        for part, c, added in zip(parts, now, adds, strict=True):
            v, h = added + left / part.x, curvature * part.x * part.x * weight
            offsets = self._offsets[part.place]
            learned.append((part, offsets.learned(part.key, v, h)))
            sums[f"with {offsets.block}"] = h * c * v
            sums[f"of {offsets.block}"] = h * c * c
        for part, moments in learned:
            self._offsets[part.place].put(part.key, moments)
        for name, change in sums.items():
            if change:
                self._proved.count(name, change)
        self._believe()

    def _left(self, rest: Features, label: Label, by: float) -> tuple[float, float]:
        """Return the Newton step by which the answer is off, and the loss's curvature there."""
        answer = self._beside.answer(rest, by)
        if answer.probabilities is None:
            left = float(label) - float(answer.label or 0.0)
            if (typical := self._square()) > 0.0:
                far = FAR * math.sqrt(typical)
                left = max(-far, min(far, left))
            return left, 1.0
        p = answer.probabilities[True]
        curvature = max(p * (1.0 - p), CURVATURE_MIN)
        return (float(label) - p) / curvature, curvature

    def _square(self) -> float:
        """Return the mean squared error weighted by curvature; 0 before there are errors."""
        now = self._proved.now
        rows = now.get("rows", 0.0) - ALONE
        return now.get("square", 0.0) / rows if rows >= 1.0 else 0.0

    def _believe(self) -> None:
        """Compute the factor a of each block of offsets."""
        get, prior = self._proved.now.get, PROVED * self._square()
        for place, offsets in enumerate(self._offsets):
            of = prior + get(f"of {offsets.block}", 0.0)
            share = (prior + get(f"with {offsets.block}", 0.0)) / of if of > 0.0 else 1.0
            self._believed[place] = max(0.0, min(1.0, share))

    # -- blocks ----------------------------------------------------------------------------------

    def cut(self) -> Blocks:
        """Return the open delta and empty it."""
        out = dict(self._shared.cut())
        for part in self._own:
            out |= part.cut()
        return out

    def rebase(self, values: Blocks) -> None:
        """Set new values with the open delta on top."""
        self._shared.rebase(values)
        for part in self._own:
            part.rebase(values)
        self._believe()

    def reset(self, values: Blocks) -> None:
        """Set the whole state to ``values``, with an empty open delta."""
        self._shared.reset(values)
        for part in self._own:
            part.reset(values)
        self._believe()

    def forget(self, values: Blocks) -> None:
        """Drop the given keys.  The model is not used after the first call."""
        if isinstance(self._shared, Forgetful):
            self._shared.forget(values)
        for offsets in self._offsets:
            offsets.forget(values)

    def compensate(self) -> None:
        """Start to measure the curvature of rows in the shared model, if it supports that."""
        if isinstance(self._shared, Compensable):
            self._shared.compensate()

    def curved(self) -> Curved:
        """Return start values and curvature of the shared model's delta; empty if not measured."""
        return self._shared.curved() if isinstance(self._shared, Compensable) else {}


class _Words(Words):
    """The names in a row: those of entities' keys, and the shared model's for other features."""

    def __init__(self, ids: Collection[str], shared: Words | None) -> None:
        self.ids, self._shared = frozenset(ids), shared

    def keys(self, name: str, value: Value) -> Sequence[str]:
        if name in self.ids:
            key = key_of(name, value)
            return () if key is None else (key,)
        return (name,) if self._shared is None else self._shared.keys(name, value)

    def without(self, name: str, value: Value, absent: Collection[str]) -> Value | None:
        """Return the value without the keys that are ``absent``; None if none is left."""
        if name in self.ids or self._shared is None:
            return None
        return self._shared.without(name, value, absent)


def with_offsets(loaded: Loaded, task: Task, entity: Entity, learner: str) -> Loaded:
    """Add offsets by key to a loaded model, which changes its spec.  Raises LearnerUnusable."""

    def build() -> Model:
        return Personal(loaded.build(), task, entity, learner)

    model = Personal(loaded.model, task, entity, learner)
    spec = {**json.loads(loaded.spec_text), "structure": model.structure}
    alike = {k: spec[k] for k in ("task", "classes", "structure")} | {"kind": "structure"}
    text, same = json.dumps(spec, sort_keys=True), json.dumps(alike, sort_keys=True)
    return replace(
        loaded, model=model, spec_hash=_hash_of(text), spec_text=text, build=build,
        alike=_hash_of(same),
    )  # fmt: skip


def _hash_of(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _block(name: str, feature: str) -> str:
    return f"entity/{json.dumps([name, feature]) if feature else name}"


def _is_number(value: Value) -> bool:
    return isinstance(value, (int, float))
