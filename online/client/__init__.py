"""A client of the service for programs, sync and async, and a stream played by it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from online.client.client import (
        AsyncBatch,
        AsyncClient,
        Batch,
        Client,
        ClientError,
        Event,
        NotANumber,
        NotIncluded,
        Pending,
        Prediction,
        Predictions,
        Receipt,
        Retry,
        ServiceRefused,
        ServiceUnavailable,
    )

__all__ = [
    "AsyncBatch",
    "AsyncClient",
    "Batch",
    "Client",
    "ClientError",
    "Event",
    "NotANumber",
    "NotIncluded",
    "Pending",
    "Prediction",
    "Predictions",
    "Receipt",
    "Retry",
    "ServiceRefused",
    "ServiceUnavailable",
]


def __getattr__(name: str) -> Any:
    """The names above, imported when they are asked for: a command needs none of them."""
    if name in __all__:
        from online.client import client

        return getattr(client, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
