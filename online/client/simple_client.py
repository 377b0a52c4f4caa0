"""A minimal HTTP client for our own commands, which imports fast and makes no retries.

Programs use :mod:`online.client.client`, which retries where that is safe.
"""

from __future__ import annotations

import http.client
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode, urlsplit

from online.errors import OnlineError


def bearer(token: str | None) -> dict[str, str]:
    """Return the header that carries a token; empty without one."""
    return {} if token is None else {"Authorization": f"Bearer {token}"}


class NoAnswer(OnlineError):
    """The service could not be reached, or the connection ended before its response."""

    definite = False
    reason: str
    text = "the service does not answer ({reason}); see `online status`"


@dataclass(frozen=True, slots=True)
class Answer:
    """A response of the service, or of a proxy in front of it."""

    status_code: int
    content: bytes

    @property
    def text(self) -> str:
        """The body as text; invalid bytes are replaced."""
        return self.content.decode(errors="replace")

    def json(self) -> Any:
        """The body parsed as JSON.  Raises ValueError."""
        return json.loads(self.content)


class SimpleClient:
    """A client of one service.

    Each request has its own connection, because an open one could time out while a user is asked
    for confirmation.

    Parameters:
        url: ``http://host:port`` or ``https://…``, optionally with a path prefix.
        token: Sent with each request.
        timeout_s: Longest silence of the service.
    """

    def __init__(self, url: str, token: str | None = None, timeout_s: float = 30.0) -> None:
        parts = urlsplit(url)
        secure = parts.scheme == "https"
        self._kind = http.client.HTTPSConnection if secure else http.client.HTTPConnection
        self._place, self._timeout_s = (parts.hostname or "", parts.port), timeout_s
        self._base, self._headers = parts.path.rstrip("/"), bearer(token)

    def get(self, path: str, params: Mapping[str, Any] | None = None) -> Answer:
        """Send a GET request.  Raises NoAnswer."""
        return self._request("GET", path, None, params)

    def post(self, path: str, json: Any = None, params: Mapping[str, Any] | None = None) -> Answer:
        """Send a POST request; ``json``: data of the body, None for no body.  Raises NoAnswer."""
        return self._request("POST", path, None if json is None else _encoded(json), params)

    def _request(
        self, method: str, path: str, body: bytes | None, params: Mapping[str, Any] | None
    ) -> Answer:
        headers = {} if body is None else {"Content-Type": "application/json"}
        query = f"?{urlencode({k: _as_text(v) for k, v in params.items()})}" if params else ""
        target = f"{self._base}{path}{query}"
        connection = self._kind(*self._place, timeout=self._timeout_s)
        try:
            connection.request(method, target, body, {**self._headers, **headers})
            answer = connection.getresponse()
            return Answer(answer.status, answer.read())
        except (OSError, http.client.HTTPException) as error:
            raise NoAnswer(str(error) or type(error).__name__) from error
        finally:
            connection.close()


def _encoded(data: Any) -> bytes:
    return json.dumps(data, allow_nan=False).encode()


def _as_text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
