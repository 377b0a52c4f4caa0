"""Removes payloads from the SQLite journal permanently, in small transactions."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Final, TypeVar

from replay.errors import JournalDamaged
from replay.journal.base import Stored
from replay.journal.checksum import checksum
from replay.journal.sqlite import proof
from replay.journal.sqlite import schema as sql
from replay.journal.sqlite.append import stored_half
from replay.journal.sqlite.file import SqliteFile
from replay.journal.sqlite.rinse import Rinsing

_Item = TypeVar("_Item")

_STEP: Final = 200  # rows per transaction, for which other writers wait
_PAGES: Final = 1024  # pages per rinsing step: 4 MB are read under the lock
_REWRITE: Final = "UPDATE rows SET event_id = '', payload = ?, checksum = ? WHERE seq = ?"
_HALVES: Final = (
    f"SELECT {sql.HALF_COLUMNS} FROM halves WHERE model = {sql.MODEL} AND key > ?"
    " ORDER BY key LIMIT ?"
)
_DECISION: Final = f"{sql.CONTROL} AND c.key = ?"
_RETELL: Final = "UPDATE control SET payload = ?, checksum = ? WHERE model = ? AND seq = ?"


class SqliteErasing:
    """A :class:`replay.journal.erasing.Erasing` of one SQLite file."""

    def __init__(self, file: SqliteFile, unchecked: int) -> None:
        self._file, self._unchecked = file, unchecked

    def rows(self, partition: int, offsets: Sequence[int], payload: bytes) -> int:
        """Replace the payload of rows, see :class:`replay.journal.erasing.Erasing`."""
        changed = 0
        for some in _batches(offsets):
            with self._file.write() as db:
                for offset in some:
                    record = db.execute(sql.READ, (partition, offset, offset + 1)).fetchone()
                    if record is None:
                        continue
                    row = proof.as_row(record, self._unchecked)
                    if (row.event_id, row.payload) == ("", payload):
                        continue
                    columns = [*record[:-1]]
                    columns[4], columns[8] = "", payload
                    db.execute(_REWRITE, (payload, checksum(*columns), row.seq))
                    changed += 1
        return changed

    def halves(self, model: str) -> Iterator[tuple[bytes, Stored]]:
        """Yield the model's halves, read page by page."""
        after = b""
        while page := self._file.query(_HALVES, (model, after, _STEP)):
            for record in page:
                yield bytes(record[1]), _stored(record)
            after = bytes(page[-1][1])

    def replace_half(self, model: str, key: bytes, over: Stored, by: Stored | None) -> bool:
        """Replace a half by another one, or remove it."""
        with self._file.write() as db:
            (number,) = db.execute(f"SELECT {sql.MODEL}", (model,)).fetchone()
            record = db.execute(sql.KEPT_HALF, (number, key)).fetchone()
            if record is None or _stored(record) != over:
                return False
            db.execute(sql.DROP_HALF, (number, key))
            if by is None:
                proof.model_of(db, number)
                db.execute(sql.COUNT_HALVES, (-1, number))
                db.execute(sql.PROVE_MODEL, (number,))
            else:
                given = (by.half.value, by.event_id, by.source, by.payload, by.at, record[7])
                columns = (number, key, *given)
                db.execute(sql.KEEP_HALF, (*columns, checksum(*columns)))
        return True

    def texts(self, model: str, kind: str, keys: Collection[str], payload: bytes) -> int:
        """Replace the payload of control rows."""
        changed = 0
        for some in _batches(sorted(keys)):
            with self._file.write() as db:
                for key in some:
                    record = db.execute(_DECISION, (model, key)).fetchone()
                    if record is None or record[2] != kind:
                        continue
                    row = proof.as_control(model, record)
                    if row.payload != payload:
                        columns = (record[0], row.seq, row.kind, row.key, payload)
                        db.execute(_RETELL, (payload, checksum(*columns), record[0], row.seq))
                        changed += 1
        return changed

    def settle(self) -> Iterator[int]:
        """Overwrite the unused bytes of the file, and truncate the write-ahead log."""
        rinsing = Rinsing(self._file)
        while (left := rinsing.step(_PAGES)) != 0:
            yield 0 if left is None else left


def _batches(items: Sequence[_Item]) -> Iterator[Sequence[_Item]]:
    for start in range(0, len(items), _STEP):
        yield items[start : start + _STEP]


def _stored(record: proof.Record) -> Stored:
    """Return a half from its columns.  Raises JournalDamaged."""
    if not proof.good(record):
        raise JournalDamaged(f"the half of key {bytes(record[1]).hex()}")
    return stored_half(record)
