"""Makes certificates of forgetting from the journal's decisions and the keys of its rows."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import msgspec

from online.audit import certificates
from online.audit.certificates import Document
from online.errors import StartRefused
from online.rebuild.erase import Decision, Done, Erasure
from online.rows.history import LEARNED
from paramserver.core import rewrites
from replay.durable import sync
from replay.journal.base import Journal, Row

FOLDER: Final = "certificates"
"""Name of the folder of certificates in a state folder."""

_PAGE_ROWS: Final = 1_000
_HASH_DIGITS: Final = 16  # hexadecimal digits of a key that enter the digest


def forgotten(journal: Journal, model: str, forget: int) -> Document:
    """Describe what control row ``forget`` took out of the model.

    Raises StartRefused if the journal no longer tells.
    """
    control = next(c for c in journal.controls(model, forget - 1) if c.seq == forget)
    note = msgspec.json.decode(control.payload, type=rewrites.Forget)
    if note.digests is None:
        raise StartRefused(
            f"control row {forget}, by which {note.source!r} was forgotten, does not say the "
            "digests: an older version wrote it",
            "Have it learned again, and forget it again: online quarantine unban, "
            "online rollback --relearn, online forget",
        )
    events = [row.key.hex()[:_HASH_DIGITS] for row in _taken(journal, note)]
    before, after = note.digests
    return {
        "done": certificates.FORGOTTEN, "model": model, "spec": note.spec, "source": note.source,
        "since": None if note.since is None else certificates.when(note.since),
        "forgotten_at": certificates.when(note.at), "control": forget, "count": len(events),
        "events": events, "digest_before": certificates.digest(before),
        "digest_after": certificates.digest(after),
        "out_of_reach": list(certificates.OUT_OF_REACH),
    }  # fmt: skip


def nothing_forgotten(
    model: str, spec: str, decision: Decision, note: str | None = None
) -> Document:
    """Describe a source of which the model contains no event.

    Parameters:
        note: Why the events that it did contain can't be counted; None: it contained none.
    """
    since = decision.since
    return {
        "done": certificates.FORGOTTEN, "model": model, "spec": spec, "source": decision.source,
        "since": None if since is None else certificates.when(since), "forgotten_at": None,
        "control": None, "count": 0, "events": [], "digest_before": None, "digest_after": None,
        "note": note, "out_of_reach": list(certificates.OUT_OF_REACH),
    }  # fmt: skip


def erased(content: Document, erasure: Erasure, done: Done) -> Document:
    """The same content for events that were also erased, with events that were in no model."""
    taken = set(content["events"])
    others = [key[:_HASH_DIGITS] for key in erasure.sent.keys]
    return {
        **content, "done": certificates.ERASED,
        "erased": {
            "at": certificates.when(done.at), "control": erasure.seq, "rows": done.rows,
            "halves": done.halves, "texts": done.texts, "snapshots": done.snapshots,
            "others": [key for key in others if key not in taken],
        },
    }  # fmt: skip


def _taken(journal: Journal, note: rewrites.Forget) -> Iterator[Row]:
    for partition, spans in sorted(note.taken().items()):
        for after, upto in spans:
            for first in range(after + 1, upto + 1, _PAGE_ROWS):
                n = min(_PAGE_ROWS, upto - first + 1)
                rows = journal.read(partition, first, n)
                if len(rows) < n:
                    raise StartRefused(
                        f"rows of partition {partition} that were forgotten are removed by now",
                        "Ask for a certificate when you forget: the journal keeps rows for "
                        "dedupe_window",
                    )
                yield from (row for row in rows if row.verdict in LEARNED)


def checked(content: Document, keys: list[bytes]) -> Document:
    """Sign a certificate.  StartRefused if its events do not explain the digests' difference."""
    document = certificates.signed(content, keys[0])
    if faults := certificates.faults(document, certificates.public_keys(keys)):
        raise StartRefused(
            f"nothing is certified of {content['source']!r}: {'; '.join(faults)}",
            "`online fsck` compares the model's digest with the journal",
        )
    return document


def write(document: Document, path: Path) -> None:
    """Write a certificate's file atomically, readable for its owner only."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.new")
    beside.unlink(missing_ok=True)
    with os.fdopen(os.open(beside, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as file:
        json.dump(document, file, indent=1)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)
    sync(path.parent)


def read(path: Path) -> Any:
    """Read a file as JSON.  Raises StartRefused if that fails."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise StartRefused(f"{path} can't be read: {error}", "Name a certificate's file") from None
