"""Every buffer has to pass these checks: plain functions over a factory, for any test runner.

``make(capacity, seed, source_share_max)`` gives a new buffer.  Which items a policy keeps is a law
of its own: those in :mod:`buffer_laws` are handed over with it.  Each check raises
AssertionError with what was found.  :func:`yield_checks` is for parametrised tests,
:func:`check_buffer` runs all.
"""

from __future__ import annotations

import random
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from copy import deepcopy
from functools import partial
from random import Random
from types import FrameType
from typing import Any

from buffer_laws import even
from journal_words import same

from replay.buffers.base import NONE, Buffer
from replay.buffers.item import Item
from replay.buffers.slots import Group, Groups, Slots
from replay.retrieval import RecentShare, class_balanced, uniform

Make = Callable[[int, int, float], Buffer]
Check = Callable[[Make], None]

RETRIEVALS = (uniform, class_balanced, RecentShare(0.3), RecentShare(0.7, balanced=True))


def check_buffer(make: Make, laws: Iterable[Check]) -> None:
    """Run every check and the policy's own laws; the first that fails raises AssertionError."""
    for _, run in yield_checks(make, laws):
        run()


def yield_checks(make: Make, laws: Iterable[Check]) -> Iterator[tuple[str, Callable[[], None]]]:
    """Name and body of each check."""
    for check in (*_CHECKS, *laws):
        yield getattr(check, "__name__", repr(check)), partial(check, make)


def stream(n: int, first: int = 0) -> list[Item]:
    """Items with three classes (70, 25 and 5 %) and five sources, in no simple order."""
    draws = Random(n + first)
    return [
        Item(
            key=i.to_bytes(16, "big"),
            features={"x": i, "s": f"t{i}"},
            label=draws.choices(("a", "b", "c"), (70, 25, 5))[0],
            weight=1.0 + i % 3,
            source=f"s{draws.randrange(5)}",
            logits={"0": i / 3, "1": -1.5} if i % 2 else None,
        )
        for i in range(first, first + n)
    ]


def filled(make: Make, capacity: int, n: int, seed: int = 1) -> Buffer:
    """A buffer that was offered ``n`` items."""
    buffer = make(capacity, seed, 1.0)
    for item in stream(n):
        buffer.insert(item)
    return buffer


def keys(items: Iterable[Item]) -> list[int]:
    """Numbers of the items, sorted."""
    return sorted(int.from_bytes(item.key, "big") for item in items)


def state_of(part: Any) -> Any:
    """All that a buffer, or a part of one, holds, to be compared."""
    if isinstance(part, Random):
        return part.getstate()
    if isinstance(part, Buffer | Slots | Groups):
        return {name: state_of(value) for name, value in vars(part).items()}
    if isinstance(part, Group):
        return [state_of(getattr(part, name)) for name in Group.__slots__]
    if isinstance(part, dict):
        return [(key, state_of(value)) for key, value in part.items()]
    return [state_of(value) for value in part] if isinstance(part, list) else part


def _same_state(got: Buffer, expected: Any, what: str) -> None:
    """Two states are equal; the message is short."""
    assert state_of(got) == expected, f"{what}: it is another"


def says_what_is_not_kept(make: Make) -> None:
    buffer = make(10, 1, 1.0)
    same((buffer.capacity, len(buffer), list(buffer)), (10, 0, []), "a new buffer")
    kept: dict[bytes, Item] = {}
    for n, item in enumerate(stream(300)):
        left = buffer.insert(item)
        kept[item.key] = item
        if n < 10:
            same(left, None, "what leaves while there is room")
        else:
            assert left is not None, "nothing left a full buffer"
            same(kept.pop(left.key, None), left, "what left was kept, or is the item itself")
        same(len(buffer), min(n + 1, 10), "number of items")
        same({i.key: i for i in buffer}, kept, "the items, each as it was given")
        same(len(list(buffer)), len(kept), "no item is there twice")


def sampling_changes_nothing(make: Make) -> None:
    for n in (0, 1, 5, 80):
        buffer, twin = filled(make, 12, n), filled(make, 12, n)
        before = deepcopy(state_of(buffer))
        for seed in range(20):
            for retrieval in RETRIEVALS:
                buffer.sample(seed % 15, Random(seed), retrieval)
        _same_state(buffer, before, "state after samples")
        for item in stream(50, first=n):
            same(buffer.insert(item), twin.insert(item), "inserts after samples")


