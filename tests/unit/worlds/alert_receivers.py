"""Receivers of messages for the tests: a server that takes POSTs, and one that takes mail."""

from __future__ import annotations

import base64
import contextlib
import queue
import socketserver
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from email import message_from_bytes
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

WAIT_S = 110.0


@dataclass
class Hook:
    """What came to an address, oldest first; ``statuses`` are answered in turn, then 204."""

    url: str
    statuses: list[int] = field(default_factory=list)
    came: queue.Queue[tuple[dict[str, str], bytes]] = field(default_factory=queue.Queue)

    def next(self) -> tuple[dict[str, str], bytes]:
        """Headers (names in small letters) and body of the next message."""
        return self.came.get(timeout=WAIT_S)


@contextlib.contextmanager
def hook(*statuses: int, hang: threading.Event | None = None) -> Iterator[Hook]:
    """An address; with ``hang`` it answers nothing before that is set."""
    found = Hook("", list(statuses))

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            found.came.put(({k.lower(): v for k, v in self.headers.items()}, body))
            if hang is not None:
                hang.wait(WAIT_S)
            with contextlib.suppress(OSError):
                self.send_response(found.statuses.pop(0) if found.statuses else 204)
                self.send_header("Location", found.url)
                self.end_headers()

        def log_message(self, *_: Any) -> None:
            """Say nothing at all."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found.url = f"http://127.0.0.1:{server.server_port}/hook?of=us"
    with _running(server):
        yield found


@dataclass
class Post:
    """What a mail server took; ``refuse``: recipients that it does not know."""

    port: int = 0
    refuse: frozenset[str] = frozenset()
    login: str | None = None
    came: queue.Queue[tuple[list[str], Message]] = field(default_factory=queue.Queue)

    def next(self) -> tuple[list[str], Message]:
        """Recipients and message of the next mail."""
        return self.came.get(timeout=WAIT_S)


@contextlib.contextmanager
def post(*refuse: str) -> Iterator[Post]:
    """A mail server without TLS."""
    found = Post(refuse=frozenset(refuse))

    class Handler(socketserver.StreamRequestHandler):
        def say(self, line: str) -> None:
            self.wfile.write(f"{line}\r\n".encode())

        def handle(self) -> None:
            self.say("220 test")
            to: list[str] = []
            while line := self.rfile.readline().decode().strip():
                word = line.upper()
                if word.startswith("EHLO"):
                    self.say("250-test")
                    self.say("250 AUTH PLAIN")
                elif word.startswith("AUTH PLAIN"):
                    found.login = base64.b64decode(line.split()[2]).decode().replace("\0", " ")
                    self.say("235 ok")
                elif word.startswith("RCPT"):
                    name = line.partition("<")[2].partition(">")[0]
                    self.say("550 no such mailbox" if name in found.refuse else "250 ok")
                    to += [] if name in found.refuse else [name]
                elif word == "DATA":
                    self.say("354 go on")
                    lines = iter(self.rfile.readline, b".\r\n")
                    found.came.put((to, message_from_bytes(b"".join(lines))))
                    self.say("250 ok")
                else:
                    self.say("221 bye" if word == "QUIT" else "250 ok")

    server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    found.port = server.server_address[1]
    with _running(server):
        yield found


@contextlib.contextmanager
def _running(server: socketserver.BaseServer) -> Iterator[None]:
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), name="receiver")
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
