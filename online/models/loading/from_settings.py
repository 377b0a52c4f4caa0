"""Loading the model that the settings describe, and choosing how its deltas are merged."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from online.settings.config import Settings
from online.settings.model import ModelSettings
from paramserver.core.server import IN_ORDER, MergeRule

if TYPE_CHECKING:
    from online.models.base import Model
    from online.models.loaded import Loaded

PLAIN_SCALE: Final = "plain"
"""River's scaler, the default of older versions."""

TODAYS_SCALE: Final = "limited"
"""The scaler of new models."""

SCALED: Final = frozenset({"logreg", "softmax", "linreg", "ftrl", "mlp"})
"""Built-ins that have the setting ``scale``."""


def load_model(
    model: ModelSettings, settings: Settings, secret: bytes, old_secrets: Sequence[bytes] = ()
) -> Loaded:
    """Load the model that the settings describe, untrained.  Raises LearnerUnusable.

    ``secret`` seals pickled state, ``old_secrets`` open state that was sealed with older keys.
    """
    from online.models.loading.load import load  # takes a second, which most commands don't need

    loaded = load(
        model.learner,
        model.params,
        task=model.task,
        classes=None if model.classes is None else {k: v for k, v in model.classes.items()},
        key=secret,
        base_dir=settings.base_dir,
        old_keys=old_secrets,
        artifact=model.artifact,
        training=model.training,
        rehearses=model.replay.on,
        state_of=model.state_of,
        threshold=None if model.anomaly is None else model.anomaly.threshold,
    )
    if model.entity is not None:
        from online.models.entities.personal import with_offsets

        loaded = with_offsets(loaded, model.task, model.entity, model.learner)
    if model.shards > 1:
        loaded = _cut(loaded, model)
    _check_declared(model, numeric_only=loaded.model.numeric_only)
    if model.conversion_window is not None:
        _check_taken_back(model, loaded.model)
    _check_tables(model, settings, loaded.model)
    return loaded


def _cut(loaded: Loaded, model: ModelSettings) -> Loaded:
    """Add the number of shards to the spec: a shard's state fits no other number of shards.

    Raises LearnerUnusable if the model can't be merged, so that each replica learns all of it.
    """
    from online.models.errors import LearnerUnusable

    if not loaded.model.mergeable:
        problem = f"shards: {model.shards}, and what replicas learn of it can't be merged"
        remedy = "Leave `shards` out, or take a learner that can: fm, ftrl, linear"
        raise LearnerUnusable(model.learner, problem, remedy)
    spec_hash, text = spec_with(loaded.spec_text, model.shards)
    same = hashlib.sha256(f"{loaded.alike}/{model.shards}".encode()).hexdigest()
    return replace(loaded, spec_hash=spec_hash, spec_text=text, alike=same)


def spec_with(text: str, shards: int) -> tuple[str, str]:
    """Return hash and text of the spec with several shards; ``text`` is the spec with one."""
    with_shards = json.dumps({**json.loads(text), "shards": shards}, sort_keys=True)
    return hashlib.sha256(with_shards.encode()).hexdigest(), with_shards


def _check_tables(model: ModelSettings, settings: Settings, built: Model) -> None:
    """Raise LearnerUnusable if a setting of tables is given, and the model has no such table."""
    from online.models.base import Rounding, Sharing, Tabled
    from online.models.errors import LearnerUnusable

    shares, held, most = model.sync.share_tables, model.cache.rows, settings.limits.table_rows_max
    rounds = model.sync.vectors == "float16"
    for given, name, value, kind, lacking in (
        (shares, "sync.share_tables", "set", Sharing, "table of ids"),
        (rounds, "sync.vectors", "float16", Rounding, "table whose vectors are pushed"),
        (held is not None, "cache.rows", held, Tabled, "table"),
    ):
        if given and not isinstance(built, kind):
            problem = f"{name} is {value}, and it has no {lacking}"
            remedy = f"Take fm with `params: {{table: true}}`, or leave {name} out"
            raise LearnerUnusable(model.learner, problem, remedy)
    if shares and most is not None:
        problem = "sync.share_tables is set, and limits.table_rows_max is"
        problem += f" {most}: rows of a shared table are not removed"
        remedy = "Leave the limit out, or leave sync.share_tables out"
        raise LearnerUnusable(model.learner, problem, remedy)


def _check_taken_back(model: ModelSettings, built: Model) -> None:
    """Raise LearnerUnusable if ``conversion_window`` is set and labels can't be replaced."""
    from online.models.base import why_not_revised

    if (why := why_not_revised(built)) is not None:
        from online.models.errors import LearnerUnusable

        problem = f"conversion_window is {model.conversion_window:g} s, and {why}"
        remedy = "Take one whose lessons can be taken back: auto, linear, logreg, ftrl; or leave it"
        raise LearnerUnusable(model.learner, problem, f"{remedy} out")


def built_for_pushes(model: ModelSettings, build: Callable[[], Model]) -> Callable[[], Model]:
    """Return what builds a copy whose deltas are pushed: it rounds them if the settings say so."""
    if model.sync.vectors == "float32":
        return build

    def built() -> Model:
        from online.models.base import Rounding

        made = build()
        if isinstance(made, Rounding):
            made.round_deltas()
        return made

    return built


def _check_declared(model: ModelSettings, *, numeric_only: bool) -> None:
    """Raise LearnerUnusable for declared text features of a model that takes numbers only."""
    if model.choose is not None and numeric_only:
        from online.models.errors import LearnerUnusable

        problem = "actions are named by texts, and it takes numbers only"
        raise LearnerUnusable(model.learner, problem, "Take one that reads texts: rewards, linear")
    keys = model.entity or {}
    texts = (
        name
        for name, one in (model.features or {}).items()
        if one.type in ("category", "text") and name not in keys
    )
    if numeric_only and (name := next(texts, None)) is not None:
        from online.models.errors import LearnerUnusable

        assert model.features is not None
        problem = f"features.{name} is a {model.features[name].type}, and it takes numbers only"
        remedy = "Leave the feature out, or take one that reads texts: linear, ftrl"
        raise LearnerUnusable(model.learner, problem, remedy)


def merge_rule(model: ModelSettings, built: Model) -> MergeRule:
    """Choose how the deltas of several replicas are merged.

    A model that can't be merged is learned in order by each replica, or, with ``learn:
    background``, by one process for all.
    """
    merge = model.sync.merge
    if merge in IN_ORDER or not built.mergeable:
        if model.learn == "background":
            return "lagging"
        return merge if merge in ("overlay", "lagging") else "ordered"
    return "compensated" if merge == "auto" else merge
