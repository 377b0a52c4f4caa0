"""Bounds of the SQLite journal, a disk that can't be written, and joins that end anywhere."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any, ClassVar

import pytest
from journal_rows import rows
from msgspec.structs import replace

from replay.errors import JournalFull, JournalUnavailable, SizeFull
from replay.journal.base import Half, NewRow
from replay.journal.batch import Bounds
from replay.journal.sqlite import journal as sqlite_module
from replay.journal.sqlite.append import Batch
from replay.journal.sqlite.journal import SqliteJournal


class SmallLog(SqliteJournal):
    _log_mb_max = 1


def half(i: int, side: Half, at: float = 1.0) -> NewRow:
    return replace(rows(i)[0], half=side, payload=side.encode(), at=at)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.db"


def test_new_rows_are_refused_below_the_low_water_mark(path: Path) -> None:
    free = [256.0]
    with closing(SqliteJournal(path, disk_low_mb=256, free_mb=lambda: free[0])) as journal:
        p = journal.register("m", "r", "spec", 1.0).id
        stands = journal.append(p, 0, rows(1, 2))
        free[0] = 255.9
        with pytest.raises(JournalFull, match="256 MB") as refusal:
            journal.append(p, 2, rows(2, 2))
        assert refusal.value.definite
        assert journal.read(p, 3, 9) == ()
        assert journal.append(p, 0, rows(1, 2)) == stands, "what stands needs no space"
        free[0] = 256.0
        assert journal.append(p, 2, rows(2, 2)).end == 3


def test_new_halves_are_refused_below_the_low_water_mark(path: Path) -> None:
    free = [256.0]
    with closing(SqliteJournal(path, disk_low_mb=256, free_mb=lambda: free[0])) as journal:
        p = journal.register("m", "r", "spec", 1.0).id
        stands = journal.append(p, 0, [half(1, Half.LABEL)])
        free[0] = 255.0
        for row in (half(2, Half.LABEL), replace(rows(1)[0], over=Half.LABEL.encode())):
            with pytest.raises(JournalFull):
                journal.append(p, 0, [row])
        assert journal.append(p, 0, [half(1, Half.LABEL)]) == stands
        assert journal.usage("m").halves == 1


def test_halves_above_their_bound_are_not_kept(path: Path) -> None:
    with closing(SqliteJournal(path, bounds=Bounds(halves=2))) as journal:
        p, q = (journal.register(model, "r", "spec", 1.0).id for model in ("m", "n"))
        batch = [half(i, Half.LABEL, float(i)) for i in (1, 2, 3, 1)]
        answer = journal.append(p, 0, batch)
        assert [o.since for o in answer.outcomes] == [1.0, 2.0, None, 1.0]
        assert journal.append(p, 0, batch) == answer
        assert journal.append(q, 0, batch[2:3]).outcomes[0].since == 3.0, "each model for itself"
        joined = replace(rows(1)[0], over=Half.LABEL.encode())
        both = [half(3, Half.PREDICTION, 9.0), joined, half(3, Half.LABEL, 3.0)]
        answer = journal.append(p, 0, both)
        assert [o.new for o in answer.outcomes] == [False, True, False]
        assert [o.since for o in answer.outcomes] == [None, None, 3.0], "a join makes room"
        assert journal.usage("m").halves == 2
        journal.expire("m", 3.0, 9)
        assert journal.append(p, 1, [half(5, Half.LABEL)]).outcomes[0].since == 1.0


def test_rows_above_the_size_bound_are_refused_until_some_are_trimmed(path: Path) -> None:
    with closing(SmallLog(path, synchronous="OFF", size_mb_max=3)) as journal:
        p, end = journal.register("m", "r", "spec", 1.0).id, 0
        while journal.usage("m").size < (3 << 20) - 150_000:
            end = journal.append(p, end, rows(end, 10, 5_000)).end
            journal.checkpoint()
        with pytest.raises(SizeFull, match="its bound is 3 MB") as refusal:
            journal.append(p, end, rows(end, 100, 5_000))
        assert refusal.value.definite
        assert isinstance(refusal.value, JournalFull)
        usage = journal.usage("m")
        assert usage.size <= usage.size_max == 3 << 20  # type: ignore[operator]
        assert usage.size > 2 << 20
        assert usage.rows == end
        assert not journal.append(p, end, rows(0, 10, 5_000)).outcomes[0].new, "what stands"
        with pytest.raises(SizeFull):
            journal.append(p, end, [replace(rows(9999, 1, 900_000)[0], half=Half.LABEL)])
        # What the service needs to get out of there goes on.
        assert journal.begin_epoch("m", "spec", 0) == 1
        assert journal.write_control("m", "freeze", "k", b"")[1]
        assert journal.seal(journal.register("m", "r", "spec", 1.0).id) == 0
        assert journal.claim(p, 1) == 0
        assert journal.trim("m", "spec", 1, {p: end // 2}, 2.0, end) == end // 2
        journal.checkpoint()
        assert journal.usage("m").size < 2 << 20, "pages that are free don't count"
        file_size = path.stat().st_size
        for i in range(10):
            end = journal.append(p, end, rows(10_000 + 10 * i, 10, 5_000)).end
        journal.checkpoint()
        assert path.stat().st_size == file_size, "pages are used again"


# -- a disk that can't be written ------------------------------------------------------------------


def test_a_read_only_file_is_indefinite_and_recovers(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect = sqlite3.connect
    read_only = [False]

    def open_(path: Path, **options: Any) -> Any:
        if read_only[0]:
            return connect(f"file:{path}?mode=ro", uri=True, **options)
        return connect(path, **options)

    monkeypatch.setattr(sqlite3, "connect", open_)
    with closing(SqliteJournal(path)) as journal:
        p = journal.register("m", "r", "spec", 1.0).id
        journal.append(p, 0, rows(1))
        read_only[0] = True
        journal._file._writer.execute("PRAGMA query_only = 1")  # as after a remount
        for call in (
            lambda: journal.append(p, 1, rows(2)),
            lambda: journal.append(p, 1, rows(2)),
            lambda: journal.append(p, 1, [half(3, Half.LABEL)]),
            lambda: journal.write_control("m", "freeze", "k", b""),
            lambda: journal.claim(p, 1),
        ):
            with pytest.raises(JournalUnavailable, match="readonly") as refusal:
                call()
            assert not refusal.value.definite
        assert len(journal.read(p, 1, 9)) == 1, "reads go on"
        assert journal.usage("m").rows == 1
        read_only[0] = False
        answer = journal.append(p, 1, rows(2))
        assert [(o.new, o.row and o.row.offset) for o in answer.outcomes] == [(True, 2)]
        assert journal.usage("m").halves == 0


def test_a_folder_that_cannot_be_made_or_asked_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(JournalUnavailable):
        SqliteJournal(tmp_path / "file" / "journal.db")
    with closing(SqliteJournal(tmp_path / "state" / "journal.db")) as journal:
        p = journal.register("m", "r", "spec", 1.0).id
        (tmp_path / "state").rename(tmp_path / "gone")
        with pytest.raises(JournalUnavailable) as refusal:
            journal.append(p, 0, rows(1))
        assert not refusal.value.definite
        (tmp_path / "gone").rename(tmp_path / "state")
        assert journal.append(p, 0, rows(1)).end == 1


# -- a step that ends anywhere ---------------------------------------------------------------------


class EndsAnywhere(sqlite3.Connection):
    """Fails at the n-th statement that writes."""

    left: ClassVar[int] = 0

    def execute(self, sql: str, *values: Any) -> sqlite3.Cursor:
        if sql.split()[0] in ("INSERT", "UPDATE", "DELETE", "COMMIT"):
            EndsAnywhere.left -= 1
            if EndsAnywhere.left == 0:
                error = sqlite3.OperationalError("disk I/O error")
                error.sqlite_errorcode = sqlite3.SQLITE_IOERR_WRITE
                raise error
        return super().execute(sql, *values)


def lost_joins(path: Path, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """At which statement a join must fail so that its repeat makes no row."""
    connect = sqlite3.connect
    lost: list[int] = []
    EndsAnywhere.left = 0
    monkeypatch.setattr(
        sqlite3, "connect", lambda *args, **options: connect(*args, factory=EndsAnywhere, **options)
    )
    for n in range(1, 99):
        with closing(SqliteJournal(path.with_name(f"{n}.db"), synchronous="OFF")) as journal:
            p = journal.register("m", "r", "spec", 1.0).id
            journal.append(p, 0, [half(1, Half.PREDICTION)])
            EndsAnywhere.left = n
            joined = replace(rows(1)[0], payload=b"both", over=Half.PREDICTION.encode())
            try:
                journal.append(p, 0, [joined])
                return lost
            except JournalUnavailable:
                EndsAnywhere.left = 0
            answer = journal.append(p, 0, [joined])
            payloads = [row.payload for row in journal.read(p, 1, 9)]
            whole = payloads == [b"both"]
            if not (whole and answer.outcomes[0].new and journal.usage("m").halves == 0):
                lost.append(n)
    raise AssertionError("no join without a failure")


def test_a_join_is_whole_or_has_not_begun(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert lost_joins(path, monkeypatch) == []


def test_a_join_in_two_steps_is_noticed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class TwoSteps(Batch):
        def _insert(self, *values: Any) -> Any:
            self._db.execute("COMMIT")  # the half has gone
            self._db.execute("BEGIN IMMEDIATE")
            return super()._insert(*values)

    monkeypatch.setattr(sqlite_module, "Batch", TwoSteps)
    assert lost_joins(path, monkeypatch) != []
