"""Alerts and their texts, which are filled into templates without control characters."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from string import Template
from typing import Any, Literal

import msgspec

from online.settings.alerts import Kind
from replay.plain import plain

State = Literal["raised", "over", "happened", "test"]


class Alert(msgspec.Struct, frozen=True):
    """A message about the service.

    Attributes:
        kind: One of the kinds in the settings.
        model: Name of the model; None: the whole service.
        state: ``raised`` when a condition begins, ``over`` when it ends, ``happened`` for an event.
        text: One sentence.
        at: POSIX seconds.
        service: Address of the service.
    """

    kind: Kind
    model: str | None
    state: State
    text: str
    at: float
    service: str

    @property
    def id(self) -> str:
        """Return an id that is the same for each attempt, so that a receiver detects repeats."""
        what = msgspec.json.encode([self.kind, self.model, self.state, self.text, self.at])
        return f"alert-{hashlib.sha256(what).hexdigest()[:24]}"

    @property
    def summary(self) -> str:
        """Return one line for display."""
        begin = {"over": "over: ", "test": "a test: "}.get(self.state, "")
        return f"{self.model or 'the service'}: {begin}{self.text}"

    def parts(self) -> dict[str, str]:
        """Return the values that a template may name, without control characters."""
        at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self.at))
        shown: Mapping[str, str | None] = {
            "id": self.id, "kind": self.kind, "model": self.model, "state": self.state,
            "text": self.text, "summary": self.summary, "at": at, "service": self.service,
        }  # fmt: skip
        return {name: plain(value or "") for name, value in shown.items()}


def filled(template: str, alert: Alert) -> str:
    """Fill a template with the values of an alert."""
    return Template(template).substitute(alert.parts())


def body(alert: Alert, shape: Mapping[str, Any] | None) -> bytes:
    """Encode an alert as JSON; ``shape`` is a custom structure of templates."""
    if shape is None:
        return msgspec.json.encode({**alert.parts(), "model": alert.model, "time": alert.at})
    return msgspec.json.encode(_shaped(shape, alert))


def _shaped(shape: Any, alert: Alert) -> Any:
    if isinstance(shape, str):
        return filled(shape, alert)
    if isinstance(shape, Mapping):
        return {name: _shaped(value, alert) for name, value in shape.items()}
    return [_shaped(value, alert) for value in shape] if isinstance(shape, list) else shape
