"""A running service as commands ask it: one request after the other, imported in no time.

Programs use :mod:`online.client.client`, which repeats what is safe to repeat.
"""

from __future__ import annotations

import http.client
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode, urlsplit

from online.errors import OnlineError
from online.messages.bearer import bearer


class NoAnswer(OnlineError):
    """The service could not be asked, or the connection ended before its answer."""

    definite = False
    reason: str
    text = "the service does not answer ({reason}); see `online status`"


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer of the service, or of what stands in front of it."""

    status_code: int
    content: bytes

    @property
    def text(self) -> str:
        """The body as text; what is none is replaced."""
        return self.content.decode(errors="replace")

    def json(self) -> Any:
        """The body's data.  ValueError if it is no JSON."""
        return json.loads(self.content)


class Asking:
    """The way to a service.

    Each request has a connection of its own: one that was left open while somebody is asked for a
    yes may be gone by then.

    Parameters:
        url: ``http://host:port`` or ``https://…``, with a path before those of the requests or
            none.
        token: Sent with each request.
        timeout_s: How long an answer may keep silent.
    """

    def __init__(self, url: str, token: str | None = None, timeout_s: float = 30.0) -> None:
        parts = urlsplit(url)
        secure = parts.scheme == "https"
        self._kind = http.client.HTTPSConnection if secure else http.client.HTTPConnection
        self._place, self._timeout_s = (parts.hostname or "", parts.port), timeout_s
        self._base, self._headers = parts.path.rstrip("/"), bearer(token)

    def get(self, path: str, params: Mapping[str, Any] | None = None) -> Answer:
        """The answer to a GET.  Raises NoAnswer."""
        return self._ask("GET", path, None, params, {})

    def post(self, path: str, json: Any = None, params: Mapping[str, Any] | None = None) -> Answer:
        """The answer to a POST; ``json``: the body's data, None for no body.  Raises NoAnswer."""
        if json is None:
            return self._ask("POST", path, None, params, {})
        return self._ask("POST", path, _encoded(json), params, {"Content-Type": "application/json"})

    def _ask(
        self,
        method: str,
        path: str,
        body: bytes | None,
        params: Mapping[str, Any] | None,
        headers: Mapping[str, str],
    ) -> Answer:
        query = f"?{urlencode({k: _as_text(v) for k, v in params.items()})}" if params else ""
        place = f"{self._base}{path}{query}"
        opened = self._kind(*self._place, timeout=self._timeout_s)
        try:
            opened.request(method, place, body, {**self._headers, **headers})
            answer = opened.getresponse()
            return Answer(answer.status, answer.read())
        except (OSError, http.client.HTTPException) as error:
            raise NoAnswer(str(error) or type(error).__name__) from error
        finally:
            opened.close()


def _encoded(data: Any) -> bytes:
    return json.dumps(data, allow_nan=False).encode()


def _as_text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
