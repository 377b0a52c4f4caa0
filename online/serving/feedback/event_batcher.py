"""Batches single events that arrive at the same time, as if one request body contained them.

A request with one event costs twice as much as its row does in a body of many: it is read, given a
timeout and queued for the journal by itself.  So requests read from their connections in one turn
of the event loop are batched here: one pass reads the ordinary events, and one entry waits for the
commit.  Each request is answered as soon as its outcome is known, and each counts separately in
every bound.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from online.errors import RequestError
from online.messages.sender import sender
from online.messages.structs import Event, FeedbackRequest, Receipt
from online.replica.pending import OutcomeReceiver, Recorded
from online.replica.replica import ModelReplica
from online.replica.writer import Writer
from online.serving import anomalies
from online.serving.feedback.events import Events
from online.serving.feedback.ordinary import EventRow, Ordinary
from online.serving.feedback.receipts import HTTP, ReceiptMaker, plain
from online.settings.tokens import Grant
from online.telemetry.trace import current

log = logging.getLogger(__name__)

_LEAST: Final = 2  # a single event is read faster by itself


@dataclass(slots=True, eq=False)
class _Group:
    """Events of one sender that arrived in this turn of the loop, with the future of each."""

    events: list[Event] = field(default_factory=list)
    done: list[OutcomeReceiver] = field(default_factory=list)
    read: Sequence[EventRow | RequestError | None] = ()


class BatchPosition(NamedTuple):
    """The position of an event in its group."""

    group: _Group
    i: int

    @property
    def row(self) -> EventRow | None:
        """The event's row; None before it is read, and if it has to be read by itself."""
        row = self.group.read[self.i] if self.group.read else None
        return row if isinstance(row, EventRow) else None


class EventBatcher:
    """Batches the single events of one model.

    Parameters:
        ordinary: Reads the ordinary events.
        writer: Writes their rows, and reports the outcomes.
    """

    def __init__(self, ordinary: Ordinary, writer: Writer) -> None:
        self._ordinary, self._writer = ordinary, writer
        self._groups: dict[Grant, _Group] = {}

    async def record(self, event: Event) -> tuple[EventRow, Recorded] | None:
        """Write the event's row together with others; return the row and its outcome.

        None: the event has to be read by itself, and nothing was done with it.  Raises
        RequestError, as :meth:`online.replica.writer.Writer.record` does.
        """
        done = asyncio.get_running_loop().create_future()
        place = self.take(event, done)
        recorded, row = await done, place.row
        return None if row is None or recorded is None else (row, recorded)

    def take(self, event: Event, done: OutcomeReceiver) -> BatchPosition:
        """Queue the event to be written with others; ``done`` receives its outcome.

        The outcome is None for an event that has to be read by itself; nothing was done with it.
        """
        grant = sender.get()
        group = self._groups.get(grant)
        if group is None:
            group = self._groups[grant] = _Group()
            # in this request's context, for its sender
            asyncio.get_running_loop().call_soon(self._read, grant, group)
        group.events.append(event)
        group.done.append(done)
        place = BatchPosition(group, len(group.events) - 1)
        if len(group.events) >= self._ordinary.together:
            self._read(grant, group)
        return place

    def _read(self, grant: Grant, group: _Group) -> None:
        """Read the events of one sender, and have their rows written."""
        if self._groups.get(grant) is not group:  # it was full, and read, before its turn
            return
        del self._groups[grant]
        try:
            self._record(group)
        except Exception as error:  # each event is then handled by itself
            if not isinstance(error, RequestError):
                log.warning("events that came together are read one by one: %r", error)
            group.read = ()
        for row, done in zip(group.read or [None] * len(group.done), group.done, strict=True):
            if done.done():
                continue
            if isinstance(row, RequestError):
                done.set_exception(row)
            elif row is None:
                done.set_result(None)

    def _record(self, group: _Group) -> None:
        """Read the ordinary events of a group and have their rows written, all or none."""
        if len(group.events) < _LEAST:
            return
        group.read = self._ordinary.read(group.events)
        several = zip(group.read, group.done, strict=True)
        rows = [(row, done) for row, done in several if isinstance(row, EventRow)]
        if rows:
            event_rows, each = zip(*rows, strict=True)
            self._writer.put([e.row for e in event_rows], [e.example for e in event_rows], each)


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
