"""URLs of stores in the settings: validation, and masking of passwords."""

from __future__ import annotations

import re
from urllib.parse import urlsplit


def hidden(text: str) -> str:
    """Replace passwords of URLs in the text by ``***``."""
    text = re.sub(r"://([^:/@\s]*):\S*@", r"://\1:***@", text)
    return re.sub(r"([?&]password=)[^&\s'\"]*", r"\1***", text)


def check_store(value: str) -> str:
    """Validate the location of a store: ``sqlite``, or a Redis URL.  Raises ValueError."""
    if value == "sqlite":
        return value
    try:
        parts = urlsplit(value)
        place = parts.path if parts.scheme == "unix" else parts.port != 0 and parts.hostname
    except ValueError:  # of the port; the message would quote what may be part of the password
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
