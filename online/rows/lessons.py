"""This module finds the lesson that a final label takes back: what has taught its event."""

from __future__ import annotations

from typing import NamedTuple

from online.rows.history import Decisions, again_key, copies, origin
from replay.journal.base import Journal, Row, Verdict


class Lesson(NamedTuple):
    """The row that teaches an event, or would if it was not undone; None: nothing has.

    ``next_key``: of the row that would teach it again, which does not stand; empty: of none.
    """

    row: Row | None
    next_key: bytes


def lesson(journal: Journal, model: str, decisions: Decisions, first: Row) -> Lesson:
    """Find what has taught the event of a first row, or may, whoever is banned now."""
    if first.verdict is not Verdict.QUARANTINED:
        if first.verdict is Verdict.LOST or decisions.failure(first) is not None:
            return Lesson(None, b"")
        if decisions.stands(first):
            return Lesson(first, b"")
    event = origin(first)
    standing, undone, following = copies(journal, model, decisions, event, first)
    if standing is not None or following is None:
        return Lesson(standing or undone, b"")
    return Lesson(undone, again_key(following, event.key.hex()))
