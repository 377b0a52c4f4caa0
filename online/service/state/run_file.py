"""Reads the run file that a running service keeps in its state folder for commands."""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
from pathlib import Path
from typing import Any

from online.errors import StartRefused
from online.settings.glimpse import RUN


def is_served(state_dir: Path) -> bool:
    """Whether a service runs on this state folder, on this machine."""
    try:
        running(state_dir)
    except StartRefused:
        return False
    return True


def running(state_dir: Path) -> dict[str, Any]:
    """Contents of the run file of a running service.  Raises StartRefused if none runs."""
    try:
        facts: dict[str, Any] = dict(json.loads((state_dir / RUN).read_text()))
    except PermissionError:
        raise StartRefused(
            f"{state_dir} is not readable by this user",
            "Run it as the user of the service, or share the folder with a group: state_mode",
        ) from None
    except (OSError, ValueError, TypeError):
        facts = {}
    if not facts.get("url"):
        raise StartRefused(
            f"no service runs on {state_dir}",
            "Start it with `online serve`, or name its folder with --state-dir",
        )
    if (died := died_owner(state_dir)) is not None:  # its leftover processes might still answer
        raise StartRefused(
            f"the service on {state_dir} has died ({died})",
            "Start it again with `online serve`: that ends leftover processes",
        )
    return facts


def died_owner(state_dir: Path) -> str | None:
    """Text of the owner's lock if the owner was a process of this machine that has died."""
    try:
        owner = (state_dir / "owner.lock").read_text()
    except OSError:
        return None
    match = re.fullmatch(r"pid (\d+) on (.+)", owner)
    if match is None or match[2] != socket.gethostname() or _lives(int(match[1])):
        return None
    return owner


def _lives(pid: int) -> bool:
    with contextlib.suppress(PermissionError):  # a process of another user: it lives
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return False
    return True
