"""Derives the verdicts on other sources again while a source is forgotten.

A hostile source influenced how the others were judged: it moved the model whose predictions their
labels were compared with, and the statistics over sources.  While the journal is relearned without
it, each row is therefore judged once more, in the same order, by the model of that moment.  Listed
are rows that were learned and would be quarantined, and rows that were quarantined and would be
learned; changes of a weight are not listed.  Nothing is changed: verdicts are final, and an
operator can release quarantined rows.

Two conditions differ from the original ones: one process judges all rows, where each replica had
judged its own, and a row is predicted when it is learned, not when it was requested.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from online.learning.ordered import OrderedLearner
from online.rows.history import is_again
from online.trust.filtering import Filtering
from replay import codec
from replay.journal.base import NewRow, Outcome, Row, Verdict

JUDGED: Final = (Verdict.ACCEPTED, Verdict.CLIPPED, Verdict.QUARANTINED)
LISTED_MAX: Final = 1_000
"""Most rows that are listed; all are counted."""


@dataclass(frozen=True, slots=True)
class Changed:
    """A row whose verdict would change; ``reason`` is that of the present verdict."""

    row: Row
    now: Verdict
    reason: str


class Review:
    """Judges each row again before it is learned.

    Parameters:
        filtering: A chain of filters for this purpose only.
        learner: The learner that relearns the rows, with the values that it begins with.

    Attributes:
        changed: The first :data:`LISTED_MAX` rows that would have another verdict.
        counts: Number of such rows, by present and new verdict.
    """

    def __init__(self, filtering: Filtering, learner: OrderedLearner) -> None:
        self._filtering, self._learner = filtering, learner
        self.changed: list[Changed] = []
        self.counts: Counter[tuple[Verdict, Verdict]] = Counter()

    def look(self, row: Row) -> None:
        """Judge a row before it is learned; call it for all rows but the forgotten ones."""
        if row.verdict not in JUDGED or is_again(row):
            return  # an operator's decision is not judged
        example = codec.decode(row.payload)
        judged = example.judged
        if judged is not None and example.score is not None:
            score = self._learner.score(self._learner.predict(example.features))
            example = msgspec.structs.replace(example, score=score)
        payload = codec.encode(msgspec.structs.replace(example, judged=None))
        row_again = NewRow(row.key, row.event_id, row.source, Verdict.ACCEPTED, payload, row.at)
        if judged is None:  # too few sources at that time, or a join of an older journal version
            answer = self._filtering.by_standing(row_again)
        else:
            (answer,) = self._filtering.judge([row_again])
        self._filtering.committed([row_again], [Outcome(True, row)])
        self._filtering.passed(row, None)
        if judged is None and row.verdict is Verdict.QUARANTINED:
            return  # its source was banned
        if Verdict.QUARANTINED in (row.verdict, answer.verdict) and answer.verdict != row.verdict:
            self.counts[row.verdict, answer.verdict] += 1
            if len(self.changed) < LISTED_MAX:
                reason = "" if judged is None else judged.reason
                self.changed.append(Changed(row, answer.verdict, reason))

    def summary(self) -> dict[str, Any]:
        """Summary for operators, as plain data."""
        return {
            "changed": self.counts.total(),
            "verdicts": [
                {"was": was.value, "now": now.value, "n": n}
                for (was, now), n in self.counts.most_common()
            ],
            "events": [
                {
                    "row": f"{c.row.partition}:{c.row.offset}", "event_id": c.row.event_id,
                    "source": c.row.source, "was": c.row.verdict.value, "now": c.now.value,
                    "reason": c.reason,
                }
                for c in self.changed
            ],
        }  # fmt: skip
