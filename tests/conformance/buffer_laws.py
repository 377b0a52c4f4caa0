"""Which items a policy keeps, as checks: a policy is handed to the suite with its own.

Draws are compared with what they should be on average by χ²; all seeds are fixed, so a check
passes always or never.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from random import Random

from journal_words import same

from replay.buffers.base import Buffer
from replay.buffers.item import Item

Make = Callable[[int, int, float], Buffer]

SIGMAS = 4
"""How far a sum of squares may be from its mean."""


def even(counts: Sequence[int], p: float, runs: int, what: str) -> None:
    """Raise AssertionError unless all counts look like ``runs`` draws with probability ``p``.

    In each run the same number of cells is drawn without repeats, so the n counts have n − 1
    degrees of freedom.  Counts that are too even are refused, too.
    """
    n, expected = len(counts), runs * p
    if p >= 1:
        same(set(counts), {runs}, what)
        return
    found = sum((c - expected) ** 2 for c in counts) / (expected * (1 - p)) * (n - 1) / n
    sigma = math.sqrt(2 * (n - 1))
    if abs(found - (n - 1)) > SIGMAS * sigma:
        raise AssertionError(
            f"{what}: χ² = {found:.0f} with {n - 1} degrees of freedom, "
            f"{(found - n + 1) / sigma:+.1f} σ; counts {list(counts)[:8]} …, expected {expected:g}"
        )


def _item(i: int, label: int = 0) -> Item:
    return Item(i.to_bytes(16, "big"), {}, label, source=f"s{i % 3}")


def _number(item: Item) -> int:
    return int.from_bytes(item.key, "big")


def keeps_every_item_equally_often(make: Make) -> None:
    """Inclusion probability M / n; with few slots an error by one is large."""
    for capacity, n, runs in ((1, 12, 3000), (4, 40, 4000), (30, 90, 1000)):
        counts = [0] * n
        for seed in range(runs):
            buffer = make(capacity, seed, 1.0)
            for i in range(n):
                buffer.insert(_item(i, label=i % 2))
            for item in buffer:
                counts[_number(item)] += 1
        even(counts, capacity / n, runs, f"items kept, {capacity} of {n}")


def keeps_pairs_equally_often(make: Make) -> None:
    """Any two items are kept together equally often: what stays does not depend on its slot."""
    capacity, n, runs = 4, 9, 4000
    together: Counter[tuple[int, int]] = Counter()
    for seed in range(runs):
        buffer = make(capacity, seed, 1.0)
        for i in range(n):
            buffer.insert(_item(i))
        kept = sorted(_number(item) for item in buffer)
        together.update((a, b) for a in kept for b in kept if a < b)
    counts = [together[a, b] for b in range(n) for a in range(b)]
    p = capacity * (capacity - 1) / (n * (n - 1))
    low, high = min(counts), max(counts)
    off = 5 * math.sqrt(runs * p * (1 - p))
    assert runs * p - off < low <= high < runs * p + off, f"pairs: {low} … {high} of {runs * p:g}"


def keeps_the_last_ones(make: Make) -> None:
    """Every item is taken, the oldest one leaves; at the cap the source's own oldest one."""
    for share, most in ((1.0, 8), (0.5, 4), (0.01, 1)):
        buffer, rng = make(8, 1, share), Random(3)
        kept: list[Item] = []  # oldest first
        for i in range(600):
            source = f"s{min(rng.randrange(9), 4)}"
            item = Item(i.to_bytes(16, "big"), {}, i % 4, source=source)
            own = [other for other in kept if other.source == source]
            leaving = own if len(own) == most else kept if len(kept) == 8 else [None]
            gone = leaving[0]
            same(buffer.insert(item), gone, "what leaves")
            kept = [other for other in kept if other is not gone] + [item]
            if rng.random() < 0.02:
                buffer.purge(source)
                kept = [other for other in kept if other.source != source]
            same({_number(x) for x in buffer}, {_number(x) for x in kept}, "what is kept")


def keeps_the_last_ones_and_a_sample_of_the_others(make: Make) -> None:
    """A tenth or more for the last ones; of the others each equally often."""
    capacity, n, runs = 10, 60, 3000
    recent = len(_after(make, capacity, n, 0).parts[1])
    assert capacity / 10 <= recent < capacity, f"{recent} of {capacity} items are recent"
    counts = [0] * (n - recent)
    for seed in range(runs):
        buffer = _after(make, capacity, n, seed)
        last = sorted(_number(item) for item in buffer.parts[1].items)
        same(last, list(range(n - recent, n)), "the recent compartment")
        for item in buffer.parts[0].items:
            counts[_number(item)] += 1
    even(counts, (capacity - recent) / (n - recent), runs, "older items kept")


