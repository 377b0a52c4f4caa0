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
from dataclasses import dataclass
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

WEIGHT_MAX: Final = 1e6
"""The largest weight that any setting allows."""

_OPTION: Final = re.compile(r"(weight_max|labels_for)=(.+)")


@dataclass(frozen=True, slots=True)
class Grant:
    """A grant says which source a token stands for, and what it may do beyond its role.

    Attributes
    ----------
    source
        Whose events and predictions its requests are; None: it names no source.
    weight_max
        The largest weight of its events; None: ``limits.weight_max``.
    labels_for
        Sources whose predictions it may label, beside those whose token names none; None: its
        own.
    trusted
        An admin's: an event labels for whatever source it names.
    """

    source: str | None = None
    weight_max: float | None = None
    labels_for: tuple[str, ...] | None = None
    trusted: bool = False


sender: ContextVar[Grant] = ContextVar("sender", default=Grant())  # noqa: B039
"""What the token of the request at hand stands for; without access tokens nobody's does."""

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


def entry_of(text: str) -> tuple[str, Grant]:
    """Token of an entry of the settings, and what it stands for.

    ``TOKEN`` or ``SOURCE TOKEN``, and behind it ``weight_max=5`` and ``labels_for=a,b``.
    ValueError, which does not repeat the token, if one of them is none.
    """
    words = text.split()
    given: dict[str, str] = {}
    while len(words) > 1 and (option := _OPTION.fullmatch(words[-1])):
        given[option[1]] = option[2]
        words.pop()
    token = words.pop() if words else ""
    source = " ".join(words) or None
    if source is not None:
        _check_source(source, "a token's source")
    labels_for = given.get("labels_for")
    names = None if labels_for is None else tuple(labels_for.split(","))
    for name in names or ():
        _check_source(name, "labels_for: a source")
    grant = Grant(source, _weight_max(given.get("weight_max")), names)
    return check_token(token), grant


def text_of(token: str, grant: Grant) -> str:
    """The entry that :func:`entry_of` reads."""
    words = [token] if grant.source is None else [grant.source, token]
    if grant.weight_max is not None:
        words.append(f"weight_max={grant.weight_max!r}")
    if grant.labels_for is not None:
        words.append(f"labels_for={','.join(grant.labels_for)}")
    return " ".join(words)


def _check_source(name: str, what: str) -> None:
    if not _SOURCE.fullmatch(name):
        raise ValueError(
            f"{what} has 1 to 23 letters, digits, dots, colons, hyphens and underscores; "
            "write {source: NAME, token: TOKEN}, or a line NAME TOKEN in a file"
        )


def _weight_max(text: str | None) -> float | None:
    try:
        weight = None if text is None else float(text)
    except ValueError:
        weight = 0.0
    if weight is not None and not 1.0 <= weight <= WEIGHT_MAX:
        raise ValueError(f"a token's weight_max is a number from 1 to {WEIGHT_MAX:.0f}")
    return weight


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
    grants
        By role and token (or digest) what it stands for, of those that have more than a role.
    """

    def __init__(
        self,
        tokens: Mapping[Role, Sequence[str]],
        grants: Mapping[tuple[Role, str], Grant] | None = None,
    ) -> None:
        self._grants = {(role, _key(token)): x for (role, token), x in (grants or {}).items()}
        roles: dict[bytes, set[Role]] = {}
        for role, several in tokens.items():
            for token in several:
                roles.setdefault(_key(token), set()).add(role)
        self._roles = [(key, frozenset(found)) for key, found in roles.items()]

    def check(self, headers: Headers, roles: frozenset[Role]) -> bytes:
        """Digest of the request's token; refused if that has none of ``roles``.

        From here on :data:`sender` is that of the request.  RequestError 401 or 403.
        """
        key, held = self._held(headers)
        if held.isdisjoint(roles):
            needs = " or ".join(sorted(roles))
            message = (
                f"this needs a token for {needs}; the one sent is for {', '.join(sorted(held))}"
            )
            raise RequestError(403, "forbidden", message, None, "Send a token of that role")
        if "admin" in held:
            sender.set(Grant(trusted=True))
        else:
            found = (self._grants.get((role, key)) for role in roles)
            sender.set(next((grant for grant in found if grant is not None), Grant()))
        return key

    def _held(self, headers: Headers) -> tuple[bytes, frozenset[Role]]:
        """The token's digest, and its roles.  RequestError 401: it is not known."""
        value = headers.get(b"authorization")
        if value is None:
            hint = "Send the header Authorization: Bearer TOKEN"
            raise RequestError(401, "no_token", "a token is needed", None, hint)
        scheme, _, token = value.partition(b" ")
        held: frozenset[Role] = frozenset()
        sent = b""
        if scheme.lower() == b"bearer" and len(value) <= _HEADER_BYTES_MAX:
            sent = _hash(token.strip())
            for key, roles in self._roles:  # all of them: how long it takes says nothing
                if hmac.compare_digest(sent, key):
                    held = roles
        if not held:
            hint = "Send the header Authorization: Bearer TOKEN, with a token of the settings"
            raise RequestError(401, "unknown_token", "the token sent is not known", None, hint)
        return sent, held


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
