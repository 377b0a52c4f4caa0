"""Remembers the slots of deferred events, so that one activation reaches each of them.

Each slot of an event is a choice of its own, under an id made of the event's id and the slot's; an
activation names only the event.  So the slots of a deferred event are written when all are filled,
as one half of a stored join that no label will complete.
"""

from __future__ import annotations

from collections.abc import Sequence, Set

from online.errors import RequestError
from online.messages.sender import sender
from online.messages.structs import Event
from online.rows.joins import question
from online.serving.serving import Serving
from replay import codec
from replay.errors import PayloadFormat, PayloadInvalid
from replay.example import PredictionHalf
from replay.journal.base import Half, NewRow, Stored, Verdict


class DeferredSlots:
    """Stores the ids of the slots of one model's deferred events."""

    def __init__(self, serving: Serving) -> None:
        self._serving, self._replica = serving, serving.replica

    async def check(self, own: str, slots: Sequence[str]) -> None:
        """Raise RequestError if other slots are stored under the id.  Writes nothing."""
        stored = await self.of(own)
        if stored and stored != list(slots):
            raise _other_slots()

    async def keep(self, own: str, slots: Sequence[str]) -> None:
        """Write the slots under an id.  Raises RequestError if others are stored, or no room is."""
        payload = codec.encode_prediction(PredictionHalf(dict.fromkeys(slots, True)))
        source = sender.get().source
        key = self._replica.store.keys.join(source, own)
        stored = await self._append(self._row(key, own, source or "", payload))
        if stored is not None and stored.payload != payload:
            raise _other_slots()

    async def of(self, own: str) -> list[str]:
        """Return the slots that are stored under the id; none if there are none."""
        return (await self._found(own))[1]

    async def drop(self, own: str, rewarded: Set[str]) -> None:
        """Remove the slots that are stored under the id, if all of them have got a reward."""
        stored, slots = await self._found(own)
        if stored is not None and rewarded >= set(slots):
            key, half = stored
            await self._append(self._row(key, own, half.source, b"", half.payload))

    async def _found(self, own: str) -> tuple[tuple[bytes, Stored] | None, list[str]]:
        """Return the half with its key, and the slots in it."""
        for key in self._serving.keys_of(own, Event().source):
            stored = await self._append(question(key, own, self._replica.now_s()))
            if stored is not None and stored.half is Half.PREDICTION:
                try:
                    slots = list(codec.decode_prediction(stored.payload).features)
                except (PayloadFormat, PayloadInvalid):
                    continue
                return (key, stored), slots
        return None, []

    def _row(
        self, key: bytes, own: str, source: str, payload: bytes, over: bytes | None = None
    ) -> NewRow:
        return NewRow(
            key, own, source, Verdict.ACCEPTED, payload, self._replica.now_s(),
            half=Half.PREDICTION, over=over,
        )  # fmt: skip

    async def _append(self, row: NewRow) -> Stored | None:
        """Append a half; return what stands there already.  Raises RequestError without room."""
        recorded = (await self._replica.writer.record([row]))[0]
        if row.over is None and recorded.met is None and recorded.since is None:
            self._replica.counts["joins_refused"] += 1
            message = "no room for another event that waits for its activation"
            hint = "Send it again after Retry-After; nothing was recorded"
            raise RequestError(429, "joins_full", message, "eventId", hint, 1)
        return recorded.met


def _other_slots() -> RequestError:
    hint = "Send the slots of the first time, or another eventId"
    return RequestError(409, "id_in_use", "the event has other slots", "slots", hint)
