"""Tells which changes of the settings a running service can apply, and how."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from online.models.loaded import Loaded
from online.settings.config import Settings
from online.settings.model import ModelSettings

_BY_REPLICAS = ("limits", "tokens", "origins", "hosts", "telemetry")
AT_ONCE = ("start_wait_s", "alerts")  # used only by the process that owns the service
_BY_RESTART = ("task", "learner", "params", "classes", "state_of", "entity", "shards")  # its spec
_NOTHING = "nothing was changed: the service continues unchanged"
_ROLL_OUT = "roll a new learner out as a `challenger` that is promoted: docs/deploy.md, Upgrade"
UNCHANGED = "the settings are as they were"


@dataclass(frozen=True, slots=True)
class Changes:
    """Differences between two versions of the settings, as dotted names.

    Attributes:
        restart: Applied only by a restart of the service.
        rolling: Read by replicas at their start: applied by replacing each replica.
        scaled: Whether the number of replicas changes.
        at_once: Used only by the owner process, which applies them immediately.
        renewed: Taken by running replicas.
        added, removed: Names of models that are new, and of those that are no longer served.
    """

    restart: tuple[str, ...]
    rolling: tuple[str, ...]
    scaled: bool
    at_once: tuple[str, ...] = ()
    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    renewed: tuple[str, ...] = ()

    @property
    def models(self) -> tuple[str, ...]:
        """Names of models that are new or no longer served."""
        return self.added + self.removed

    @property
    def replaces(self) -> bool:
        """Whether they need a replacement of every replica."""
        return bool(self.rolling or self.models)

    def lines(self) -> list[str]:
        """Return a line about each change but that of the number of replicas."""
        changed = [f"{name} changed" for name in (*self.rolling, *self.at_once, *self.renewed)]
        return changed + [f"model {name} is new" for name in self.added]


def changes(old: Settings, new: Settings) -> Changes:
    """Compare the settings that a service runs on with new ones."""
    restart = [
        name
        for name in Settings.model_fields
        if name not in ("replicas", "models", *AT_ONCE, *_BY_REPLICAS)
        and getattr(old, name) != getattr(new, name)
    ]
    if old.tokens and not new.tokens:  # the file may be cut, and the service would be open to all
        restart.append("to be without tokens")
    rolling = [name for name in _BY_REPLICAS if _of_replicas(old, name) != _of_replicas(new, name)]
    renewed = ["tokens"] if "tokens" in rolling and old.tokens.renewed_by(new.tokens) else []
    rolling = [name for name in rolling if name not in renewed]
    known, served = {m.name: m for m in old.models}, {m.name: m for m in new.models}
    for name in [name for name in known if name in served]:
        was, model = known[name], served[name]
        for field in ModelSettings.model_fields:
            if getattr(was, field) != getattr(model, field):
                dotted = f"models.{name}.{field}"
                (restart if field in _BY_RESTART else rolling).append(dotted)
    at_once = [name for name in AT_ONCE if getattr(old, name) != getattr(new, name)]
    if old.limits.standstill_s != new.limits.standstill_s:
        at_once.append("limits.standstill_s")
    scaled = old.replicas != new.replicas
    added = tuple(name for name in served if name not in known)
    removed = tuple(name for name in known if name not in served)
    return Changes(
        tuple(restart), tuple(rolling), scaled, tuple(at_once), added, removed, tuple(renewed)
    )


def other_specs(before: Mapping[str, Loaded], after: Mapping[str, Loaded]) -> list[str]:
    """Return the models that are served before and after from other code, as names of settings."""
    both = [name for name in after if name in before]
    return [
        f"models.{name}: its code"
        for name in both
        if after[name].spec_hash != before[name].spec_hash
    ]


def _of_replicas(settings: Settings, name: str) -> Any:
    """A part of the settings as replicas use it: a standstill is the business of their owner."""
    part = getattr(settings, name)
    return part.model_copy(update={"standstill_s": None}) if name == "limits" else part


def needs_restart(names: Sequence[str], *, challenged: bool = True) -> list[str]:
    """Lines that report that new settings were not applied because these names need a restart.

    ``challenged``: whether models can have challengers here.
    """
    of_models = any(name.startswith("models.") for name in names)
    roll_out = [_ROLL_OUT] if of_models and challenged else []
    return [*(f"{name} needs a restart of the service" for name in names), *roll_out, _NOTHING]
