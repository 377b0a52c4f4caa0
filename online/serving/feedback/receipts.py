"""Makes receipts: the answers that report the outcome of feedback events."""

from __future__ import annotations

import json
from typing import Final

import msgspec
from msgspec.structs import replace

from online.errors import RequestError, damaged
from online.learning.bounds import clipped_reason
from online.learning.vocabulary import full_reason, left_out
from online.messages.structs import Receipt
from online.replica.pending import Recorded
from online.replica.replica import ModelReplica
from online.rows.validator import Validator
from online.serving.feedback.ordinary import EventRow
from replay import codec
from replay.example import UNLABELLED, Example
from replay.journal.base import Row

HTTP: Final = {
    "learned": 200,
    "clipped": 200,
    "duplicate": 200,
    "undone": 200,
    "queued": 202,
    "frozen": 202,
    "quarantined": 202,
    "released": 200,
    "discarded": 200,
    "waiting": 202,
    "conflict": 409,
    "expired": 410,
    "failed": 422,
}
"""Status of the answer about an event, by what became of it."""

_NEVER = ("frozen", "quarantined", "released", "discarded")  # of whose rows no answer has any


class ReceiptMaker:
    """Makes the receipts of one model's events."""

    def __init__(self, replica: ModelReplica, validator: Validator) -> None:
        self._replica, self._validator = replica, validator

    def receipt(self, event: EventRow, recorded: Recorded, field: str) -> Receipt:
        """Return the receipt that the caller is sent.

        Raises RequestError for a label that is not kept, or not any more.
        """
        if (at_once := plain(event, recorded)) is not None:
            return at_once
        receipt = Receipt(
            recorded.status,
            event.row.event_id,
            recorded.version_before,
            recorded.version,
            idempotent=event.idempotent,
            unknown=list(event.unknown) if event.unknown else msgspec.UNSET,
        )
        standing = recorded.row
        if recorded.status == "damaged":
            raise damaged(recorded.reason or "", f"{field}id")
        if standing is None:
            receipt.reason = self._waiting(recorded.since, field)
            return receipt
        if event.row.half is not None and recorded.status == "learned":
            sent = codec.decode(standing.payload).raw  # it was clipped when it was predicted
            recorded = recorded if sent is None else replace(recorded, status="clipped")
            receipt.status = recorded.status
        if recorded.status not in _NEVER:
            receipt.seen = f"{standing.partition}:{standing.offset}"
        receipt.corrects = _corrects(event, standing)
        if recorded.reason:
            receipt.reason = recorded.reason
        elif recorded.status in ("clipped", "quarantined"):
            receipt.reason = _why(codec.decode(standing.payload))
        if recorded.repeat:
            stands = codec.decode(standing.payload)
            first, late = stands.sent_label, _is_provisional(event) and not stands.provisional
            erased = codec.is_erased(standing.payload)
            receipt.duplicate = True
            receipt.first_outcome = recorded.status
            if (again := recorded.learned_as) is not None:
                receipt.learned_as = f"{again.partition}:{again.offset}"
            unlabelled = self._replica.settings.purpose.unlabelled and event.label == UNLABELLED
            same = event.label == first or str(event.label) == str(first)  # 3 and "3" are one class
            alike = erased or late or unlabelled or same
            receipt.status = "duplicate" if alike else "conflict"
            if receipt.status == "conflict":
                shown = json.dumps(self._validator.show(first))
                receipt.reason = f"the {self._words[1]} recorded first is {shown}"
        return receipt

    def among(self, i: int, event: EventRow, recorded: Recorded | RequestError) -> Receipt:
        """Return the receipt of the ``i``-th event of a body; errors go into the receipt."""
        if isinstance(recorded, RequestError):
            return refused(recorded)
        if (at_once := plain(event, recorded)) is not None:
            return at_once
        try:
            return self.receipt(event, recorded, f"events[{i}].")
        except RequestError as error:
            return refused(error)

    @property
    def _words(self) -> tuple[str, str]:
        """Return the terms for the model's answer and for what it learns."""
        chooses = self._replica.settings.reward_range is not None
        return ("choice", "reward") if chooses else ("prediction", "label")

    def _waiting(self, since: float | None, field: str) -> str:
        """Return why a label waits.  Raises RequestError if there is no room, or it has expired."""
        if since is None:
            self._replica.counts["joins_refused"] += 1
            message = "no room for another label that comes before its prediction"
            hint = "Send it again after Retry-After; nothing was recorded"
            raise RequestError(429, "joins_full", message, f"{field}id", hint, 1)
        wait_s = self._replica.settings.label_wait
        if self._replica.now_s() - since > wait_s:
            message = f"no prediction with this id has been recorded for {wait_s:g} s"
            hint = "Send the id of a prediction by this model, or the features with the label"
            raise RequestError(404, "unknown_id", message, f"{field}id", hint)
        asked, told = self._words
        return f"no {asked} with this id has been recorded yet; the {told} is kept for it"


def refused(error: RequestError) -> Receipt:
    """Return the receipt of a refused event among many."""
    body = {"code": error.code, "message": error.message, "field": error.field}
    return Receipt("refused", error={**body, "hint": error.hint})


def plain(event: EventRow, recorded: Recorded) -> Receipt | None:
    """The receipt of an event that was learned, with no further fields."""
    new, row = event.row, recorded.row
    if recorded.status != "learned" or recorded.repeat or recorded.reason or row is None:
        return None
    if new.half is not None or event.unknown or row.key != new.key:
        return None
    return Receipt(
        "learned", new.event_id, recorded.version_before, recorded.version,
        f"{row.partition}:{row.offset}", idempotent=event.idempotent,
    )  # fmt: skip


def _is_provisional(event: EventRow) -> bool:
    return event.example is not None and event.example.provisional


def _corrects(event: EventRow, standing: Row) -> str | msgspec.UnsetType:
    """The row whose lesson the stored one has taken back; UNSET if there is none."""
    if standing.key == event.row.key:
        return msgspec.UNSET
    first = codec.decode(standing.payload).corrects
    if first is None or first.offset == 0:
        return msgspec.UNSET
    return f"{first.partition}:{first.offset}"


def _why(example: Example) -> str:
    """Return why a row was clipped or quarantined."""
    judged, sent = example.judged, example.raw
    if sent is None:
        return "the source is quarantined" if judged is None else judged.reason
    left = left_out(example)
    far = {name: value for name, value in sent.items() if name not in left}
    reasons = [
        full_reason(left) if left else "",
        clipped_reason(far) if far else "",
        "" if judged is None else judged.reason,
    ]
    return "; ".join(filter(None, reasons))
