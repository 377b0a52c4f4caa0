"""Reads lines of VowpalWabbit's format "dsjson" as rows: one choice of an action a line.

Azure Personalizer, VowpalWabbit and ``online evaluate --dsjson`` write this format.  A row has the
columns ``_action``, ``_reward``, ``_probability``, ``_event`` and ``_time`` (POSIX seconds), the
context's features, and those of the chosen action with ``@`` in front.  Names that begin with ``_``
are no features in the format, so the columns never meet a feature.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

from evaluation.late import posix_seconds
from online.errors import OnlineError, RequestError
from online.tables.nested import features_of

ABOUT: Final = ("_probability", "_event", "_time")
"""Columns that are no features, and are left out where nobody names them."""

_NAMES_MAX: Final = 1_000_000
_CHARS_MAX: Final = 1_000_000


class NoChoice(OnlineError):
    """A line that is no choice with a reward."""

    reason: str
    text = "{reason}"


def row_of(line: Mapping[str, Any]) -> dict[str, Any]:
    """Make the row of a decoded line.  Raises NoChoice."""
    if line.get("_skipLearn") is True:
        raise NoChoice("the choice was never activated")
    context = line.get("c")
    if not isinstance(context, Mapping) or not isinstance(context.get("_multi"), list):
        raise NoChoice("it has no list of actions (c._multi)")
    if "_slots" in context or "_outcomes" in line:
        raise NoChoice("it is a choice for several slots")
    cost, place = line.get("_label_cost"), _place(line)
    if not isinstance(cost, int | float) or place is None:
        raise NoChoice("it has no cost (_label_cost), or no action (_label_Action)")
    actions = context["_multi"]
    if not 0 <= place < len(actions) or not isinstance(actions[place], Mapping):
        raise NoChoice(f"it has {len(actions)} actions, and number {place + 1} was chosen")
    action = actions[place]
    if (name := _id(action)) is None:
        raise NoChoice("the chosen action has no id (_tag, or id)")
    try:
        row = _features(context)
        row |= {f"@{key}": value for key, value in _features(action).items()}
    except RequestError as error:
        raise NoChoice(error.message) from None
    about = {
        "_action": name, "_reward": 0.0 - cost, "_probability": line.get("_label_probability"),
        "_event": line.get("EventId"), "_time": _seconds(line.get("Timestamp")),
    }  # fmt: skip
    return {**about, **row}


def _place(line: Mapping[str, Any]) -> int | None:
    index, number = line.get("_labelIndex"), line.get("_label_Action")
    if isinstance(index, int):
        return index
    return number - 1 if isinstance(number, int) else None


def _id(action: Mapping[str, Any]) -> str | None:
    """Find the action's id, where Personalizer (``i``) or this service (``action``) writes it."""
    for space in ("i", "action"):
        inner = action.get(space)
        if isinstance(inner, Mapping) and isinstance(inner.get("id"), str):
            return str(inner["id"])
    tag = action.get("_tag")
    return tag if isinstance(tag, str) else None


def _features(spaces: Mapping[str, Any]) -> dict[str, Any]:
    """Name the features of all namespaces as requests would: ``FromUrl`` and ``j`` are bare lists.

    ``context`` and ``action`` are what ``online evaluate --dsjson`` writes.
    """
    out: dict[str, Any] = {}
    for space, inner in spaces.items():
        if space.startswith("_") or (space == "i" and _is_id(inner)):
            continue
        if space in ("FromUrl", "j") and isinstance(inner, list):
            out |= features_of(inner, _NAMES_MAX, _CHARS_MAX)
        elif space in ("context", "action") and isinstance(inner, Mapping):
            named = {name: value for name, value in inner.items() if name != "id"}
            out |= features_of([named if space == "action" else inner], _NAMES_MAX, _CHARS_MAX)
        else:
            out |= features_of([{space: inner}], _NAMES_MAX, _CHARS_MAX)
    return {name: value for name, value in out.items() if not name.startswith("_")}


def _is_id(inner: Any) -> bool:
    return isinstance(inner, Mapping) and inner.keys() <= {"constant", "id"}


def _seconds(given: Any) -> float | None:
    """Return a time in POSIX seconds; one without a zone is in UTC.  None: it is no time."""
    try:
        return posix_seconds(datetime.fromisoformat(str(given)))
    except ValueError:
        return None
