"""Predictions and labels by short ids of the caller's own, as a replica takes them."""

from __future__ import annotations

from typing import Any

import pytest
import replica_world as worlds

from online.errors import RequestError
from online.messages.structs import FeedbackRequest, PredictRequest


def predict(serving: Any, own: str | None, feature: str = "a") -> str:
    """The id of a prediction."""
    answer = serving.predict(PredictRequest(features={feature: 1.0}, id=own))
    found: str = answer.id
    return found


async def label(serving: Any, own: str, value: float = 1e9, **event: Any) -> tuple[int, str, Any]:
    status, receipt = await serving.feedback(FeedbackRequest(label=value, id=own, **event))
    return status, receipt.status, receipt


async def written(replica: Any) -> None:
    """Until nothing waits to be written."""
    await worlds.until(lambda: replica.writer.idle)


async def refusal(serving: Any, own: str, value: float = 1e9) -> RequestError:
    with pytest.raises(RequestError) as caught:
        await label(serving, own, value)
    return caught.value
