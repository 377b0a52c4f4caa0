"""Access control: bearer tokens, and the roles that each path requires.

A token has one role or several.  ``predict`` may request predictions and read the state of the
models; ``feedback`` may send labels, and read nothing; ``admin`` may do everything.  A path that is
not listed here requires ``admin``, so new paths are closed by default.
"""

from __future__ import annotations

import hashlib
import hmac
import itertools
import re
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from typing import Any, Final

from online.errors import RequestError
from online.messages.sender import sender
from online.settings.tokens import Grant, Role, digest
from replay.plain import plain

Headers = Mapping[bytes, bytes]

PREDICT: Final = frozenset[Role]({"predict", "admin"})
FEEDBACK: Final = frozenset[Role]({"feedback", "admin"})
READ: Final = PREDICT
ADMIN: Final = frozenset[Role]({"admin"})

_HEADER_BYTES_MAX: Final = 600
_KEY: Final = b"ocp-apim-subscription-key"
"""The header in which Personalizer clients send their key, which is a token like any other."""
_ORIGIN_MAX: Final = 200
_REQUEST_ID: Final = re.compile(rb"[A-Za-z0-9._:-]{1,128}")


_OPEN: Final = re.compile(
    r"/|/livez|/readyz|/v2/health/(live|ready)|/docs|/openapi\.json"
    r"|/static-offline-docs/.*|/edge/[^/]+|/demo/choose"
)
_ANSWER: Final = re.compile(
    r"/v1/models/[^/]+/(predict|choose|scores|edge/reports)|/v2/repository/index|/v2/models/[^/]+(/versions/[^/]+)?/infer"
    r"|/v1/models/[^/]+/personalizer(/v1\.[01])?/(multislot/)?rank|/personalizer/.+"
)
_LEARN: Final = re.compile(
    r"/v[12]/models/[^/]+/feedback|/v1/models/[^/]+/(reward|activate|edge/deltas)"
    r"|/v1/models/[^/]+/personalizer(/v1\.[01])?/(multislot/)?events/.+/(reward|activate)"
)
_SHOW: Final = re.compile(
    r"/metrics|/v1/live|/v1/models(/[^/]+(/history)?)?|/v1/models/[^/]+/scores/.+|/v2|/v2/models/[^/]+(/versions/[^/]+)?(/(ready|config|stats))?"
    r"|/v1/models/[^/]+/edge/(files/)?[^/]+"
    r"|/v1/models/[^/]+/personalizer(/v1\.[01])?/configurations/(service|policy)"
)


def needed(method: str, path: str) -> frozenset[Role] | None:
    """Return the roles of which one is required for the request; None: it is open to everybody."""
    if method in ("GET", "HEAD"):
        if _OPEN.fullmatch(path):
            return None
        if _SHOW.fullmatch(path):
            return READ
    elif method == "POST":
        if _ANSWER.fullmatch(path):
            return PREDICT
        if _LEARN.fullmatch(path):
            return FEEDBACK
    return ADMIN


admitted_by: ContextVar[Any] = ContextVar("admitted_by", default=None)
"""The value of :attr:`Access.roles` by which the current request was admitted."""


class Access:
    """The configured tokens, stored as digests only.  The parameters are those of :meth:`renew`.

    Attributes:
        roles: The digest of each token with its roles; another list after each renewal.
    """

    def __init__(
        self,
        tokens: Mapping[Role, Sequence[str]],
        grants: Mapping[tuple[Role, str], Grant] | None = None,
    ) -> None:
        self.renew(tokens, grants)

    def renew(
        self,
        tokens: Mapping[Role, Sequence[str]],
        grants: Mapping[tuple[Role, str], Grant] | None = None,
    ) -> None:
        """Replace the tokens; what was admitted before is not admitted again by that.

        Parameters:
            tokens: Tokens or digests of each role.  The same one under two roles has both.
            grants: Further rights and limits of tokens, by role and token (or digest).
        """
        self._grants = {(role, _key(token)): x for (role, token), x in (grants or {}).items()}
        roles: dict[bytes, set[Role]] = {}
        for role, several in tokens.items():
            for token in several:
                roles.setdefault(_key(token), set()).add(role)
        self.roles = [(key, frozenset(granted)) for key, granted in roles.items()]

    def check(self, headers: Headers, roles: frozenset[Role]) -> bytes:
        """Return the digest of the request's token, after checking that it has one of ``roles``.

        Sets :data:`sender` and :data:`admitted_by` for this request.  Raises RequestError 401 or
        403.
        """
        key, held = self._held(headers)
        admitted_by.set(self.roles)
        if held.isdisjoint(roles):
            needs = " or ".join(sorted(roles))
            message = (
                f"this needs a token for {needs}; the one sent is for {', '.join(sorted(held))}"
            )
            raise RequestError(403, "forbidden", message, None, "Send a token of that role")
        if "admin" in held:
            sender.set(Grant(trusted=True))
        else:
            grants = (self._grants.get((role, key)) for role in roles)
            sender.set(next((grant for grant in grants if grant is not None), Grant()))
        return key

    def name_of(self, key: bytes) -> str:
        """The token's name in the log of decisions: its configured one, or part of its digest."""
        names = [grant.name for (_, held), grant in self._grants.items() if held == key]
        return next((name for name in names if name is not None), f"token {key.hex()[:8]}")

    def _held(self, headers: Headers) -> tuple[bytes, frozenset[Role]]:
        """The token's digest and its roles.  Raises RequestError 401 if it is not known."""
        value = headers.get(b"authorization")
        if value is None and (key := headers.get(_KEY)) is not None:
            value = b"Bearer " + key
        if value is None:
            hint = "Send the header Authorization: Bearer TOKEN"
            raise RequestError(401, "no_token", "a token is needed", None, hint)
        scheme, _, token = value.partition(b" ")
        held: frozenset[Role] = frozenset()
        sent = b""
        if scheme.lower() == b"bearer" and len(value) <= _HEADER_BYTES_MAX:
            sent = hashlib.sha256(token.strip()).digest()
            for key, roles in self.roles:  # compare with all, so that timing reveals nothing
                if hmac.compare_digest(sent, key):
                    held = roles
        if not held:
            hint = "Send the header Authorization: Bearer TOKEN, with a token of the settings"
            raise RequestError(401, "unknown_token", "the token sent is not known", None, hint)
        return sent, held


def _key(token: str) -> bytes:
    return bytes.fromhex(digest(token).removeprefix("sha256:"))


def origin(client: tuple[str, int] | None, headers: Headers) -> str:
    """The request's origin for logs: the peer's address, and the client it forwards for."""
    peer = client[0] if client else "?"
    via = headers.get(b"x-forwarded-for")
    text = peer if via is None else f"{peer} for {via.decode('latin-1')}"
    return plain(text)[:_ORIGIN_MAX]


class RequestIds:
    """Makes a name for each request in the logs: the caller's ``X-Request-ID``, or a new one.

    ``prefix`` identifies the process; a counter follows, which costs less than a random number.
    """

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix.encode() + b"-"
        self._numbers = itertools.count(1)

    def of(self, headers: Headers) -> bytes:
        """Id of a request; a sent one that is not 1 to 128 letters, digits and ._:- is replaced."""
        sent = headers.get(b"x-request-id")
        if sent is not None and _REQUEST_ID.fullmatch(sent):
            return sent
        return self._prefix + b"%d" % next(self._numbers)
