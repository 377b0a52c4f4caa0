"""Clients of the service for Python programs, sync and async, and a player of streams."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from online.client.calls import (
        NotIncluded,
        OutcomeUnknown,
        Retry,
        ServiceRefused,
        ServiceUnavailable,
    )
    from online.client.choices import NotASlot
    from online.client.client import AsyncBatch, AsyncClient, AsyncModel, Batch, Client, Model
    from online.client.verbs import Pending
    from online.errors import ClientError
    from online.messages.choices import Chosen
    from online.messages.model_status import Status
    from online.messages.structs import Event, Prediction, Predictions, Receipt
    from online.messages.values import NotANumber, NotAValue, NotRows

__all__ = [
    "AsyncBatch",
    "AsyncClient",
    "AsyncModel",
    "Batch",
    "Chosen",
    "Client",
    "ClientError",
    "Event",
    "Model",
    "NotANumber",
    "NotASlot",
    "NotAValue",
    "NotIncluded",
    "NotRows",
    "OutcomeUnknown",
    "Pending",
    "Prediction",
    "Predictions",
    "Receipt",
    "Retry",
    "ServiceRefused",
    "ServiceUnavailable",
    "Status",
]

_IN = {
    "online.client.calls": (
        "NotIncluded", "OutcomeUnknown", "Retry", "ServiceRefused", "ServiceUnavailable",
    ),
    "online.client.choices": ("NotASlot",),
    "online.client.client": ("AsyncBatch", "AsyncClient", "AsyncModel", "Batch", "Client", "Model"),
    "online.client.verbs": ("Pending",),
    "online.errors": ("ClientError",),
    "online.messages.choices": ("Chosen",),
    "online.messages.model_status": ("Status",),
    "online.messages.structs": ("Event", "Prediction", "Predictions", "Receipt"),
    "online.messages.values": ("NotANumber", "NotAValue", "NotRows"),
}  # fmt: skip
_MODULE = {name: module for module, names in _IN.items() for name in names}


def __getattr__(name: str) -> Any:
    """Import the public names on first access, because commands need none of them."""
    if (module := _MODULE.get(name)) is not None:
        return getattr(import_module(module), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
