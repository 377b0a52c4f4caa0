"""Batches of any size are the same rows in the SQLite journal, in few statements."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

import pytest
from msgspec import structs

from replay.errors import JournalUnavailable
from replay.journal.base import NewRow, Outcome, Verdict
from replay.journal.checksum import checksum
from replay.journal.sqlite import append as sqliteappend
from replay.journal.sqlite import schema as sqliteschema
from replay.journal.sqlite.journal import SqliteJournal

SIZES = (1, 2, 63, 64, 65, 127, 128, 129, 511, 513, 1000, 1024)


def rows(first: int, n: int) -> list[NewRow]:
    return [
        NewRow(i.to_bytes(16, "big"), f"e{i}", f"s{i % 3}", Verdict.ACCEPTED, bytes([i % 251]), 1.0)
        for i in range(first, first + n)
    ]


def inserts(journal: SqliteJournal, partition: int, known: int, batch: list[NewRow]) -> int:
    """Append the batch; in how many statements."""
    seen: list[str] = []
    journal._file._writer.set_trace_callback(seen.append)
    try:
        assert journal.append(partition, known, batch).end == known + len(batch)
    finally:
        journal._file._writer.set_trace_callback(None)
    return sum(statement.startswith(("INSERT INTO", "INSERT OR FAIL INTO")) for statement in seen)


def test_a_batch_of_any_size_is_written_whole_and_in_order(tmp_path: Path) -> None:
    with closing(SqliteJournal(tmp_path / "journal.db", synchronous="OFF")) as journal:
        p, end = journal.register("m", "r", "spec", 1.0).id, 0
        for n in SIZES:
            batch = rows(end, n)
            assert inserts(journal, p, end, batch) == 1, n
            found = journal.read(p, end + 1, n)
            assert [(r.key, r.event_id, r.source, r.payload) for r in found] == [
                (r.key, r.event_id, r.source, r.payload) for r in batch
            ]
            assert [r.offset for r in found] == list(range(end + 1, end + n + 1))
            end += n
        assert journal.examine(lambda done, total: None).damage == ()


def test_small_statements_are_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqliteappend, "_TOGETHER", 64)
    with closing(SqliteJournal(tmp_path / "journal.db", synchronous="OFF")) as journal:
        p = journal.register("m", "r", "spec", 1.0).id
        assert inserts(journal, p, 0, rows(0, 1000)) > 2


def bytes_for_each_of_the_log(path: Path) -> float:
    """How many bytes this thread writes for each that the log grows by, where keys lie apart."""
    with closing(SqliteJournal(path, synchronous="OFF")) as journal:
        p, end = journal.register("m", "r", "spec", 1.0).id, 0
        for some in (rows(0, 1024), rows(1024, 1024), rows(2048, 1024)):
            log, before = os.stat(f"{path}-wal").st_size, _written()
            scattered = [structs.replace(r, key=hashlib.md5(r.key).digest()) for r in some]
            end = journal.append(p, end, scattered).end
        return (_written() - before) / (os.stat(f"{path}-wal").st_size - log)


def _written() -> int:
    lines = Path("/proc/thread-self/io").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("wchar"))


@pytest.mark.skipif(not Path("/proc/thread-self/io").exists(), reason="it tells no bytes written")
@pytest.mark.parametrize("aside", [False, True])
def test_no_page_is_copied_aside_before_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, aside: bool
) -> None:
    if aside:
        monkeypatch.setattr(
            sqliteschema, "INSERT_NEW", sqliteschema.INSERT_NEW.replace("OR FAIL ", "")
        )
    assert (bytes_for_each_of_the_log(tmp_path / "journal.db") > 1.2) == aside


def test_a_statement_that_fails_halfway_leaves_nothing(tmp_path: Path) -> None:
    with closing(SqliteJournal(tmp_path / "journal.db", synchronous="OFF")) as journal:
        p = journal.register("m", "r", "spec", 1.0).id
        journal._file._writer.execute(
            "CREATE TEMP TRIGGER fails BEFORE INSERT ON rows WHEN new.event_id = 'e7'"
            " BEGIN SELECT raise(FAIL, 'halfway'); END"
        )
        with pytest.raises(JournalUnavailable, match="halfway"):
            journal.append(p, 0, rows(0, 10))
        assert journal.read(p, 1, 10) == ()
        assert journal.append(p, 0, rows(0, 10)).end == 10  # the trigger went with the connection


def work(
    folder: Path, again: Callable[[int], bool], patch: pytest.MonkeyPatch, many: int = 1024
) -> tuple[int, int, int]:
    """How many of so many rows were there before, and how many statements and checksums it took.

    They are repeats where ``again`` says so of their place, of rows before this batch and, every
    third of them, of a row within it.
    """
    batch = rows(5000, many)
    for i in filter(again, range(many)):
        batch[i] = batch[i - 1] if i % 3 == 0 and i and not again(i - 1) else rows(i, 1)[0]
    made, seen = list[int](), list[str]()

    def counted(*columns: int | float | str | bytes | None) -> int:
        made.append(1)
        return checksum(*columns)

    with closing(SqliteJournal(folder / "journal.db", synchronous="OFF")) as journal:
        p = journal.register("m", "r", "spec", 1.0).id
        end = journal.append(p, 0, rows(0, many)).end
        patch.setattr(sqliteappend, "checksum", counted)
        journal._file._writer.set_trace_callback(seen.append)
        answer = journal.append(p, end, batch)
        journal._file._writer.set_trace_callback(None)
        patch.setattr(sqliteappend, "checksum", checksum)
        old = [i for i, one in enumerate(answer.outcomes) if not one.new]
        assert old == list(filter(again, range(many)))
        assert [one.row and one.row.key for one in answer.outcomes] == [row.key for row in batch]
        assert [row.key for row in journal.read(p, end + 1, many)] == [
            row.key for i, row in enumerate(batch) if not again(i)
        ]
    return len(old), len(seen), len(made)


PLACES: dict[str, Callable[[int], bool]] = {
    "one": lambda i: i == 400,
    "every sixtieth": lambda i: i % 60 == 0,
    "every second": lambda i: i % 2 == 0,
    "all": lambda i: True,
}


@pytest.mark.parametrize("places", list(PLACES))
def test_repeats_cost_a_look_and_a_statement_each(
    places: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repeats, statements, checksums = work(tmp_path, PLACES[places], monkeypatch)
    assert statements <= 12 + 2 * repeats, (repeats, statements)
    assert checksums <= 2 * 1024 + 1, (repeats, checksums)
    if places == "all":  # they are found together
        assert statements <= 12, statements


def test_halving_until_rows_are_few_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = sqliteappend.Batch._write_some

    def in_halves(self: sqliteappend.Batch, some: Sequence[NewRow]) -> list[Outcome]:
        if len(some) <= 64:
            return real(self, some)
        if (written := self._insert_all(some)) is not None:
            return written
        half = len(some) // 2
        return [*in_halves(self, some[:half]), *in_halves(self, some[half:])]

    monkeypatch.setattr(sqliteappend.Batch, "_write_some", in_halves)
    _, statements, checksums = work(tmp_path, PLACES["every sixtieth"], monkeypatch)
    assert statements > 12 + 2 * 18, statements
    assert checksums > 2 * 1024 + 1, checksums


def test_a_repeat_in_the_second_statement_finds_its_first_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqliteappend, "_TOGETHER", 640)
    with closing(SqliteJournal(tmp_path / "journal.db", synchronous="OFF")) as journal:
        p = journal.register("m", "r", "spec", 1.0).id
        answer = journal.append(p, 0, [*rows(0, 700), *rows(5, 1)])
        first, repeat = answer.outcomes[5], answer.outcomes[-1]
        assert answer.end == 700
        assert (first.new, repeat.new) == (True, False)
        assert repeat.row == first.row


def scattered(tmp_path: Path) -> tuple[list[int], list[int]]:
    """Commit numbers and offsets after batches in which a few rows were there before."""
    with closing(SqliteJournal(tmp_path / "journal.db", synchronous="OFF")) as journal:
        p = journal.register("m", "r", "spec", 1.0).id
        end = journal.append(p, 0, rows(0, 10)).end
        for first, known in ((100, 5), (1000, 105), (2000, 1300)):
            batch = [*rows(first, 300), *rows(known, 1), *rows(first + 300, 200), *rows(known, 1)]
            answer = journal.append(p, end, batch)
            assert [i for i, one in enumerate(answer.outcomes) if not one.new] == [300, 501]
            assert answer.end == end + 500
            end = answer.end
        found = journal.read(p, 1, end)
        assert journal.examine(lambda done, total: None).damage == ()
    return [row.seq for row in found], [row.offset for row in found]


def test_rows_that_were_taken_out_again_leave_no_holes(tmp_path: Path) -> None:
    seqs, offsets = scattered(tmp_path)
    assert seqs == offsets == list(range(1, 1511))


def test_a_number_that_is_not_put_back_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqliteschema, "SET_SEQ", "SELECT ?")
    seqs, offsets = scattered(tmp_path)
    assert offsets == list(range(1, 1511))
    assert seqs != offsets


def test_nobody_looks_before_new_rows_are_written(tmp_path: Path) -> None:
    with closing(SqliteJournal(tmp_path / "journal.db", synchronous="OFF")) as journal:
        p, seen = journal.register("m", "r", "spec", 1.0).id, list[str]()
        journal._file._writer.set_trace_callback(seen.append)
        journal.append(p, 0, rows(0, 1000))
        journal._file._writer.set_trace_callback(None)
    assert not [statement for statement in seen if "FROM rows WHERE model" in statement]
