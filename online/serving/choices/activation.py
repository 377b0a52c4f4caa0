"""Activates deferred choices: from their activation on they wait for a reward."""

from __future__ import annotations

from typing import Final

import msgspec

from online.decide.record import pack
from online.errors import RequestError, damaged
from online.messages.structs import Event
from online.rows.joins import ROUNDS_MAX, question
from online.rows.prediction_ids import TokenInvalid
from online.serving.choices.stored import read_half
from online.serving.feedback.events import is_join_id
from online.serving.serving import Serving
from replay import codec
from replay.journal.base import Half, NewRow, Verdict

_HINT: Final = "Send the id of a choice that was deferred"


async def activate(serving: Serving, id: str, source: str = Event().source) -> None:
    """Mark a deferred choice as used.

    A choice that is not deferred, or has its reward, is left unchanged.  Raises RequestError.
    """
    if is_join_id(id):
        for key in serving.keys_of(id, source):
            if await _activated(serving, id, key):
                serving.replica.counts["choices_activated"] += 1
                return
        raise RequestError(404, "unknown_id", "no choice has this id", "id", _HINT)
    try:  # deferred choices have no tokens, so there is nothing to write
        serving.answer_ids.tokens.read(id)
    except TokenInvalid as error:
        raise RequestError(404, "unknown_id", f"id: {error}", "id", _HINT) from None


async def _activated(serving: Serving, id: str, key: bytes) -> bool:
    """Activate the choice that is stored under a key; return whether there is one."""
    replica = serving.replica
    row = question(key, id, replica.now_s())
    for _ in range(ROUNDS_MAX):
        recorded = (await replica.writer.record([row]))[0]
        if recorded.status == "damaged":
            raise damaged(recorded.reason or "", "id")
        if recorded.row is not None:
            return True
        if (stored := recorded.met) is None:
            return recorded.since is not None
        if stored.half is not Half.PREDICTION:
            return False
        missing = RequestError(404, "unknown_id", "a prediction has this id", "id", _HINT)
        made, choice = read_half(stored, missing)
        if not choice.deferred:
            return True
        used = pack(msgspec.structs.replace(choice, deferred=False))
        payload = codec.encode_prediction(msgspec.structs.replace(made, choice=used))
        row = NewRow(
            key, id, stored.source, Verdict.ACCEPTED, payload, replica.now_s(),
            half=Half.PREDICTION, over=stored.payload,
        )  # fmt: skip
    message = f"others were faster {ROUNDS_MAX} times"
    raise RequestError(503, "journal_unavailable", message, "id", "Send it again", 1)
