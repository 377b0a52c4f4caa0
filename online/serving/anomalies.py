"""Models of ``task: anomaly``: their scores, labels that arrive late, and their summary.

A row is learned when it arrives, with a label or without.  A label that arrives later, under the
same id, is written as a row of its own: it judges the answer given then, and teaches nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from evaluation.summary import summary
from online.errors import RequestError
from online.learning.scores import UNLABELLED_ABOVE, UNLABELLED_ROWS
from online.messages.structs import Receipt
from online.models.base import Prediction
from online.replica.pending import Recorded
from online.replica.replica import ModelReplica
from online.rows.finals import late_key
from online.serving.feedback.ordinary import EventRow
from replay import codec
from replay.example import UNLABELLED
from replay.journal.base import NewRow, Verdict


def score_of(replica: ModelReplica, answer: Prediction) -> float | msgspec.UnsetType:
    """The anomaly score of an answer; UNSET for models of other tasks."""
    if not replica.settings.purpose.unlabelled or answer.probabilities is None:
        return msgspec.UNSET
    return answer.probabilities[True]


def _late(replica: ModelReplica, event: EventRow, recorded: Recorded) -> EventRow | None:
    """Make the row of a label that arrived after its event was learned without one; or None.

    An event that was not learned counts nowhere, so there is no answer for its label to judge.
    """
    standing = recorded.row
    if standing is None or not replica.settings.purpose.unlabelled:
        return None
    if not replica.control.decisions.learned(standing):
        return None
    first = codec.decode(standing.payload)
    if codec.is_erased(standing.payload) or first.label != UNLABELLED or event.label == UNLABELLED:
        return None
    example = msgspec.structs.replace(first, label=event.label, taught=True, judged=None)
    row = NewRow(
        late_key(standing.key), event.row.event_id, event.row.source,
        Verdict.ACCEPTED, codec.encode(example), replica.now_s(),
    )  # fmt: skip
    return EventRow(row, event.label, event.idempotent, example)


async def late(
    replica: ModelReplica,
    receipts: Sequence[Receipt | None],
    rows: Sequence[tuple[int, EventRow]],
    recorded: Sequence[Recorded],
) -> list[tuple[int, EventRow, Recorded | RequestError]]:
    """Record, in one commit, the labels among these rows whose events were learned without one.

    ``rows``: the new rows with their indexes into ``receipts``; ``recorded``: their outcomes.
    Returns the index, row and outcome of each late label.  An error concerns these labels only: the
    other rows are already recorded.
    """
    some: list[tuple[int, EventRow]] = []
    for (i, event), result in zip(rows, recorded, strict=True):
        receipt = receipts[i]
        if receipt is not None and receipt.status == "conflict":
            one = _late(replica, event, result)
            some += [] if one is None else [(i, one)]
    if not some:
        return []
    given = [one.row for _, one in some], [one.example for _, one in some]
    taken: Sequence[Recorded | RequestError]
    try:
        taken = await replica.writer.record(*given)
    except RequestError as error:
        taken = [error] * len(some)
    return [(i, one, result) for (i, one), result in zip(some, taken, strict=True)]


def summary_of(replica: ModelReplica) -> dict[str, Any] | None:
    """Return how many learned rows were answered as anomalies; None for other tasks."""
    if (anomaly := replica.settings.anomaly) is None:
        return None
    counters = replica.learner.tally.counters
    labelled = summary("binary", counters)
    predicted = sum(one.said for one in labelled.classes if one.label is True)
    unlabelled = counters.get(UNLABELLED_ROWS, 0)
    rows, above = labelled.n + unlabelled, predicted + counters.get(UNLABELLED_ABOVE, 0)
    return {
        "threshold": anomaly.threshold, "rows": int(rows), "unlabelled": int(unlabelled),
        "above": int(above), "share": above / rows if rows else None,
    }  # fmt: skip
