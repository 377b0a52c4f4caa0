"""Forgets a source: relearns the journal without its rows, beside a service that answers.

1. Finds the rows that the source has taught, and the newest snapshot before the first of them
   (:class:`Bases`).
2. From there relearns the journal in commit order with one learner, without the source's rows and
   without undone or failed ones (:mod:`online.rebuild.rebuild`).
3. Publishes the state aside.  A control row of the parameter server then makes it replace the
   served state in one step; rows that came meanwhile are learned on top.

An operator can name another snapshot to begin with.  Randomness is the model's own: a model that
draws no random numbers is equal, bit for bit, to one that learned the same rows in this order in
one process.  Rehearsal is left out.  Depends only on a journal and snapshots: no clock, no HTTP, no
Ray.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from online.errors import StartRefused
from online.rebuild.rebuild import ForgetScope, Progress
from online.rows.finals import corrected, late_key
from online.rows.history import Decisions
from online.rows.in_order import PAGE_ROWS, rows_after
from paramserver.core import rewrites
from paramserver.core.state import Contained
from paramserver.process import bases
from paramserver.process.shortfall import Acceptance
from paramserver.snapshots.history import SnapshotHistory
from replay.journal.base import Journal, Partition


@dataclass(slots=True)
class Influence:
    """The rows by which a source has influenced a model.

    Attributes:
        rows: By partition, sorted offsets of its rows that are in the model or about to be.
        reach: From this time on (POSIX seconds) trimmed partitions have all their rows; None:
            nothing was trimmed.
        loss: Events that the model has learned and the journal has lost; None: no loss.
        corrected: By partition, offsets of rows that correct or label one of ``rows``: without that
            row they have another effect, or none.
    """

    rows: dict[int, list[int]] = field(default_factory=dict)
    reach: float | None = None
    loss: Acceptance | None = None
    corrected: dict[int, list[int]] = field(default_factory=dict)

    @property
    def n(self) -> int:
        """Number of the source's rows."""
        return sum(map(len, self.rows.values()))


def influence(
    journal: Journal,
    model: str,
    decisions: Decisions,
    wanted: ForgetScope,
    dedupe_from: float,
    progress: Progress | None = None,
) -> Influence:
    """Read every row of the journal and find the source's.

    Parameters:
        dedupe_from: Retention removes no row that was received since (POSIX seconds).
    """
    influence, first = Influence(loss=decisions.loss), dict[int, float]()
    taught, late = set[tuple[int, int]](), set[bytes]()
    total = sum(p.end - p.trimmed for p in journal.partitions(model))
    for done, row in enumerate(rows_after(journal, model), 1):
        if progress is not None and done % PAGE_ROWS == 0:
            progress(done, max(done, total))
        first.setdefault(row.partition, row.at)
        began = row.offset > decisions.without.get(row.partition, 0)
        if began and wanted.meant(row) and decisions.learned(row):
            influence.rows.setdefault(row.partition, []).append(row.offset)
            taught.add((row.partition, row.offset))
            late.add(late_key(row.key))
        elif corrected(row) in taught or row.key in late:
            influence.corrected.setdefault(row.partition, []).append(row.offset)
    removed = [p for p in journal.partitions(model) if p.trimmed]
    if removed:
        influence.reach = max(first.get(p.id, dedupe_from) for p in removed)
    return influence


@dataclass(frozen=True, slots=True)
class Base:
    """A snapshot to begin with (name None: the empty state), and what it contains."""

    name: str | None
    contained: Contained


