"""A database that other programs change, and one whose log is gone: what stands beside it tells."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from replay.errors import JournalDamaged, JournalUnavailable
from replay.journal.base import NewRow, Verdict
from replay.journal.sqlite import mark as sqlitemark
from replay.journal.sqlite.journal import SqliteJournal
from replay.journal.sqlite.mark import Mark


def row(i: int) -> NewRow:
    return NewRow(i.to_bytes(16, "big"), f"e{i}", "s", Verdict.ACCEPTED, b"\x01" * 64, 1.0)


def opened(path: Path) -> SqliteJournal:
    return SqliteJournal(path, disk_low_mb=0, synchronous="OFF")


class Open:
    """A journal in use, and a copy of it as it was after 100 of 400 rows."""

    def __init__(self, folder: Path) -> None:
        self.path, self.copy = folder / "journal.db", folder / "copy.db"
        self.journal = opened(self.path)
        self.partition, self.known = self.journal.register("m", "r", "spec", 1.0).id, 0
        self.add(100)
        self.journal.checkpoint()
        with closing(sqlite3.connect(self.path)) as now, closing(sqlite3.connect(self.copy)) as to:
            now.backup(to)
        self.add(300)
        self.journal.checkpoint()

    def add(self, n: int = 1) -> None:
        made = [row(self.known + i) for i in range(n)]
        self.known = self.journal.append(self.partition, self.known, made).end

    def refused(self) -> str:
        """What a write is told, which is definite."""
        with pytest.raises(JournalDamaged) as found:
            self.add()
        assert found.value.definite
        return str(found.value)


@pytest.fixture
def used(tmp_path: Path) -> Iterator[Open]:
    made = Open(tmp_path)
    yield made
    made.journal.close()


def test_nothing_is_written_over_an_older_copy_and_it_goes_on_when_the_newest_is_back(
    used: Open, tmp_path: Path
) -> None:
    newest = tmp_path / "newest.db"
    shutil.copyfile(used.path, newest)
    shutil.copyfile(used.copy, used.path)  # into the same file
    told = used.refused()
    assert "an older one lies in its place, which lacks the newest 300 rows" in told
    with pytest.raises(JournalDamaged):
        used.journal.checkpoint()
    assert used.refused() == told, "as often as it is asked"
    shutil.copyfile(newest, used.path)
    used.add()
    used.journal.close()
    with closing(opened(used.path)) as again:
        assert again.partition(used.partition).end == 401  # type: ignore[union-attr]
        assert again.lost == 0


def test_another_process_that_opens_an_older_copy_lets_nobody_write_over_it(
    used: Open, tmp_path: Path
) -> None:
    newest = tmp_path / "newest.db"
    shutil.copyfile(used.path, newest)
    shutil.copyfile(used.copy, used.path)
    told = used.refused()
    with closing(opened(used.path)) as other:  # as `online fsck` does
        assert other.lost == 300
    assert not used.journal._file._mark.foreign, "it has looked through it, and noted it"
    assert used.refused() == told
    shutil.copyfile(newest, used.path)
    used.add()
    assert used.journal.lost == 0


def test_what_another_process_has_looked_through_is_opened_anew_once(used: Open) -> None:
    os.utime(used.path)
    opened(used.path).close()
    before = used.journal._file._writer
    used.add()
    now = used.journal._file._writer
    assert now is not before
    used.add()
    used.journal.checkpoint()
    assert used.journal._file._writer is now


def test_another_programs_database_takes_no_rows(used: Open, tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "other.db")) as other:
        other.execute("CREATE TABLE its (own)")
        other.commit()
    shutil.copyfile(tmp_path / "other.db", used.path)
    assert "lacks the newest 400 rows" in used.refused()


def test_a_look_that_fails_is_no_certain_answer_and_is_repeated(
    used: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    def look(mark: Mark) -> int:
        raise sqlite3.OperationalError("unable to open database file")

    os.utime(used.path)
    with monkeypatch.context() as failing:
        failing.setattr(Mark, "look_through", look)
        with pytest.raises(JournalUnavailable):
            used.add()
        with pytest.raises(JournalUnavailable):
            used.journal.checkpoint()
    used.add()


def test_a_close_leaves_no_log_though_others_have_changed_the_file(used: Open) -> None:
    used.add()
    os.utime(used.path)
    used.journal.close()
    assert not Path(f"{used.path}-wal").exists()


@pytest.mark.parametrize("size", [0, 8192, 50_000])
def test_nothing_is_written_into_a_file_that_was_cut(used: Open, size: int) -> None:
    os.truncate(used.path, size)
    told = used.refused()
    assert "which is damaged now" in told or "lacks the newest 400 rows" in told
    assert "\n" not in told


def test_a_mixture_of_two_files_is_not_opened(used: Open, tmp_path: Path) -> None:
    """Of the database from before, and the log that goes with another one."""
    folder = tmp_path / "died"
    folder.mkdir()
    for end in ("", "-wal", ".mark"):
        shutil.copy(f"{used.path}{end}", folder / f"journal.db{end}")
    path = folder / "journal.db"
    with path.open("r+b") as file:
        file.seek(8192)
        file.write(used.copy.read_bytes()[4096:16_384])
    with pytest.raises(JournalDamaged, match="another program has changed the file"):
        opened(path)
    (folder / "journal.db.mark").unlink()  # the control: SQLite itself sees nothing
    opened(path).close()


def test_a_log_that_was_removed_is_missed_with_the_number_of_rows(
    used: Open, tmp_path: Path
) -> None:
    used.add(25)  # they are in the log alone
    for name, ends in (("whole", ("", "-wal", ".mark")), ("without", ("", ".mark"))):
        (tmp_path / name).mkdir()
        for end in ends:  # as SIGKILL leaves them
            shutil.copy(f"{used.path}{end}", tmp_path / name / f"journal.db{end}")
    with closing(opened(tmp_path / "whole" / "journal.db")) as whole:
        assert whole.lost == 0
    with closing(opened(tmp_path / "without" / "journal.db")) as without:
        assert without.lost == 25
        partition = without.register("m", "r", "spec", 1.0).id
        without.append(partition, 0, [row(999)])
        assert without.lost == 24, "whoever writes nevertheless makes nobody forget it"
    with closing(opened(tmp_path / "without" / "journal.db")) as again:
        assert again.lost == 24
        again.accept_lost()
        assert again.lost == 0


def test_another_program_that_moves_pages_spoils_nothing(used: Open) -> None:
    used.add(10)
    with closing(sqlite3.connect(used.path)) as other:
        assert other.execute("PRAGMA wal_checkpoint(FULL)").fetchone()[0] == 0
    assert used.journal._file._mark.foreign
    used.add(10)
    assert not used.journal._file._mark.foreign
    assert used.journal.lost == 0


def test_what_the_service_does_itself_is_never_looked_through(
    used: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    def look(mark: Mark) -> int:
        raise AssertionError("nobody else has changed it")

    monkeypatch.setattr(Mark, "look_through", look)
    other = opened(used.path)  # of another process
    for journal in (used.journal, other, used.journal, other):
        used.add(20)
        journal.checkpoint()
        other.register("m", "other", "spec", 1.0)
    with used.journal._file.still():
        pass
    used.journal._file._broken = "as after an error of the disk"
    used.add()
    other.close()
    used.add()
    used.journal.close()
    opened(used.path).close()


def test_a_mark_that_cant_be_believed_says_nothing(used: Open) -> None:
    mark = used.journal._file._mark
    with mark.changing():
        assert not mark.foreign, "whoever dies here leaves this behind"
        os.utime(used.path)
        assert not mark.foreign
    file = Path(f"{used.path}.mark")
    whole = file.read_bytes()
    for torn in (b"", whole[:10], b"XXXX" + whole[4:], whole[:-1] + bytes([whole[-1] ^ 1])):
        file.write_bytes(torn)
        assert mark.read() is None
        os.utime(used.path)
        assert not mark.foreign
        assert used.journal.lost == 0
    used.add()
    file.unlink()
    used.add()


def test_whoever_may_not_write_beside_it_goes_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class NotAllowed:
        def __getattr__(self, name: str) -> object:
            return getattr(os, name)

        def open(self, *_: object) -> int:
            raise PermissionError("no")

    monkeypatch.setattr(sqlitemark, "os", NotAllowed())
    with closing(opened(tmp_path / "journal.db")) as journal:
        partition = journal.register("m", "r", "spec", 1.0).id
        assert journal.append(partition, 0, [row(1)]).end == 1
        journal.checkpoint()
        assert journal.lost == 0