def draws_from_the_given_generators_only(make: Make) -> None:
    before = random.getstate()
    buffer = filled(make, 12, 100)
    for retrieval in RETRIEVALS:
        draws = [buffer.sample(5, Random(seed), retrieval) for seed in range(30)]
        again = [buffer.sample(5, Random(seed), retrieval) for seed in range(30)]
        same(again, draws, "draws with the same seeds")
        assert len({tuple(keys(draw)) for draw in draws}) > 5, "draws hardly depend on the seed"
    same(random.getstate(), before, "the global generator's state")


def samples_without_repeats(make: Make) -> None:
    for n in (0, 1, 7, 12, 90):
        buffer = filled(make, 12, n)
        everything = {item.key: item for item in buffer}
        for retrieval in RETRIEVALS:
            for k in (0, 1, 2, 5, 12, 13, 50):
                drawn = buffer.sample(k, Random(k), retrieval)
                same(len(drawn), min(k, len(buffer)), f"{k} of {len(buffer)} items: number")
                same(len(set(keys(drawn))), len(drawn), "different items")
                same([everything.get(i.key) for i in drawn], drawn, "they are in the buffer")


def samples_evenly(make: Make) -> None:
    buffer, rng, runs = filled(make, 20, 400), Random(5), 3000
    for k in (1, 6):
        counts = Counter({item.key: 0 for item in buffer})
        for _ in range(runs):
            counts.update(item.key for item in buffer.sample(k, rng))
        even(list(counts.values()), k / 20, runs, f"items of draws of {k}")


