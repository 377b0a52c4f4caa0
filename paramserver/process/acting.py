"""Who asks for what is being decided: for whoever writes down decisions, not for this package."""

from __future__ import annotations

import getpass
import os
import socket
from contextvars import ContextVar
from typing import Final

acting: Final[ContextVar[str]] = ContextVar("acting", default="")
"""Whose call is at hand, and behind a line break where it comes from; empty: nobody's."""


def this_user() -> str:
    """Who runs this process, and on which machine, as a value of :data:`acting`."""
    try:
        name = getpass.getuser()
    except (KeyError, OSError):  # a number without a name
        name = str(os.getuid())
    return f"user {name}\n{socket.gethostname()}"
