"""Access tokens in the settings, by role, with their sources and bounds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    SecretStr,
    SerializationInfo,
    field_serializer,
)

from online.settings.tokens import ROLES, Grant, Role, digest, entry_of, text_of
from online.settings.tree import Tree

WITH_SECRETS: Mapping[str, bool] = {"secrets": True}
"""Serialization context for our own processes: keeps passwords and the digests of tokens.

A replica needs no more than the digest to recognize a token.
"""


def _several(value: object) -> object:
    """Normalize to a list: one token, or several during a rotation."""
    if isinstance(value, list | tuple):
        return [_entry(one) for one in value]
    return [value] if isinstance(value, str) else value


_ENTRY = {"source", "token", "weight_max", "labels_for", "name"}


def _entry(value: object) -> object:
    """Convert ``{source: NAME, token: TOKEN, …}`` to the equivalent text."""
    if not (isinstance(value, dict) and "token" in value and value.keys() <= _ENTRY):
        return value
    words = [str(value[name]) for name in ("source", "token") if name in value]
    if "weight_max" in value:
        words.append(f"weight_max={value['weight_max']}")
    if (names := value.get("labels_for")) is not None:
        several = names if isinstance(names, list | tuple) else [names]
        words.append(f"labels_for={','.join(map(str, several))}")
    if "name" in value:
        words.append(f"name={value['name']}")
    return " ".join(words)


def _token(value: SecretStr) -> SecretStr:
    entry_of(value.get_secret_value())
    return value


Tokens = Annotated[
    tuple[Annotated[SecretStr, AfterValidator(_token)], ...], BeforeValidator(_several)
]


def _with_source(entry: SecretStr, show: Callable[[str], str]) -> str:
    token, grant = entry_of(entry.get_secret_value())
    return text_of(show(token), grant)


class AccessTokens(Tree):
    """Bearer tokens by role, or files with one per line.  All three roles have tokens, or none."""

    predict: Tokens = Field(
        (),
        description="may predict and read the state; {source: NAME, token: …}: ids of its own "
        "predictions belong to that source",
    )
    feedback: Tokens = Field(
        (),
        description="may send feedback; {source: NAME, token: …, weight_max: …, labels_for: "
        "[NAME]}: for that source only, up to this weight, and labels for those sources' "
        "predictions",
    )
    admin: Tokens = Field(
        (), description="may do everything; {name: NAME, token: …}: the name in the audit log"
    )
    predict_file: Path | None = Field(None, description="file of tokens, instead of `predict`")
    feedback_file: Path | None = Field(None, description="file of tokens, instead of `feedback`")
    admin_file: Path | None = Field(None, description="file of tokens, instead of `admin`")

    def of(self, role: Role) -> tuple[str, ...]:
        """Tokens of a role, or their digests."""
        tokens: Tokens = getattr(self, role)
        return tuple(entry_of(token.get_secret_value())[0] for token in tokens)

    @property
    def by_role(self) -> dict[Role, tuple[str, ...]]:
        """Tokens of all roles, or their digests."""
        return {role: self.of(role) for role in ROLES}

    def renewed_by(self, new: AccessTokens) -> bool:
        """Whether running processes can take ``new`` instead of these.

        Not if there are tokens before or after only, and not if the filters begin or cease to rely
        on the sources of tokens.
        """
        return bool(self) and bool(new) and self.vouched == new.vouched

    @property
    def grants(self) -> dict[tuple[Role, str], Grant]:
        """Grants of the tokens that have more than a role, by role and token."""
        out: dict[tuple[Role, str], Grant] = {}
        for role in ROLES:
            entries: Tokens = getattr(self, role)
            for entry in entries:
                token, grant = entry_of(entry.get_secret_value())
                if grant != Grant():
                    out[role, token] = grant
        return out

    @property
    def askers(self) -> frozenset[str]:
        """Sources of the tokens for predictions."""
        sources = (x.source for (role, _), x in self.grants.items() if role == "predict")
        return frozenset(source for source in sources if source is not None)

    @property
    def vouched(self) -> bool:
        """Whether any feedback token is bound to a source."""
        return any(role == "feedback" and x.source for (role, _), x in self.grants.items())

    @field_serializer("predict", "feedback", "admin")
    def _hide(self, value: tuple[SecretStr, ...], info: SerializationInfo) -> list[str]:
        if info.context == WITH_SECRETS:
            return [_with_source(token, digest) for token in value]
        return [_with_source(token, lambda _: "***") for token in value]

    def __bool__(self) -> bool:
        return any(map(self.of, ROLES))
