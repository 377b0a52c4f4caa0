"""Reads from a settings file only what a command needs to reach the running service.

Validating all settings takes longer than the service's answer, and the service validated them at
its start.  If the file is not simple enough for this, :func:`glimpse` returns None and
:func:`online.settings.config.load` is used.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from online.errors import ConfigError
from online.settings.tokens import check_token, digest

STATE_DIR: Final = "./state"
"""The default state folder."""

RUN: Final = "run.json"
"""Name of the run file in a state folder, which describes the running service."""


@dataclass(frozen=True, slots=True)
class Glimpse:
    """State folder of a service, and the token for requests to it (None: no token)."""

    state_dir: Path
    token: str | None


def environment() -> Mapping[str, str]:
    """The process's environment; it is read only through this function."""
    return os.environ


def given_token(environ: Mapping[str, str]) -> str | None:
    """The token in ``ONLINE_TOKEN``, or None.  Raises ConfigError if it is not well-formed."""
    if (token := environ.get("ONLINE_TOKEN")) is None:
        return None
    try:
        check_token(token)
    except ValueError as error:
        raise ConfigError("ONLINE_TOKEN", str(error), "Give a token of the settings") from None
    if digest(token) == token:
        raise ConfigError("ONLINE_TOKEN", "a digest", "Give the token that it is of")
    return token


def glimpse(
    path: Path | None, state_dir: Path | None, environ: Mapping[str, str]
) -> Glimpse | None:
    """State folder and token of a settings file's service; None if the file is not simple.

    Raises ConfigError for a malformed ``ONLINE_TOKEN``.
    """
    token = given_token(environ)
    data = {} if path is None else _read(path)
    if data is None:
        return None
    folder = state_dir or environ.get("ONLINE_STATE_DIR", data.get("state_dir", STATE_DIR))
    if not isinstance(folder, str | Path):
        return None
    if token is None and "tokens" in data:
        admins = _admins(data["tokens"])
        if admins is None:
            return None
        token = next((one for one in admins if not one.startswith("sha256:")), None)
    return Glimpse(Path(os.path.realpath(folder)), token)  # circular links are reported later


def _read(path: Path) -> dict[str, Any] | None:
    if path.suffix == ".py":
        return None
    import yaml

    try:
        data = yaml.safe_load(path.read_text())
    except (OSError, ValueError, yaml.YAMLError):
        return None
    return {} if data is None else data if isinstance(data, dict) else None


def _admins(tokens: object) -> list[str] | None:
    """Tokens of administrators in the file; None unless they are plain tokens."""
    if not isinstance(tokens, dict) or "admin_file" in tokens:
        return None
    admins = tokens.get("admin", [])
    entries = [admins] if isinstance(admins, str) else admins
    try:
        return [check_token(one) for one in entries]
    except (TypeError, ValueError):
        return None
