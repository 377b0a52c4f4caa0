"""A client of the service for programs, sync and async, and a stream played by it."""

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
