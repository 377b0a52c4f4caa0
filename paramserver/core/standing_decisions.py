"""Decisions that change neither values nor rows; the newest decision of a kind is in force."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, TypeVar

import msgspec

from paramserver.store import ControlInfo

ANSWERS: Final = "answers"
UPGRADE: Final = "upgrade"

Note = TypeVar("Note", bound=msgspec.Struct)


class Answers(msgspec.Struct, frozen=True):
    """Whether the model chooses itself from here on, or learns from the caller's choices.

    Attributes:
        itself: Whether it chooses itself.
        evidence: Scores at the time of the decision.
    """

    itself: bool
    evidence: dict[str, Any] = {}


class Upgrade(msgspec.Struct, frozen=True):
    """Whether a model with older defaults gets a challenger with today's defaults."""

    on: bool


def newest(controls: Iterable[ControlInfo], kind: str, note: type[Note]) -> tuple[int, Note] | None:
    """Return the sequence number and content of the newest row of a kind, or None."""
    newest_row = None
    for control in controls:
        if control.kind == kind:
            newest_row = control.seq, msgspec.json.decode(control.payload, type=note)
    return newest_row
