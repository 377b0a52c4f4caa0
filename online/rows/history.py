"""Events that were taken out or kept back: lists them, decides about them, and relearns them once.

A rollback, a forget or a relearn takes events out; a freeze and a quarantine keep them back.

A row never changes, so learning an event again is a new row at a new offset.  Its key is derived
from the event and from a decision, so it is written once, however often it is requested:

* An event's *copies* are its own row and the rows ``again(d, event)`` for the decisions ``d``
  (control rows: rollback, forget, relearn, freeze, unfreeze) from the first that can have taken
  it out.  For a quarantined event that first one is its release; without it there are no copies.
* The event is in the model if a copy *stands*: it was to be learned and is not undone.  Otherwise
  the next copy is that of the first decision that has none yet.

Every process that reads the same journal derives the same next key, so two writers write one row.
An operator's decision about a quarantined event is a control row of its own, ``decide:KEY``; the
first one stands.  Events of a banned source are learned again only if they are released.

This module only reads and writes the journal that it is given: no clock, no HTTP.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final, Literal, NamedTuple

import msgspec

from online.errors import invalid
from online.rows.finals import final_key, is_provisional
from online.rows.prediction_ids import event_key
from paramserver.core import rewrites
from paramserver.core.standing_decisions import ANSWERS, Answers
from paramserver.process import shortfall
from replay import codec
from replay.journal.base import Control, Journal, NewRow, Only, Row, Verdict

UNDONE: Final = "undone"
FROZEN: Final = "frozen"
QUARANTINED: Final = "quarantined"
ERASED: Final = "erased"
RELEASED: Final = "released"
DISCARDED: Final = "discarded"
Choice = Literal["released", "discarded"]
LEARNED: Final = (Verdict.ACCEPTED, Verdict.CLIPPED)
_AGAIN: Final = "again"
_DECIDE: Final = "decide"
_NEWEST: Final = 16  # decisions in a summary
_PAGE_ROWS: Final = 256
_WALK_ROWS: Final = 8192  # rows looked at for one page: frozen ones may be few among many


@dataclass(frozen=True, slots=True)
class Origin:
    """The event that a row teaches: the place of its first row, and that row's key and name."""

    partition: int
    offset: int
    key: bytes
    event_id: str


def origin(row: Row) -> Origin:
    """Return the event of a row: the row's own or, if it was learned again, the first row's.

    The row's name counts only if its key matches, because callers choose names.
    """
    if not is_again(row):
        return Origin(row.partition, row.offset, row.key, row.event_id)
    _, _, partition, offset, key, event_id = row.event_id.split(":", 5)
    return Origin(int(partition), int(offset), bytes.fromhex(key), event_id)


def is_again(row: Row | NewRow) -> bool:
    """Whether the row was written to learn an event again, and not just named like that."""
    if not row.event_id.startswith(_AGAIN):
        return False
    parts = row.event_id.split(":", 5)
    return len(parts) == 6 and parts[0] == _AGAIN and row.key == again_key(parts[1], parts[4])


def again_key(decision: int | str, key: str) -> bytes:
    """Key of the row that learns an event again after a decision; ``key``: the event's, in hex."""
    return event_key(_AGAIN, f"{decision}:{key}")


@dataclass(frozen=True, slots=True)
class Range:
    """Rows from ``after`` + 1 to ``upto`` (None: the end) of a partition, and their decision."""

    decision: int
    partition: int
    after: int
    upto: int | None

    def holds(self, partition: int, offset: int) -> bool:
        """Whether the row is in the range."""
        inside = self.upto is None or offset <= self.upto
        return partition == self.partition and self.after < offset and inside


class Decided(NamedTuple):
    """The decision about a quarantined event, and the number of its control row."""

    seq: int
    choice: str


