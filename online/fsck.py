"""Is every accepted event of the journal in the model exactly once?  The digest tells.

The digest is an integer block: the count of learned events and the sum of their keys' hashes
modulo 2^64.  It is pushed with the deltas and never scaled, so it checks the set of events, not
only their number, with any model and merge rule.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from online.config import Settings
from online.names import load_model, open_journal, snapshots_path
from online.tally import DIGEST, event_hash
from online.tokens import Keys
from paramserver.snapshots.format import decode
from paramserver.snapshots.places import lineage_place, open_snapshots
from replay.journal.base import Control, Journal, Partition, Verdict

_PAGE = 1000
_MASK = 2**64 - 1


@dataclass(frozen=True, slots=True)
class Findings:
    """What the newest snapshot holds, and what the journal says that it must hold."""

    model: str
    snapshot: str | None
    learned: int
    expected: int
    digest_equal: bool
    holes: int
    not_yet: int
    failed: int

    @property
    def good(self) -> bool:
        """No event is missing or counted twice, and no partition has a hole."""
        return self.digest_equal and self.holes == 0

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {**asdict(self), "good": self.good}

    def __str__(self) -> str:
        verdict = "good" if self.good else "NOT GOOD"
        return (
            f"{self.model}: {verdict}\n"
            f"  snapshot {self.snapshot}: {self.learned:,} events; the journal up to its clock: "
            f"{self.expected:,}; digests {'equal' if self.digest_equal else 'DIFFER'}\n"
            f"  {self.not_yet:,} rows after it, {self.failed:,} failed, {self.holes:,} holes"
        )


def check(settings: Settings, model: str) -> Findings:
    """Compare the newest snapshot of the model's lineage with the journal up to its clock."""
    chosen = next(m for m in settings.models if m.name == model)
    secret = Keys.from_file(settings.key_path).secret
    spec = load_model(chosen, settings, secret).spec_hash
    with contextlib.closing(open_journal(settings)) as journal:
        head = journal.head(model, spec).snapshot
        clock: dict[int, int] = {}
        closed: frozenset[int] = frozenset()
        digest = {"count": 0, "sum": 0}
        if head is not None:
            stored = open_snapshots(lineage_place(snapshots_path(settings), model, spec))
            state = decode(stored.load(head))
            clock, closed = dict(state.clock), state.closed
            if DIGEST in state.values:
                digest = state.values[DIGEST].data
        controls = journal.controls(model, 0)
        mine = f"failed:{spec[:16]}:"
        failed = {c.key.removeprefix(mine) for c in controls if c.key.startswith(mine)}
        skipped = _skipped(controls, spec)
        count = total = holes = later = 0
        for partition in journal.partitions(model):
            upto = partition.end if partition.id in closed else clock.get(partition.id, 0)
            later += partition.end - upto
            found = _count(journal, partition, skipped.get(partition.id, 0), upto, failed)
            count, total, holes = count + found[0], (total + found[1]) & _MASK, holes + found[2]
    equal = (count, total) == (digest["count"], digest["sum"])
    return Findings(model, head, digest["count"], count, equal, holes, later, len(failed))


def _skipped(controls: Sequence[Control], spec: str) -> dict[int, int]:
    """Offsets up to which partitions were left out when the lineage was begun afresh."""
    skipped: dict[int, int] = {}
    for control in controls:
        if control.kind == "fresh":
            note = json.loads(control.payload)
            if note["spec"] == spec:
                skipped = {int(p): offset for p, offset in note["clock"].items()}
    return skipped


def _count(
    journal: Journal, partition: Partition, skipped: int, upto: int, failed: set[str]
) -> tuple[int, int, int]:
    """Learned rows after ``skipped``, the sum of their hashes, and holes in one partition."""
    count = total = 0
    expected = skipped + 1
    while expected <= upto:
        rows = journal.read(partition.id, expected, min(_PAGE, upto - expected + 1))
        for row in rows:
            learned = row.verdict in (Verdict.ACCEPTED, Verdict.CLIPPED)
            if learned and row.key.hex() not in failed:
                count, total = count + 1, total + event_hash(row.key)
        if len(rows) != min(_PAGE, upto - expected + 1):
            return count, total, upto - expected + 1 - len(rows)
        expected += len(rows)
    return count, total, 0
