"""On disk before it is answered, as traces of the system calls of real processes show it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import redis_server

from benchmarks.faults import durability
from replay.journal.base import NewRow, Verdict
from replay.journal.redis.journal import RedisJournal

pytestmark = pytest.mark.skipif(shutil.which("strace") is None, reason="strace is missing")

WITHOUT_SYNC = """
import replay.journal.sqlite.journal as module

class Unsynced(module.SqliteFile):
    def __init__(self, path, tables, **settings):
        super().__init__(path, tables, **{**settings, "synchronous": "OFF"})

module.SqliteJournal._file_type = Unsynced
"""


@pytest.mark.ray
@pytest.mark.long  # in short: in one process, below
def test_the_log_is_synced_before_the_answer_leaves() -> None:
    result = durability.run(single=10, clients=12, each=5)
    assert result.good, result
    assert (result.single.answered, result.single.group_max) == (10, 1)
    assert result.group.answered == 60
    assert result.group.syncs < 60


@pytest.mark.parametrize(("change", "good"), [("", True), (WITHOUT_SYNC, False)])
def test_a_journal_that_does_not_sync_is_found(tmp_path: Path, change: str, good: bool) -> None:
    """Control: one process without the sync answers the same, and the trace shows it."""
    (tmp_path / "sitecustomize.py").write_text(change)
    environment = {"PYTHONPATH": str(tmp_path)}
    result = durability.run(single=4, clients=4, each=2, embedded=True, environment=environment)
    assert result.good is good, result
    assert (result.single.answered, result.group.answered) == (4, 8)
    assert len(result.single.uncovered) == (0 if good else 4)
    assert len(result.group.uncovered) == (0 if good else 8)


@pytest.mark.parametrize(("fsync", "good"), [("always", True), ("no", False)])
def test_a_redis_server_syncs_before_it_answers(tmp_path: Path, fsync: str, good: bool) -> None:
    """``no`` is the control: the journal has looked at the setting when it was opened."""
    if redis_server.find_binary() is None:
        pytest.skip(redis_server.NO_SERVER)
    with redis_server.running(tmp_path / "redis") as server:
        journal = RedisJournal(server.url)
        partition = journal.register("m", "r", "s", 0.0).id
        server.client().config_set("appendfsync", fsync)
        file = tmp_path / "redis.strace"
        events = [f"trace-{i:06d}" for i in range(6)]
        rows = [NewRow(e.encode().ljust(16), e, "", Verdict.ACCEPTED, b"", 0.0) for e in events]
        journal.append(partition, 0, rows[:1])  # the server knows the script from here on
        with durability.traced(server.process.pid, file):
            for i in range(1, 6):
                journal.append(partition, i, rows[i : i + 1])
        journal.close()
    calls = durability.parse(file.read_text(errors="replace").splitlines())
    proof = durability.prove(calls, ".aof", durability.redis_answers(calls))
    assert proof.answered == 5
    assert proof.good is good, proof
