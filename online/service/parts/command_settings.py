"""Passes this service's settings to a command that it starts, in a file that only it can read."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from online.settings.access_tokens import WITH_SECRETS
from online.settings.config import ENVIRONMENT, Settings
from online.settings.tokens import ROLES

_PREFIXES: Final = ("report-", "forget-")
_FILE: Final = "online.yaml"


@contextlib.contextmanager
def settings_file(settings: Settings, prefix: str) -> Iterator[Path]:
    """Write the settings to a file in a temporary folder, which the context removes at its end."""
    assert prefix in _PREFIXES, prefix
    with tempfile.TemporaryDirectory(dir=settings.state_dir, prefix=prefix) as folder:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)  # before secrets are written: see clear
            file = Path(folder) / _FILE
            file.touch(mode=0o600)
            file.write_text(json.dumps(_plain(settings)))
            yield file
        finally:
            os.close(descriptor)


def _plain(settings: Settings) -> object:
    """The settings as in a file; tokens are inlined, so the fields for token files are left out."""
    files = {f"{role}_file" for role in ROLES}
    return settings.model_dump(mode="json", context=WITH_SECRETS, exclude={"tokens": files})


def without_settings(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment without the variables that would override a settings file."""
    names = {f"ONLINE_{name.upper()}" for name in ENVIRONMENT}
    return {name: value for name, value in environ.items() if name not in names}


def clear(state_dir: Path) -> None:
    """Remove the folders of processes that were killed; they may contain secrets."""
    for prefix in _PREFIXES:
        for file in state_dir.glob(f"{prefix}*/{_FILE}"):
            with contextlib.suppress(OSError):  # already removed, or of another user
                _clear(file.parent)


def _clear(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # BlockingIOError if it is in use
        shutil.rmtree(folder)
    finally:
        os.close(descriptor)