def _after(make: Make, capacity: int, n: int, seed: int) -> Buffer:
    buffer = make(capacity, seed, 1.0)
    for i in range(n):
        buffer.insert(_item(i))
    return buffer


RARE = (0.02, 0.1, 0.3)


def _labels(n: int, rng: Random) -> list[int]:
    """Class 0 mostly; class 3 is the rarest one; class 4 comes with the second half."""
    labels = []
    for i in range(n):
        u = rng.random()
        label = next((3 - k for k, share in enumerate(RARE) if u < share), 0)
        labels.append(4 if i >= n // 2 and label == 1 else label)
    return labels


def balances_classes(make: Make) -> None:
    """Rare classes whole, the others alike, and the whole buffer in use (memory above classes)."""
    for capacity, n in ((50, 400), (50, 3000), (200, 400)):
        buffer, labels = make(capacity, 1, 1.0), _labels(n, Random(4))
        for i, label in enumerate(labels):
            buffer.insert(_item(i, label))
        offered, kept = Counter(labels), Counter(int(item.label) for item in buffer)
        same(len(buffer), min(capacity, n), "the room that is used")
        largest = max(kept.values())
        for label, count in offered.items():
            least = min(count, largest - 1)
            assert kept[label] >= least, f"class {label} has {kept[label]}, {offered} → {kept}"


def keeps_classes_as_uniform_samples(make: Make) -> None:
    """Within a class each item is kept equally often, whenever it came."""
    capacity, n, runs = 12, 80, 3000
    # Class 2 is whole with three items: the others can't have the same size, and stay full.
    labels = [
        2 if i in (5, 21, 37) else int(i % 8 in (3, 7)) if i < 48 else i % 2 for i in range(n)
    ]
    counts, total = [0] * n, Counter[int]()
    for seed in range(runs):
        buffer = make(capacity, seed, 1.0)
        for i, label in enumerate(labels):
            buffer.insert(_item(i, label))
        for item in buffer:
            counts[_number(item)] += 1
            total[int(item.label)] += 1
    for label in (0, 1, 2):
        own = [c for c, of in zip(counts, labels, strict=True) if of == label]
        even(own, total[label] / runs / len(own), runs, f"items of class {label} kept")


def a_full_class_stays_full(make: Make) -> None:
    """A class that was a largest one competes with itself, also when it has lost items since."""
    for seed in range(20):
        buffer = make(4, seed, 1.0)
        for i, label in enumerate((0, 0, 0, 0, 1, 1, 2)):
            buffer.insert(_item(i, label))
        before = Counter(item.label for item in buffer)
        same(sorted(before.values()), [1, 1, 2], "sizes of the classes")
        for i in range(7, 27):
            buffer.insert(_item(i, i % 2))
            same(
                Counter(item.label for item in buffer), before, "sizes after items of full classes"
            )


def keeps_class_minimum(share: float) -> Callable[[Make], None]:
    """The law of a buffer that keeps ``share`` of its slots for each class.

    At every moment a class has all that was offered of it, up to its minimum: the share, and with
    C classes at most capacity // C items.
    """

    def keeps_minimum(make: Make) -> None:
        for capacity, seed in ((40, 1), (40, 2), (7, 3)):
            buffer, labels = make(capacity, seed, 1.0), _labels(3000, Random(seed))
            offered: Counter[int] = Counter()
            kept: Counter[int] = Counter()
            for i, label in enumerate(labels):
                left = buffer.insert(_item(i, label))
                offered[label] += 1
                kept[label] += 1
                if left is not None:
                    kept[int(left.label)] -= 1
                least = min(int(share * capacity), capacity // len(offered))
                for known, count in offered.items():
                    assert kept[known] >= min(count, least), (
                        f"class {known} has {kept[known]} items of {count} offered, "
                        f"its minimum is {least} of {capacity}"
                    )
            same(Counter(int(item.label) for item in buffer), +kept, "items by class")
            same(len(buffer), capacity, "the buffer is full all the same")
            late = sum(item.label == 3 and _number(item) >= 1500 for item in buffer)
            assert capacity == 7 or late >= kept[3] / 8, f"{late} of {kept[3]} rare ones are late"

    return keeps_minimum


def follows_the_stream_above_the_minimum(make: Make) -> None:
    """A minimum takes nothing from classes that don't need it: they have their share."""
    capacity, runs, kept = 40, 300, Counter[int]()
    for seed in range(runs):
        buffer, labels = make(capacity, seed, 1.0), Random(seed).choices((0, 1), (70, 30), k=400)
        for i, label in enumerate(labels):
            buffer.insert(_item(i, label))
        kept.update(int(item.label) for item in buffer)
    off = 4 * math.sqrt(capacity * 0.21 * runs)
    assert abs(kept[1] - 0.3 * capacity * runs) < off, f"{kept[1]} of {0.3 * capacity * runs:g}"