def decide(journal: Journal, model: str, key: bytes, choice: Choice) -> Decided:
    """Release or discard the quarantined event with this key; return the decision that stands.

    Raises the journal's errors; the row may then have been written, and the call can be repeated.
    """
    name = f"{_DECIDE}:{key.hex()}"
    row, _ = journal.write_control(model, _DECIDE, name, choice.encode())
    return Decided(row.seq, row.payload.decode())


class Decisions:
    """The decisions about a model's events in its control rows.

    They apply to every lineage of the model.  ``spec`` selects the failed rows: those that this
    lineage's model could not learn.
    """

    def __init__(self, spec: str) -> None:
        self._failed_prefix = f"failed:{spec[:16]}:"
        self._begun_prefix = f"fresh:{spec}:"
        self.spec = spec
        self.without: dict[int, int] = {}  # by partition: last offset the lineage started without
        self.seq = 0
        self.failed: dict[str, str] = {}  # reason, by the row's key in hexadecimal
        self.rewrites: list[Control] = []
        self.taken: list[tuple[int, rewrites.Undone]] = []  # ranges taken out, by decision
        self.decided: dict[bytes, Decided] = {}  # by the key of a quarantined event
        self.sources: dict[str, tuple[int, bool]] = {}  # newest decision, and whether it is a ban
        self.freezes: list[tuple[int, rewrites.Freeze]] = []
        self.loss: shortfall.Acceptance | None = None  # accepted loss of rows in this lineage
        self.answers = False  # whether an apprentice model answers by itself
        self.undone = rewrites.undone(())
        self.others: tuple[tuple[int, int], ...] = ()  # epochs (after, up to) of other lineages
        self._served_upto = -1  # newest epoch before the last promotion

    def read(self, journal: Journal, model: str, upto: int | None = None) -> None:
        """Read the new control rows, up to number ``upto``."""
        known = len(self.rewrites)
        for control in journal.controls(model, self.seq):
            if upto is not None and control.seq > upto:
                break
            self._take(control)
            self.seq = control.seq  # last, so that a reader of it sees the decision, too
        if len(self.rewrites) > known:
            self.undone = rewrites.undone(self.rewrites)

    def _take(self, control: Control) -> None:
        if control.kind == "failed" and control.key.startswith(self._failed_prefix):
            self.failed[control.key.removeprefix(self._failed_prefix)] = control.payload.decode()
        elif control.key.startswith(self._begun_prefix):
            self.without = msgspec.json.decode(control.payload, type=rewrites.Begun).clock
            self.loss = None
        elif control.kind == shortfall.LOSS_ACCEPTED:
            self.loss = shortfall.accepted([control], self.spec) or self.loss
        elif control.kind == _DECIDE:
            key = bytes.fromhex(control.key.removeprefix(f"{_DECIDE}:"))
            self.decided[key] = Decided(control.seq, control.payload.decode())
        elif control.kind == rewrites.PROMOTE:
            note = msgspec.json.decode(control.payload, type=rewrites.Promote)
            if note.epoch > self._served_upto:
                if note.before != self.spec:
                    self.others += ((self._served_upto, note.epoch),)
                self._served_upto = note.epoch
        elif control.kind == ANSWERS:
            self.answers = msgspec.json.decode(control.payload, type=Answers).itself
        elif control.kind == rewrites.SOURCE:
            source = msgspec.json.decode(control.payload, type=rewrites.Source)
            self.sources[source.source] = (control.seq, source.banned)
        elif control.kind in rewrites.DECISIONS:
            self.rewrites.append(control)
        if control.kind in rewrites.REWRITES:
            taken = rewrites.Undone(rewrites.note_of(control).taken())
            self.taken.append((control.seq, taken))
        elif control.kind == rewrites.FREEZE:
            frozen = msgspec.json.decode(control.payload, type=rewrites.Freeze)
            self.freezes.append((control.seq, frozen))

    @property
    def frozen(self) -> bool:
        """Whether the model is frozen by the control rows read so far."""
        kinds = [c.kind for c in self.rewrites if c.kind not in rewrites.REWRITES]
        return kinds[-1:] == [rewrites.FREEZE]

    def banned(self, source: str) -> bool:
        """Whether the source is banned, so that its rows are quarantined."""
        return source in self.sources and self.sources[source][1]

    @property
    def bans(self) -> list[str]:
        """The sources that are banned."""
        names = list(self.sources)  # a thread may read further ones meanwhile
        return sorted(name for name in names if self.banned(name))

    def choice(self, event: Origin) -> str | None:
        """Return the decision about a quarantined event; None if there is none yet."""
        decided = self.decided.get(event.key)
        return None if decided is None else decided.choice

    def summary(self) -> dict[str, Any]:
        """Summarize for operators: freeze, the last decision, undone rows, bans, losses."""
        decision: dict[str, Any] | None = None
        if self.rewrites:
            last = self.rewrites[-1]
            decision = {"control": last.seq, "kind": last.kind}
            if last.kind in rewrites.REWRITES:
                note = rewrites.note_of(last)
                decision["snapshot"] = note.snapshot
                if isinstance(note, rewrites.Rollback):
                    decision["halved"] = note.halved
                elif isinstance(note, rewrites.Relearn):
                    decision |= {"since": note.since, "evidence": note.evidence}
                else:
                    decision |= {"source": note.source, "since": note.since, "base": note.base}
        newest = [{"control": c.seq, "kind": c.kind} for c in self.rewrites[-_NEWEST:]]
        undone = self.undone.count
        lost: dict[str, Any] | None = None
        if self.loss is not None:
            loss = self.loss.note
            lost = {"control": self.loss.seq, "events": loss.events, "at": loss.at}
        return {
            "frozen": self.frozen, "last": decision, "newest": newest, "undone": undone,
            "banned": self.bans,
            "lost": lost, "failed": len(self.failed),
            "failed_reason": next(reversed(list(self.failed.values())), None),
        }  # fmt: skip

    def learned(self, row: Row) -> bool:
        """Whether the row is in the model, once its partition's clock has reached it."""
        taken = row.verdict in LEARNED and row.key.hex() not in self.failed
        return taken and not self.undone.has(row.partition, row.offset)

    def lacks(self, partition: int, offset: int, key: bytes) -> bool:
        """Whether the row failed, or the lineage was started without it."""
        return key.hex() in self.failed or offset <= self.without.get(partition, 0)

    def failure(self, row: Row) -> str | None:
        """Return why the row could not be learned; None: it is not recorded as failed."""
        return self.failed.get(row.key.hex()) if self.failed else None

    def stands(self, row: Row) -> bool:
        """Whether the row is to be learned and was not taken out."""
        return row.verdict in LEARNED and not self.undone.has(row.partition, row.offset)

    def was_undone(self, row: Row) -> bool:
        """Whether a rewrite took the row out, at any time."""
        return any(taken.has(row.partition, row.offset) for _, taken in self.taken)

    def forgotten(self, row: Row) -> bool:
        """Whether a forget took the row out; earlier answers had been learned from it."""
        seqs = {c.seq for c in self.rewrites if c.kind == rewrites.FORGET}
        return bool(seqs) and any(
            seq in seqs and taken.has(row.partition, row.offset) for seq, taken in self.taken
        )

    def from_first(self, event: Origin) -> list[int]:
        """Decisions from the first that can have taken the event out, or kept it back."""
        if (decided := self.decided.get(event.key)) is not None:
            return [decided.seq, *(c.seq for c in self.rewrites if c.seq > decided.seq)]
        seqs = [seq for seq, taken in self.taken if taken.has(event.partition, event.offset)]
        seqs += [
            seq
            for seq, note in self.freezes
            if event.partition not in note.closed
            and event.offset > note.clock.get(event.partition, 0)
        ]
        first = min(seqs, default=self.seq + 1)
        return [c.seq for c in self.rewrites if c.seq >= first]


