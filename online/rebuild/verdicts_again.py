"""Verdicts about others, derived again while a source is forgotten.

What a hostile source sent is part of what the others were judged by: it moved the model whose
answers their labels were compared with, and what is usual among sources.  So while the journal is
learned again without it, each row is judged once more, in the same order, by the model of that
moment.  What was learned and would be set aside is listed, and what was set aside and would be
learned (that a row would weigh more or less is not).  Nothing is done about it: a row's verdict is
final, and an operator releases what was set aside.

Two things are not as they were.  All rows are judged by one process, where replicas had judged
each its own; and a row is asked when it is learned, not when its prediction was.
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
"""Rows that are listed; all are counted."""


@dataclass(frozen=True, slots=True)
class Changed:
    """A row whose verdict would be another; ``reason``: of the one that stands."""

    row: Row
    now: Verdict
    reason: str


class Review:
    """Judges each row again, before it is learned.

    Parameters:
        filtering: Filters of their own, which nobody else asks.
        learner: What learns the rows again, with the values that it begins with.

    Attributes:
        changed: The first :data:`LISTED_MAX` rows that would have another verdict.
        counts: All of them, by the verdict that stands and the one that would.
    """

    def __init__(self, filtering: Filtering, learner: OrderedLearner) -> None:
        self._filtering, self._learner = filtering, learner
        self.changed: list[Changed] = []
        self.counts: Counter[tuple[Verdict, Verdict]] = Counter()

    def look(self, row: Row) -> None:
        """Judge the row; to be called before it is learned, for all but those forgotten."""
        if row.verdict not in JUDGED or is_again(row):
            return  # what an operator had learned again, nobody judges
        example = codec.decode(row.payload)
        judged = example.judged
        if judged is not None and example.score is not None:
            score = self._learner.score(self._learner.predict(example.features))
            example = msgspec.structs.replace(example, score=score)
        payload = codec.encode(msgspec.structs.replace(example, judged=None))
        asked = NewRow(row.key, row.event_id, row.source, Verdict.ACCEPTED, payload, row.at)
        if judged is None:  # there were too few sources, or a join of a journal of before
            answer = self._filtering.by_standing(asked)
        else:
            (answer,) = self._filtering.judge([asked])
        self._filtering.committed([asked], [Outcome(True, row)])
        self._filtering.passed(row, {})
        if judged is None and row.verdict is Verdict.QUARANTINED:
            return  # its source was banned
        if Verdict.QUARANTINED in (row.verdict, answer.verdict) and answer.verdict != row.verdict:
            self.counts[row.verdict, answer.verdict] += 1
            if len(self.changed) < LISTED_MAX:
                reason = "" if judged is None else judged.reason
                self.changed.append(Changed(row, answer.verdict, reason))

    def summary(self) -> dict[str, Any]:
        """For operators; plain data."""
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
