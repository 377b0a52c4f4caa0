"""Erases what a forgotten source has sent: payloads are removed, rows and their keys stay.

A control row ``erase`` decides it, and up to which row of the store; ``erased`` records that it is
complete.  Between the two each step can be repeated, so after a crash the same command continues.
The order matters: the source's rows tell which snapshots contain its influence, so snapshots are
removed first; remains in the store's files are removed last, when nothing new is written.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import msgspec

from online.errors import StartRefused
from online.monitoring.series import FOLDER, file_of
from online.rebuild.holdings import holding_before
from online.rows.finals import corrected, late_key
from online.rows.history import LEARNED, Decisions
from online.rows.in_order import PAGE_ROWS, rows_after
from online.rows.joins import labels_of
from online.settings.config import Settings
from online.settings.places import history_of
from paramserver.core import rewrites
from replay import codec
from replay.example import Example
from replay.journal.base import Half, Journal, Stored

ERASE: Final = "erase"
ERASED: Final = "erased"
_TEXT: Final = b"erased"
_PASSES: Final = 5  # over halves of joins, which change meanwhile
_BUSY_S: Final = 10.0

Progress = Callable[[int, int], None]


class Decision(msgspec.Struct, frozen=True):
    """A decision to erase, as stored in the control row ``erase``.

    Attributes:
        source, since: The source, and the receive time from which on its events are erased (POSIX
            seconds; None: all).
        upto: ``seq`` of the store's newest row at that time.
        at: POSIX seconds.
        forget: Number of the control row that took them out of the model; 0: it contained none.
    """

    source: str
    since: float | None
    upto: int
    at: float
    forget: int


class Done(msgspec.Struct, frozen=True):
    """The content of the control row ``erased``: which ``erase``, when, and numbers of removals."""

    erase: int
    at: float
    rows: int
    halves: int
    texts: int
    snapshots: int


def newest_forget(journal: Journal, model: str, spec: str, source: str) -> int:
    """Number of the control row by which the lineage last forgot the source; 0: never."""
    seqs = [
        control.seq
        for control in journal.controls(model, 0)
        if control.kind == rewrites.FORGET
        and (note := rewrites.note_of(control)).spec == spec
        and isinstance(note, rewrites.Forget)
        and note.source == source
    ]
    return max(seqs, default=0)


def unfinished(journal: Journal, model: str) -> list[tuple[int, Decision]]:
    """Decisions to erase that are not complete, with the numbers of their control rows."""
    begun: dict[int, Decision] = {}
    for control in journal.controls(model, 0):
        if control.kind == ERASE:
            begun[control.seq] = msgspec.json.decode(control.payload, type=Decision)
        elif control.kind == ERASED:
            begun.pop(msgspec.json.decode(control.payload, type=Done).erase, None)
    return list(begun.items())


def decide(
    journal: Journal, model: str, source: str, since: float | None, forget: int, now_s: float
) -> tuple[int, Decision]:
    """Decide to erase, or find the same unfinished decision; returns row number and decision."""
    while True:
        for seq, decision in unfinished(journal, model):
            if (decision.source, decision.since) == (source, since) and decision.forget == forget:
                return seq, decision
        upto = journal.follow(model, 2**62, 1).upto
        decision = Decision(source, since, upto, now_s, forget)
        key = f"{ERASE}:{len(journal.controls(model, 0))}"
        row, written = journal.write_control(model, ERASE, key, msgspec.json.encode(decision))
        if written:  # otherwise another operator has just decided to erase something else
            return row.seq, decision


@dataclass(slots=True)
class Sent:
    """The source's rows in the journal, up to the decision.

    Attributes:
        offsets: Offsets of all rows, by partition.
        taught: Keys of those that a model was to learn, by partition and offset.
        keys: Keys of all rows, as hexadecimal digits.
        replaced: Partition and offset of others' final labels, which quote the labels they replace.
    """

    offsets: dict[int, list[int]] = field(default_factory=dict)
    taught: dict[tuple[int, int], str] = field(default_factory=dict)
    keys: list[str] = field(default_factory=list)
    replaced: list[tuple[int, int]] = field(default_factory=list)


class Erasure:
    """Carries out one decision to erase.

    Attributes:
        sent: The rows that :meth:`look` has found.
    """

    def __init__(self, journal: Journal, model: str, seq: int, decision: Decision) -> None:
        self._journal, self._model = journal, model
        self.seq, self.decision = seq, decision
        self.sent = Sent()

    def _meant(self, source: str, at: float) -> bool:
        since = self.decision.since
        return source == self.decision.source and (since is None or at >= since)

    def look(self, progress: Progress | None = None) -> None:
        """Find the source's rows."""
        total = sum(p.end - p.trimmed for p in self._journal.partitions(self._model))
        self.sent, places, late = Sent(), set[tuple[int, int]](), set[bytes]()
        for done, row in enumerate(rows_after(self._journal, self._model), 1):
            if progress is not None and done % PAGE_ROWS == 0:
                progress(done, max(done, total))
            if row.seq > self.decision.upto:
                return
            if self._meant(row.source, row.at) or row.key in late:  # late labels repeat features
                places.add((row.partition, row.offset))
                self.sent.offsets.setdefault(row.partition, []).append(row.offset)
                self.sent.keys.append(row.key.hex())
                late.add(late_key(row.key))
                if row.verdict in LEARNED and row.key not in late:
                    self.sent.taught[row.partition, row.offset] = row.key.hex()
            elif corrected(row) in places:
                self.sent.replaced.append((row.partition, row.offset))

    def tainted(self, settings: Settings, spec: str) -> list[str]:
        """Names of snapshots of a lineage that contain the source's events or can't be read."""
        history = history_of(settings, self._model, spec)
        partitions = {p.id: p for p in self._journal.partitions(self._model)}
        built = {  # rebuilt states lack what their own control row takes out
            rewrites.note_of(control).snapshot: control.seq
            for control in self._journal.controls(self._model, 0)
            if control.kind in (rewrites.FORGET, rewrites.RELEARN)
        }
        tainted = []
        for name, manifest in history.manifests().items():
            decisions = Decisions(spec)
            upto = max(manifest.control, built.get(name, 0))
            decisions.read(self._journal, self._model, upto)
            holding = holding_before(self._journal, name, decisions, manifest)
            if any(
                holding.has(partitions[p], offset) and key not in decisions.failed
                for (p, offset), key in self.sent.taught.items()
            ):
                tainted.append(name)
        return sorted([*tainted, *history.refused])

    def halves(self) -> int:
        """Remove the source's halves of stored joins; returns how many were changed."""
        changed = 0
        for _ in range(_PASSES):
            stale = [
                (key, stored, left)
                for key, stored in self._journal.erasing().halves(self._model)
                if (left := self._left(stored)) != stored
            ]
            for key, stored, left in stale:
                changed += self._journal.erasing().replace_half(self._model, key, stored, left)
            if not stale:
                return changed
        raise StartRefused("halves of stored joins change faster than they go", "Run it again")

    def _left(self, stored: Stored) -> Stored | None:
        """Return a half without the source's parts; None if nothing is left."""
        if stored.half is Half.PREDICTION:
            return None if self._meant(stored.source, stored.at) else stored
        labels = labels_of(stored)
        left = [label for label in labels if not self._meant(label.source, label.at)]
        if len(left) == len(labels):
            return stored
        if not left:
            return None
        first = left[0]
        return Stored(
            Half.LABEL, first.event_id, first.source, codec.encode_labels(left), stored.at
        )

    def rows(self, progress: Progress | None = None) -> int:
        """Erase the payloads of the source's rows; returns the number of rows.

        Its labels are erased from others' rows that replace them, too.
        """
        done = 0
        for partition, offset in self.sent.replaced:
            for row in self._journal.read(partition, offset, 1):
                payload = _without_replaced(codec.decode(row.payload))
                self._journal.erasing().rows(partition, [offset], payload)
        for partition, offsets in self.sent.offsets.items():
            self._journal.erasing().rows(partition, offsets, codec.ERASED)
            done += len(offsets)
            if progress is not None:
                progress(done, len(self.sent.keys))
        return done

    def texts(self) -> int:
        """Erase error messages of models about the source's rows; returns their number."""
        known = set(self.sent.keys)
        keys = [
            control.key
            for control in self._journal.controls(self._model, 0)
            if control.kind == "failed" and control.key.rpartition(":")[2] in known
        ]
        self._journal.erasing().texts(self._model, "failed", keys, _TEXT)
        return len(keys)

    def end(self, done: Done) -> None:
        """Record the completion; the first record stands."""
        key = f"{ERASED}:{self.seq}"
        self._journal.write_control(self._model, ERASED, key, msgspec.json.encode(done))


def _without_replaced(final: Example) -> bytes:
    """Encode a final label as if its source had sent the label that it replaces."""
    replace, first = msgspec.structs.replace, final.corrects
    assert first is not None
    first = replace(first, label=final.label, source="", evidence={})
    return codec.encode(replace(final, corrects=first))


def scrub_time_series(state_dir: Path, model: str) -> None:
    """Remove texts that may name rows from an older version's time series, and vacuum its file.

    Raises StartRefused if the file is locked.
    """
    file = file_of(state_dir / FOLDER, model)
    if not file.exists():
        return
    try:
        with contextlib.closing(sqlite3.connect(file, timeout=_BUSY_S, isolation_level=None)) as db:
            db.execute("DELETE FROM marks WHERE kind = 'incident' AND instr(text, ': ')")
            db.execute("VACUUM")
    except sqlite3.OperationalError as error:
        raise StartRefused(f"{file} can't be rewritten: {error}", "Run it again") from error
    except sqlite3.DatabaseError:
        return  # damaged: its owner will recreate it


def other_lineages(journal: Journal, model: str, spec: str) -> Sequence[str]:
    """Spec hashes of the model's lineages other than the serving one."""
    return [one for one in journal.lineages(model) if one != spec]
