"""Settings and items of buffers at their bounds; the inclusion law over a long stream."""

from __future__ import annotations

from collections.abc import Callable

import buffer_laws as laws
import pytest
from buffer_checks import state_of

from replay.buffers.balanced import ClassBalanced
from replay.buffers.base import CAPACITY_MAX, Buffer
from replay.buffers.compartments import TwoCompartments
from replay.buffers.item import Item
from replay.buffers.reservoir import Reservoir
from replay.buffers.ring import Ring
from replay.errors import SettingInvalid
from replay.journal.base import Row, Verdict
from replay.retrieval import RecentShare


def item(i: int, label: int = 0, source: str = "s") -> Item:
    return Item(i.to_bytes(16, "big"), {"x": i}, label, source=source)


def row(payload: bytes, factor: float = 1.0) -> Row:
    return Row(1, 2, 3, b"k" * 16, "e", "src", Verdict.CLIPPED, factor, payload, 1.5)


@pytest.mark.parametrize(
    ("make", "setting"),
    [
        (lambda: Reservoir(0, 1), "capacity"),
        (lambda: Reservoir(CAPACITY_MAX + 1, 1), "capacity"),
        (lambda: Ring(-1), "capacity"),
        (lambda: Ring(5, source_share_max=1.01), "source_share_max"),
        (lambda: ClassBalanced(5, 1, source_share_max=-0.1), "source_share_max"),
        (lambda: ClassBalanced(5, 1, source_share_max=float("nan")), "source_share_max"),
        (lambda: Reservoir(5, 1, class_share_min=2), "class_share_min"),
        (lambda: RecentShare(1.5), "share"),
        (lambda: RecentShare(float("nan")), "share"),
    ],
)
def test_settings_have_bounds(make: Callable[[], object], setting: str) -> None:
    with pytest.raises(SettingInvalid, match=f"^{setting} = .*; give ") as refusal:
        make()
    assert refusal.value.definite


def test_the_bounds_themselves_are_fine() -> None:
    for buffer in (Reservoir(1, 1, source_share_max=0, class_share_min=1), Ring(CAPACITY_MAX)):
        assert [buffer.insert(item(0)), len(buffer)] == [None, 1]


def test_shares_of_the_capacity_are_whole_items() -> None:
    buffer = Reservoir(100, 1, source_share_max=0.29)  # 0.29 * 100 is less than 29
    for i in range(200):
        buffer.insert(item(i))
    assert len(buffer) == 29


def test_a_rebuild_is_the_same_inserts_again() -> None:
    def build() -> Buffer:
        long = ClassBalanced(40, 7, source_share_max=0.5)
        return TwoCompartments(long, Ring(10, source_share_max=0.5))

    first, again = build(), build()
    for i in range(1_000):
        first.insert(item(i, i % 3, f"s{i % 4}"))
    for i in range(1_000):
        again.insert(item(i, i % 3, f"s{i % 4}"))
    assert state_of(first) == state_of(again)


def test_inclusion_over_ten_thousand_items() -> None:
    capacity, n, runs, cells = 100, 10_000, 60, 100
    counts, items = [0] * cells, [item(i) for i in range(n)]
    for seed in range(runs):
        buffer = Reservoir(capacity, seed)
        for one in items:
            buffer.insert(one)
        for kept in buffer:
            counts[int.from_bytes(kept.key, "big") * cells // n] += 1
    # A cell of 100 items: 100 · M/n = 1 of them in each run, nearly as independent ones.
    expected = runs * capacity / cells
    square = sum((c - expected) ** 2 for c in counts) / (expected * (1 - capacity / n))
    assert abs(square - (cells - 1)) <= laws.SIGMAS * (2 * (cells - 1)) ** 0.5


def test_a_purge_keeps_the_chances_of_what_comes_next() -> None:
    """Half of the stream is purged: the rest is a sample of half as many."""
    buffer = Reservoir(100, 3)
    for i in range(10_000):
        buffer.insert(item(i, 0, "good" if i % 2 else "bad"))
    gone = buffer.purge("bad")
    room = [buffer.insert(item(i, 0, "good")) for i in range(10_000, 10_000 + gone)]
    assert room == [None] * gone
    taken = sum(buffer.insert(one) is not one for one in map(item, range(20_000, 30_000)))
    expected = 100 * sum(1 / n for n in range(5_050, 15_050))
    assert abs(taken - expected) < 4 * expected**0.5


def test_memory_larger_than_a_rare_class_is_all_in_use() -> None:
    for buffer in (ClassBalanced(300, 1), Reservoir(300, 1, class_share_min=0.5)):
        for i in range(5_000):
            buffer.insert(item(i, int(i % 1_000 == 0)))
        assert len(buffer) == 300
        assert sum(kept.label == 1 for kept in buffer) == 5
