"""Forgetting a source: the journal learned again without its rows, beside a service that answers.

1. What the source has taught is found, and the newest snapshot from before that (:func:`base_of`).
2. From there the journal is learned again in commit order, by one learner, without the source's
   rows and without those that are undone or have failed (:mod:`online.rebuild.rebuild`).
3. The state is published aside.  A control row of the parameter server then lets it take the
   place of what is served, in one step; what has come meanwhile is learned on top.

The same starts from a snapshot that an operator names.  Randomness is the model's own: a model that
draws none is equal, bit for bit, to one that learned the same rows in this order in one process.
Rehearsal is left out.  Pure over a journal and snapshots: no clock, no HTTP, no Ray.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from online.errors import StartRefused
from online.rebuild.rebuild import Progress, Wanted
from online.rows.finals import corrected
from online.rows.history import Decisions
from paramserver.core import rewrites
from paramserver.core.state import Contained
from paramserver.process import bases
from paramserver.process.shortfall import Acceptance
from paramserver.snapshots.history import SnapshotHistory
from replay.journal.base import Journal, Partition, Row

_PAGE_ROWS: Final = 1_000


@dataclass(slots=True)
class Influence:
    """The rows by which a source has taught a model.

    They are listed by partition, in order, with the time since when the journal has all of them.

    Attributes:
        rows: Offsets of its rows that are in the model or about to be.
        reach: From here on (POSIX seconds) rows of partitions that were trimmed are all there;
            None: nothing was removed.
        loss: What the journal has lost, that the model has learned; None: nothing.
        corrected: Offsets of rows that have taken one of them back: without it they teach
            otherwise.
    """

    rows: dict[int, list[int]] = field(default_factory=dict)
    reach: float | None = None
    loss: Acceptance | None = None
    corrected: dict[int, list[int]] = field(default_factory=dict)

    @property
    def n(self) -> int:
        """How many rows they are."""
        return sum(map(len, self.rows.values()))


def influence(
    journal: Journal,
    model: str,
    decisions: Decisions,
    wanted: Wanted,
    dedupe_from: float,
    progress: Progress | None = None,
) -> Influence:
    """Look at every row of the journal.

    Parameters:
        dedupe_from: Retention removes nothing that was taken since (POSIX seconds).
    """
    found, first = Influence(loss=decisions.loss), dict[int, float]()
    taught: set[tuple[int, int]] = set()
    for row in _rows(journal, model, progress):
        first.setdefault(row.partition, row.at)
        began = row.offset > decisions.without.get(row.partition, 0)
        if began and wanted.meant(row) and decisions.learned(row):
            found.rows.setdefault(row.partition, []).append(row.offset)
            taught.add((row.partition, row.offset))
        elif corrected(row) in taught:
            found.corrected.setdefault(row.partition, []).append(row.offset)
    removed = [p for p in journal.partitions(model) if p.trimmed]
    if removed:
        found.reach = max(first.get(p.id, dedupe_from) for p in removed)
    return found


def _rows(journal: Journal, model: str, progress: Progress | None) -> Iterator[Row]:
    total = sum(p.end - p.trimmed for p in journal.partitions(model))
    after = done = 0
    while True:
        page = journal.follow(model, after, _PAGE_ROWS)
        yield from page.rows
        after, done = page.upto, done + len(page.rows)
        if progress is not None:
            progress(done, max(total, done))
        if len(page.rows) < _PAGE_ROWS:
            return


@dataclass(frozen=True, slots=True)
class Base:
    """Where learning again begins: a snapshot's name (None: nothing), and what that contains."""

    name: str | None
    contained: Contained


class Bases:
    """The snapshots that learning again may begin with.

    One will do if all rows behind it are in the journal, if it has what tables have taught since,
    and if of those in it the same ones are undone as now: else it holds rows that were taken out
    since, or lacks some that are back.

    Parameters:
        partitions: All of the model's.
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
        """Why it will not do; None: it will."""
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
        """A table that is in the model and not in it; None: there is none."""
        before = [c for c in self._controls if c.seq <= base.contained.control]
        has = {based.seq for based in bases.backfills(before, self._spec)}
        for based in reversed(self._taught):
            if based.note.snapshot == base.name:  # a base is from before its own row
                return None
            if based.seq not in has:
                return ", ".join(file.name for file in based.note.files)
        return None

    def clock(self, contained: Contained) -> dict[int, int]:
        """Last offset that it contains of every partition."""
        clock, closed = contained.clock, contained.closed
        return {p.id: p.end if p.id in closed else clock.get(p.id, 0) for p in self._partitions}

    def before(
        self, history: SnapshotHistory, head: str | None, begun: int, found: Influence
    ) -> Base:
        """The newest one from before the first influence.  StartRefused if there is none.

        ``begun``: the epoch in which the lineage last began anew.
        """
        line = [] if head is None else history.line(head)
        kept = [Base(name, c) for name, version, c in line if version[0] >= begun]
        for base in [*kept, self._nothing]:
            clock = self.clock(base.contained)
            changed = [*found.rows.items(), *found.corrected.items()]
            clean = all(rows[0] > clock.get(p, 0) for p, rows in changed if rows)
            if clean and self.why_not(base) is None:
                return base
        raise StartRefused(
            "no snapshot from before the first of these rows can be used, and the journal has "
            "no longer got all rows from the start",
            "Give --since with a later time, or roll back and leave out what comes after: "
            "online rollback --to SNAPSHOT --without-source SOURCE",
        )

    def named(self, history: SnapshotHistory, head: str | None, name: str) -> Base:
        """The one of this name.  Raises StartRefused."""
        line = [] if head is None else history.line(head)
        found = [Base(known, c) for known, _, c in line if known == name]
        if not found:
            raise StartRefused(
                f"{name!r} is no snapshot that the model's present state descends from",
                "`online snapshot list` names those that are kept",
            )
        if (why := self.why_not(found[0])) is not None:
            raise StartRefused(f"{name!r} can't be begun with: {why}", "Name another snapshot")
        return found[0]


def check_reach(found: Influence, wanted: Wanted) -> None:
    """StartRefused if rows of the source may have been removed by retention."""
    if found.reach is not None and (wanted.since is None or wanted.since < found.reach):
        raise StartRefused(
            "the journal has no longer got its oldest rows, which may have been of "
            f"{wanted.source!r}, too: it reaches back to {found.reach:.0f} (POSIX seconds)",
            f"Forget what it has sent since then: --since {found.reach:.0f}",
        )
    if found.loss is not None and (wanted.since is None or wanted.since < found.loss.note.at):
        note = found.loss.note
        raise StartRefused(
            f"the journal has lost {note.events:,} events that the model has learned, which may "
            f"have been of {wanted.source!r}, too (accepted at {note.at:.0f}, POSIX seconds)",
            f"Forget what it has sent since then: --since {math.ceil(note.at)}",
        )
