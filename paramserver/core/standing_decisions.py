"""Decisions that leave values and rows as they are, and of which the newest one stands."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, TypeVar

import msgspec

from paramserver.store import ControlInfo

ANSWERS: Final = "answers"
UPGRADE: Final = "upgrade"

Note = TypeVar("Note", bound=msgspec.Struct)


class Answers(msgspec.Struct, frozen=True):
    """Whether the model answers by itself from here on, and what is known of it by then.

    Else somebody answers from whose choices it learns.
    """

    itself: bool
    evidence: dict[str, Any] = {}


class Upgrade(msgspec.Struct, frozen=True):
    """Whether a model of older defaults has one of today's beside it, as its challenger."""

    on: bool


def newest(controls: Iterable[ControlInfo], kind: str, note: type[Note]) -> tuple[int, Note] | None:
    """Number and content of the newest row of a kind; None: nothing was decided."""
    found = None
    for control in controls:
        if control.kind == kind:
            found = control.seq, msgspec.json.decode(control.payload, type=note)
    return found
