"""Any order of inserts, purges and draws: against plain lists.

The oracle walks over lists: what must be kept, what may have left, what a draw may give.  It
shares no code with the buffers.  Beside the buffer lives a twin, which nobody draws from but to
compare: both must stay equal.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from random import Random
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from replay.buffers.balanced import ClassBalanced
from replay.buffers.base import Buffer
from replay.buffers.compartments import TwoCompartments
from replay.buffers.item import Item
from replay.buffers.reservoir import Reservoir
from replay.buffers.ring import Ring
from replay.buffers.slots import Slots
from replay.retrieval import RecentShare, class_balanced, uniform

CAPACITY = 10
labels = st.sampled_from(["a", "a", "a", "b", "b", "c", "d"])
sources = st.sampled_from(["s", "s", "t", "u", "v"])
seeds = st.integers(0, 10**6)
retrievals = st.sampled_from([uniform, class_balanced, RecentShare(0.4), RecentShare(1.0)])


@dataclass
class Ledger:
    """What the buffer has, as the oracle knows it; ``ring`` and ``kept`` oldest first."""

    kept: list[Item] = field(default_factory=list)
    ring: list[Item] = field(default_factory=list)
    sure: Counter[Any] = field(default_factory=Counter)  # items by class that must be there
    full: set[Any] = field(default_factory=set)
    purged: bool = False


class BufferMachine(RuleBasedStateMachine):
    """One policy; subclasses say which, and what it promises beyond what all do."""

    make: ClassVar[Any]  # seed → Buffer (staticmethod)
    source_max: ClassVar[int] = CAPACITY
    ring_max: ClassVar[int] = 0  # slots of the ring
    ring_source_max: ClassVar[int] = CAPACITY
    class_min: ClassVar[int] = 0
    balances: ClassVar[bool] = False

    @initialize(seed=seeds)
    def start(self, seed: int) -> None:
        self.buffer: Buffer = type(self).make(seed)
        self.twin: Buffer = type(self).make(seed)
        self.ledger = Ledger()
        self.count = 0

    @rule(label=labels, source=sources, n=st.integers(1, 5))
    def insert(self, label: str, source: str, n: int) -> None:
        for _ in range(n):
            self.count += 1
            logits = {"0": self.count / 7} if self.count % 2 else None
            key = self.count.to_bytes(16, "big")
            item = Item(key, {"x": self.count}, label, 1.0 / self.count, source, logits)
            left = self.buffer.insert(item)
            assert self.twin.insert(item) == left
            self.account(item, left)

    def account(self, item: Item, left: Item | None) -> None:
        book, had = self.ledger, len(self.ledger.kept)
        own = sum(other.source == item.source for other in book.kept)
        before = Counter(other.label for other in book.kept)
        book.kept.append(item)
        if left is not None:
            assert left in book.kept
            book.kept.remove(left)
        aged = self.into_ring(item)
        if own < self.source_max and had < CAPACITY and aged is None:
            assert left is None, "it left although there was room"
        if had == CAPACITY:
            assert left is not None
        if self.ring_max == CAPACITY:
            assert left == aged, "the ring's oldest leaves"
        elif self.ring_max:
            assert left is None or left not in book.ring, "the ring's items stay"
        if self.balances:
            self.balanced(item, left, before, had)
        classes = Counter(other.label for other in book.kept)
        least = min(self.class_min, CAPACITY // len(classes))
        book.sure[item.label] += 1
        book.sure = Counter({k: min(n, least) for k, n in book.sure.items()})

    def into_ring(self, item: Item) -> Item | None:
        """The item that leaves the ring of the last items."""
        if not self.ring_max:
            return None
        ring = self.ledger.ring
        own = [other for other in ring if other.source == item.source]
        leaving = own if len(own) == self.ring_source_max else ring
        gone = leaving[0] if leaving is own or len(ring) == self.ring_max else None
        self.ledger.ring = [other for other in ring if other is not gone] + [item]
        return gone

    def balanced(self, item: Item, left: Item | None, before: Counter[Any], had: int) -> None:
        """The paper's algorithm 1, its full classes written down at each step."""
        book = self.ledger
        if book.purged:
            return
        if had == CAPACITY:
            if item.label in book.full:
                assert left is not None
                assert left.label == item.label, "a full class takes from another"
            else:
                assert left is not None
                assert before[left.label] == max(before.values()), "no largest class gave room"
                assert left is not item, "a class that is not full was refused"
        sizes = Counter(other.label for other in book.kept)
        if len(book.kept) == CAPACITY:
            book.full |= {label for label, n in sizes.items() if n == max(sizes.values())}

    @rule(source=sources)
    def purge(self, source: str) -> None:
        book = self.ledger
        n = sum(item.source == source for item in book.kept)
        assert self.buffer.purge(source) == n
        assert self.twin.purge(source) == n
        book.kept = [item for item in book.kept if item.source != source]
        book.ring = [item for item in book.ring if item.source != source]
        classes = Counter(item.label for item in book.kept)
        book.sure = Counter({k: min(m, classes[k]) for k, m in book.sure.items()})
        book.purged = True

    @rule(k=st.integers(0, 14), seed=seeds, retrieval=retrievals)
    def draw(self, k: int, seed: int, retrieval: Any) -> None:
        drawn = self.buffer.sample(k, Random(seed), retrieval)
        assert drawn == self.buffer.sample(k, Random(seed), retrieval)
        assert drawn == self.twin.sample(k, Random(seed), retrieval)
        assert len(drawn) == min(k, len(self.ledger.kept))
        rest = list(self.ledger.kept)
        for item in drawn:
            rest.remove(item)  # raises if it is not there, or drawn twice
        n_recent = sum(item in self.ledger.ring for item in drawn)
        if isinstance(retrieval, RecentShare) and retrieval.share == 1:
            assert n_recent == min(k, len(self.ledger.ring))

    @rule(k=st.integers(0, 14), seed=seeds)
    def draw_classes(self, k: int, seed: int) -> None:
        """In one compartment: nobody gets more than another that has something left."""
        for part in self.buffer.parts:
            have = Counter(item.label for item in part.items)
            got = Counter(item.label for item in part.sample_balanced(k, Random(seed)))
            spare = [got[label] for label in have if got[label] < have[label]]
            assert max(got.values(), default=0) - min(spare, default=k) <= 1

    @invariant()
    def holds(self) -> None:
        book = self.ledger
        assert len(self.buffer) == len(book.kept) <= CAPACITY
        have = sorted(self.buffer, key=lambda item: item.key)
        assert have == sorted(book.kept, key=lambda item: item.key)
        assert max(Counter(i.source for i in have).values(), default=0) <= self.source_max
        classes = Counter(item.label for item in have)
        assert all(classes[label] >= n for label, n in book.sure.items()), (classes, book.sure)
        recent = self.buffer.parts[1].items
        assert sorted(i.key for i in recent) == [i.key for i in book.ring]
        assert list(self.twin) == list(self.buffer)


