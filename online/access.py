"""Who may do what: bearer tokens, and the roles that each path needs.

A token has one role or several.  ``predict`` may ask for predictions and read the state of the
models; ``feedback`` may send labels, and read nothing; ``admin`` may do everything.  What is not
listed here needs ``admin``: a new path is closed until somebody opens it.
"""

from __future__ import annotations

import hashlib
import hmac
import itertools
import re
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from typing import Final, Literal

from online.errors import RequestError

Headers = Mapping[bytes, bytes]
Role = Literal["predict", "feedback", "admin"]
ROLES: Final[tuple[Role, ...]] = ("predict", "feedback", "admin")

PREDICT: Final = frozenset[Role]({"predict", "admin"})
FEEDBACK: Final = frozenset[Role]({"feedback", "admin"})
READ: Final = PREDICT
ADMIN: Final = frozenset[Role]({"admin"})

_TOKEN: Final = re.compile(r"[A-Za-z0-9._~+/=-]{24,512}")
_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}")
_HEADER_BYTES_MAX: Final = 600
_REQUEST_ID: Final = re.compile(rb"[A-Za-z0-9._:-]{1,128}")

_SOURCE: Final = re.compile(r"[A-Za-z0-9._:-]{1,23}")  # shorter than a token: none is taken for one

sender: ContextVar[str | None] = ContextVar("sender", default=None)
"""Source that the token of the request at hand stands for; None: its sender may name any."""

_OPEN: Final = re.compile(
    r"/|/livez|/readyz|/v2/health/(live|ready)|/docs|/docs/oauth2-redirect|/redoc|/openapi\.json"
    r"|/static-offline-docs/.*|/edge/[^/]+"
)
_ANSWER: Final = re.compile(
    r"/v1/models/[^/]+/(predict|scores|edge/reports)|/v2/models/[^/]+(/versions/[^/]+)?/infer"
)
_LEARN: Final = re.compile(r"/v[12]/models/[^/]+/feedback|/v1/models/[^/]+/edge/deltas")
_SHOW: Final = re.compile(
    r"/metrics|/v1/models(/[^/]+)?|/v1/models/[^/]+/scores/.+|/v2|/v2/models/[^/]+(/versions/[^/]+)?(/ready)?"
    r"|/v1/models/[^/]+/edge/(files/)?[^/]+"
)


def digest(token: str) -> str:
    """The form in which a token may stand in a settings file, and travels to the replicas."""
    return token if _DIGEST.fullmatch(token) else f"sha256:{_hash(token.encode()).hex()}"


def check_token(token: str) -> str:
    """The token or digest, if it is one.  ValueError, which does not repeat it."""
    if not _TOKEN.fullmatch(token) and not _DIGEST.fullmatch(token):
        raise ValueError(
            f"a token of {len(token)} characters; it has 24 to 512 letters, digits and ._~+/=-, "
            "or is sha256: and 64 hexadecimal digits; make one with: openssl rand -hex 32"
        )
    return token


def named(entry: str) -> tuple[str | None, str]:
    """Source and token of an entry of the settings: ``TOKEN``, or ``SOURCE TOKEN``.

    ValueError, which does not repeat the token, if one of them is none.
    """
    source, _, token = entry.strip().rpartition(" ")
    if source and not _SOURCE.fullmatch(source.strip()):
        raise ValueError(
            "a token's source has 1 to 23 letters, digits, dots, colons, hyphens and underscores; "
            "write {source: NAME, token: TOKEN}, or a line NAME TOKEN in a file"
        )
    return source.strip() or None, check_token(token)


def needed(method: str, path: str) -> frozenset[Role] | None:
    """Roles of which one is enough for the request; None: it is open to everybody."""
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


class Access:
    """The configured tokens.  It knows their digests only.

    Parameters
    ----------
    tokens
        Tokens or digests of each role.  The same one under two roles has both.
    sources
        Source by token or digest, of those that stand for one.  An admin's may name any.
    """

    def __init__(
        self, tokens: Mapping[Role, Sequence[str]], sources: Mapping[str, str] | None = None
    ) -> None:
        self._sources = {_key(token): source for token, source in (sources or {}).items()}
        roles: dict[bytes, set[Role]] = {}
        for role, several in tokens.items():
            for token in several:
                roles.setdefault(_key(token), set()).add(role)
        self._roles = [(key, frozenset(found)) for key, found in roles.items()]

    def check(self, headers: Headers, roles: frozenset[Role]) -> None:
        """Refuse a request whose token has none of ``roles``.  RequestError 401 or 403.

        From here on :data:`sender` is that of the request.
        """
        held = self._held(headers)
        if held.isdisjoint(roles):
            needs = " or ".join(sorted(roles))
            message = (
                f"this needs a token for {needs}; the one sent is for {', '.join(sorted(held))}"
            )
            raise RequestError(403, "forbidden", message, None, "Send a token of that role")

    def _held(self, headers: Headers) -> frozenset[Role]:
        value = headers.get(b"authorization")
        if value is None:
            hint = "Send the header Authorization: Bearer TOKEN"
            raise RequestError(401, "no_token", "a token is needed", None, hint)
        scheme, _, token = value.partition(b" ")
        held: frozenset[Role] = frozenset()
        if scheme.lower() == b"bearer" and len(value) <= _HEADER_BYTES_MAX:
            sent = _hash(token.strip())
            for key, roles in self._roles:  # all of them: how long it takes says nothing
                if hmac.compare_digest(sent, key):
                    held = roles
                    sender.set(None if "admin" in roles else self._sources.get(key))
        if not held:
            hint = "Send the header Authorization: Bearer TOKEN, with a token of the settings"
            raise RequestError(401, "unknown_token", "the token sent is not known", None, hint)
        return held


def _key(token: str) -> bytes:
    return bytes.fromhex(digest(token).removeprefix("sha256:"))


def _hash(token: bytes) -> bytes:
    return hashlib.sha256(token).digest()


class RequestIds:
    """A name for each request, to find it in the logs: the caller's ``X-Request-ID`` or a new one.

    ``prefix`` is of one process; a counter follows it, which costs less than a random number.
    """

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix.encode() + b"-"
        self._numbers = itertools.count(1)

    def of(self, headers: Headers) -> bytes:
        """Id of a request; one sent that is not 1 to 128 letters, digits and ._:- is replaced."""
        sent = headers.get(b"x-request-id")
        if sent is not None and _REQUEST_ID.fullmatch(sent):
            return sent
        return self._prefix + b"%d" % next(self._numbers)
