"""Names of actions in a log of choices, the same for guessing settings and for backfills.

A typed cell (Parquet, JSON) is named by its value.  A text file has only texts: there ``True`` is
the action ``true`` and ``1.0`` is the action ``1``, as they would be if typed; ``007`` and other
spellings that no program writes for a number are texts, and whole numbers are exact at any length.
"""

from __future__ import annotations

import math
import re
from typing import Any, Final

NO_REWARD: Final = ("", "na", "n/a", "nan", "null")
"""Texts for a missing number in a text file, in lower case."""

_WHOLE: Final = re.compile(r"-?(0|[1-9][0-9]{0,63})")
_NUMBER: Final = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]{1,3})?")


def action_of(value: Any) -> str | None:
    """Name of the action in a typed cell; None without one."""
    if value is None or isinstance(value, str):
        return value if value and value.strip() else None
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        if not math.isfinite(value):
            return None
        return str(int(value) if value.is_integer() else value)
    return str(value)


def action_in(cell: str | None) -> str | None:
    """Name of the action in a cell of a text file; None without one."""
    text = (cell or "").strip()
    if text.lower() in ("true", "false"):
        return text.lower()
    if _WHOLE.fullmatch(text):
        return str(int(text))
    if _NUMBER.fullmatch(text) and math.isfinite(float(text)):
        return action_of(float(text))
    return text or None
