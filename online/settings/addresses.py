"""Addresses of stores in the settings: what they may be, and how they are shown."""

from __future__ import annotations

import re
from urllib.parse import urlsplit


def hidden(text: str) -> str:
    """The text with the passwords of addresses in it replaced by ``***``."""
    text = re.sub(r"://([^:/@\s]*):\S*@", r"://\1:***@", text)
    return re.sub(r"([?&]password=)[^&\s'\"]*", r"\1***", text)


def check_store(value: str) -> str:
    """The place of a journal: ``sqlite``, or the address of a Redis server.  ValueError."""
    if value == "sqlite":
        return value
    try:
        parts = urlsplit(value)
        place = parts.path if parts.scheme == "unix" else parts.port != 0 and parts.hostname
    except ValueError:  # of the port; it would quote what may be a part of the password
        place = None
    if not place or parts.scheme not in ("redis", "rediss", "unix"):
        raise ValueError(
            "give sqlite, redis://host:6379/0, rediss://… or unix:///path/to/socket; in a "
            "password write / as %2F and @ as %40"
        )
    database = parts.path.strip("/")
    if parts.scheme != "unix" and database and not database.isdecimal():
        raise ValueError("a database is a number, as in redis://host:6379/0")
    return value