@dataclass(frozen=True, slots=True)
class Listed:
    """An event on a page: its row, its origin, and its standing copy, if there is one.

    ``next_decision`` is the decision that names the next copy; None: no copy is to be written.
    """

    row: Row
    event: Origin
    standing: Row | None
    next_decision: int | None
    choice: str | None = None

    def listed(self, status: str, label: Any) -> dict[str, Any]:
        """Return the event as plain data for the list of that status."""
        out = {
            "event_id": self.event.event_id,
            "source": self.row.source,
            "label": label,
            "at": self.row.at,
            "row": f"{self.row.partition}:{self.row.offset}",
            "status": ERASED if codec.is_erased(self.row.payload) else self.choice or status,
        }
        if self.standing is not None:
            out["status"] = "learned_again" if status == UNDONE else RELEASED
            out["learned_as"] = f"{self.standing.partition}:{self.standing.offset}"
        return out

    def again(self, at: float) -> NewRow | None:
        """Make the row that learns the event again; None if it is in the model already.

        For a provisional label the row is conditional: it is not written if the final label is.
        """
        if self.standing is not None or self.next_decision is None:
            return None
        event, decision = self.event, self.next_decision
        name = f"{decision}:{event.partition}:{event.offset}:{event.key.hex()}:{event.event_id}"
        verdict, payload = self.row.verdict, self.row.payload
        if verdict not in LEARNED:  # its evidence must not count twice against the source
            verdict = Verdict.ACCEPTED
            payload = codec.encode(msgspec.structs.replace(codec.decode(payload), judged=None))
        only = Only(absent=final_key(event.key)) if is_provisional(self.row) else None
        return NewRow(
            again_key(decision, event.key.hex()),
            f"{_AGAIN}:{name}",
            self.row.source,
            verdict,
            payload,
            at,
            self.row.factor,
            only=only,
        )


