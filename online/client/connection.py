"""A plain keep-alive connection for benchmarks: single attempts, at a fraction of httpx's cost.

Programs use :mod:`online.client`, which retries where that is safe.
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
    """One TCP connection.  A failure closes it; the next request opens a new one.

    Use it from one thread only.  Requests raise OSError or http.client.HTTPException if no answer
    came.

    Parameters:
        token: Sent with each request.
    """

    def __init__(self, url: str, timeout_s: float = 30.0, token: str | None = None) -> None:
        parts = urlsplit(url)
        self._bearer = bearer(token)
        self._http = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=timeout_s)

    def request(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        """Send a request; returns status and decoded body."""
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
        except msgspec.DecodeError:  # the page of a proxy
            return response.status, {"error": {"message": text[:200].decode("latin-1")}}

    def post(self, path: str, body: Any) -> tuple[int, Any]:
        """Send a POST request; returns status and decoded body."""
        return self.request("POST", path, body)

    def get(self, path: str) -> tuple[int, Any]:
        """Send a GET request; returns status and decoded body."""
        return self.request("GET", path)

    def close(self) -> None:
        """Close the HTTP connection to the service."""
        self._http.close()
