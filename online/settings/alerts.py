"""Who is told of what happens to the service: webhooks and mail, in the settings."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from string import Template
from typing import Annotated, Any, Final, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, SecretStr, field_serializer, model_validator

from online.settings.tree import Seconds, Tree

Kind = Literal["alarm", "incident", "promotion", "quarantine", "decision", "disk", "stale"]
KINDS: Final[tuple[Kind, ...]] = (
    "alarm", "incident", "promotion", "quarantine", "decision", "disk", "stale",
)  # fmt: skip
PLACES: Final = frozenset({"id", "kind", "model", "state", "text", "summary", "at", "service"})
"""What a template may name, as ``$model``."""
SECRET_PREFIX: Final = "whsec_"
_SECRET_MIN: Final = 24  # characters; as the Standard Webhooks ask for bytes


def _url(value: str) -> str:
    try:
        parts = urlsplit(value)
        good = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        named = parts.username is not None
    except ValueError:  # of the port; it would quote the address, whose path may be a secret
        good, named = False, False
    if not good:
        raise ValueError("give http://host/path or https://host/path")
    if named:
        raise ValueError("an address without a user: what proves the sender is `secret`")
    return value


def _secret(value: SecretStr) -> SecretStr:
    text = value.get_secret_value()
    if text.startswith(SECRET_PREFIX):
        try:
            base64.b64decode(text.removeprefix(SECRET_PREFIX), validate=True)
        except ValueError:
            raise ValueError("behind whsec_ stands base64") from None
    if len(text) < _SECRET_MIN:
        raise ValueError(
            f"a secret of {len(text)} characters; it has {_SECRET_MIN} at least; make one with: "
            "openssl rand -hex 32"
        )
    return value


def _template(value: str) -> str:
    template = Template(value)
    if not template.is_valid():
        raise ValueError("not a template: write $$ for a dollar sign")
    if unknown := sorted(set(template.get_identifiers()) - PLACES):
        known = ", ".join(f"${name}" for name in sorted(PLACES))
        raise ValueError(f"${unknown[0]} is no part of a message; there are {known}")
    return value


def _texts(value: Any) -> Iterator[str]:
    """Every text in a value of JSON."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for one in value.values():
            yield from _texts(one)
    elif isinstance(value, list):
        for one in value:
            yield from _texts(one)


def _body(value: dict[str, Any] | None) -> dict[str, Any] | None:
    for text in _texts(value):
        _template(text)
    return value


_Kinds = Annotated[tuple[Kind, ...], Field(min_length=1, description="what is sent there")]
_Address = Annotated[str, Field(pattern=r"^[^@\s<>,;]+@[^@\s<>,;]+$", max_length=254)]


class Webhook(Tree):
    """An address that messages are sent to by HTTP, as JSON."""

    url: Annotated[str, AfterValidator(_url)] = Field(
        repr=False, description="http:// or https:// address that takes a POST"
    )
    secret: Annotated[SecretStr, AfterValidator(_secret)] | None = Field(
        None,
        description="signs each message as the Standard Webhooks do; of 24 characters at least, or "
        "`whsec_` and base64; none: they are not signed",
    )
    on: _Kinds = KINDS
    body: Annotated[dict[str, Any], AfterValidator(_body)] | None = Field(
        None,
        description="another body: a mapping whose texts are templates, as `{text: $summary}`",
    )

    @field_serializer("url")
    def _hide(self, value: str) -> str:
        """Show the host only: with some services the rest is the secret."""
        parts = urlsplit(value)
        return f"{parts.scheme}://{parts.hostname}/***"


class Mail(Tree):
    """A mailbox that messages are sent to by SMTP."""

    host: str = Field(min_length=1, description="server that takes the mail")
    port: int = Field(587, ge=1, le=65_535, description="its port; 465 with `security: tls`")
    security: Literal["starttls", "tls", "none"] = Field(
        "starttls", description="how the connection is guarded"
    )
    user: str | None = Field(None, description="who logs in there; none: nobody")
    password: SecretStr | None = Field(None, description="of the user")
    sender: _Address = Field(description="address that the mail is from")
    to: tuple[_Address, ...] = Field(min_length=1, max_length=64, description="who gets it")
    on: _Kinds = KINDS
    subject: Annotated[str, AfterValidator(_template)] = Field(
        "[online] $summary", description="template of the subject"
    )
    text: Annotated[str, AfterValidator(_template)] = Field(
        "$summary\n\n$at, $kind, $state\n$service\n", description="template of the text"
    )

    @model_validator(mode="after")
    def _whole(self) -> Mail:
        if (self.user is None) != (self.password is None):
            raise ValueError("user and password belong together")
        if self.user is not None and self.security == "none":
            raise ValueError("a password is sent to a server with starttls or tls only")
        return self


class Alerts(Tree):
    """Who is told of alarms, promotions, quarantines, decisions, a disk that fills, old answers."""

    webhooks: tuple[Webhook, ...] = Field((), max_length=16, description="addresses told by HTTP")
    mail: tuple[Mail, ...] = Field((), max_length=16, description="mailboxes told by SMTP")
    stale_s: Seconds = Field(
        60, description="answers from a model so old, or none for so long, are told of as `stale`"
    )
    wait_s: float = Field(10, gt=0, le=120, description="how long one attempt to send may take")
    attempts: int = Field(6, ge=1, le=20, description="attempts to send a message")
    retry_s: float = Field(
        5, gt=0, le=600, description="pause after the first failed attempt; each is twice as long"
    )
    queue_max: int = Field(
        100, ge=1, le=10_000, description="messages that wait for a receiver; more are counted only"
    )
