"""The settings of this service for a command that it starts, in a file that nobody else reads."""

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
    """The file of the settings, in a folder of its own that lasts as long as the context."""
    assert prefix in _PREFIXES, prefix
    with tempfile.TemporaryDirectory(dir=settings.state_dir, prefix=prefix) as folder:
        held = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(held, fcntl.LOCK_EX)  # before there is a secret in it: see clear
            file = Path(folder) / _FILE
            file.touch(mode=0o600)
            file.write_text(json.dumps(_plain(settings)))
            yield file
        finally:
            os.close(held)


def _plain(settings: Settings) -> object:
    """The settings as they stand in a file; tokens are read already, so no file of them is."""
    files = {f"{role}_file" for role in ROLES}
    return settings.model_dump(mode="json", context=WITH_SECRETS, exclude={"tokens": files})


def without_settings(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment without what would override the settings of a file."""
    names = {f"ONLINE_{name.upper()}" for name in ENVIRONMENT}
    return {name: value for name, value in environ.items() if name not in names}


def clear(state_dir: Path) -> None:
    """Remove the folders of processes that were killed; there may be secrets in them."""
    for prefix in _PREFIXES:
        for file in state_dir.glob(f"{prefix}*/{_FILE}"):
            with contextlib.suppress(OSError):  # it is gone, or another user's
                _clear(file.parent)


def _clear(folder: Path) -> None:
    held = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)  # BlockingIOError: it is in use
        shutil.rmtree(folder)
    finally:
        os.close(held)
