"""Several writers, lost answers, joins, trimming, seals, restarts, epochs: against lists and dicts.

The oracle keeps what the journal promises in words: a list of events per partition, who has a
key, which halves wait.  It shares no code with the journal.  A subclass opens the journal that is
tested, with room for ``HALVES`` halves of a model.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from itertools import cycle, takewhile
from pathlib import Path
from typing import ClassVar

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule

from replay.errors import EpochLost, JournalBehind, PartitionSealed
from replay.journal.base import Half, Head, Journal, NewRow, Outcome, Row, Verdict

HALVES = 4
MODELS = ("m", "n")
SPECS = ("x", "y")
keys = st.integers(0, 24)
sides = st.sampled_from([None, None, None, *Half])
models = st.sampled_from(MODELS)
specs = st.sampled_from(SPECS)
handles = st.integers(0, 1)
ages = st.integers(0, 9)


@dataclass
class Event:
    """A row as the oracle knows it."""

    key: int
    content: bytes
    event_id: str
    at: float
    gone: bool = False


Answer = tuple[bool, float | None, bytes | None, bool, tuple[int, int, bytes] | None]
"""Is it new, since when it waits, what it met there, has that gone, and the row."""


class Oracle:
    """What the journal has to say, in lists and dicts."""

    def __init__(self) -> None:
        self.model_of: dict[int, str] = {}
        self.events: dict[int, list[Event]] = {}  # by offset - 1
        self.sealed: set[int] = set()
        self.halves: dict[tuple[str, int], NewRow] = {}
        self.owner: dict[tuple[str, int], tuple[int, int]] = {}  # partition and offset of a key
        self.owner_then: dict[tuple[str, int], tuple[int, int]] = {}
        self.turns = cycle((1, 0))  # which process is compared
        self.heads: dict[tuple[str, str], tuple[int, str | None]] = {}
        self.changes: list[tuple[str, str]] = []
        self.controls: dict[str, list[tuple[str, str, bytes]]] = {m: [] for m in MODELS}

    def expect(self, p: int, known: int, row: NewRow, reported: set[int]) -> Answer:
        """What a row of a batch must be answered; writes it into the oracle."""
        model, key, mine = self.model_of[p], row.key[0], self.events[p]
        waits = self.halves.get((model, key))
        if (model, key) in self.owner:
            where, offset = self.owner[model, key]
            event = self.events[where][offset - 1]
            own = where == p and offset > known and key not in reported and row.half is None
            if own:
                reported.add(key)
            return own, None, None, False, (where, offset, event.content)
        if waits is None and row.over is not None:
            return False, None, None, True, None
        if waits is not None and (row.half or row.over) and row.over != waits.payload:
            same = waits.payload == row.payload
            return False, waits.at, None if same else waits.payload, False, None
        if row.half:
            if waits is None and sum(m == model for m, _ in self.halves) >= HALVES:
                return False, None, None, False, None
            self.halves[model, key] = row
            return False, row.at, None, False, None
        self.halves.pop((model, key), None)
        mine.append(Event(key, row.payload, row.event_id, row.at))
        self.owner[model, key] = (p, len(mine))
        reported.add(key)
        return True, None, None, False, (p, len(mine), row.payload)

    def of(self, model: str) -> list[int]:
        return sorted(p for p, m in self.model_of.items() if m == model)

    def due(self, p: int, model: str, upto: int, before: int) -> list[Event]:
        """The events of a partition that go, oldest first."""
        left = [event for event in self.events[p][:upto] if not event.gone]
        if self.model_of[p] != model:
            return []
        return list(takewhile(lambda event: event.at < before, left))

    def compare(self, journal: Journal, owners: Iterable[tuple[str, int]]) -> None:
        """The journal has what this has; of keys, it is asked for those of ``owners``."""
        stored: list[Row] = []
        for model in MODELS:
            ours = self.of(model)
            states = [(p.id, p.end, p.sealed, p.trimmed) for p in journal.partitions(model)]
            gone = {p: sum(e.gone for e in self.events[p]) for p in ours}
            assert states == [(p, len(self.events[p]), p in self.sealed, gone[p]) for p in ours]
            for p in ours:
                assert not gone[p] or journal.read(p, gone[p], 1000) == ()
                rows = journal.read(p, gone[p] + 1, 1000)
                assert [(r.key[0], r.payload, r.event_id, r.at) for r in rows] == [
                    (e.key, e.content, e.event_id, e.at) for e in self.events[p] if not e.gone
                ]
                stored += rows
            usage = journal.usage(model)
            assert usage.rows == sum(len(self.events[p]) - gone[p] for p in ours)
            assert usage.halves == sum(m == model for m, _ in self.halves)
            specs_seen = [s for m, s in self.changes if m == model]
            assert list(journal.lineages(model)) == specs_seen
            for spec in SPECS:
                assert journal.head(model, spec) == Head(*self.heads.get((model, spec), (0, None)))
            got = [(c.seq, c.kind, c.key, c.payload) for c in journal.controls(model, 0)]
            assert got == [(i, *c) for i, c in enumerate(self.controls[model], 1)]
        assert len({r.seq for r in stored}) == len(stored)
        for model, key in owners:
            found = journal.find(model, bytes([key]) * 16)
            owner = self.owner.get((model, key))
            assert (found and (found.partition, found.offset)) == owner

    def changed(self) -> set[tuple[str, int]]:
        """Each model's keys whose rows are others than when this was asked last."""
        before, self.owner_then = self.owner_then, dict(self.owner)
        return {key for key, _ in before.items() ^ self.owner.items()}

    def keys(self) -> set[tuple[str, int]]:
        """Each model's keys that have ever been in a row."""
        return {(self.model_of[p], e.key) for p, events in self.events.items() for e in events}


