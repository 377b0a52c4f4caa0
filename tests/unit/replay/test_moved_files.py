"""A journal whose files are moved or removed by hand while it is open: nothing is written there."""

from __future__ import annotations

import os
import pickle
import shutil
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

import replay
from replay.errors import JournalMoved, JournalUnavailable, ReplayError
from replay.journal.base import NewRow, Verdict
from replay.journal.sqlite.file import SqliteFile
from replay.journal.sqlite.journal import SqliteJournal


def row(i: int) -> NewRow:
    return NewRow(i.to_bytes(16, "big"), f"e{i}", "s", Verdict.ACCEPTED, b"\x01", 1.0)


def refused(journal: SqliteJournal, partition: int, known: int) -> JournalMoved:
    with pytest.raises(JournalMoved) as found:
        journal.append(partition, known, [row(99)])
    assert found.value.definite
    again = pickle.loads(pickle.dumps(found.value))
    assert (str(again), again.path) == (str(found.value), found.value.path)
    return found.value


def test_nothing_is_written_into_a_folder_that_was_moved_and_it_goes_on_when_it_is_back(
    tmp_path: Path,
) -> None:
    state, elsewhere = tmp_path / "state", tmp_path / "elsewhere"
    with closing(SqliteJournal(state / "journal.db", synchronous="OFF")) as journal:
        partition = journal.register("m", "r", "spec", 1.0).id
        journal.append(partition, 0, [row(1)])
        state.rename(elsewhere)
        state.mkdir()  # as whoever writes a snapshot makes it
        assert str(state / "journal.db") in str(refused(journal, partition, 1))
        (state / "journal.db").touch()  # another one there is not the one that is open
        refused(journal, partition, 1)
        assert journal.read(partition, 1, 9)[0].event_id == "e1", "reads go on"
        shutil.rmtree(state)
        elsewhere.rename(state)
        assert journal.append(partition, 1, [row(2)]).end == 2
    with closing(SqliteJournal(state / "journal.db")) as journal:
        assert [found.event_id for found in journal.read(partition, 1, 9)] == ["e1", "e2"]