@dataclass(slots=True)
class Page:
    """Events in order, the cursor of the next page (None: no more), and the number of rows left.

    ``removed``: rows in the ranges that begin on this page which retention has removed, or which
    are placeholders of lost rows.
    """

    events: list[Listed] = field(default_factory=list)
    cursor: str | None = None
    left: int = 0
    removed: int = 0


def walk(
    journal: Journal,
    model: str,
    decisions: Decisions,
    status: str,
    after: str | None,
    limit: int,
    source: str | None = None,
) -> Page:
    """Return the next ``limit`` events of a status, after a cursor; of all sources, or of one.

    Undone events are those that are undone now, each listed once, at the decision that first took
    it out; frozen and quarantined ones are the rows with that verdict.  A page may be empty and
    still have a cursor; then continue with that.
    """
    begin = _cursor(after)
    partitions = {p.id: p for p in journal.partitions(model)}
    page, walked, ended = Page(), 0, False
    for span in _ranges(decisions, status, partitions):
        partition = partitions.get(span.partition)
        place = (span.decision, span.partition)
        if partition is None or place < begin[:2]:
            continue
        upto = partition.end if span.upto is None else min(span.upto, partition.end)
        first = max(span.after, partition.trimmed) + 1
        if place == begin[:2] and span.after < begin[2]:
            first = max(first, begin[2] + 1)
        elif status == UNDONE:
            page.removed += max(min(partition.trimmed, upto) - span.after, 0)
        for row in () if ended else _rows(journal, span.partition, first, upto):
            first, walked = row.offset + 1, walked + 1
            page.removed += row.verdict is Verdict.LOST
            wanted = source is None or row.source == source
            if wanted and (event := _listed(journal, model, decisions, status, span, row)):
                page.events.append(event)
            if len(page.events) >= limit or walked >= _WALK_ROWS:
                page.cursor, ended = f"{span.decision}:{span.partition}:{row.offset}", True
                break
        page.left += max(upto - first + 1, 0) if ended else 0
    if page.left == 0:
        page.cursor = None
    return page


def _cursor(text: str | None) -> tuple[int, int, int]:
    if text is None:
        return 0, 0, 0
    try:
        decision, partition, offset = map(int, text.split(":"))
    except ValueError:
        hint = "Send the cursor exactly as the last page gave it, or none to begin"
        raise invalid("after", f"not a cursor: {text[:80]!r}", hint) from None
    return decision, partition, offset


