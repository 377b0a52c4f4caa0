"""A client of the service for programs, sync and async, and a stream played by it."""

from online.client.calls import (
    NotIncluded,
    OutcomeUnknown,
    Retry,
    ServiceRefused,
    ServiceUnavailable,
)
from online.client.client import AsyncBatch, AsyncClient, AsyncModel, Batch, Client, Model
from online.client.verbs import Pending
from online.errors import ClientError
from online.messages.shown import Status
from online.messages.structs import Event, Prediction, Predictions, Receipt
from online.messages.values import NotANumber, NotAValue, NotRows

__all__ = [
    "AsyncBatch",
    "AsyncClient",
    "AsyncModel",
    "Batch",
    "Client",
    "ClientError",
    "Event",
    "Model",
    "NotANumber",
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