LOSES_ITS_LOG = """
import os, signal, sys
from pathlib import Path
from replay.errors import JournalMoved, ReplayError
from replay.journal.base import NewRow, Verdict
from replay.journal.sqlite.journal import SqliteJournal
path = Path(sys.argv[1])
journal = SqliteJournal(path)
partition = journal.register("m", "r", "spec", 1.0).id
def append(i):
    new = NewRow(i.to_bytes(16, "big"), f"e{i}", "s", Verdict.ACCEPTED, b"\\x01", 1.0)
    journal.append(partition, i - 1, [new])
append(1)
for end in ("-wal", "-shm"):
    os.unlink(f"{path}{end}")
try:
    append(2)
except JournalMoved:
    os.write(1, b"refused")
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_removed_log_held_is_in_the_file_after_the_refusal(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    environment = {**os.environ, "PYTHONPATH": str(Path(replay.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", LOSES_ITS_LOG, path],
        capture_output=True, text=True, env=environment, timeout=240,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (-signal.SIGKILL, "refused"), done.stderr
    with closing(SqliteJournal(path)) as journal:
        assert [found.event_id for found in journal.read(1, 1, 9)] == ["e1"]


def test_a_removed_file_is_not_made_anew_after_a_disk_error(tmp_path: Path) -> None:
    """Else the open one, which has everything, would be let go of."""
    path = tmp_path / "journal.db"
    with closing(SqliteJournal(path, synchronous="OFF")) as journal:
        partition = journal.register("m", "r", "spec", 1.0).id
        journal.append(partition, 0, [row(1)])
        path.rename(tmp_path / "away.db")
        journal._file._recover()
        assert not path.exists()
        (tmp_path / "away.db").rename(path)
        assert journal.append(partition, 1, [row(2)]).end == 2


@pytest.mark.parametrize("last", [True, False])
def test_a_file_that_is_moved_after_a_disk_error_is_not_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, last: bool
) -> None:
    """Nothing is open then; if another process has it, the log stays, and is not thrown away."""
    path, away = tmp_path / "journal.db", tmp_path / "away.db"
    with closing(SqliteJournal(path, synchronous="OFF")) as journal:
        partition = journal.register("m", "r", "spec", 1.0).id
        other = None if last else SqliteJournal(path, synchronous="OFF")
        journal.append(partition, 0, [row(1)])

        def fails(self: SqliteFile) -> sqlite3.Connection:
            raise sqlite3.OperationalError("disk I/O error")

        with monkeypatch.context() as broken:
            broken.setattr(SqliteFile, "_connect", fails)
            journal._file._recover()
        path.rename(away)
        with pytest.raises(JournalUnavailable, match="moved"):
            journal.append(partition, 1, [row(2)])
        assert not path.exists()
        away.rename(path)
        assert journal.append(partition, 1, [row(2)]).end == 2
        assert [found.event_id for found in journal.read(partition, 1, 9)] == ["e1", "e2"]
        if other is not None:
            other.close()


def test_a_file_that_is_moved_just_before_it_is_opened_again_is_not_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, away = tmp_path / "journal.db", tmp_path / "away.db"
    with (
        closing(SqliteJournal(path, synchronous="OFF")) as journal,
        closing(SqliteJournal(path, synchronous="OFF")),
    ):
        partition = journal.register("m", "r", "spec", 1.0).id
        journal.append(partition, 0, [row(1)])
        with monkeypatch.context() as late:
            late.setattr(SqliteFile, "_check_places", lambda self: path.rename(away))
            journal._file._recover()
        assert not path.exists()
        away.rename(path)
        assert journal.append(partition, 1, [row(2)]).end == 2
        assert [found.event_id for found in journal.read(partition, 1, 9)] == ["e1", "e2"]


OPENS = """
import sys
from pathlib import Path
from replay.journal.sqlite import file as sqlitefile
from replay.journal.sqlite.journal import SqliteJournal
if "control" in sys.argv:
    sqlitefile._check_log = lambda path: None
journal = SqliteJournal(Path(sys.argv[1]))
journal.checkpoint()
journal.close()
"""


@pytest.mark.parametrize("guarded", [True, False])
def test_whoever_opens_it_meanwhile_does_not_empty_the_log_of_those_who_write(
    tmp_path: Path, guarded: bool
) -> None:
    """The control: what was answered is missing, or the file is no database any more."""
    path, away = tmp_path / "journal.db", tmp_path / "away.db"
    environment = {**os.environ, "PYTHONPATH": str(Path(replay.__file__).parents[1])}
    words = [sys.executable, "-c", OPENS, str(path), *([] if guarded else ["control"])]
    found: set[str] | str
    with closing(SqliteJournal(path, synchronous="OFF")) as journal:
        partition = journal.register("m", "r", "spec", 1.0).id
        journal.append(partition, 0, [row(i) for i in range(1, 50)])
        path.rename(away)
        done = subprocess.run(words, capture_output=True, text=True, env=environment, timeout=240)
        assert ("JournalMoved" in done.stderr) is guarded, done.stderr
        assert path.exists() is not guarded
        away.rename(path)
        try:
            journal.append(partition, 49, [row(50)])
            journal.checkpoint()
            found = {one.event_id for one in journal.read(partition, 1, 99)}
        except ReplayError as error:
            found = str(error)
    assert (found == {f"e{i}" for i in range(1, 51)}) is guarded, found


def test_without_the_look_what_was_answered_is_in_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Control."""
    monkeypatch.setattr(SqliteFile, "_check_places", lambda self: None)
    path = tmp_path / "journal.db"
    with closing(SqliteJournal(path, synchronous="OFF")) as journal:
        partition = journal.register("m", "r", "spec", 1.0).id
        for end in ("", "-wal", "-shm"):
            Path(f"{path}{end}").unlink()
        assert journal.append(partition, 0, [row(1)]).end == 1
    with closing(SqliteJournal(path)) as journal:
        assert journal.partitions("m") == ()
