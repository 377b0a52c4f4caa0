"""Settings of features that are keys, where each key value has its own offset in the model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Final

from pydantic import BeforeValidator

from online.settings.purposes import Purpose
from replay.plain import is_plain, plain

KEYS_MAX: Final = 8
OWN_MAX: Final = 16
"""Most keys per model, and most numbers with weights per key."""


def _by_name(value: object) -> object:
    """Normalize one name, a list or a map into a map from key to features with weights by key."""
    if isinstance(value, str):
        return {value: ()}
    if isinstance(value, (list, tuple)):
        if len(set(map(str, value))) < len(value):
            raise ValueError("a name occurs twice in the list")
        return {name: () for name in value}
    if isinstance(value, Mapping):
        return {k: () if v is None else (v,) if isinstance(v, str) else v for k, v in value.items()}
    return value


Keys = Annotated[dict[str, tuple[str, ...]], BeforeValidator(_by_name)]


def check_entity(
    entity: Mapping[str, tuple[str, ...]], purpose: Purpose, types: Mapping[str, str] | None
) -> None:
    """Raise ValueError if a model of this task can't have these keys.

    Parameters:
        types: Types of the features that the settings declare; None: they declare none.
    """
    if not purpose.keyed:
        raise ValueError(
            f"entity: offsets by key are added to one number, and the task is {purpose.name}: take "
            "binary (a model a class) or regression, or leave it out"
        )
    weighted = [name for names in entity.values() for name in names]
    if not 1 <= len(entity) <= KEYS_MAX:
        raise ValueError(f"entity: {len(entity)} keys; give 1 to {KEYS_MAX}")
    for key, names in entity.items():
        if len(names) > OWN_MAX or len(set(names)) < len(names):
            raise ValueError(
                f"entity.{plain(key)}: {len(names)} numbers, and at most {OWN_MAX} are taken, "
                "none of them twice"
            )
    if invalid := [name for name in (*entity, *weighted) if not name or not is_plain(name)]:
        raise ValueError(f"entity: {plain(invalid[0])!r} is no name")
    if both := [name for name in weighted if name in entity]:
        raise ValueError(f"entity: {both[0]!r} is a key, and no number: leave it out of the list")
    if types is None:
        return
    if missing := [name for name in (*entity, *weighted) if name not in types]:
        raise ValueError(f"entity: {missing[0]!r} is none of `features`: declare it")
    if texts := [name for name in weighted if types[name] not in ("number", "bool")]:
        raise ValueError(f"entity: {texts[0]!r} is a {types[texts[0]]}, and has to be a number")
