"""Access tokens as the settings write them: a token, its source and bounds."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Final, Literal

Role = Literal["predict", "feedback", "admin"]
ROLES: Final[tuple[Role, ...]] = ("predict", "feedback", "admin")
_TOKEN: Final = re.compile(r"[A-Za-z0-9._~+/=-]{24,512}")
_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}")
_SOURCE: Final = re.compile(r"[A-Za-z0-9._:-]{1,23}")  # shorter than a token: none is taken for one
WEIGHT_MAX: Final = 1e6
"""The largest weight that any setting allows."""
_OPTION: Final = re.compile(r"(weight_max|labels_for|name)=(.+)")


@dataclass(frozen=True, slots=True)
class Grant:
    """A grant says which source a token stands for, and what it may do beyond its role.

    Attributes:
        source: Whose events and predictions its requests are; None: it names no source.
        weight_max: The largest weight of its events; None: ``limits.weight_max``.
        labels_for: Sources whose predictions it may label, beside those whose token names none;
            None: its own.
        trusted: An admin's: an event labels for whatever source it names.
        name: Whose it is, as the log of decisions calls them; None: nobody's in particular.
    """

    source: str | None = None
    weight_max: float | None = None
    labels_for: tuple[str, ...] | None = None
    trusted: bool = False
    name: str | None = None


def digest(token: str) -> str:
    """The form in which a token may stand in a settings file, and travels to the replicas."""
    return (
        token
        if _DIGEST.fullmatch(token)
        else f"sha256:{hashlib.sha256(token.encode()).hexdigest()}"
    )


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

    ``TOKEN`` or ``SOURCE TOKEN``, and behind it ``weight_max=5``, ``labels_for=a,b``, ``name=a``.
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
    if (called := given.get("name")) is not None:
        _check_source(called, "a token's name")
    grant = Grant(source, _weight_max(given.get("weight_max")), names, name=called)
    return check_token(token), grant


def text_of(token: str, grant: Grant) -> str:
    """The entry that :func:`entry_of` reads."""
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
