"""Tells what became of an event, from its row and from what was decided since."""

from __future__ import annotations

from typing import Final

from online.learning.base import BaseLearner
from online.rows import history
from replay.journal.base import Row, Verdict

_LEARNED_AS: Final = {Verdict.ACCEPTED: "learned", Verdict.CLIPPED: "clipped"}
_FROZEN, _QUARANTINED = Verdict.FROZEN, Verdict.QUARANTINED  # Python looks these up slowly


class Fates:
    """Statuses of rows of one model.

    Parameters:
        follows: The local model if another process learns the rows; None: this one does.
    """

    def __init__(self, decisions: history.Decisions, follows: BaseLearner | None) -> None:
        self._decisions, self._follows = decisions, follows

    def status(self, row: Row, reason: str | None) -> str:
        """Return what became of the row; ``reason``: why it could not be learned."""
        decisions = self._decisions
        if reason:
            return "failed"
        if row.verdict is _FROZEN:
            return "frozen"
        if row.verdict is _QUARANTINED:
            return decisions.choice(history.origin(row)) or "quarantined"
        if decisions.undone.has(row.partition, row.offset):
            return "undone"
        learned = _LEARNED_AS.get(row.verdict, "learned")
        return learned if self._follows is None or self.is_there(row) else "queued"

    def is_there(self, row: Row) -> bool:
        """Whether another process has learned the row, and the answers here count it."""
        return self._follows is not None and self._follows.includes(row.partition, row.offset)
