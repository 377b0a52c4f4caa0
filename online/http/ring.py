"""A bounded buffer of the latest answers and labels of one model in one replica.

Requests are recorded only for some seconds after the buffer was last read.  At other times the
cost of a request is one attribute check.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import msgspec

from online.messages.choices import ChooseRequest, Chosen, ChosenSlots, Reward, RewardRequest
from online.messages.structs import (
    Event,
    FeedbackRequest,
    Prediction,
    Predictions,
    PredictRequest,
    Receipt,
    Receipts,
)

WATCHED_S: Final = 15.0
"""Seconds after the last read during which requests are recorded."""
REQUESTS_MAX: Final = 500
BYTES_MAX: Final = 2 << 20
"""Bound on the body sizes of all recorded requests; a longer request is not recorded."""
ROWS_SHOWN: Final = 5
"""Rows shown of a request with many; the others are counted."""
LOOK_MAX: Final = 500

_ID_SHOWN: Final = 16  # characters of a prediction's id
_ABSENT: Final = (None, msgspec.UNSET)

Asked = PredictRequest | FeedbackRequest | ChooseRequest | RewardRequest
Given = Prediction | Predictions | Receipt | Receipts | Chosen


class _Taken(msgspec.Struct, frozen=True):
    number: int
    at: float
    asked: Asked
    given: Given
    size: int


class Ring:
    """Holds what one replica has recently answered and been sent.

    Parameters:
        now_s: The wall clock, in POSIX seconds.
        monotonic_s: A monotonic clock, in seconds.

    Attributes:
        watched: Whether requests are to be recorded.
    """

    def __init__(
        self,
        now_s: Callable[[], float] = time.time,
        monotonic_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._now_s, self._monotonic_s = now_s, monotonic_s
        self._taken: deque[_Taken] = deque()
        self._size = self._last = 0
        self._until_s = 0.0
        self.watched = False

    def take(self, request: Asked, given: Given, size: int) -> None:
        """Record a request with its answer; ``size``: bytes of its body."""
        if self._monotonic_s() > self._until_s:
            self.watched = False
            self._taken.clear()
            self._size = 0
            return
        self._last += 1
        if size > BYTES_MAX:
            return
        self._taken.append(_Taken(self._last, self._now_s(), request, given, size))
        self._size += size
        while len(self._taken) > REQUESTS_MAX or self._size > BYTES_MAX:
            self._size -= self._taken.popleft().size

    def look(self, after: int | None) -> dict[str, Any]:
        """Return what was recorded after a number (None: nothing yet), and keep recording.

        ``cursor`` is the number to continue from; ``missed`` counts requests after ``after`` that
        are no longer held.
        """
        self._until_s, self.watched = self._monotonic_s() + WATCHED_S, True
        if after is None or after > self._last:  # the replica was restarted since
            return {"cursor": self._last, "missed": 0, "events": []}
        newer = [one for one in self._taken if one.number > after][:LOOK_MAX]
        last = newer[-1].number if newer else self._last
        events = [event for one in newer for event in _entries(one)]
        return {"cursor": last, "missed": last - after - len(newer), "events": events}


def _entries(taken: _Taken) -> Iterator[dict[str, Any]]:
    """Yield one entry per row, as plain data."""
    request, given = taken.asked, taken.given
    many: Sequence[Any] | None
    if isinstance(request, PredictRequest):
        rows, many = _answers(request, given), request.instances
    elif isinstance(request, FeedbackRequest):
        rows, many = _labels(request, given), request.events
    elif isinstance(request, ChooseRequest):
        rows, many = _choices(request, given), None
    else:
        rows, many = _rewards(request, given), request.rewards
    for i, row in enumerate(rows):
        if i == ROWS_SHOWN:
            yield {"at": taken.at, "kind": "more", "rows": len(many or ()) - ROWS_SHOWN}
            return
        yield {"at": taken.at, **{k: v for k, v in row.items() if v not in _ABSENT}}


def _answers(request: PredictRequest, given: Any) -> Iterator[dict[str, Any]]:
    several = isinstance(given, Predictions)
    pairs = zip(request.instances or (), given.predictions, strict=False) if several else (
        (request.features, given),
    )  # fmt: skip
    for features, row in pairs:
        id_ = row.id if isinstance(row.id, str) else None
        yield {
            "kind": "answer", "id": id_ if id_ is None else id_[:_ID_SHOWN], "features": features,
            "prediction": row.prediction, "probabilities": row.probabilities,
            "version": f"{given.version}+{given.own}",
        }  # fmt: skip


def _labels(request: FeedbackRequest, given: Any) -> Iterator[dict[str, Any]]:
    pairs: Any = zip(request.events or (), given.events, strict=False) if isinstance(
        given, Receipts
    ) else ((request, given),)  # fmt: skip
    event: Event
    receipt: Receipt
    for event, receipt in pairs:
        id_ = event.event_id if event.event_id is not None else event.id
        yield {
            "kind": "label", "id": id_ if id_ is None else id_[:_ID_SHOWN], "source": event.source,
            "label": event.label, "features": event.features, "status": receipt.status,
            "version": receipt.version,
        }  # fmt: skip


def _choices(request: ChooseRequest, given: Any) -> Iterator[dict[str, Any]]:
    one: Chosen
    for one in given.slots if isinstance(given, ChosenSlots) else (given,):
        yield {
            "kind": "choice", "id": one.id[:_ID_SHOWN], "features": request.context,
            "action": one.action, "probability": one.probability, "of": len(request.actions),
            "version": f"{one.version}+{one.own}",
            "status": "repeated" if one.repeated else None,
        }  # fmt: skip


def _rewards(request: RewardRequest, given: Any) -> Iterator[dict[str, Any]]:
    one: Reward | RewardRequest
    receipt: Receipt
    pairs: Any = zip(request.rewards or (), given.events, strict=False) if isinstance(
        given, Receipts
    ) else ((request, given),)  # fmt: skip
    for one, receipt in pairs:
        yield {
            "kind": "reward", "id": None if one.id is None else one.id[:_ID_SHOWN],
            "source": one.source, "label": one.reward, "status": receipt.status,
            "version": receipt.version,
        }  # fmt: skip