def _ranges(decisions: Decisions, status: str, partitions: Iterable[int]) -> list[Range]:
    """Return the ranges to walk, in an order that later decisions do not change."""
    if status == UNDONE:
        return [
            Range(seq, p, *span)
            for seq, taken in decisions.taken
            for p, spans in sorted(taken.ranges.items())
            for span in spans
        ]
    if status == QUARANTINED:
        return [Range(0, p, 0, None) for p in sorted(partitions)]
    if not decisions.freezes:
        return []
    seq, first = decisions.freezes[0]  # rows of later freezes are after its clock, too
    return [
        Range(seq, p, first.clock.get(p, 0), None)
        for p in sorted(partitions)
        if p not in first.closed
    ]


def _rows(journal: Journal, partition: int, first: int, upto: int) -> Iterator[Row]:
    for start in range(first, upto + 1, _PAGE_ROWS):  # rows removed by retention are skipped
        yield from journal.read(partition, start, min(_PAGE_ROWS, upto - start + 1))


def _listed(
    journal: Journal, model: str, decisions: Decisions, status: str, span: Range, row: Row
) -> Listed | None:
    """The row as a listed event; None if it does not belong here, or is listed elsewhere."""
    event = origin(row)
    if status != UNDONE:
        if row.verdict != status or event.key != row.key:
            return None
    else:
        if row.verdict not in LEARNED or row.key.hex() in decisions.failed:
            return None
        if decisions.stands(row):
            return None
        where = row.partition, row.offset
        if next(seq for seq, taken in decisions.taken if taken.has(*where)) != span.decision:
            return None
    listed, undone = _found(journal, model, decisions, row)
    if status == UNDONE and undone is not None and undone.key != row.key:
        return None  # it is listed at its first undone copy
    return listed


def _found(
    journal: Journal, model: str, decisions: Decisions, row: Row
) -> tuple[Listed, Row | None]:
    """The row as a listed event of any status, and the event's first undone copy."""
    event = origin(row)
    standing, undone, following = copies(journal, model, decisions, event, row)
    choice = decisions.choice(event) if row.verdict is Verdict.QUARANTINED else None
    if codec.is_erased(row.payload) or (choice is None and decisions.banned(row.source)):
        following = None  # erased, or of a banned source: not to be learned again
    return Listed(row, event, standing, following, choice), undone


def set_aside(journal: Journal, model: str, decisions: Decisions, row: Row) -> Listed | None:
    """Return a quarantined row as a listed event; None if it is not one."""
    span = Range(0, row.partition, 0, None)
    return _listed(journal, model, decisions, QUARANTINED, span, row)


def standing(journal: Journal, model: str, decisions: Decisions, row: Row) -> Row | None:
    """The row by which an event was learned again; None: the event is not in the model."""
    return copies(journal, model, decisions, origin(row), row)[0]


def copies(
    journal: Journal, model: str, decisions: Decisions, event: Origin, row: Row
) -> tuple[Row | None, Row | None, int | None]:
    """Return an event's standing copy, its first undone one, and the first decision without one."""
    own = row if event.key == row.key else journal.find(model, event.key)
    quarantined = own is not None and own.verdict is Verdict.QUARANTINED
    if quarantined and decisions.choice(event) != RELEASED:
        return None, None, None
    undone: Row | None = None
    following: int | None = None
    copies: list[tuple[int | None, Row | None]] = [(None, own)]
    for seq in decisions.from_first(event):
        key = again_key(seq, event.key.hex())
        copies.append((seq, journal.find(model, key)))
    for decision, copy in copies:
        if copy is None:
            following = decision if following is None else following
        elif decisions.stands(copy):
            return copy, undone, None
        elif copy.verdict in LEARNED and undone is None:
            undone = copy
    return None, undone, following
