"""Permissions of the files that the service writes, independent of the caller's umask.

Feedback, snapshots and scores reveal much about the people they concern.  Each process of the
service, and each command that writes into the state folder, sets the umask of the settings before
it creates a file, so no single place can forget it.
"""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator


def _mode(value: object) -> object:
    """Parse ``770`` or ``0770``, which YAML reads as two different numbers."""
    text = f"{value:o}" if value in (0o700, 0o750, 0o770) else str(value).removeprefix("0")
    if text not in ("700", "750", "770"):
        raise ValueError("give 700 (its owner), 750 (its group reads) or 770 (its group writes)")
    return text


StateMode = Annotated[str, BeforeValidator(_mode)]


def umask_of(mode: str) -> int:
    """The umask that gives folders this mode, and files the same without execute bits."""
    return 0o777 & ~int(mode, 8)


def looser(place: Path, umask: int) -> str | None:
    """Return a warning if an existing folder has more permissions than ``umask`` allows."""
    try:
        mode = stat.S_IMODE(place.stat().st_mode)
    except OSError:
        return None
    if not mode & umask & 0o077:
        return None
    wanted = 0o777 & ~umask
    return (
        f"warning: {place} is open to others (mode {mode:o}), and with it all feedback: "
        f"chmod {wanted:o} {place}, or set state_mode"
    )
