"""Handles feedback of single events, which are batched with others of the same turn."""

from __future__ import annotations

from online.errors import RequestError
from online.messages.structs import Event, FeedbackRequest, Receipt
from online.replica.pending import Recorded, Told
from online.replica.replica import ModelReplica
from online.serving import anomalies
from online.serving.event_batcher import EventBatcher, Place
from online.serving.events import Events
from online.serving.ordinary import EventRow
from online.serving.receipts import HTTP, ReceiptMaker, plain
from online.tracing.trace import current


class Alone:
    """Handles bodies with one event, for one model."""

    def __init__(self, replica: ModelReplica, reader: Events, receipts: ReceiptMaker) -> None:
        self._replica, self._reader, self._receipts = replica, reader, receipts
        self._batcher = EventBatcher(reader.ordinary, replica.writer)

    async def feedback(self, request: FeedbackRequest) -> tuple[int, Receipt]:
        """Record an event; return the HTTP status and the receipt."""
        if request.id is None and current.get() is None:
            together = await self._batcher.record(request)
            if together is not None:
                return await self.told(*together)
        read = await self._reader.read(request, "")
        if isinstance(read, Receipt):
            self._replica.counts[f"feedback_{read.status}"] += 1
            return HTTP[read.status], read
        (recorded,) = await self._replica.writer.record([read.row], [read.example])
        return await self.told(read, recorded)

    def take(self, event: Event, done: Told) -> Place:
        """Queue the event in the batch of this turn; see :meth:`EventBatcher.take`."""
        return self._batcher.take(event, done)

    def told_at_once(self, asked: EventRow, recorded: Recorded) -> Receipt | None:
        """The receipt of a learned event (status 200); None: it needs :meth:`told`."""
        if (receipt := plain(asked, recorded)) is not None:
            self._replica.counts["feedback_learned"] += 1
        return receipt

    async def told(self, asked: EventRow, recorded: Recorded) -> tuple[int, Receipt]:
        """Return the HTTP status and the receipt of a recorded event."""
        receipt = self._receipts.receipt(asked, recorded, "")
        late = await anomalies.late(self._replica, [receipt], [(0, asked)], [recorded])
        for _, asked, result in late:
            if isinstance(result, RequestError):
                raise result
            recorded = result
            receipt = self._receipts.receipt(asked, recorded, "")
        self._replica.counts[f"feedback_{receipt.status}"] += 1
        # A repeat gets the status of its first sending: a failed event stays failed.
        decided = recorded.status if receipt.status == "duplicate" else receipt.status
        return HTTP[decided], receipt
