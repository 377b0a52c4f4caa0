"""Who is ended when a process stands still and holds the journal, and who never is."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from online.service.processes import runs
from online.service.state import stalled_process
from online.service.state.stalled_process import Look, Standstill, look
from replay.errors import JournalHeld
from replay.journal.filelock import flock_holder
from replay.journal.sqlite.journal import SqliteJournal

STANDING = Look((7, 100.0), ours=True, stands=True, disk=True)
HOLD = """
import fcntl, sys
file = open(sys.argv[1])
fcntl.flock(file, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""
NO_PORTS = range(0)


def ended_after(looks: list[Look], every_s: float = 1.0, bound_s: float = 10.0) -> int | None:
    """After how many looks a process is to be ended; None: it never is."""
    counted = Standstill()
    for i, seen in enumerate(looks):
        if counted.saw(seen, i * every_s, bound_s) is not None:
            return i
    return None


def test_a_process_of_ours_that_stands_still_is_ended_at_the_bound() -> None:
    assert ended_after([STANDING] * 30) == 10


@pytest.mark.parametrize(
    "other",
    [
        replace(STANDING, ours=False),  # a backup
        replace(STANDING, stands=False),  # it waits for the disk, and answers
        replace(STANDING, disk=False),  # the disk stalls
        replace(STANDING, holder=None),
        replace(STANDING, holder=(7, 101.0)),  # the number was given again
        replace(STANDING, written=(4_152, 1)),  # it is slow: it has ended a commit, and begun one
    ],
)
def test_whoever_else_holds_it_is_not_ended_and_begins_the_count_anew(other: Look) -> None:
    if other.holder != (7, 101.0) and other.written is None:
        assert ended_after([other] * 100) is None
    assert ended_after([STANDING] * 9 + [other] + [STANDING] * 11) == 20


def test_time_that_was_not_ours_is_not_counted() -> None:
    """The service itself, or its machine, was suspended between two looks."""
    counted = Standstill()
    assert counted.saw(STANDING, 0.0, 10.0) is None
    assert counted.saw(STANDING, 86_400.0, 10.0) is None


def test_one_process_at_a_time() -> None:
    counted, ended = Standstill(), []
    for i in range(30):
        process = counted.saw(STANDING, float(i), 10.0)
        if process is not None:
            ended.append(i)
    assert ended == [10, 21]


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process of ours that holds the lock of the journal in the folder."""
    SqliteJournal(tmp_path / "journal.db").close()
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "journal.db.lock")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


@pytest.mark.skipif(not Path("/proc/locks").exists(), reason="needs Linux's list of locks")
def test_the_holder_is_named_and_ended_only_if_it_is_stopped(
    holder: subprocess.Popen[str], tmp_path: Path
) -> None:
    with pytest.raises(JournalHeld) as refusal:
        SqliteJournal(tmp_path / "journal.db", lock_wait_s=0.05)
    assert refusal.value.definite
    assert refusal.value.pid == holder.pid
    assert str(holder.pid) in str(refusal.value)
    counted = Standstill()
    for now_s in (0.0, 1.0, 2.0):
        assert counted.end(look(holder.pid, NO_PORTS, tmp_path), now_s, 1.0) is None
    holder.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, holder.pid, os.WSTOPPED | os.WNOWAIT)
    assert counted.end(look(os.getpid(), NO_PORTS, tmp_path), 3.0, 1.0) is None, "not our child"
    assert counted.end(look(holder.pid, NO_PORTS, tmp_path), 4.0, 1.0) is None
    line = counted.end(look(holder.pid, NO_PORTS, tmp_path), 5.0, 1.0)
    assert line is not None
    assert f"ended process {holder.pid}" in line
    assert not runs(psutil.Process(holder.pid))
    with closing(SqliteJournal(tmp_path / "journal.db", lock_wait_s=0.05)) as journal:
        assert journal.register("m", "r", "spec", 1.0).id == 1


def test_a_disk_that_takes_no_file_ends_nobody(
    holder: subprocess.Popen[str], tmp_path: Path
) -> None:
    holder.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, holder.pid, os.WSTOPPED | os.WNOWAIT)
    assert look(holder.pid, NO_PORTS, tmp_path).disk
    assert not look(holder.pid, NO_PORTS, tmp_path / "missing").disk
    slow = iter((0.0, 3.0))
    assert not look(holder.pid, NO_PORTS, tmp_path, lambda: next(slow)).disk


def test_who_waits_for_a_disk_or_writes_now_and_then_is_not_stalled(
    holder: subprocess.Popen[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A replica whose HTTP does not answer because it waits for swap, and one that is slow."""
    monkeypatch.setattr(stalled_process, "_silent", lambda process, ports: True)
    monkeypatch.setattr(psutil.Process, "status", lambda self: psutil.STATUS_DISK_SLEEP)
    assert not look(holder.pid, range(1, 2), tmp_path).stands
    monkeypatch.setattr(psutil.Process, "status", lambda self: psutil.STATUS_SLEEPING)
    counted, log = Standstill(), tmp_path / "journal.db-wal"
    for i in range(30):
        log.write_bytes(bytes(i))
        assert counted.saw(look(holder.pid, range(1, 2), tmp_path), float(i), 10.0) is None
    assert [
        counted.saw(look(holder.pid, range(1, 2), tmp_path), 30.0 + i, 10.0) for i in range(10)
    ][-1] == (holder.pid, psutil.Process(holder.pid).create_time())


def test_who_waits_for_a_lock_is_not_its_holder(tmp_path: Path) -> None:
    with (tmp_path / "lock").open("w") as file:
        inode = os.fstat(file.fileno()).st_ino
        text = (
            f"1: FLOCK  ADVISORY  WRITE 41 fe:00:{inode + 1} 0 EOF\n"
            f"2: FLOCK  ADVISORY  WRITE 42 fe:00:{inode} 0 EOF\n"
            f"2: -> FLOCK  ADVISORY  WRITE 43 fe:00:{inode} 0 EOF\n"
            f"3: POSIX  ADVISORY  WRITE 44 fe:00:{inode} 0 EOF\n"
        )
        told = flock_holder(file.fileno(), lambda: text)
        assert told is not None
        assert told.pid == 42
        assert flock_holder(file.fileno(), lambda: "") is None
        fcntl.flock(file, fcntl.LOCK_EX)
        found = flock_holder(file.fileno())
        assert found is not None
        assert found.pid == os.getpid()


def test_a_write_behind_one_that_the_disk_does_not_end_is_bounded(tmp_path: Path) -> None:
    with closing(SqliteJournal(tmp_path / "journal.db", lock_wait_s=0.05)) as journal:
        begun_s = time.monotonic()
        with journal._file._writing, pytest.raises(JournalHeld, match="of this process") as refusal:
            journal.register("m", "r", "spec", 1.0)
        assert refusal.value.definite
        assert time.monotonic() >= begun_s + 0.05
