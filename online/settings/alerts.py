"""Settings of alerts: webhooks and mailboxes that receive messages about the service."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from string import Template
from typing import Annotated, Any, Final, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, SecretStr, field_serializer, model_validator

from online.settings.addresses import http_address
from online.settings.tree import Seconds, Tree

Kind = Literal["alarm", "incident", "promotion", "quarantine", "decision", "disk", "stale"]
KINDS: Final[tuple[Kind, ...]] = (
    "alarm", "incident", "promotion", "quarantine", "decision", "disk", "stale",
)  # fmt: skip
PLACES: Final = frozenset({"id", "kind", "model", "state", "text", "summary", "at", "service"})
"""Names that a template may use, such as ``$model``."""
SECRET_PREFIX: Final = "whsec_"
_SECRET_MIN: Final = 24  # characters; Standard Webhooks ask for as many bytes


def _url(value: str) -> str:
    if (parts := http_address(value)) is None:
        raise ValueError("give http://host/path or https://host/path")
    if parts.username is not None:
        raise ValueError("an address without a user: what proves the sender is `secret`")
    return value


def _secret(value: SecretStr) -> SecretStr:
    text = value.get_secret_value()
    if text.startswith(SECRET_PREFIX):
        try:
            base64.b64decode(text.removeprefix(SECRET_PREFIX), validate=True)
        except ValueError:
            raise ValueError("the text after whsec_ must be base64") from None
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
    """Yield every string in a JSON value."""
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


_Kinds = Annotated[tuple[Kind, ...], Field(min_length=1, description="kinds of messages to send")]
_Address = Annotated[str, Field(pattern=r"^[^@\s<>,;]+@[^@\s<>,;]+$", max_length=254)]


class Webhook(Tree):
    """A URL to which messages are sent as JSON by HTTP POST."""

    url: Annotated[str, AfterValidator(_url)] = Field(
        repr=False, description="http:// or https:// URL that accepts a POST"
    )
    secret: Annotated[SecretStr, AfterValidator(_secret)] | None = Field(
        None,
        description="key that signs each message as in Standard Webhooks; at least 24 characters, "
        "or `whsec_` and base64; none: not signed",
    )
    on: _Kinds = KINDS
    body: Annotated[dict[str, Any], AfterValidator(_body)] | None = Field(
        None, description="another body: a mapping with templates as strings, as `{text: $summary}`"
    )

    @field_serializer("url")
    def _hide(self, value: str) -> str:
        """Show the host only: with some services the rest of the URL is a secret."""
        parts = urlsplit(value)
        return f"{parts.scheme}://{parts.hostname}/***"


class Mail(Tree):
    """A mailbox to which messages are sent by SMTP."""

    host: str = Field(min_length=1, description="SMTP server")
    port: int = Field(587, ge=1, le=65_535, description="its port; 465 with `security: tls`")
    security: Literal["starttls", "tls", "none"] = Field(
        "starttls", description="encryption of the connection"
    )
    user: str | None = Field(None, description="user name for the login; none: no login")
    password: SecretStr | None = Field(None, description="password for the login")
    sender: _Address = Field(description="From address")
    to: tuple[_Address, ...] = Field(min_length=1, max_length=64, description="To addresses")
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
    """Receivers of alarms, promotions, quarantines, decisions, full disks and stale answers."""

    webhooks: tuple[Webhook, ...] = Field((), max_length=16, description="receivers by HTTP")
    mail: tuple[Mail, ...] = Field((), max_length=16, description="receivers by SMTP")
    stale_s: Seconds = Field(
        60, description="age of a model's answers, or time without any, that is reported as `stale`"
    )
    wait_s: float = Field(10, gt=0, le=120, description="timeout of one attempt to send")
    attempts: int = Field(6, ge=1, le=20, description="attempts per message")
    retry_s: float = Field(
        5, gt=0, le=600, description="pause after the first failed attempt; doubled each time"
    )
    queue_max: int = Field(
        100, ge=1, le=10_000, description="messages waiting per receiver; more are only counted"
    )
