"""Who answers where a model learns from somebody else's choices: it, or who it learns from.

The control row leaves values and rows as they are; the newest one stands.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import msgspec

from paramserver.store import ControlInfo

ANSWERS: Final = "answers"


class Answers(msgspec.Struct, frozen=True):
    """Whether the model answers by itself from here on, and what is known of it by then."""

    itself: bool
    evidence: dict[str, Any] = {}


def newest(controls: Iterable[ControlInfo]) -> tuple[int, Answers] | None:
    """Number and content of the newest such row; None: nothing was decided."""
    found = None
    for control in controls:
        if control.kind == ANSWERS:
            found = control.seq, msgspec.json.decode(control.payload, type=Answers)
    return found
