"""Several writers, lost answers, seals, restarts and epochs against lists and dicts.

The oracle keeps what the journal promises in words: a list of events per partition, and who has
a key.  It shares no code with the journal.  A subclass opens the journal that is tested.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
)

from replay.errors import EpochLost, JournalBehind, PartitionSealed
from replay.journal.base import Head, Journal, NewRow, Row, Verdict

MODELS = ("m", "n")
SPECS = ("x", "y")
keys = st.integers(0, 24)
models = st.sampled_from(MODELS)
specs = st.sampled_from(SPECS)
handles = st.integers(0, 1)


class JournalMachine(RuleBasedStateMachine):
    """Two processes on one store (two objects), any number of writers on either."""

    open_journal: ClassVar[Callable[[Path], Journal]]
    """Opens the journal that belongs to a folder (staticmethod)."""
    writers = Bundle("writers")

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.open: list[Journal] = [self.make(), self.make()]
        self.model_of: dict[int, str] = {}
        self.events: dict[int, list[tuple[int, bytes]]] = {}  # key and content by offset - 1
        self.sealed: set[int] = set()
        self.known: dict[int, int] = {}
        self.unanswered: dict[int, list[NewRow]] = {}
        self.owner: dict[tuple[str, int], tuple[int, int]] = {}  # partition and offset of a key
        self.heads: dict[tuple[str, str], tuple[int, str | None]] = {}
        self.changes: list[tuple[str, str]] = []
        self.controls: dict[str, list[tuple[str, str, bytes]]] = {m: [] for m in MODELS}
        self.serial = 0

    def make(self) -> Journal:
        return self.open_journal(self.folder)

    def teardown(self) -> None:
        for journal in self.open:
            journal.close()
        shutil.rmtree(self.folder)

    def fresh(self, key: int) -> NewRow:
        self.serial += 1
        content = b"%d" % self.serial
        return NewRow(bytes([key]) * 16, f"e{key}", "s", Verdict.ACCEPTED, content, 1.0)

    @initialize(target=writers, model=models)
    def first_writer(self, model: str) -> int:
        return self.register(0, model)

    @rule(target=writers, h=handles, model=models)
    def new_writer(self, h: int, model: str) -> int:
        return self.register(h, model)

    def register(self, h: int, model: str) -> int:
        made = self.open[h].register(model, "r", "x", 1.0)
        assert made.id not in self.model_of
        assert (made.end, made.sealed) == (0, False)
        self.model_of[made.id], self.events[made.id], self.known[made.id] = model, [], 0
        return made.id

    @rule(h=handles, p=writers, chosen=st.lists(keys, min_size=1, max_size=6), lost=st.booleans())
    def append(self, h: int, p: int, chosen: list[int], lost: bool) -> None:
        """A writer without an answer sends its batch again until it has one."""
        batch = self.unanswered.get(p) or [self.fresh(key) for key in chosen]
        self.send(h, p, self.known[p], batch, lost)

    @rule(
        h=handles, p=writers, chosen=st.lists(keys, min_size=1, max_size=4), back=st.integers(1, 3)
    )
    def append_late(self, h: int, p: int, chosen: list[int], back: int) -> None:
        """An old message arrives: known is lower than what the writer knows by now."""
        known = max(0, self.known[p] - back)
        self.send(h, p, known, [self.fresh(key) for key in chosen], lost=True, late=True)

    def send(
        self, h: int, p: int, known: int, batch: list[NewRow], lost: bool, late: bool = False
    ) -> None:
        model, mine = self.model_of[p], self.events[p]
        if p in self.sealed:
            with pytest.raises(PartitionSealed) as refusal:
                self.open[h].append(p, known, batch)
            assert refusal.value.end == len(mine)
            return
        expected: list[tuple[bool, int, int, bytes]] = []
        for at, row in enumerate(batch):
            key = row.key[0]
            twice = any(other.key == row.key for other in batch[:at])
            if (model, key) not in self.owner:
                mine.append((key, row.payload))
                self.owner[model, key] = (p, len(mine))
            where, offset = self.owner[model, key]
            new = where == p and offset > known and not twice
            expected.append((new, where, offset, self.events[where][offset - 1][1]))
        answer = self.open[h].append(p, known, batch)
        got = [(o.new, o.row.partition, o.row.offset, o.row.payload) for o in answer.outcomes]
        assert got == expected
        epochs = [epoch for (m, _), (epoch, _) in self.heads.items() if m == model]
        assert (answer.end, answer.epoch) == (len(mine), max(epochs, default=0))
        if lost:
            if not late:
                self.unanswered[p] = batch
        else:
            self.unanswered.pop(p, None)
            self.known[p] = answer.end

    @rule(h=handles, p=writers, beyond=st.integers(1, 3))
    def append_to_a_journal_that_lost_rows(self, h: int, p: int, beyond: int) -> None:
        error = PartitionSealed if p in self.sealed else JournalBehind
        with pytest.raises(error):
            self.open[h].append(p, len(self.events[p]) + beyond, [self.fresh(0)])

    @rule(h=handles, p=writers)
    def seal(self, h: int, p: int) -> None:
        assert self.open[h].seal(p) == len(self.events[p])
        self.sealed.add(p)

    @rule(h=handles, model=models, spec=specs, ahead=st.sampled_from([0, 0, 0, -1, 1]))
    def begin_epoch(self, h: int, model: str, spec: str, ahead: int) -> None:
        epoch, snapshot = self.heads.get((model, spec), (0, None))
        if ahead:
            with pytest.raises(EpochLost) as refusal:
                self.open[h].begin_epoch(model, spec, epoch + ahead)
            assert refusal.value.found == epoch
            return
        assert self.open[h].begin_epoch(model, spec, epoch) == epoch + 1
        self.heads[model, spec] = (epoch + 1, snapshot)
        self.changes = [c for c in self.changes if c != (model, spec)] + [(model, spec)]

    @rule(h=handles, model=models, spec=specs, behind=st.sampled_from([0, 0, 1, -1]))
    def move_head(self, h: int, model: str, spec: str, behind: int) -> None:
        self.serial += 1
        epoch = self.heads.get((model, spec), (0, None))[0]
        if behind or not epoch:
            with pytest.raises(EpochLost):
                self.open[h].move_head(model, spec, epoch - behind, "zombie")
            return
        self.open[h].move_head(model, spec, epoch, f"s{self.serial}")
        self.heads[model, spec] = (epoch, f"s{self.serial}")

    @rule(h=handles, model=models, key=st.sampled_from("abc"), kind=st.sampled_from("pq"))
    def write_control(self, h: int, model: str, key: str, kind: str) -> None:
        rows, content = self.controls[model], bytes([self.serial % 256])
        row, won = self.open[h].write_control(model, kind, key, content)
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
        everything = [(i, content) for i, (_, content) in enumerate(self.events[p], 1)]
        assert page == everything[first - 1 : first - 1 + n]

    @invariant()
    def both_processes_tell_the_same_story(self) -> None:
        for journal in self.open:
            self.compare(journal)

    def compare(self, journal: Journal) -> None:
        stored: list[Row] = []
        for model in MODELS:
            ours = sorted(p for p, m in self.model_of.items() if m == model)
            states = [(p.id, p.end, p.sealed) for p in journal.partitions(model)]
            assert states == [(p, len(self.events[p]), p in self.sealed) for p in ours]
            for p in ours:
                rows = journal.read(p, 1, 1000)
                assert [(r.key[0], r.payload) for r in rows] == self.events[p]
                stored += rows
            specs_seen = [s for m, s in self.changes if m == model]
            assert list(journal.lineages(model)) == specs_seen
            for spec in SPECS:
                assert journal.head(model, spec) == Head(*self.heads.get((model, spec), (0, None)))
            got = [(c.seq, c.kind, c.key, c.payload) for c in journal.controls(model, 0)]
            assert got == [(i, *c) for i, c in enumerate(self.controls[model], 1)]
        assert len({r.seq for r in stored}) == len(stored)
        for (model, key), (p, offset) in self.owner.items():
            found = journal.find(model, bytes([key]) * 16)
            assert found is not None
            assert (found.partition, found.offset) == (p, offset)
