"""Building blocks of the settings: a base class that refuses unknown keys, and durations."""

from __future__ import annotations

import re
from typing import Annotated, ClassVar, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


def _seconds(value: object) -> object:
    """Parse ``"7d"``, ``"90s"`` or a number into seconds.  Raises ValueError with a correction."""
    if not isinstance(value, str):
        return value
    if match := re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smhdw])", value):
        return float(match[1]) * _UNITS[match[2]]
    try:
        return float(value)
    except ValueError:
        words = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smhdw])[a-z]+", value.strip().lower())
        meant = f"write {words[1]}{words[2]}" if words else "as 90s, 5m, 12h, 7d or 2w"
        raise ValueError(f"a length of time is a number and one letter: {meant}") from None


Seconds = Annotated[
    float,
    BeforeValidator(_seconds),
    Field(gt=0, json_schema_extra={"unit": "seconds, or `90s`, `15m`, `12h`, `7d`, `2w`"}),
]


class Tree(BaseModel):
    """Base class of all parts of the settings: immutable, finite; unknown keys are refused.

    Attributes:
        switch: The setting without which the others of the part do nothing, and are refused.
        also_alone: Those that do something without it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    switch: ClassVar[str | None] = None
    also_alone: ClassVar[frozenset[str]] = frozenset()

    @model_validator(mode="after")
    def _is_switched(self) -> Self:
        given = sorted(self.model_fields_set - self.also_alone)
        if given and self.switch is not None and self.switch not in given:
            raise ValueError(
                f"{given[0]} does nothing without {self.switch}: give {self.switch}, or leave "
                f"{given[0]} out"
            )
        return self
