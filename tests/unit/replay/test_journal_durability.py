"""What was answered is on disk: seen in the system calls, after kills, and after failed syncs."""

from __future__ import annotations

import os
import re
import resource
import shutil
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

import replay
from replay.journal.base import Row
from replay.journal.sqlite.journal import SqliteJournal

ROOT = Path(replay.__file__).parents[1]
HEAD = """
import os, resource, sys
from pathlib import Path
from replay.errors import JournalUnavailable
from replay.journal.base import NewRow, Verdict
from replay.journal.sqlite.journal import SqliteJournal
path, words = Path(sys.argv[1]), sys.argv[2:]
def say(text):
    os.write(1, f"{text}\\n".encode())
def row(i, size=64):
    return NewRow(i.to_bytes(16, "big"), f"e{i}", "s", Verdict.ACCEPTED, bytes(size), 1.0)
"""


def child(
    body: str, path: Path, *words: str, before: tuple[str, ...] = ()
) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*before, sys.executable, "-c", HEAD + body, str(path), *words],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> list[str]:
    out, _ = process.communicate(timeout=240)
    assert process.returncode == 0, out
    return out.split()


# -- system calls ------------------------------------------------------------------------------


@pytest.fixture
def strace() -> str:
    found = shutil.which("strace")
    if found is None:
        pytest.skip("strace is not installed")
    if subprocess.run([found, "-o", "/dev/null", "true"], capture_output=True).returncode:
        pytest.skip("strace may not trace here")
    return found


def calls_between(trace: Path, first: str, last: str) -> list[str]:
    """System calls after the write of one marker to stdout and before that of another."""
    lines = trace.read_text().splitlines()
    marks = [i for m in (first, last) for i, c in enumerate(lines) if f'"{m}\\n"' in c]
    assert len(marks) == 2, "both markers were written once"
    return lines[marks[0] + 1 : marks[1]]


def synced_after_the_last_write(calls: list[str]) -> bool:
    """Was the log written, and synced with nothing written to it afterwards?"""
    log = [c for c in calls if "journal.db-wal>" in c]
    return bool(log) and re.search(r"\b(fdatasync|fsync)\(.*= 0$", log[-1]) is not None


APPEND_ONE = """
journal = SqliteJournal(path, synchronous=words[0])
p = journal.register("m", "r", "spec", 1.0).id
say("asked")
journal.append(p, 0, [row(1)])
say("answered")
journal.close()
"""
TRACED = ("-f", "-y", "-e", "trace=fdatasync,fsync,write,pwrite64")


@pytest.mark.parametrize(("synchronous", "expected"), [("FULL", True), ("OFF", False)])
def test_the_log_is_synced_before_the_answer(
    synchronous: str, expected: bool, strace: str, tmp_path: Path
) -> None:
    """With the sync switched off the same look at the trace must fail (negative control)."""
    trace = tmp_path / "trace"
    finish(
        child(
            APPEND_ONE,
            tmp_path / "journal.db",
            synchronous,
            before=(strace, *TRACED, "-o", str(trace)),
        )
    )
    calls = calls_between(trace, "asked", "answered")
    assert any("pwrite64(" in c and "journal.db-wal>" in c for c in calls), "the row was written"
    assert synced_after_the_last_write(calls) is expected


DIE_WITH_A_LOG = """
import signal
journal = SqliteJournal(path, synchronous="OFF")
p = journal.register("m", "r", "spec", 1.0).id
journal.append(p, 0, [row(1)])
os.kill(os.getpid(), signal.SIGKILL)
"""
OPEN_AND_LOOK = """
say("opening")
journal = SqliteJournal(path)
say("open")
say(journal.read(1, 1, 9)[-1].offset)
journal.close()
"""


def test_a_log_that_a_killed_writer_left_is_synced_before_anyone_sees_it(
    strace: str, tmp_path: Path
) -> None:
    """Its frames may never have been synced, and a repeat of them would be answered."""
    path, trace = tmp_path / "journal.db", tmp_path / "trace"
    child(DIE_WITH_A_LOG, path).wait(60)
    assert path.with_name("journal.db-wal").stat().st_size > 0
    assert finish(child(OPEN_AND_LOOK, path, before=(strace, *TRACED, "-o", str(trace)))) == [
        "opening",
        "open",
        "1",
    ]
    calls = calls_between(trace, "opening", "open")
    assert any(re.search(r"sync\(\d+<[^>]*journal\.db-wal>", c) for c in calls)


# -- failed syncs and writes -------------------------------------------------------------------

