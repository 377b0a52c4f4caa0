"""Validates stores' URLs, web origins and host names in the settings, and masks passwords."""

from __future__ import annotations

import ipaddress
import re
from typing import Final
from urllib.parse import SplitResult, urlsplit

_HOST: Final = re.compile(r"\[([0-9a-f:.]+)\](?::\d*)?|([^:\[\]]*)(?::\d*)?")
_NAME: Final = re.compile(r"(?!-)[a-z0-9_-]{1,63}(\.(?!-)[a-z0-9_-]{1,63})*")
_NAME_MAX: Final = 253
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}


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


def http_address(value: str) -> SplitResult | None:
    """Return the parts of an HTTP URL whose host and port are valid; None for any other text."""
    try:
        parts = urlsplit(value)
        good = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # of the port; the message would quote the URL, which may be secret
        return None
    return parts if good else None


def check_origin(value: str) -> str:
    """Normalize an origin to the form that browsers send.  Raises ValueError."""
    try:
        parts = urlsplit(value.strip().lower())
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), None
    whole = parts.path in ("", "/") and not parts.query and not parts.fragment
    if parts.scheme not in _DEFAULT_PORTS or not whole or not parts.hostname or "@" in parts.netloc:
        raise ValueError("give scheme and host, with a port if it has one: https://app.example.com")
    name = check_host(parts.hostname)
    name = f"[{name}]" if ":" in name else name
    plain = port is None or port == _DEFAULT_PORTS[parts.scheme]
    return f"{parts.scheme}://{name}" + ("" if plain else f":{port}")


def check_host(value: str) -> str:
    """Normalize a host name or address without a port.  Raises ValueError."""
    name = without_port(value.strip())
    if is_loopback(name) is None and (len(name) > _NAME_MAX or not _NAME.fullmatch(name)):
        raise ValueError("give a name or an address; the port does not matter: models.example.com")
    return name


def is_loopback(name: str) -> bool | None:
    """Whether an address is a loopback address; None if the name is no address."""
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return None


def without_port(host: str) -> str:
    """Host name or address of a ``Host`` header in lower case; unchanged if it is malformed."""
    match = _HOST.fullmatch(host.lower())
    return host.lower() if match is None else (match[1] or match[2]).rstrip(".")