def balances_the_classes_of_a_draw(make: Make) -> None:
    buffer, rng = filled(make, 60, 90), Random(5)
    for part in buffer.parts:
        have = Counter(item.label for item in part.items)
        if not have:
            continue
        for k in (3, 4, 9, 24, len(part) - 1):
            got = Counter(item.label for item in part.sample_balanced(k, rng))
            for label, n in have.items():
                assert got[label] >= min(n, k // len(have)), f"{label}: {got} of {have}, {k} drawn"
        counts = Counter(item.label for _ in range(3000) for item in part.sample_balanced(1, rng))
        even([counts[label] for label in have], 1 / len(have), 3000, "classes of draws of one")
        if min(have.values()) >= 2:
            draws = (part.sample_balanced(len(have) + 1, rng) for _ in range(3000))
            counts = Counter(item.label for drawn in draws for item in drawn)
            extra = [counts[label] - 3000 for label in have]
            even(extra, 1 / len(have), 3000, "the class of the one that is left over")
        for label in have:
            of_class = Counter({i.key: 0 for i in part.items if i.label == label})
            for _ in range(1000):
                drawn = part.sample_balanced(len(have), rng)
                of_class.update(item.key for item in drawn if item.label == label)
            if len(of_class) > 1:
                even(list(of_class.values()), 1 / len(of_class), 1000, f"items of {label}")


def divides_a_draw_between_compartments(make: Make) -> None:
    buffer, rng = filled(make, 50, 200), Random(5)
    sizes = [len(part) for part in buffer.parts]
    recent = {item.key for item in buffer.parts[1].items}
    same(set(keys(i for p in buffer.parts for i in p.items)), set(keys(buffer)), "both parts")
    for share in (0.0, 0.25, 0.5, 1.0):
        for k in (1, 8, 33):
            runs = [buffer.sample(k, rng, RecentShare(share)) for _ in range(400)]
            counts = [sum(item.key in recent for item in drawn) for drawn in runs]
            least = max(0, k - sizes[0])
            low, high = (min(max(int(share * k) + i, least), sizes[1]) for i in (0, 1))
            assert set(counts) <= {low, high}, f"{share} of {k} recent: {Counter(counts)}"
            if low < high and least == 0:
                off = sum(counts) - 400 * share * k
                assert abs(off) <= 4 * 10, f"{share} of {k} recent: {sum(counts)} in 400 draws"


def purges_a_source_completely(make: Make) -> None:
    for n in (4, 30, 500):
        buffer, source = filled(make, 30, n), "s3"
        before = {item.key: item for item in buffer}
        own = [item for item in before.values() if item.source == source]
        same(buffer.purge("nobody"), 0, "items of an unknown source")
        same(buffer.purge(source), len(own), "items of the source")
        others = {k: item for k, item in before.items() if item.source != source}
        same({item.key: item for item in buffer}, others, "items of the others")
        same(len(buffer), len(others), "their number")
        same(buffer.purge(source), 0, "items of the source, asked again")
        for retrieval in RETRIEVALS:
            drawn = buffer.sample(n, Random(1), retrieval)
            same(keys(drawn), keys(others.values()), "all that can be drawn")
        _full_again(buffer, n)
    for name in range(5):
        buffer.purge(f"s{name}")
    same((len(buffer), list(buffer), buffer.sample(3, Random(1))), (0, [], []), "after all purges")


def _full_again(buffer: Buffer, n: int) -> None:
    room = buffer.capacity - len(buffer)
    for i, item in enumerate(stream(100, first=n)):
        left = buffer.insert(item)
        assert i >= room or left is None, "an item left though a purge had made room"
    same(len(buffer), buffer.capacity, "the buffer is full again")


def keeps_the_source_cap(make: Make) -> None:
    for capacity, share in ((40, 0.25), (15, 0.2), (20, 0.01)):
        buffer, rng = make(capacity, 1, share), Random(2)
        most = max(sum(part is not NONE for part in buffer.parts), int(share * capacity))
        kept: Counter[str] = Counter()
        for i in range(1500):
            flood = rng.random() < (0.9 if i > 300 else 0.1)
            source = "flood" if flood else f"s{rng.randrange(50)}"
            item = Item(i.to_bytes(16, "big"), {"x": i}, rng.randrange(3), source=source)
            left = buffer.insert(item)
            kept[source] += 1
            if left is not None:
                kept[left.source] -= 1
            assert kept[source] <= most, f"{source} has {kept[source]} items of {most}"
        same(Counter(item.source for item in buffer), +kept, "items by source")
        same(len(buffer), capacity, "the buffer is full all the same")
        assert kept["flood"] >= most // 2, f"the flood has {kept['flood']} items of {most}"


def a_flood_does_not_close_the_buffer(make: Make) -> None:
    buffer, rng = make(50, 1, 0.1), Random(2)
    for i in range(8000):
        source = f"s{rng.randrange(40)}" if i < 400 or i % 20 == 0 else "flood"
        buffer.insert(Item(i.to_bytes(16, "big"), {}, rng.randrange(2), source=source))
    late = [item for item in buffer if item.source != "flood" and keys([item])[0] >= 400]
    assert len(late) >= 15, f"{len(late)} of 50 items came with the flood: half of all others did"


def follows_from_seed_and_stream(make: Make) -> None:
    a, b, c = (filled(make, 20, 300, seed) for seed in (7, 7, 8))
    _same_state(a, state_of(b), "state with the same seed and stream")
    same(a.sample(9, Random(1)), b.sample(9, Random(1)), "a draw from it")
    same(len(a), len(c), "number of items with another seed")


def takes_the_same_steps_at_any_size(make: Make) -> None:
    """Lines of Python run by an insert and by a draw; what C code does is for a benchmark."""
    inserts: list[int] = []
    draws: list[int] = []
    for capacity, n in ((50, 150), (500, 1500), (500, 4000)):
        buffer, items = filled(make, capacity, n), stream(200, first=n)
        inserts.append(max(_lines(partial(buffer.insert, item)) for item in items))
        calls = [partial(buffer.sample, 5, Random(i), r) for i in range(20) for r in RETRIEVALS]
        draws.append(max(_lines(call) for call in calls))
    assert max(inserts) <= 2 * inserts[0], f"lines run by an insert: {inserts}"
    assert max(draws) <= 2 * draws[0], f"lines run by a draw: {draws}"


def purges_in_steps_of_the_items_of_the_source(make: Make) -> None:
    """Count the lines run by a purge for each item of a source that has few among many."""
    steps = []
    for capacity in (50, 800):
        buffer, most = make(capacity, 1, 1.0), 0.0
        for i in range(2 * capacity):
            source = f"s{i % (capacity // 2)}"
            buffer.insert(Item(i.to_bytes(16, "big"), {}, i % 3, source=source))
        for source in sorted({item.source for item in buffer})[:10]:
            n = sum(item.source == source for item in buffer)
            most = max(most, _lines(partial(buffer.purge, source)) / n)
        steps.append(most)
    assert steps[1] <= 2 * steps[0], f"lines run by a purge for each item of the source: {steps}"


def _lines(call: Callable[[], object]) -> int:
    count, before = 0, sys.gettrace()

    def trace(frame: FrameType, event: str, arg: Any) -> Any:
        nonlocal count
        count += event == "line"
        return trace

    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(before)
    return count


_CHECKS: tuple[Check, ...] = (
    says_what_is_not_kept,
    sampling_changes_nothing,
    draws_from_the_given_generators_only,
    samples_without_repeats,
    samples_evenly,
    balances_the_classes_of_a_draw,
    divides_a_draw_between_compartments,
    purges_a_source_completely,
    keeps_the_source_cap,
    a_flood_does_not_close_the_buffer,
    follows_from_seed_and_stream,
    takes_the_same_steps_at_any_size,
    purges_in_steps_of_the_items_of_the_source,
)
