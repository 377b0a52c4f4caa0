"""One way to name the actions of a log, for who guesses its settings and for who teaches it.

A cell that has a type (Parquet, JSON) is named by what it is.  A text file has but texts: there
``True`` is the action ``true``, and ``1.0`` the action ``1``, as they would be with a type;
``007`` and whatever else no program writes for a number is a text, and whole numbers are exact
however long they are.
"""

from __future__ import annotations

import math
import re
from typing import Any, Final

NO_REWARD: Final = ("", "na", "n/a", "nan", "null")
"""What stands for no number in a text file, in small letters."""

_WHOLE: Final = re.compile(r"-?(0|[1-9][0-9]{0,63})")
_NUMBER: Final = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]{1,3})?")


def action_of(value: Any) -> str | None:
    """The name of an action that a cell with a type says; None: it says none."""
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
    """The name of an action that a cell of a text file says; None: it says none."""
    text = (cell or "").strip()
    if text.lower() in ("true", "false"):
        return text.lower()
    if _WHOLE.fullmatch(text):
        return str(int(text))
    if _NUMBER.fullmatch(text) and math.isfinite(float(text)):
        return action_of(float(text))
    return text or None