class Bases:
    """The snapshots with which relearning may begin.

    A snapshot can be used if all rows behind it are in the journal, if it contains every backfill
    so far, and if the undone rows within it are those that are undone now.  Otherwise it contains
    rows that were undone since, or lacks some that were restored.

    Parameters:
        partitions: All partitions of the model.
    """

    def __init__(
        self, journal: Journal, model: str, decisions: Decisions, partitions: Sequence[Partition]
    ) -> None:
        self._partitions, self._now = partitions, decisions.undone
        self._loss = decisions.loss
        self._controls = journal.controls(model, 0)
        self._spec = decisions.spec
        self._taught = bases.backfills(self._controls, self._spec)
        self._nothing = Base(None, Contained(dict(decisions.without), frozenset()))

    def why_not(self, base: Base) -> str | None:
        """The reason why a snapshot can't be used; None: it can."""
        clock = self.clock(base.contained)
        gone = sum(max(p.trimmed - clock[p.id], 0) for p in self._partitions)
        if gone:
            return f"{gone:,} rows behind it were removed by retention"
        if self._loss is not None and base.contained.control < self._loss.note.control:
            return f"{self._loss.note.events:,} events behind it are lost from the journal"
        if (lacks := self._lacks(base)) is not None:
            return f"it lacks what {lacks} has taught: a backfill came after it"
        then = rewrites.undone(c for c in self._controls if c.seq <= base.contained.control)
        if then.upto(clock) != self._now.upto(clock):
            return "other rows of it are undone by now: a rollback or a forget came after it"
        return None

    def _lacks(self, base: Base) -> str | None:
        """Files of a backfill that is in the model and not in the snapshot; None: there is none."""
        before = [c for c in self._controls if c.seq <= base.contained.control]
        has = {based.seq for based in bases.backfills(before, self._spec)}
        for based in reversed(self._taught):
            if based.note.snapshot == base.name:  # a backfill's snapshot precedes its control row
                return None
            if based.seq not in has:
                return ", ".join(file.name for file in based.note.files)
        return None

    def clock(self, contained: Contained) -> dict[int, int]:
        """Last offset of every partition that a snapshot contains."""
        clock, closed = contained.clock, contained.closed
        return {p.id: p.end if p.id in closed else clock.get(p.id, 0) for p in self._partitions}

    def before(
        self, history: SnapshotHistory, head: str | None, begun: int, influence: Influence
    ) -> Base:
        """The newest usable snapshot before the first influence.  Raises StartRefused without one.

        Parameters:
            begun: The epoch in which the lineage was last begun anew.
        """
        line = [] if head is None else history.line(head)
        bases = [Base(name, c) for name, version, c in line if version[0] >= begun]
        why: str | None = None
        for base in [*bases, self._nothing]:
            clock = self.clock(base.contained)
            changed = [*influence.rows.items(), *influence.corrected.items()]
            clean = all(rows[0] > clock.get(p, 0) for p, rows in changed if rows)
            if not clean:
                continue
            if (why := self.why_not(base)) is None:
                return base
        raise StartRefused(
            f"no snapshot from before the first of these rows can be used, nor the start: {why}",
            "Give --since with a later time, or roll back and leave out what comes after: "
            "online rollback --to SNAPSHOT --without-source SOURCE",
        )

    def named(self, history: SnapshotHistory, head: str | None, name: str) -> Base:
        """The usable snapshot of this name.  Raises StartRefused."""
        line = [] if head is None else history.line(head)
        matching = [Base(known, c) for known, _, c in line if known == name]
        if not matching:
            raise StartRefused(
                f"{name!r} is no snapshot that the model's present state descends from",
                "`online snapshot list` names the kept snapshots",
            )
        if (why := self.why_not(matching[0])) is not None:
            raise StartRefused(f"{name!r} can't be begun with: {why}", "Name another snapshot")
        return matching[0]


def check_reach(influence: Influence, wanted: ForgetScope) -> None:
    """Raise StartRefused if retention may have removed rows of the source."""
    if influence.reach is not None and (wanted.since is None or wanted.since < influence.reach):
        raise StartRefused(
            "the journal has no longer got its oldest rows, which may have been of "
            f"{wanted.source!r}, too: it reaches back to {influence.reach:.0f} (POSIX seconds)",
            f"Forget what it has sent since then: --since {influence.reach:.0f}",
        )
    if influence.loss is not None and (
        wanted.since is None or wanted.since < influence.loss.note.at
    ):
        note = influence.loss.note
        raise StartRefused(
            f"the journal has lost {note.events:,} events that the model has learned, which may "
            f"have been of {wanted.source!r}, too (accepted at {note.at:.0f}, POSIX seconds)",
            f"Forget what it has sent since then: --since {math.ceil(note.at)}",
        )
