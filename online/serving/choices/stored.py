"""Decodes the stored half of a choice, for whatever comes after the choice."""

from __future__ import annotations

from online.decide.record import Choice, RecordInvalid, unpack
from online.errors import RequestError, damaged
from replay import codec
from replay.errors import PayloadFormat, PayloadInvalid
from replay.example import PredictionHalf
from replay.journal.base import Stored


def choice_of(packed: bytes | None, missing: RequestError) -> Choice:
    """Decode a choice.  Raises ``missing`` if there is none, and RequestError if it is damaged."""
    if packed is None:
        raise missing
    try:
        return unpack(packed)
    except RecordInvalid as error:
        raise damaged(str(error), "id") from None


def read_half(stored: Stored, missing: RequestError) -> tuple[PredictionHalf, Choice]:
    """Decode a half and its choice; raises as :func:`choice_of`."""
    try:
        made = codec.decode_prediction(stored.payload)
    except (PayloadFormat, PayloadInvalid) as error:
        raise damaged(str(error), "id") from None
    return made, choice_of(made.choice, missing)
