"""The caller on whose behalf a decision is made, for the store's log of decisions."""

from __future__ import annotations

import getpass
import os
import socket
from contextvars import ContextVar
from typing import Final

acting: Final[ContextVar[str]] = ContextVar("acting", default="")
"""Name of the caller of the current request, a line break, and its origin; empty: unknown."""


def this_user() -> str:
    """Return the user and machine of this process as a value for :data:`acting`."""
    try:
        name = getpass.getuser()
    except (KeyError, OSError):  # the user id has no name
        name = str(os.getuid())
    return f"user {name}\n{socket.gethostname()}"