class JournalMachine(RuleBasedStateMachine):
    """Two processes on one store (two objects), any number of writers on either."""

    open_journal: ClassVar[Callable[[Path], Journal]]
    """Opens the journal that belongs to a folder (staticmethod)."""
    writers = Bundle("writers")

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.open: list[Journal] = [self.make(), self.make()]
        self.oracle = Oracle()
        self.known: dict[int, int] = {}
        self.unanswered: dict[int, list[NewRow]] = {}
        self.told: dict[int, tuple[Outcome, ...]] = {}  # what the lost answer said
        self.claims: dict[tuple[int, int], int] = {}
        self.serial = 0

    def make(self) -> Journal:
        return type(self).open_journal(self.folder)

    def teardown(self) -> None:
        try:
            for journal in self.open:
                self.oracle.compare(journal, self.oracle.keys())
            assert self.open[0].examine(lambda done, total: None).damage == ()
        finally:
            for journal in self.open:
                journal.close()
            shutil.rmtree(self.folder)

    def fresh(
        self, p: int, key: int, side: Half | None = None, at: int = 1, over: bytes | None = None
    ) -> NewRow:
        self.serial += 1
        content, name = b"%d" % self.serial, f"e{self.serial}"
        key_ = bytes([key]) * 16
        return NewRow(key_, name, "s", Verdict.ACCEPTED, content, float(at), half=side, over=over)

    @initialize(target=writers, model=models)
    def first_writer(self, model: str) -> int:
        self.begin_epoch(0, model, "x", 0)
        return self.register(0, model)

    @rule(target=writers, h=handles, model=models)
    def new_writer(self, h: int, model: str) -> int:
        return self.register(h, model)

    def register(self, h: int, model: str) -> int:
        made = self.open[h].register(model, "r", "x", 1.0)
        assert made.id not in self.oracle.model_of
        assert (made.end, made.sealed) == (0, False)
        self.oracle.model_of[made.id], self.oracle.events[made.id] = model, []
        self.known[made.id] = 0
        return made.id

    @rule(
        h=handles,
        p=writers,
        chosen=st.lists(st.tuples(keys, sides, ages), min_size=3, max_size=8),
        lost=st.booleans(),
    )
    def append(
        self, h: int, p: int, chosen: list[tuple[int, Half | None, int]], lost: bool
    ) -> None:
        """A writer without an answer sends its batch again until it has one."""
        batch = self.unanswered.get(p) or [self.fresh(p, *words) for words in chosen]
        self.send(h, p, self.known[p], batch, lost)

    @rule(
        h=handles,
        p=writers,
        chosen=st.lists(st.tuples(keys, sides), min_size=1, max_size=4),
        back=st.integers(1, 3),
    )
    def append_late(self, h: int, p: int, chosen: list[tuple[int, Half | None]], back: int) -> None:
        """An old message arrives: known is lower than what the writer knows by now."""
        known = max(0, self.known[p] - back)
        self.send(h, p, known, [self.fresh(p, *words) for words in chosen], lost=True, late=True)

    @rule(
        h=handles,
        p=writers,
        side=st.sampled_from([None, *Half]),
        wrong=st.sampled_from([False, False, True]),
        n=st.integers(0, HALVES - 1),
    )
    def take_a_place(self, h: int, p: int, side: Half | None, wrong: bool, n: int) -> None:
        """A row or a half over what stands, or over what has never stood there."""
        model = self.oracle.model_of[p]
        waiting = [key for m, key in self.oracle.halves if m == model]
        if not waiting:
            return
        key = waiting[n % len(waiting)]
        over = b"never" if wrong else self.oracle.halves[model, key].payload
        batch = self.unanswered.get(p) or [self.fresh(p, key, side, 5, over)]
        self.send(h, p, self.known[p], batch, lost=wrong)

    @rule(h=handles, p=writers, n=st.integers(0, 9))
    def repeat(self, h: int, p: int, n: int) -> None:
        """An event that this partition has comes again."""
        left = [event.key for event in self.oracle.events[p] if not event.gone]
        if left:
            batch = self.unanswered.get(p) or [self.fresh(p, left[n % len(left)], at=5)]
            self.send(h, p, self.known[p], batch, lost=False)

    def send(
        self, h: int, p: int, known: int, batch: list[NewRow], lost: bool, late: bool = False
    ) -> None:
        model, mine = self.oracle.model_of[p], self.oracle.events[p]
        if p in self.oracle.sealed:
            with pytest.raises(PartitionSealed) as refusal:
                self.open[h].append(p, known, batch)
            assert refusal.value.end == len(mine)
            return
        reported: set[int] = set()
        expected = [self.oracle.expect(p, known, row, reported) for row in batch]
        answer = self.open[h].append(p, known, batch)
        got = [
            (
                o.new,
                o.since,
                o.met and o.met.payload,
                o.gone,
                o.row and (o.row.partition, o.row.offset, o.row.payload),
            )
            for o in answer.outcomes
        ]
        assert got == expected
        epochs = [epoch for (m, _), (epoch, _) in self.oracle.heads.items() if m == model]
        assert (answer.end, answer.epoch) == (len(mine), max(epochs, default=0))
        if not late:
            self.same_as_at_first(self.told.pop(p, ()), answer.outcomes)
            self.unanswered.pop(p, None)
        if lost and not late:
            self.unanswered[p], self.told[p] = batch, answer.outcomes
        elif not lost:
            self.known[p] = answer.end

    def same_as_at_first(self, told: tuple[Outcome, ...], again: tuple[Outcome, ...]) -> None:
        """A lost answer's rows stand, unless they were trimmed; a half may have found its row."""
        for before, now in zip(told, again, strict=False):
            stands = (
                before.row
                and not self.oracle.events[before.row.partition][before.row.offset - 1].gone
            )
            if stands:
                assert (now.new, now.row) == (before.new, before.row)

    @rule(h=handles, model=models, before=ages, n=st.integers(1, 4))
    def expire(self, h: int, model: str, before: int, n: int) -> None:
        old = [k for k, row in self.oracle.halves.items() if k[0] == model and row.at < before]
        removed = self.open[h].expire(model, float(before), n)
        assert removed == min(n, len(old))
        if removed < len(old):  # which of equally old ones is free: all go
            while self.open[h].expire(model, float(before), n):
                pass
        for key in old:
            del self.oracle.halves[key]

    @rule(
        h=handles,
        model=models,
        spec=specs,
        behind=st.sampled_from([None, None, None, None, 0, 1, -1]),
        before=st.integers(0, 12),
        n=st.integers(1, 30),
        data=st.data(),
    )
    def trim(
        self,
        h: int,
        model: str,
        spec: str,
        behind: int | None,
        before: int,
        n: int,
        data: st.DataObject,
    ) -> None:
        """By the newest lineage's server, or by one of any lineage, at its epoch or not."""
        floors = {p: data.draw(st.integers(0, len(e) + 1)) for p, e in self.oracle.events.items()}
        if behind is None:
            spec = next((s for m, s in reversed(self.oracle.changes) if m == model), spec)
        epoch = self.oracle.heads.get((model, spec), (0, None))[0]
        asked = epoch - (behind or 0)
        call = partial(self.open[h].trim, model, spec, asked, floors, float(before))
        if asked != epoch or not epoch:
            with pytest.raises(EpochLost):
                call(n)
            return
        newest = [s for m, s in self.oracle.changes if m == model][-1] == spec
        due = [
            (p, e) for p in floors if newest for e in self.oracle.due(p, model, floors[p], before)
        ]
        removed = call(n)
        assert removed == min(n, len(due))
        if removed < len(due):  # from which partition they go is free
            assert self.trimmed(model) == removed + sum(e.gone for p in self.oracle.of(model)
                                                        for e in self.oracle.events[p])  # fmt: skip
            call(10**6)
        for p, event in due:
            event.gone = True
            del self.oracle.owner[model, event.key]
            self.claims.pop((p, self.oracle.events[p].index(event) + 1), None)

    def trimmed(self, model: str) -> int:
        return sum(p.trimmed for p in self.open[0].partitions(model))

    @rule(h=handles, p=writers, offset=st.integers(0, 4))
    def claim(self, h: int, p: int, offset: int) -> None:
        if offset > len(self.oracle.events[p]) or (
            offset and self.oracle.events[p][offset - 1].gone
        ):
            return
        assert self.open[h].claims(p, offset) == self.claims.get((p, offset), 0)
        assert self.open[h].claim(p, offset) == self.claims.get((p, offset), 0)
        self.claims[p, offset] = self.claims.get((p, offset), 0) + 1

    @rule(h=handles, p=writers, beyond=st.integers(1, 3))
    def append_to_a_journal_that_lost_rows(self, h: int, p: int, beyond: int) -> None:
        error = PartitionSealed if p in self.oracle.sealed else JournalBehind
        with pytest.raises(error):
            self.open[h].append(p, len(self.oracle.events[p]) + beyond, [self.fresh(p, 0)])

    @rule(h=handles, p=writers)
    def seal(self, h: int, p: int) -> None:
        assert self.open[h].seal(p) == len(self.oracle.events[p])
        self.oracle.sealed.add(p)

    @rule(h=handles, model=models, spec=specs, ahead=st.sampled_from([0, 0, 0, -1, 1]))
    def begin_epoch(self, h: int, model: str, spec: str, ahead: int) -> None:
        epoch, snapshot = self.oracle.heads.get((model, spec), (0, None))
        if ahead:
            with pytest.raises(EpochLost) as refusal:
                self.open[h].begin_epoch(model, spec, epoch + ahead)
            assert refusal.value.found == epoch
            return
        assert self.open[h].begin_epoch(model, spec, epoch) == epoch + 1
        self.oracle.heads[model, spec] = (epoch + 1, snapshot)
        self.oracle.changes = [c for c in self.oracle.changes if c != (model, spec)] + [
            (model, spec)
        ]

    @rule(h=handles, model=models, spec=specs, behind=st.sampled_from([0, 0, 1, -1]))
    def move_head(self, h: int, model: str, spec: str, behind: int) -> None:
        self.serial += 1
        epoch = self.oracle.heads.get((model, spec), (0, None))[0]
        if behind or not epoch:
            with pytest.raises(EpochLost):
                self.open[h].move_head(model, spec, epoch - behind, "zombie")
            return
        self.open[h].move_head(model, spec, epoch, f"s{self.serial}")
        self.oracle.heads[model, spec] = (epoch, f"s{self.serial}")

    @rule(
        h=handles,
        model=models,
        key=st.sampled_from("abc"),
        kind=st.sampled_from("pq"),
        fence=st.none() | st.tuples(specs, st.sampled_from([0, 0, 1, -1])),
    )
    def write_control(
        self, h: int, model: str, key: str, kind: str, fence: tuple[str, int] | None
    ) -> None:
        rows, content = self.oracle.controls[model], bytes([self.serial % 256])
        write = partial(self.open[h].write_control, model, kind, key, content)
        if fence:
            epoch = self.oracle.heads.get((model, fence[0]), (0, None))[0]
            if fence[1] or not epoch:
                with pytest.raises(EpochLost):
                    write((fence[0], epoch - fence[1]))
                return
            fence = (fence[0], epoch)
        row, won = write(fence)
        assert won is (key not in [k for _, k, _ in rows])
        if won:
            rows.append((kind, key, content))
        assert (row.kind, row.key, row.payload) == next(r for r in rows if r[1] == key)

    @rule(h=handles)
    def restart(self, h: int) -> None:
        self.open[h].close()
        self.open[h] = self.make()

    @rule(h=handles)
    def move_pages(self, h: int) -> None:
        assert self.open[h].checkpoint() == 0

    @rule(h=handles, p=writers, first=st.integers(1, 9), n=st.integers(0, 4))
    def read_a_page(self, h: int, p: int, first: int, n: int) -> None:
        page = [(r.offset, r.payload) for r in self.open[h].read(p, first, n)]
        wanted = list(enumerate(self.oracle.events[p], 1))[first - 1 : first - 1 + n]
        assert page == [(i, e.content) for i, e in takewhile(lambda w: not w[1].gone, wanted)]

    @invariant()
    def both_processes_tell_the_same_story(self) -> None:
        """By turns, with the keys whose rows are others now; at the end both tell all of it."""
        self.oracle.compare(self.open[next(self.oracle.turns)], self.oracle.changed())
