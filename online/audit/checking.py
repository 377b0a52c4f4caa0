"""Verifies the audit log against its keys, the control rows and the snapshots.

Nobody without the key can change a line unnoticed, and a missing line is noticed by whatever refers
to it: the next line, the control row that was written with it, or a later snapshot.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from online.audit.chain import ANCHOR, Entry, Read, Signer
from online.audit.log import CONTROLS, OF_ROWS
from replay.journal.base import Control, Journal, Line

_PAGE: Final = 1_000
_SHOWN: Final = 20
_LOST: Final = frozenset({"accepted", "lost"})
"""Acts by which an operator accepts a loss of the journal."""


@dataclass(frozen=True, slots=True)
class SeenHead:
    """The newest line when a snapshot was published: its number, and the SHA-256 of its text.

    ``at``: when the snapshot was made (POSIX seconds).
    """

    snapshot: str
    number: int
    sha256: str
    at: float = 0.0


@dataclass(frozen=True, slots=True)
class Checked:
    """Result of verifying the whole log.

    Attributes:
        lines: Number of lines.
        trimmed: Number of lines that an anchor replaces.
        old: Lines signed by keys that are gone; later lines vouch for them.
        faults: Descriptions of faults.
        verified: Whether a key was available to verify signatures.
    """

    lines: int
    trimmed: int
    old: int
    faults: tuple[str, ...]
    verified: bool = True

    @property
    def good(self) -> bool:
        """Whether the log has no fault."""
        return not self.faults

    def as_dict(self) -> dict[str, Any]:
        """Return the result as plain data, ``good`` included."""
        return {
            "good": self.good, "lines": self.lines, "trimmed": self.trimmed, "old": self.old,
            "faults": list(self.faults), "verified": self.verified,
        }  # fmt: skip

    def __str__(self) -> str:
        begin = f"log of decisions: {'good' if self.good else 'NOT GOOD'}, {self.lines:,} lines"
        begin += f", {self.trimmed:,} trimmed before them" if self.trimmed else ""
        begin += f", {self.old:,} signed by a key that is gone" if self.old else ""
        begin += (
            "" if self.verified else "; no key can be read here, so nobody verified who wrote them"
        )
        return "\n".join([begin, *(f"  {fault}" for fault in self.faults)])


def check(
    journal: Journal, keys: Sequence[bytes], models: Sequence[str], seen: Iterable[SeenHead]
) -> Checked:
    """Verify the whole log.

    Parameters:
        keys: Secrets of the service; without any, only what needs no key is verified.
        models: Models whose control rows are compared.
        seen: The log's newest line as snapshots have recorded it.
    """
    signer = Signer(keys or [b"no key is known"])
    decided = {model: journal.controls(model, 0) for model in models}  # before reading the lines
    read = list(signer.read(all_lines(journal)))
    faults = [f"line {one.number}: {one.fault}" for one in read if one.fault is not None]
    if read and keys and not read[-1].sure:
        faults.append(f"line {read[-1].number}: it is the last one, and by a key that is not known")
    faults += _heads(read, seen)
    for model in models:
        faults += _controls(model, decided[model], journal.controls(model, 0), read)
    if len(faults) > _SHOWN:
        faults[_SHOWN:] = [f"and {len(faults) - _SHOWN:,} more"]
    trimmed = read[0].number if read and _anchored(read[0]) else 0
    old = sum(not one.sure for one in read) if keys else 0
    return Checked(len(read), trimmed, old, tuple(faults), verified=bool(keys) or not read)


def _anchored(one: Read) -> bool:
    return one.entry is not None and one.entry.act == ANCHOR


def all_lines(journal: Journal) -> Iterator[Line]:
    """Yield every line of the log, from the oldest on."""
    after = 0
    while page := journal.lines(after, _PAGE):
        yield from page
        after = page[-1].number


def _heads(read: Sequence[Read], seen: Iterable[SeenHead]) -> Iterator[str]:
    """Yield faults of lines that snapshots have recorded."""
    digests = {one.number: one.sha256 for one in read if not _anchored(one)}
    last = read[-1].number if read else 0
    lost = [
        (one.number, one.entry.at)
        for one in read
        if one.entry is not None and one.entry.act in _LOST and one.sure and one.fault is None
    ]
    cut: dict[int, str] = {}
    for one in seen:
        if any(number <= one.number and one.at <= at for number, at in lost):
            continue  # the line was lost with the journal, and the loss was accepted since
        if one.number > last:
            cut[one.number] = one.snapshot
        elif digests.get(one.number, one.sha256) != one.sha256:
            yield f"line {one.number}: it is not the one that snapshot {one.snapshot} knows"
    if cut:
        number = max(cut)
        yield f"{number - last:,} lines are missing at the end: snapshot {cut[number]} knows them"


def _controls(
    model: str, rows: Sequence[Control], later: Sequence[Control], read: Sequence[Read]
) -> Iterator[str]:
    """Yield control rows without a line, except those from before the log began.

    ``rows`` were read before the lines, ``later`` after them.
    """
    written: set[str] = set()
    known: int | None = None  # up to this one no line is asked for
    by_key: Mapping[str, int] = {row.key: row.seq for row in later}
    for one in read:
        entry: Entry | None = one.entry
        if entry is None:
            continue
        if known is None and model in entry.about.get(CONTROLS, {}):
            known = int(entry.about[CONTROLS][model])
        if entry.model == model and entry.key:
            written.add(entry.key)
            if entry.key not in by_key:
                yield f"line {one.number}: its decision about {model!a} is not in the journal"
            elif known is None:
                known = by_key[entry.key] - 1
    if known is None:
        return  # the log began before the model did, or there is none
    for row in rows:
        if row.seq > known and row.key not in written and row.kind not in OF_ROWS:
            yield f"decision {row.seq} of model {model!a} ({row.kind}) has no line"