class ReservoirMachine(BufferMachine):
    make = staticmethod(lambda seed: Reservoir(CAPACITY, seed, source_share_max=0.4))
    source_max = 4


class MinimumMachine(BufferMachine):
    make = staticmethod(lambda seed: Reservoir(CAPACITY, seed, class_share_min=0.3))
    class_min = 3


class BalancedMachine(BufferMachine):
    make = staticmethod(lambda seed: ClassBalanced(CAPACITY, seed))
    balances = True


class CappedBalancedMachine(BufferMachine):
    make = staticmethod(lambda seed: ClassBalanced(CAPACITY, seed, source_share_max=0.5))
    source_max = 5


class RingMachine(BufferMachine):
    make = staticmethod(lambda seed: Ring(CAPACITY, source_share_max=0.4))
    source_max = ring_source_max = 4
    ring_max = CAPACITY


class CompartmentsMachine(BufferMachine):
    make = staticmethod(
        lambda seed: TwoCompartments(
            Reservoir(6, seed, source_share_max=0.5), Ring(4, source_share_max=0.5)
        )
    )
    source_max = 5
    ring_max = 4
    ring_source_max = 2


MACHINES = BufferMachine.__subclasses__()

modest: Any = settings(
    max_examples=100,
    stateful_step_count=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
# A mutant ends its run, so only one that is missed takes so many.
mutated: Any = settings(
    modest, max_examples=1_000, phases=[Phase.generate], report_multiple_bugs=False
)


@pytest.mark.parametrize("machine", MACHINES, ids=lambda m: m.__name__)
def test_the_buffer_keeps_its_promises(machine: type[BufferMachine]) -> None:
    run_state_machine_as_test(machine, settings=modest)


def notices(machine: type[BufferMachine]) -> None:
    with pytest.raises((AssertionError, LookupError, ValueError)):
        run_state_machine_as_test(machine, settings=mutated)


def test_the_machine_notices_a_minimum_that_is_ignored() -> None:
    class Ignored(MinimumMachine):
        make = staticmethod(lambda seed: Reservoir(CAPACITY, seed))

    notices(Ignored)


def test_the_machine_notices_an_ignored_cap() -> None:
    class Ignored(ReservoirMachine):
        make = staticmethod(lambda seed: Reservoir(CAPACITY, seed, source_share_max=0.5))

    notices(Ignored)


def test_the_machine_notices_a_reservoir_in_place_of_balance() -> None:
    class Other(BalancedMachine):
        make = staticmethod(lambda seed: Reservoir(CAPACITY, seed))

    notices(Other)


def test_the_machine_notices_a_purge_that_forgets_where_an_item_went(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    remove = Slots.remove

    def forgetful(self: Slots, slot: int) -> int:
        remove(self, slot)
        return slot  # as if nothing had moved

    monkeypatch.setattr(Slots, "remove", forgetful)
    notices(RingMachine)


def test_the_machine_notices_a_draw_that_moves_an_item(monkeypatch: pytest.MonkeyPatch) -> None:
    sample = Slots.sample

    def moving(self: Slots, k: int, rng: Random) -> list[Item]:
        drawn = sample(self, k, rng)
        self.items.reverse()
        return drawn

    monkeypatch.setattr(Slots, "sample", moving)
    notices(ReservoirMachine)
