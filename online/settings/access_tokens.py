"""Access tokens in the settings: who they are of, and what they may do beyond their role."""

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
"""Context of ``Settings.model_dump`` for our own processes: it keeps passwords, and the digests of
tokens (a replica needs no more to know one)."""


def _several(value: object) -> object:
    """One token, or a list of them while they are being changed."""
    if isinstance(value, list | tuple):
        return [_entry(one) for one in value]
    return [value] if isinstance(value, str) else value


_ENTRY = {"source", "token", "weight_max", "labels_for", "name"}


def _entry(value: object) -> object:
    """``{source: NAME, token: TOKEN, …}`` as the text that stands for it."""
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
    """Bearer tokens of each role; a file holds one a line.  All three roles have some, or none."""

    predict: Tokens = Field(
        (),
        description="may predict, and read the state; {source: NAME, token: …}: its own ids of "
        "predictions are of that source",
    )
    feedback: Tokens = Field(
        (),
        description="may send labels; {source: NAME, token: …, weight_max: …, labels_for: [NAME]} "
        "is of that source only, may weigh so much, and labels those sources' predictions",
    )
    admin: Tokens = Field(
        (),
        description="may do everything; {name: NAME, token: …}: the log of decisions calls it so",
    )
    predict_file: Path | None = Field(None, description="file of tokens, instead of them")
    feedback_file: Path | None = Field(None, description="file of tokens, instead of them")
    admin_file: Path | None = Field(None, description="file of tokens, instead of them")

    def of(self, role: Role) -> tuple[str, ...]:
        """The role's tokens, or their digests."""
        tokens: Tokens = getattr(self, role)
        return tuple(entry_of(token.get_secret_value())[0] for token in tokens)

    @property
    def grants(self) -> dict[tuple[Role, str], Grant]:
        """By role and token what it stands for, of those that have more than a role."""
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
        """Sources that tokens for predictions stand for."""
        found = (x.source for (role, _), x in self.grants.items() if role == "predict")
        return frozenset(source for source in found if source is not None)

    @property
    def vouched(self) -> bool:
        """Whether feedback tokens stand for sources."""
        return any(role == "feedback" and x.source for (role, _), x in self.grants.items())

    @field_serializer("predict", "feedback", "admin")
    def _hide(self, value: tuple[SecretStr, ...], info: SerializationInfo) -> list[str]:
        if info.context == WITH_SECRETS:
            return [_with_source(token, digest) for token in value]
        return [_with_source(token, lambda _: "***") for token in value]

    def __bool__(self) -> bool:
        return any(map(self.of, ROLES))