EACH_UNTIL_ANSWERED = """
def insist(call):
    for attempt in range(5):
        try:
            return call()
        except JournalUnavailable as error:
            assert not error.definite
            say("unavailable")
    sys.exit("never answered")
journal = insist(lambda: SqliteJournal(path))
p, end = insist(lambda: journal.register("m", "r", "spec", 1.0)).id, 0
for i in range(3):
    answer = insist(lambda: journal.append(p, end, [row(2 * i), row(2 * i + 1)]))
    assert [o.new for o in answer.outcomes] == [True, True], answer
    end = answer.end
    insist(journal.checkpoint)
say(f"end={end}")
"""


def test_each_sync_may_fail_once(strace: str, tmp_path: Path) -> None:
    """The first, second, … sync fails with EIO until a run meets no failure any more."""
    failed = 0
    for n in range(1, 40):
        path, trace = tmp_path / f"{n}" / "journal.db", tmp_path / f"trace{n}"
        path.parent.mkdir()
        inject = f"inject=fdatasync,fsync:error=EIO:when={n}"
        traced = (strace, "-f", "-o", str(trace), "-e", "trace=fdatasync,fsync", "-e", inject)
        words = finish(child(EACH_UNTIL_ANSWERED, path, before=traced))
        assert words[-1] == "end=6"
        with closing(SqliteJournal(path)) as journal:
            (p, *empty) = sorted(journal.partitions("m"), key=lambda q: -q.end)
            check_rows(journal.read(p.id, 1, 99), set(range(6)))
            assert all(q.end == 0 for q in empty), "a registration may be lost, no row"
        if "(INJECTED)" not in trace.read_text():
            break
        failed += "unavailable" in words
    else:
        pytest.fail("the run never became free of failures")
    assert failed >= 5, "the failures reached the commits and the checkpoints"


FULL_DISK = """
journal = SqliteJournal(path)
p = journal.register("m", "r", "spec", 1.0).id
journal.append(p, 0, [row(0)])
_, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, hard))
for attempt in range(3):
    try:
        journal.append(p, 1, [row(i, 200_000) for i in range(1, 5)])
        say("answered")
    except JournalUnavailable:
        say("unavailable")
assert [r.offset for r in journal.read(p, 1, 9)] == [1]
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
answer = journal.append(p, 1, [row(i, 200_000) for i in range(1, 5)])
say([o.row.offset for o in answer.outcomes if o.new])
"""


def test_a_write_that_fails_halfway_leaves_nothing(tmp_path: Path) -> None:
    if resource.getrlimit(resource.RLIMIT_FSIZE)[1] not in (-1, resource.RLIM_INFINITY):
        pytest.skip("the size of files is limited here")
    words = finish(child(FULL_DISK, tmp_path / "journal.db"))
    assert words == ["unavailable"] * 3 + ["[2,", "3,", "4,", "5]"]
    with closing(SqliteJournal(tmp_path / "journal.db")) as journal:
        check_rows(journal.read(1, 1, 99), set(range(5)))


# -- kills -------------------------------------------------------------------------------------

APPEND_FOR_EVER = """
journal = SqliteJournal(path)
writer = int(words[0])
p, end, i = journal.register("m", str(writer), "spec", 1.0).id, 0, writer << 32
while True:
    answer = journal.append(p, end, [row(j) for j in range(i, i + 3)])
    for o in answer.outcomes:
        say(f"{p} {o.row.offset} {o.row.event_id}")
    i, end = i + 3, answer.end
    if i % 2:
        journal.checkpoint()
"""


def check_rows(rows: tuple[Row, ...], numbers: set[int]) -> None:
    assert [r.offset for r in rows] == list(range(1, len(rows) + 1)), "no holes"
    assert {int.from_bytes(r.key, "big") for r in rows} >= numbers
    assert len({r.key for r in rows}) == len(rows)


def test_answered_rows_are_there_after_sigkill(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    answered: list[tuple[int, int, str]] = []
    for round_, kill_after in enumerate((1, 7, 40, 95, 160)):
        writers = [child(APPEND_FOR_EVER, path, str(2 * round_ + w)) for w in range(2)]
        victim, other = writers[round_ % 2], writers[1 - round_ % 2]
        lines: list[str] = []
        for process, n in ((victim, kill_after), (other, 5)):  # the other one must go on
            assert process.stdout is not None
            lines += [process.stdout.readline() for _ in range(n)]
            process.kill()
            lines += [line for line in process.stdout.read().splitlines(True) if line[-1] == "\n"]
            process.stdout.close()
            process.wait(240)
        for line in lines:
            number, offset, event_id = line.split()
            answered.append((int(number), int(offset), event_id))
        with closing(SqliteJournal(path)) as journal:
            stored = {}
            for p in journal.partitions("m"):
                rows = journal.read(p.id, 1, 10**6)
                check_rows(rows, set())
                assert p.end == len(rows)
                stored.update({(p.id, r.offset): r.event_id for r in rows})
            assert len(answered) > kill_after
            assert all(stored.get((n, offset)) == event for n, offset, event in answered)
