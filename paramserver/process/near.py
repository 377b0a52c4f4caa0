"""A kept connection between a replica and a parameter server of the same machine.

A call of Ray costs the processes on both sides a millisecond and more of their processors, whatever
is in it; bytes there and back on one connection cost a tenth of that.  Only what is said most often
goes this way, and only what succeeds: whatever else happens the caller asks again by Ray, and the
server's clock knows the repeat.

There is no port and no file: the address is a random name among those that Linux keeps for Unix
sockets.  Both sides have the kernel tell whose the other one is.  The server hands its key out by
Ray alone: it proves that it knows it by what it answers to a number drawn anew, and only then is
told the key, before which it takes nothing.
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
"""Of one server at a time; whoever comes beyond them is asked to use Ray."""
MESSAGE_MAX: Final = 1 << 20
"""Bytes of a request; a longer one goes by Ray."""
_STILL_S: Final = 60.0  # without a byte the other side is taken for dead
_PAUSE_S: Final = 0.1  # after an accept that failed, as without a free file
_BUFFER: Final = 1 << 18
_LENGTH: Final = struct.Struct("!I")
_CREDENTIALS: Final = struct.Struct("iII")  # process, user, group
_NONCE: Final = 8
_PROOF: Final = hashlib.sha256().digest_size


class Near:
    """The server's side: hands requests to ``answer``, on a thread for each connection.

    Parameters:
        answer: What a request gets; what it raises is told by Ray, when the caller asks again.
    """

    def __init__(self, answer: Callable[[bytes], bytes]) -> None:
        self._answer = answer
        self._key = secrets.token_bytes(32)
        self._free = threading.BoundedSemaphore(CONNECTIONS_MAX)
        self._lock = threading.Lock()
        self._address: bytes | None = None

    def way(self) -> tuple[bytes, bytes]:
        """Address and key, for those who may come; it listens from the first question on."""
        with self._lock:
            if self._address is None:
                listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
                listener.bind(f"\0online-{secrets.token_hex(16)}")
                listener.listen(CONNECTIONS_MAX)
                self._address = listener.getsockname()
                accepting = (listener,)
                threading.Thread(target=self._accept, args=accepting, daemon=True).start()
            return self._address, self._key

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError as error:
                log.warning("no connection taken: %s", error)
                time.sleep(_PAUSE_S)
                continue
            if not self._free.acquire(blocking=False):
                connection.close()
                continue
            try:
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()
            except RuntimeError as error:  # no room for a thread
                log.warning("no connection taken: %s", error)
                connection.close()
                self._free.release()

    def _serve(self, connection: socket.socket) -> None:
        try:
            with connection, contextlib.suppress(OSError):
                connection.settimeout(_STILL_S)
                with connection.makefile("rb") as file:
                    if _is_own(connection) and self._has_key(connection, file):
                        self._exchange(connection, file)
        finally:
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
            except Exception:  # the caller hears of it when it asks again
                answer = b""
            connection.sendall(_LENGTH.pack(len(answer)) + answer)


class Line:
    """The replica's side: one question at a time, on its event loop.

    Whoever was given no answer, or has waited for none, closes it.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def to(cls, address: bytes, key: bytes) -> Line:
        """Connect, and have the server prove that it knows the key.

        Raises OSError or EOFError: nobody is there, or somebody else.
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
        line, nonce = cls(reader, writer), secrets.token_bytes(_NONCE)
        try:
            writer.write(nonce)
            if not hmac.compare_digest(await reader.readexactly(_PROOF), proof(key, nonce)):
                raise PermissionError("the socket is not the server's")
        except BaseException:
            line.close()
            raise
        writer.write(key)
        return line

    async def ask(self, request: bytes) -> bytes:
        """Answer of the server; empty: it is to be asked by Ray.  Raises OSError or EOFError."""
        self._writer.write(_LENGTH.pack(len(request)) + request)
        (length,) = _LENGTH.unpack(await self._reader.readexactly(_LENGTH.size))
        return await self._reader.readexactly(length) if length else b""

    def close(self) -> None:
        """Give it up at once, whatever is on its way."""
        self._writer.transport.abort()


def proof(key: bytes, nonce: bytes) -> bytes:
    """Answer of whoever knows the key to a number that was drawn for this connection."""
    return hmac.digest(key, nonce, "sha256")


def _is_own(end: socket.socket) -> bool:
    """Whether the other side is of the same user, as the kernel says."""
    said = end.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return bool(_CREDENTIALS.unpack(said)[1] == os.getuid())
