"""Facts about a service's start that a replica on another machine must find unchanged."""

from __future__ import annotations

import hashlib
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from online.errors import StartRefused
from online.rows.prediction_ids import Keys
from online.settings.config import Settings

APP: Final = "online"
_PACKAGES = ("online", "evaluation", "paramserver", "replay", "refusals")
_READ_AT_START = (("online/http", "html"), ("replay/journal/redis/lua", "lua"))


@dataclass(frozen=True, slots=True)
class Origin:
    """Facts about a service's start; a replica compares them with what it finds where it runs.

    Attributes:
        host: Name of the machine where the service was started.
        key: Fingerprint of the key that signs tokens.
        specs: Spec hash of each model, by the model's name.
    """

    host: str
    key: str
    specs: Mapping[str, str]

    @classmethod
    def here(cls, settings: Settings, specs: Mapping[str, str]) -> Origin:
        """Return the facts as this process finds them."""
        return cls(socket.gethostname(), _fingerprint(Keys.from_file(settings.key_path)), specs)

    def check_place(self, settings: Settings) -> None:
        """Raise StartRefused if this machine does not see the service's files."""
        host = socket.gethostname()
        if host == self.host:
            return
        if settings.journal == "sqlite":
            raise StartRefused(
                f"a replica was started on {host}, and the SQLite journal is on {self.host}",
                "Put `journal: redis://host:6379/0` into the settings",
            )
        path = settings.key_path
        if not path.exists() or _fingerprint(Keys.from_file(path)) != self.key:
            raise StartRefused(
                f"{path} on {host} is not the key file of {self.host}",
                "Copy it to every node, or name one that all of them see: key_file",
            )

    def check_spec(self, name: str, spec: str) -> None:
        """Raise StartRefused if a model's code has changed since the service's start."""
        if spec != self.specs[name]:
            raise StartRefused(
                f"model {name}: its code has changed since the service started",
                "Restart the service with --relearn or --fresh, or put the old code back",
            )


def code_hash() -> str:
    """Hash of the service's source files as they are now on this machine's disk.

    Included are HTML pages and Redis scripts, which processes read from files at their start.
    """
    root = Path(__file__).parents[3]
    digest = hashlib.sha256()
    for folder, ending in (*((name, "py") for name in _PACKAGES), *_READ_AT_START):
        for file in sorted((root / folder).rglob(f"*.{ending}")):
            digest.update(file.read_bytes())
    return digest.hexdigest()


def _fingerprint(keys: Keys) -> str:
    return hashlib.sha256(b"fingerprint" + keys.secret).hexdigest()[:16]
