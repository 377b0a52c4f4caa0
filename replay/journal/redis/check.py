"""Verifies everything that a Redis journal stores: checksums, and references between keys."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any, Final

from replay.errors import JournalDamaged
from replay.journal.base import Examined
from replay.journal.redis import proof, scripts

_PAGE: Final = 256  # entries per script or command, so that other callers do not wait long
_SHOWN: Final = 100


class Examination:
    """One verification of a journal.

    ``command`` and ``run`` send commands and scripts to its server; ``tag`` is its key prefix.
    """

    def __init__(self, command: Callable[..., Any], run: Callable[..., Any], tag: bytes) -> None:
        self._command, self._run, self._tag = command, run, tag
        self._damage: list[str] = []
        self._good = self._old = 0

    def all(self, progress: Callable[[int, int], None]) -> Examined:
        """Verify everything, of all models; concurrent changes may be seen or not."""
        keys = sorted(self._keys())
        streams = [key for key in keys if key.startswith(b"rows:")]
        total = sum(int(self._command("XLEN", self._key(key))) for key in streams)
        done = 0
        for key in keys:
            kind, _, name = key.partition(b":")
            if kind == b"partition":
                self._partition(name.decode())
            elif kind == b"rows":
                done = self._rows(name, done, lambda n: progress(n, max(n, total)))
            elif kind == b"halves":
                self._halves(name.decode())
            elif kind == b"controls":
                self._controls(name.decode())
            elif kind == b"head":
                self._heads(name.decode())
            elif kind == b"claims":
                self._claims(name.decode())
            elif kind == b"lines":
                self._lines()
            elif kind == b"running":
                self._note(self._run(scripts.RUNNING, name), f"the running time of {name!r}")
        if len(self._damage) > _SHOWN:
            self._damage[_SHOWN:] = [f"and {len(self._damage) - _SHOWN:,} more"]
        return Examined(tuple(self._damage), self._good, self._old)

    def _key(self, name: bytes) -> bytes:
        return self._tag + b":" + name

    def _keys(self) -> Iterator[bytes]:
        start, cursor = self._key(b""), b"0"
        pattern = re.sub(rb"([\[\]*?\\])", rb"\\\1", start) + b"*"
        seen: set[bytes] = set()
        while True:
            cursor, keys = self._command("SCAN", cursor, "MATCH", pattern, "COUNT", 1000)
            seen.update(key[len(start) :] for key in keys)
            if int(cursor) == 0:
                return iter(seen)

    def _note(self, good: object, what: str, why: str = "it does not match its checksum") -> None:
        if good:
            self._good += 1
        else:
            self._damage.append(f"{what}: {why}")

    def _partition(self, number: str) -> None:
        for reply in self._run(scripts.PARTITIONS, "number", number):
            try:
                partition = proof.as_partition(reply)
            except (JournalDamaged, ValueError):
                self._note(False, f"partition {number}")
                continue
            listed = self._command(
                "LRANGE", self._key(f"partitions:{partition.model}".encode()), 0, -1
            )
            self._note(
                number.encode() in listed, f"partition {number}", "its model does not list it"
            )

    def _rows(self, number: bytes, done: int, progress: Callable[[int], None]) -> int:
        after = 0
        while page := self._run(scripts.LOOK, number, after, _PAGE):
            for id_, flat, place, order in page:
                fields = dict(zip(flat[::2], flat[1::2], strict=True))
                offset = int(id_.split(b"-")[0])
                self._row(number.decode(), offset, fields, place, order)
                after = offset
            done += len(page)
            progress(done)
        return done

    def _row(
        self, number: str, offset: int, fields: proof.Fields, place: bytes, order: bytes
    ) -> None:
        what, here = f"row {offset} of partition {number}", f"{number}:{offset}".encode()
        try:
            proof.as_row(int(number), offset, fields)
        except JournalDamaged:
            self._note(False, what)
            return
        if place != here:
            self._note(False, what, "its id leads elsewhere, or nowhere")
        elif b"sum" not in fields:
            self._old += 1
        else:
            self._note(order == here, what, "the order of commits does not have it")

    def _halves(self, model: str) -> None:
        for keys in _pages(self._command, self._key(f"halves:{model}".encode())):
            for key in keys:
                if (good := self._run(scripts.HALF, model, key)) != b"gone":
                    self._note(good == b"good", f"half {key.hex()} of model {model!a}")

    def _controls(self, model: str) -> None:
        stream, after = self._key(f"controls:{model}".encode()), 0
        decided = self._key(f"decided:{model}".encode())
        while page := self._command("XRANGE", stream, f"({after}-0", "+", "COUNT", _PAGE):
            for id_, fields in page:
                seq = int(id_.split(b"-")[0])
                what = f"decision {seq} of model {model!a}"
                self._note(seq == after + 1, what, "those before it are missing")
                after = seq
                try:
                    control = proof.as_control(model, seq, fields)
                except JournalDamaged:
                    self._note(False, what)
                    continue
                place = self._command("HGET", decided, control.key)
                self._note(place == str(seq).encode(), what, "its key leads elsewhere, or nowhere")

    def _lines(self) -> None:
        after = 0
        while page := self._command(
            "XRANGE", self._key(b"lines"), f"({after}-0", "+", "COUNT", _PAGE
        ):
            for id_, fields in page:
                number = int(id_.split(b"-")[0])
                what = f"line {number} of the log of decisions"
                self._note(after in (0, number - 1), what, "the one before it is missing")
                after = number
                try:
                    proof.as_line(number, fields)
                except JournalDamaged:
                    self._note(False, what)

    def _heads(self, model: str) -> None:
        heads = self._command("HGETALL", self._key(f"head:{model}".encode()))
        fields = heads if isinstance(heads, dict) else dict(_pairs(heads))
        epochs = []
        for name in {n.partition(b":")[2] for n in fields if b":" in n}:
            epoch = fields.get(b"epoch:" + name, b"")
            words = (epoch, fields.get(b"snapshot:" + name, b""))
            stored, spec = fields.get(b"sum:" + name), name.decode(errors="surrogateescape")
            good = stored == proof.proof(f"head {model} {spec}", words)
            if stored is None and epoch:
                self._old += 1
            else:
                self._note(good, f"head {name!r} of model {model!a}")
            epochs.append(int(epoch) if epoch.isdigit() else -1)
        newest = fields.get(b"newest", b"")
        if newest != str(max(epochs, default=0)).encode():
            self._note(False, f"the newest epoch of model {model!a}", "no head has it")

    def _claims(self, number: str) -> None:
        claims = self._command("HGETALL", self._key(f"claims:{number}".encode()))
        for offset, value in (claims if isinstance(claims, dict) else dict(_pairs(claims))).items():
            n, _, stored = value.partition(b" ")
            if not stored and n.isdigit():
                self._old += 1
                continue
            good = stored == proof.proof(f"claim {number} {offset.decode('latin-1')}", (n,))
            self._note(good, f"claim {offset!r} of partition {number}")


def restore_ids(
    command: Callable[..., Any], run: Callable[..., Any], tag: bytes, model: str
) -> int:
    """Restore missing entries in a model's index of ids; return how many were missing.

    The rows that are newer than the index are found by the order of commits: they are few if they
    are of a writer of an older release, which does not record how far the index reaches.  All rows
    are read if some still lack an id, and all ids if some lead to rows that were removed, as those
    of an older copy do.  Several scripts run, none of which blocks the server for long; several
    callers may restore at once.
    """
    ids, _, rows, reaches, newest = map(int, run(scripts.COUNT_IDS, model))
    if ids == rows and (reaches >= newest or not rows):
        return 0
    restored = 0
    if reaches >= 0:
        restored = _restored(run, scripts.RESTORE_NEWER_IDS, model, reaches)
        ids, _, rows, *_ = map(int, run(scripts.COUNT_IDS, model))
    if reaches < 0 or ids < rows:
        for number in command("LRANGE", tag + b":partitions:" + model.encode(), 0, -1):
            restored += _restored(run, scripts.RESTORE_IDS, model, 0, number)
        ids, _, rows, *_ = map(int, run(scripts.COUNT_IDS, model))
    if ids > rows:
        for keys in _pages(command, tag + b":ids:" + model.encode()):
            run(scripts.DROP_IDS, model, *keys)
    run(scripts.REACH_IDS, model, newest)
    return restored


def _restored(run: Callable[..., Any], script: str, model: str, after: int, *place: bytes) -> int:
    """Run a script that restores ids page by page; return how many it has added."""
    restored, at = 0, str(after).encode()
    while at:
        added, at = run(script, model, *place, at, _PAGE)
        restored += int(added)
    return restored


def _pages(command: Callable[..., Any], key: bytes) -> Iterator[list[bytes]]:
    """Yield the fields of a hash, some at a time."""
    cursor: Any = b"0"
    while True:
        cursor, entries = command("HSCAN", key, cursor, "COUNT", _PAGE)
        yield [name for name, _ in _pairs(entries)]
        if int(cursor) == 0:
            return


def _pairs(reply: Any) -> list[tuple[bytes, bytes]]:
    """Return the fields and values of a hash from either form of the client's reply."""
    if isinstance(reply, dict):
        return list(reply.items())
    return list(zip(reply[::2], reply[1::2], strict=True))
