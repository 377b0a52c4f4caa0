"""The judge of traces, on traces that are known."""

from __future__ import annotations

import pytest

from benchmarks.faults.durability import Proof, http_answers, parse, prove

LOG = "7</state/journal.db-wal>"
SOCKET = "9<TCP:[127.0.0.1:1->127.0.0.1:2]>"
EVENT = "trace-000001"
HEAD = "HTTP/1.1 200 OK\\r\\n"

WRITE = f'11 100.000100 pwrite64({LOG}, "\\0\\1{EVENT}\\2", 4096, 56) = 4096 <0.000010>'
SYNC = f"11 100.000200 fdatasync({LOG}) = 0 <0.000300>"
SYNC_BEGINS = f"11 100.000200 fdatasync({LOG} <unfinished ...>"
SYNC_RETURNS = "11 100.000500 <... fdatasync resumed>) = 0 <0.000300>"
ANSWER = f'10 100.001000 sendto({SOCKET}, "{HEAD}", 90, 0, NULL, 0) = 90 <0.000010>'
BODY = f'10 100.001100 sendto({SOCKET}, "{{..{EVENT}..}}", 90, 0, NULL, 0) = 90 <0.000010>'
BUSY = ANSWER.replace("200 OK", "429 Busy")
OTHER_SYNC = SYNC.replace("-wal", "")


def judged(*lines: str) -> Proof:
    calls = parse(lines)
    return prove(calls, "-wal", http_answers(calls))


@pytest.mark.parametrize(
    "lines",
    [
        (WRITE, SYNC, ANSWER, BODY),
        (WRITE, SYNC_BEGINS, SYNC_RETURNS, ANSWER, BODY),
        (WRITE, SYNC, ANSWER, WRITE, BODY),  # the page is copied by a later commit
    ],
)
def test_covered(lines: tuple[str, ...]) -> None:
    proof = judged(*lines)
    assert proof.good
    assert (proof.answered, proof.syncs, proof.group_max) == (1, 1, 1)
    assert proof.sync_ms == pytest.approx(0.3)
    assert proof.lead_ms == pytest.approx(0.5)


@pytest.mark.parametrize(
    "lines",
    [
        (WRITE, ANSWER, BODY),
        (WRITE, ANSWER, SYNC, BODY),  # the head left first
        (WRITE, ANSWER, BODY, SYNC),
        (SYNC, WRITE, ANSWER, BODY),  # a sync of what was there before
        (SYNC_BEGINS, WRITE, SYNC_RETURNS, ANSWER, BODY),
        (WRITE, SYNC_BEGINS, ANSWER, SYNC_RETURNS, BODY),
        (WRITE, SYNC_BEGINS, ANSWER, BODY),
        (WRITE, OTHER_SYNC, ANSWER, BODY),
        (SYNC, ANSWER, BODY),  # it was never written
    ],
)
def test_not_covered(lines: tuple[str, ...]) -> None:
    proof = judged(*lines)
    assert proof.uncovered == [EVENT]
    assert not proof.good


def test_nothing_answered_proves_nothing() -> None:
    assert judged(WRITE, SYNC, BUSY, BODY).answered == 0
    assert not judged(WRITE, SYNC, BUSY, BODY).good
