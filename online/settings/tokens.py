"""Access tokens in the settings: parsing of a token with its source and bounds."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Final, Literal

Role = Literal["predict", "feedback", "admin"]
ROLES: Final[tuple[Role, ...]] = ("predict", "feedback", "admin")
_TOKEN: Final = re.compile(r"[A-Za-z0-9._~+/=-]{24,512}")
_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}")
_SOURCE: Final = re.compile(r"[A-Za-z0-9._:-]{1,23}")  # too short to be mistaken for a token
WEIGHT_MAX: Final = 1e6
"""The largest weight that any setting permits."""
_OPTION: Final = re.compile(r"(weight_max|labels_for|name)=(.+)")


@dataclass(frozen=True, slots=True)
class Grant:
    """The source that a token stands for, and its permissions beyond its role.

    Attributes:
        source: Source of all events and predictions that are sent with it; None: not fixed.
        weight_max: The largest weight of its events; None: ``limits.weight_max``.
        labels_for: Sources whose predictions it may label, in addition to predictions of tokens
            without a source; None: only its own.
        trusted: An admin token: an event may name any source.
        name: Its owner, as the audit log names them; None: no name.
    """

    source: str | None = None
    weight_max: float | None = None
    labels_for: tuple[str, ...] | None = None
    trusted: bool = False
    name: str | None = None


def digest(token: str) -> str:
    """Digest of a token, which replaces it in settings files and on the way to replicas."""
    return (
        token
        if _DIGEST.fullmatch(token)
        else f"sha256:{hashlib.sha256(token.encode()).hexdigest()}"
    )


def check_token(token: str) -> str:
    """Return a well-formed token or digest; else raise ValueError without quoting it."""
    if not _TOKEN.fullmatch(token) and not _DIGEST.fullmatch(token):
        raise ValueError(
            f"a token of {len(token)} characters; it has 24 to 512 letters, digits and ._~+/=-, "
            "or is sha256: and 64 hexadecimal digits; make one with: openssl rand -hex 32"
        )
    return token


def entry_of(text: str) -> tuple[str, Grant]:
    """Parse an entry of the settings into the token and what it stands for.

    An entry is ``TOKEN`` or ``SOURCE TOKEN``, followed by options: ``weight_max=5``,
    ``labels_for=a,b``, ``name=a``.  Raises ValueError, without quoting the token, if a part is
    invalid.
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
    if (owner := given.get("name")) is not None:
        _check_source(owner, "a token's name")
    grant = Grant(source, _weight_max(given.get("weight_max")), names, name=owner)
    return check_token(token), grant


def text_of(token: str, grant: Grant) -> str:
    """Format the entry that :func:`entry_of` parses."""
    words = [token] if grant.source is None else [grant.source, token]
    if grant.weight_max is not None:
        words.append(f"weight_max={grant.weight_max!r}")
    if grant.labels_for is not None:
        words.append(f"labels_for={','.join(grant.labels_for)}")
    if grant.name is not None:
        words.append(f"name={grant.name}")
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
