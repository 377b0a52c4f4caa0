"""Settings, items and states of buffers at their bounds; the inclusion law over a long stream."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import buffer_laws as laws
import msgspec
import pytest

from replay.buffers.balanced import ClassBalanced
from replay.buffers.base import CAPACITY_MAX, Buffer
from replay.buffers.compartments import TwoCompartments
from replay.buffers.item import Item
from replay.buffers.reservoir import Reservoir
from replay.buffers.ring import Ring
from replay.errors import SettingInvalid, StateInvalid, StateMismatch
from replay.example import Features, Label
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


def test_logits_survive_a_restore() -> None:
    buffer = Reservoir(4, 1)
    buffer.insert(Item(b"k" * 16, {}, "b", logits={'"a"': -1.0, '"b"': 2.0}))
    again = Reservoir(4, 2)
    again.restore(buffer.state())
    (kept,) = again.sample(1, Random(1))
    assert kept.logits == {'"a"': -1.0, '"b"': 2.0}


def test_types_of_features_and_labels_survive_a_restore() -> None:
    values: Features = {"i": 3, "f": 3.0, "t": True, "s": "3", "n": None, "big": 2**63 - 1}
    kinds: list[Label] = [True, 2, 2.5, "x"]
    ring = Ring(4)
    for i, label in enumerate(kinds):
        ring.insert(Item(i.to_bytes(16, "big"), dict(values), label))
    again = Ring(4)
    again.restore(ring.state())
    for kept, label in zip(again, kinds, strict=True):
        assert list(map(repr, kept.features.values())) == list(map(repr, values.values()))
        assert repr(kept.label) == repr(label)


def test_a_rebuild_is_the_same_inserts_again() -> None:
    def build() -> Buffer:
        long = ClassBalanced(40, 7, source_share_max=0.5)
        return TwoCompartments(long, Ring(10, source_share_max=0.5))

    first, again = build(), build()
    for i in range(1_000):
        first.insert(item(i, i % 3, f"s{i % 4}"))
        if i == 499:
            later = build()
            later.restore(first.state())
    for i in range(1_000):
        again.insert(item(i, i % 3, f"s{i % 4}"))
        if i >= 500:
            later.insert(item(i, i % 3, f"s{i % 4}"))
    assert first.state() == again.state() == later.state()


@pytest.mark.parametrize(
    "change",
    [
        lambda state: state[1].pop(),
        lambda state: state[1].__setitem__(0, -1),
        lambda state: state[1].append(0),
        lambda state: state.__setitem__(0, 3),
        lambda state: state[2][0].pop(),
        lambda state: state[2][0].append(state[2][0][0]),
        lambda state: state[2][1][0][0].append(0),
        lambda state: state[2][1].reverse(),
        lambda state: state[2][1][0].__setitem__(1, 0),
        lambda state: state[2][1].pop(),
        lambda state: state[2][2][0][0].__setitem__(0, 99),
        lambda state: state[2][1][0][0].append(state[2][1][1][0].pop()),
        lambda state: state[2][0].__setitem__(0, "item"),
        lambda state: state[2][0][0].__setitem__(2, [1]),
    ],
)
def test_a_state_that_contradicts_itself_is_refused(change: Callable[[list], object]) -> None:  # type: ignore[type-arg]
    buffer = Reservoir(8, 1)
    for i in range(20):
        buffer.insert(item(i, int(i % 4 == 0), f"s{i % 3}"))
    before = buffer.state()
    policy, settings, body = msgspec.msgpack.decode(before[1:])
    change(body)
    with pytest.raises(StateInvalid, match="rebuild the buffer from the journal"):
        buffer.restore(before[:1] + msgspec.msgpack.encode([policy, settings, body]))
    assert buffer.state() == before
    buffer.restore(before[:1] + msgspec.msgpack.encode(msgspec.msgpack.decode(before[1:])))


def test_a_ring_refuses_an_order_that_is_none() -> None:
    ring = Ring(4)
    for i in range(6):
        ring.insert(item(i))
    before = ring.state()
    for order in ([0, 1, 2, 2], [0, 1, 2], [0, 1, 2, 4]):
        policy, settings, body = msgspec.msgpack.decode(before[1:])
        body[0] = order
        with pytest.raises(StateInvalid):
            ring.restore(before[:1] + msgspec.msgpack.encode([policy, settings, body]))
    assert ring.state() == before


def test_compartments_are_restored_together_or_not_at_all() -> None:
    def filled(seed: int) -> TwoCompartments:
        buffer = TwoCompartments(Reservoir(6, seed), Ring(3))
        for i in range(40):
            buffer.insert(item(i))
        return buffer

    buffer, before = filled(1), filled(1).state()
    policy, settings, body = msgspec.msgpack.decode(filled(2).state()[1:])
    body[1] = body[1][:-1]
    with pytest.raises(StateInvalid):
        buffer.restore(before[:1] + msgspec.msgpack.encode([policy, settings, body]))
    assert buffer.state() == before


def test_a_mismatch_names_the_setting() -> None:
    with pytest.raises(StateMismatch, match=r"capacity = 5, this buffer has 6; set it back"):
        Ring(6).restore(Ring(5).state())
    with pytest.raises(StateMismatch, match="policy = 'Ring', this buffer has 'Reservoir'"):
        Reservoir(5, 1).restore(Ring(5).state())


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
