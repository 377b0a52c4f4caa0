"""A settings file as a command reads it that only asks the running service: where that is.

To check all of the settings takes longer than the answer, and they were checked when the service
started.  What is not plain here (:func:`glimpse` gives None) is read by
:func:`online.settings.config.load`.
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
"""The state folder of settings that name none."""

RUN: Final = "run.json"
"""Name of the file of a state folder about what runs on it now."""


@dataclass(frozen=True, slots=True)
class Glimpse:
    """The state folder of a service, and the token that it is asked with (None: none)."""

    state_dir: Path
    token: str | None


def environment() -> Mapping[str, str]:
    """The process's environment (read here and nowhere else)."""
    return os.environ


def given_token(environ: Mapping[str, str]) -> str | None:
    """The token of ``ONLINE_TOKEN``; None without one.  Raises ConfigError if it is none."""
    if (given := environ.get("ONLINE_TOKEN")) is None:
        return None
    try:
        check_token(given)
    except ValueError as error:
        raise ConfigError("ONLINE_TOKEN", str(error), "Give a token of the settings") from None
    if digest(given) == given:
        raise ConfigError("ONLINE_TOKEN", "a digest", "Give the token that it is of")
    return given


def glimpse(
    path: Path | None, state_dir: Path | None, environ: Mapping[str, str]
) -> Glimpse | None:
    """Where the service of a settings file is, and its token; None if that is not plain.

    Raises ConfigError for an ``ONLINE_TOKEN`` that is no token.
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
    return Glimpse(Path(os.path.realpath(folder)), token)  # links in a circle are said later


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
    """Tokens of administrators as they stand in the file; None: not as plain tokens."""
    if not isinstance(tokens, dict) or "admin_file" in tokens:
        return None
    found = tokens.get("admin", [])
    several = [found] if isinstance(found, str) else found
    try:
        return [check_token(one) for one in several]
    except (TypeError, ValueError):
        return None
