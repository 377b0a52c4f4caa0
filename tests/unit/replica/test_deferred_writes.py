"""What waits to be written behind answers is bounded, and shared by those whom tokens name."""

from __future__ import annotations

import pytest

from online.replica.writer import WriteBehindQueue
from replay.journal.base import Half, NewRow, Verdict


def halves(source: str, n: int, size: int = 1) -> list[NewRow]:
    payload = b"x" * size
    return [
        NewRow(bytes(16), "id", source, Verdict.ACCEPTED, payload, 0.0, half=Half.PREDICTION)
        for _ in range(n)
    ]


def fill(behind: WriteBehindQueue, source: str, n: int, size: int = 1) -> int:
    """How many of many requests are taken."""
    taken = 0
    while taken < 1000 and behind.put(halves(source, n, size)):
        taken += 1
    return taken


def test_who_asks_without_end_leaves_room_for_others() -> None:
    behind = WriteBehindQueue(64, 1000)
    assert fill(behind, "flood", 1) == 32
    assert fill(behind, "till", 1) == 16
    assert behind.put(halves("shop", 4))
    assert not behind.put(halves("flood", 1))
    assert len(behind.take(20)) == 20
    assert fill(behind, "flood", 1) == 10, "half of what the others leave, twenty less of its own"
    while behind.take(7):
        pass
    assert (behind._bytes, behind._rows_of, behind._bytes_of) == (0, {}, {})


def test_it_is_told_whether_the_share_of_a_source_or_all_room_is_taken() -> None:
    behind = WriteBehindQueue(64, 1000)
    assert behind.put(halves("shop", 4))
    assert fill(behind, "flood", 1) == 30
    assert behind.beyond_share(halves("flood", 1)) == 30
    assert behind.beyond_share(halves("till", 1)) == 0
    assert behind.put(halves("till", 30))
    assert not behind.put(halves("late", 1))
    assert behind.beyond_share(halves("late", 1)) == 0, "no room at all"


def test_nor_does_it_take_all_bytes() -> None:
    behind = WriteBehindQueue(64, 1000)
    assert fill(behind, "flood", 1, 100) == 5
    assert behind.put(halves("till", 1, 100))


def test_one_body_takes_what_there_is() -> None:
    behind = WriteBehindQueue(64, 1000)
    assert behind.put(halves("shop", 64))
    assert not behind.put(halves("till", 1))
    behind.put_back(behind.take(64))
    assert not behind.put(halves("till", 1))
    assert behind.take(64)
    assert behind.put(halves("till", 64))


@pytest.mark.parametrize(("rows", "bytes_"), [(64, 1000), (1000, 64)])
def test_without_tokens_all_are_one(rows: int, bytes_: int) -> None:
    assert fill(WriteBehindQueue(rows, bytes_), "", 1) == 64
