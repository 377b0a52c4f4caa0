"""Is the log of decisions as it was written?  Compared with its keys, control rows and snapshots.

A line can be changed by nobody without the key, and is missed wherever something speaks of it: the
next line, the control row that was written with it, a snapshot that was published after it.
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
"""Acts by which an operator goes on without what the journal has lost."""


@dataclass(frozen=True, slots=True)
class SeenHead:
    """The newest line as a snapshot knows it: its number, and the SHA-256 of its text.

    ``at``: when the snapshot was made (POSIX seconds).
    """

    snapshot: str
    number: int
    sha256: str
    at: float = 0.0


@dataclass(frozen=True, slots=True)
class Checked:
    """The result of looking at the whole log.

    ``lines``: how many there are; ``trimmed``: how many an anchor stands for; ``old``: lines of
    keys that are gone, which the lines after them vouch for; ``faults``: what is wrong, in words;
    ``verified``: whether there was a key to verify signatures with.
    """

    lines: int
    trimmed: int
    old: int
    faults: tuple[str, ...]
    verified: bool = True

    @property
    def good(self) -> bool:
        """Nothing is wrong with the log."""
        return not self.faults

    def as_dict(self) -> dict[str, Any]:
        """Return it as plain data, ``good`` included."""
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
    """Look at the whole log.

    Parameters:
        keys: Secrets of the service; with none only what needs no key is looked at.
        models: Whose control rows are compared.
        seen: What snapshots know of the log.
    """
    signer = Signer(keys or [b"no key is known"])
    decided = {model: journal.controls(model, 0) for model in models}  # it may grow meanwhile
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
    """Every line that the log has, from the oldest on."""
    after = 0
    while page := journal.lines(after, _PAGE):
        yield from page
        after = page[-1].number


def _heads(read: Sequence[Read], seen: Iterable[SeenHead]) -> Iterator[str]:
    """The lines that snapshots know must be there, as they were."""
    there = {one.number: one.sha256 for one in read if not _anchored(one)}
    last = read[-1].number if read else 0
    lost = [
        (one.number, one.entry.at)
        for one in read
        if one.entry is not None and one.entry.act in _LOST and one.sure and one.fault is None
    ]
    cut: dict[int, str] = {}
    for one in seen:
        if any(number <= one.number and one.at <= at for number, at in lost):
            continue  # the line went with the journal, which somebody has accepted since
        if one.number > last:
            cut[one.number] = one.snapshot
        elif there.get(one.number, one.sha256) != one.sha256:
            yield f"line {one.number}: it is not the one that snapshot {one.snapshot} knows"
    if cut:
        number = max(cut)
        yield f"{number - last:,} lines are missing at the end: snapshot {cut[number]} knows them"


def _controls(
    model: str, rows: Sequence[Control], later: Sequence[Control], read: Sequence[Read]
) -> Iterator[str]:
    """Every control row must have its line, but for those of before the log began.

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
