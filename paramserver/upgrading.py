"""Whether a model of older defaults has one of today's beside it, as its challenger.

The control row leaves values and rows as they are; the newest one stands.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import msgspec

from paramserver.store import ControlInfo

UPGRADE: Final = "upgrade"


class Upgrade(msgspec.Struct, frozen=True):
    """Whether there is one from here on."""

    on: bool


def newest(controls: Iterable[ControlInfo]) -> tuple[int, Upgrade] | None:
    """Number and content of the newest such row; None: nothing was decided."""
    found = None
    for control in controls:
        if control.kind == UPGRADE:
            found = control.seq, msgspec.json.decode(control.payload, type=Upgrade)
    return found
