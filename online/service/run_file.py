"""The facts that a running service leaves in its state folder for commands."""

from __future__ import annotations

import json
from typing import Any

from online.errors import StartRefused
from online.processes import died_owner
from online.settings.config import Settings
from online.settings.places import run_path


def is_served(settings: Settings) -> bool:
    """Whether a service runs on the state folder, on this machine."""
    try:
        running(settings)
    except StartRefused:
        return False
    return True


def running(settings: Settings) -> dict[str, Any]:
    """Facts of the service that runs on this state folder.  Raises StartRefused if none does."""
    try:
        facts: dict[str, Any] = json.loads(run_path(settings).read_text())
    except PermissionError:
        raise StartRefused(
            f"{settings.state_dir} is not readable by this user",
            "Be the user that the service runs as, or share the folder with a group: state_mode",
        ) from None
    except (OSError, ValueError):
        facts = {}
    if not facts.get("url"):
        raise StartRefused(
            f"no service runs on {settings.state_dir}",
            "Start it with `online serve`, or name its folder with --state-dir",
        )
    if (died := died_owner(settings.state_dir)) is not None:  # what it left behind may answer
        raise StartRefused(
            f"the service on {settings.state_dir} has died ({died})",
            "Start it again with `online serve`: that ends what was left behind",
        )
    return facts
