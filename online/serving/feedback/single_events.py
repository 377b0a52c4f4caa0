"""Handles feedback of single events, which are batched with others of the same turn."""

from __future__ import annotations

from online.errors import RequestError
from online.messages.structs import Event, FeedbackRequest, Receipt
from online.replica.pending import OutcomeReceiver, Recorded
from online.replica.replica import ModelReplica
from online.serving import anomalies
from online.serving.feedback.event_batcher import BatchPosition, EventBatcher
from online.serving.feedback.events import Events
from online.serving.feedback.ordinary import EventRow
from online.serving.feedback.receipts import HTTP, ReceiptMaker, plain
from online.telemetry.trace import current


class SingleEvents:
    """Records events that are sent one per request, for one model."""

    def __init__(self, replica: ModelReplica, reader: Events, receipts: ReceiptMaker) -> None:
        self._replica, self._reader, self._receipts = replica, reader, receipts
        self._batcher = EventBatcher(reader.ordinary, replica.writer)

    async def feedback(self, request: FeedbackRequest) -> tuple[int, Receipt]:
        """Record an event; return the HTTP status and the receipt."""
        if request.id is None and current.get() is None:
            batched = await self._batcher.record(request)
            if batched is not None:
                return await self.receipt(*batched)
        read = await self._reader.read(request, "")
        if isinstance(read, Receipt):
            self._replica.counts[f"feedback_{read.status}"] += 1
            return HTTP[read.status], read
        (recorded,) = await self._replica.writer.record([read.row], [read.example])
        return await self.receipt(read, recorded)

    def take(self, event: Event, done: OutcomeReceiver) -> BatchPosition:
        """Queue the event in the batch of this turn; see :meth:`EventBatcher.take`."""
        return self._batcher.take(event, done)

    def plain_receipt(self, row: EventRow, recorded: Recorded) -> Receipt | None:
        """The receipt of a learned event (status 200); None: it needs :meth:`receipt`."""
        if (receipt := plain(row, recorded)) is not None:
            self._replica.counts["feedback_learned"] += 1
        return receipt

    async def receipt(self, row: EventRow, recorded: Recorded) -> tuple[int, Receipt]:
        """Return the HTTP status and the receipt of a recorded event."""
        receipt = self._receipts.receipt(row, recorded, "")
        late = await anomalies.late(self._replica, [receipt], [(0, row)], [recorded])
        for _, row, result in late:
            if isinstance(result, RequestError):
                raise result
            recorded = result
            receipt = self._receipts.receipt(row, recorded, "")
        self._replica.counts[f"feedback_{receipt.status}"] += 1
        # A repeat gets the status of its first sending: a failed event stays failed.
        decided = recorded.status if receipt.status == "duplicate" else receipt.status
        return HTTP[decided], receipt
