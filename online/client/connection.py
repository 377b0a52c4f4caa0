"""A bare keep-alive connection for the benchmarks: one attempt, and a fraction of httpx's cost.

Programs use :mod:`online.client`, which repeats what is safe to repeat.
"""

from __future__ import annotations

import http.client
import socket
from typing import Any, cast
from urllib.parse import urlsplit

import msgspec

from online.messages.bearer import bearer

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode


class Connection:
    """One TCP connection.  Any failure closes it; the next request opens a new one.

    Use from one thread.  Raises OSError or http.client.HTTPException when no answer came.
    ``token`` is sent with each request.
    """

    def __init__(self, url: str, timeout_s: float = 30.0, token: str | None = None) -> None:
        parts = urlsplit(url)
        self._bearer = bearer(token)
        self._http = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=timeout_s)

    def request(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        """Status and decoded answer."""
        data = None if body is None else _encode(body)
        headers = dict(self._bearer)
        if data is not None:
            headers["Content-Type"] = "application/json"
        try:
            if self._http.sock is None:
                self._http.connect()
                opened = cast("socket.socket", self._http.sock)
                opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._http.request(method, path, data, headers)
            response = self._http.getresponse()
            text = response.read()
        except (OSError, http.client.HTTPException):
            self._http.close()
            raise
        try:
            return response.status, _decode(text)
        except msgspec.DecodeError:  # a proxy's own page
            return response.status, {"error": {"message": text[:200].decode("latin-1")}}

    def post(self, path: str, body: Any) -> tuple[int, Any]:
        """Status and decoded answer of a POST."""
        return self.request("POST", path, body)

    def get(self, path: str) -> tuple[int, Any]:
        """Status and decoded answer of a GET."""
        return self.request("GET", path)

    def close(self) -> None:
        """Close the HTTP connection to the service."""
        self._http.close()
