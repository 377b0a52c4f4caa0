"""A persistent local connection between a replica and a parameter server on the same machine.

A Ray call costs more than a millisecond of CPU time in each of the two processes, whatever its
size; a request over an open Unix socket costs a tenth of that.  Only ``sync`` uses the socket, and
only successful replies come over it.  After any failure the caller repeats the request through Ray,
and the server's clock recognises repeated pushes.

The socket has neither port nor file: its address is a random name in Linux's abstract namespace.
Both sides check with the kernel that the peer runs as the same user.  The server hands out its key
through Ray only.  On a new connection it first proves that it knows the key, by the HMAC of the
client's nonce; then the client sends the key, before which the server accepts no request.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import logging
import os
import secrets
import socket
import struct
import threading
import time
from collections.abc import Callable
from io import BufferedReader
from typing import Final

log = logging.getLogger(__name__)

CONNECTIONS_MAX: Final = 64
"""Open connections of one server; more are closed at once, and those clients use Ray."""
MESSAGE_MAX: Final = 1 << 20
"""Greatest size of a request in bytes; larger ones go through Ray."""
_STILL_S: Final = 60.0  # after this time without a byte the peer is considered dead
_PAUSE_S: Final = 0.1  # pause after a failed accept, e.g. without a free file descriptor
_BUFFER: Final = 1 << 18
_LENGTH: Final = struct.Struct("!I")
_CREDENTIALS: Final = struct.Struct("iII")  # process, user, group
_NONCE: Final = 8
_PROOF: Final = hashlib.sha256().digest_size


class LocalSocketServer:
    """The server's side: passes requests to ``answer``, with one thread for each connection.

    Parameters:
        answer: Returns the reply to a request.  If it raises, the reply is empty, and the caller
            gets the error when it repeats the request through Ray.
    """

    def __init__(self, answer: Callable[[bytes], bytes]) -> None:
        self._answer = answer
        self._key = secrets.token_bytes(32)
        self._free = threading.BoundedSemaphore(CONNECTIONS_MAX)
        self._lock = threading.Lock()
        self._address: bytes | None = None
        self._listener: socket.socket | None = None
        self._connections = set[socket.socket]()
        self._closed = threading.Event()

    def way(self) -> tuple[bytes, bytes]:
        """Return address and key for authorised callers; the first call starts to listen."""
        with self._lock:
            if self._address is None:
                listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
                listener.bind(f"\0online-{secrets.token_hex(16)}")
                listener.listen(CONNECTIONS_MAX)
                self._address, self._listener = listener.getsockname(), listener
                accepting = (listener,)
                threading.Thread(target=self._accept, args=accepting, daemon=True).start()
            return self._address, self._key

    def close(self) -> None:
        """Stop listening and close all connections; their clients use Ray."""
        with self._lock:
            self._closed.set()
            ends = {*self._connections, *([] if self._listener is None else [self._listener])}
            for end in ends:
                with contextlib.suppress(OSError):  # it may be closed already
                    end.shutdown(socket.SHUT_RDWR)
            if self._listener is not None:
                self._listener.close()

    def _accept(self, listener: socket.socket) -> None:
        while not self._closed.is_set():
            try:
                connection, _ = listener.accept()
            except OSError as error:
                if self._closed.is_set():
                    return
                log.warning("no connection taken: %s", error)
                time.sleep(_PAUSE_S)
                continue
            if not self._free.acquire(blocking=False):
                connection.close()
                continue
            try:
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()
            except RuntimeError as error:  # no more threads can be started
                log.warning("no connection taken: %s", error)
                connection.close()
                self._free.release()

    def _serve(self, connection: socket.socket) -> None:
        with self._lock:
            self._connections.add(connection)
        try:
            with connection, contextlib.suppress(OSError):
                if self._closed.is_set():
                    return
                connection.settimeout(_STILL_S)
                with connection.makefile("rb") as file:
                    if _is_own(connection) and self._has_key(connection, file):
                        self._exchange(connection, file)
        finally:
            with self._lock:
                self._connections.discard(connection)
            self._free.release()

    def _has_key(self, connection: socket.socket, file: BufferedReader) -> bool:
        connection.sendall(proof(self._key, file.read(_NONCE)))
        return hmac.compare_digest(file.read(len(self._key)), self._key)

    def _exchange(self, connection: socket.socket, file: BufferedReader) -> None:
        while len(head := file.read(_LENGTH.size)) == _LENGTH.size:
            (length,) = _LENGTH.unpack(head)
            if length > MESSAGE_MAX or len(request := file.read(length)) < length:
                return
            try:
                answer = self._answer(request)
            except Exception:  # the caller gets the error when it repeats the request by Ray
                answer = b""
            connection.sendall(_LENGTH.pack(len(answer)) + answer)


class LocalConnection:
    """The replica's side: one request at a time, on its event loop.

    After a failed or cancelled :meth:`ask` the caller must close it.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def to(cls, address: bytes, key: bytes) -> LocalConnection:
        """Connect and verify that the server knows the key.

        Raises OSError or EOFError if no server listens there, or another one.
        """
        end = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            end.setblocking(False)
            end.connect(address)
            if not _is_own(end):
                raise PermissionError("the socket is another user's")
            reader, writer = await asyncio.open_unix_connection(sock=end, limit=_BUFFER)
        except BaseException:
            end.close()
            raise
        made, nonce = cls(reader, writer), secrets.token_bytes(_NONCE)
        try:
            writer.write(nonce)
            if not hmac.compare_digest(await reader.readexactly(_PROOF), proof(key, nonce)):
                raise PermissionError("the socket is not the server's")
        except BaseException:
            made.close()
            raise
        writer.write(key)
        return made

    async def ask(self, request: bytes) -> bytes:
        """Return the server's reply; empty: repeat through Ray.  Raises OSError or EOFError."""
        self._writer.write(_LENGTH.pack(len(request)) + request)
        (length,) = _LENGTH.unpack(await self._reader.readexactly(_LENGTH.size))
        return await self._reader.readexactly(length) if length else b""

    def close(self) -> None:
        """Close the connection at once, discarding data in transit."""
        self._writer.transport.abort()


def proof(key: bytes, nonce: bytes) -> bytes:
    """Return the HMAC that proves knowledge of the key for this connection's nonce."""
    return hmac.digest(key, nonce, "sha256")


def _is_own(end: socket.socket) -> bool:
    """Return whether the peer process runs as the same user, according to the kernel."""
    credentials = end.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return bool(_CREDENTIALS.unpack(credentials)[1] == os.getuid())
