"""Who may use the files that the service makes: whatever the umask that a process was started with.

Feedback, snapshots and scores say much of the people that they are about.  Each process of the
service, and each command that writes into the state folder, takes the umask of the settings before
it makes anything, so that no place where a file is made can forget it.
"""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator


def _mode(value: object) -> object:
    """``770`` of a settings file is a number there, and ``0770`` another one."""
    text = f"{value:o}" if value in (0o700, 0o750, 0o770) else str(value).removeprefix("0")
    if text not in ("700", "750", "770"):
        raise ValueError("give 700 (its owner), 750 (its group reads) or 770 (its group writes)")
    return text


StateMode = Annotated[str, BeforeValidator(_mode)]


def umask_of(mode: str) -> int:
    """The umask that leaves folders this mode, and files the same without running them."""
    return 0o777 & ~int(mode, 8)


def looser(place: Path, umask: int) -> str | None:
    """Return a warning about a folder that was there and is open to more than ``umask`` allows."""
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
