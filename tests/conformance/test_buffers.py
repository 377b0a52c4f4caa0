"""Every policy passes the buffers' conformance suite; policies with one rule less do not."""

from __future__ import annotations

import importlib
import pkgutil
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from changed_source import changed

import replay
import replay.buffers as package
from replay.buffers.base import Buffer
from replay.errors import ReplayError

PACKAGES = ("replay.buffers", "replay.retrieval", "buffer_checks", "buffer_laws")

Policy = tuple[Any, tuple[Any, ...]]


def policies(load: Callable[[str], Any] = importlib.import_module) -> dict[str, Policy]:
    """Factory and laws of every policy, from the modules that ``load`` gives."""
    laws = load("buffer_laws")
    reservoir = load("replay.buffers.reservoir").Reservoir
    balanced = load("replay.buffers.balanced").ClassBalanced
    ring = load("replay.buffers.ring").Ring
    two = load("replay.buffers.compartments").TwoCompartments

    def uniform(capacity: int, seed: int, share: float) -> Any:
        return reservoir(capacity, seed, source_share_max=share)

    def with_minimum(capacity: int, seed: int, share: float) -> Any:
        return reservoir(capacity, seed, source_share_max=share, class_share_min=0.15)

    def recent(capacity: int, seed: int, share: float) -> Any:
        return ring(capacity, source_share_max=share)

    def compartments(capacity: int, seed: int, share: float) -> Any:
        n = round(0.2 * capacity)
        long = reservoir(capacity - n, seed, source_share_max=share)
        return two(long, ring(n, source_share_max=share))

    def equal_parts(capacity: int, seed: int, share: float) -> Any:
        return reservoir(capacity, seed, source_share_max=share, class_share_min=1.0)

    minimum = (
        laws.keeps_class_minimum(0.15),
        laws.follows_the_stream_above_the_minimum,
        laws.keeps_every_item_equally_often,
    )
    return {
        "reservoir": (
            uniform, (laws.keeps_every_item_equally_often, laws.keeps_pairs_equally_often)
        ),
        "reservoir with a class minimum": (with_minimum, minimum),
        "reservoir with equal parts": (equal_parts, (laws.keeps_class_minimum(1.0),)),
        "class-balancing": (
            lambda m, seed, share: balanced(m, seed, source_share_max=share),
            (
                laws.balances_classes,
                laws.keeps_classes_as_uniform_samples,
                laws.a_full_class_stays_full,
            ),
        ),
        "ring": (recent, (laws.keeps_the_last_ones,)),
        "two compartments": (
            compartments, (laws.keeps_the_last_ones_and_a_sample_of_the_others,)
        ),
    }  # fmt: skip


def conformance() -> Iterator[Any]:
    checks = importlib.import_module("buffer_checks")
    for name, (make, laws) in policies().items():
        for check, run in checks.yield_checks(make, laws):
            yield pytest.param(run, id=f"{name}: {check}")


@pytest.mark.parametrize("run", list(conformance()))
def test_policy(run: Callable[[], None]) -> None:
    run()


def test_no_policy_is_left_out() -> None:
    found = set()
    for info in pkgutil.iter_modules(package.__path__, "replay.buffers."):
        module = importlib.import_module(info.name)
        values = [v for v in vars(module).values() if isinstance(v, type) and issubclass(v, Buffer)]
        found |= {v for v in values if not v.__abstractmethods__}
    assert found == {type(make(9, 1, 1.0)) for make, _ in policies().values()}


def run_changed(module: str, rule: str, without: str, of: str) -> None:
    """The suite on one policy, with the rule changed."""
    with changed(f"replay.{module}", rule, without, PACKAGES) as load:
        make, laws = policies(load)[of]
        load("buffer_checks").check_buffer(make, laws)


RESERVOIR, MINIMUM = "reservoir", "reservoir with a class minimum"
EQUAL, BALANCED = "reservoir with equal parts", "class-balancing"
RING, TWO = "ring", "two compartments"

MUTANTS = [
    (RESERVOIR, "buffers.reservoir", "randrange(self._seen)", "randrange(self._seen - 1)",
     "one too few to draw from"),
    (RESERVOIR, "buffers.reservoir", "randrange(self._seen)", "randrange(self._seen + 1)",
     "one too many to draw from"),
    (RESERVOIR, "buffers.reservoir", "if drawn < self._capacity:\n            return "
     "self._slots.replace(drawn, item)\n        return item",
     "if drawn < self._capacity:\n            return self._slots.replace(0, item)\n"
     "        return item", "the first slot leaves"),
    (RESERVOIR, "buffers.reservoir", "if drawn < self._capacity:\n            return "
     "self._slots.replace(drawn, item)\n        return item",
     "if drawn < self._capacity:\n            return self._slots.replace("
     "(drawn * drawn) % self._capacity, item)\n        return item", "some slots leave more often"),
    (RESERVOIR, "buffers.reservoir", "if drawn < self._capacity:\n            return "
     "self._slots.replace(drawn, item)\n        return item",
     "return self._slots.replace(drawn % self._capacity, item)", "every item is taken"),
    (RESERVOIR, "buffers.reservoir", "if drawn < self._capacity:\n            return "
     "self._slots.replace(drawn, item)\n        return item",
     "if drawn < self._capacity:\n            return self._slots.replace(self._seen % "
     "self._capacity, item)\n        return item", "slots leave in turn"),
    (RESERVOIR, "buffers.longterm", "Random(seed)", "Random(1)", "every seed is the same"),
    (RESERVOIR, "buffers.longterm", "        self._seen += 1\n",
     "        self._seen += len(slots) < self._capacity\n", "nothing is counted when it is full"),
    (RESERVOIR, "buffers.longterm", ">= self._source_max", "> self._source_max",
     "cap exceeded by one"),
    (RESERVOIR, "buffers.longterm", "if len(source.members) >= self._source_max:", "if False:",
     "cap ignored"),
    (RESERVOIR, "buffers.longterm", "return self._displace_own(item, source)",
     "self._seen += 1\n                return self._displace_own(item, source)",
     "a flood counts as seen"),
    (RESERVOIR, "buffers.longterm", "while members:", "while len(members) > 1:",
     "purge leaves one"),
    (RESERVOIR, "buffers.longterm", "return len(lost)\n", "return len(lost) + 1\n",
     "purge counts wrong"),
    (RESERVOIR, "buffers.base", "return retrieval(*self.parts, k, rng)",
     "rng.shuffle(self.parts[0].items)\n        return retrieval(*self.parts, k, rng)",
     "sampling shuffles"),
    (RESERVOIR, "buffers.base", "return retrieval(*self.parts, k, rng)",
     "getattr(self, '_rng', rng).random()\n        return retrieval(*self.parts, k, rng)",
     "sampling moves the buffer's generator"),
    (RESERVOIR, "buffers.base", "return retrieval(*self.parts, k, rng)",
     "__import__('random').random()\n        return retrieval(*self.parts, k, rng)",
     "sampling moves the global generator"),
    (RESERVOIR, "buffers.slots", "return rng.sample(self.items, min(k, len(self.items)))",
     "return rng.choices(self.items, k=min(k, len(self.items)))", "a draw has repeats"),
    (RESERVOIR, "buffers.slots", "return rng.sample(self.items, min(k, len(self.items)))",
     "return rng.sample(self.items, len(self.items))[:k][::-1] and self.items[:k]",
     "a draw takes the first ones"),
    (RESERVOIR, "buffers.slots", "return rng.sample(self.items, min(k, len(self.items)))",
     "return sorted(self.items, key=lambda _: rng.random())[:k]", "a draw walks over everything"),
    (RESERVOIR, "buffers.slots", "if slot < len(self.items):\n            self.items[slot] = last",
     "pass", "purge loses another's item"),
    (RESERVOIR, "buffers.slots", "self.classes.renumber_last(last.label, slot)",
     "self.classes._place.pop()", "purge leaves an old slot in a class"),
    (RESERVOIR, "buffers.slots", "            self._place[last] = place", "            pass",
     "a class forgets where its slots are"),
    (RESERVOIR, "buffers.slots", "if last != slot:", "if False:", "a class drops another's slot"),
    (RESERVOIR, "buffers.slots", "            self.classes.drop(old.label, slot)\n"
     "            self.classes.add(item.label, slot)", "            pass",
     "a replaced item keeps its class"),
    (RESERVOIR, "buffers.slots", "        reach[size] -= 1\n        self._swap(group, reach[size])",
     "        reach[size] -= 1", "classes are out of order"),
    (RESERVOIR, "buffers.slots", "share + (rng.randrange(left) < rest)", "share + rest",
     "the rest of a draw goes to the smallest class"),
    (RESERVOIR, "retrieval", "return long.sample_balanced(k - n_recent, rng) + recent.sample_"
     "balanced(n_recent, rng)\n\n\n@", "return long.sample(max(k - n_recent - 1, 0), rng)\n\n\n@",
     "a balanced draw is too short"),
    (MINIMUM, "buffers.reservoir", "if self._class_min:", "if False:", "minimum ignored"),
    (MINIMUM, "buffers.reservoir", "if size < least:", "if False:",
     "a class below its minimum waits for luck"),
    (MINIMUM, "buffers.reservoir", "if taken is group or len(taken.members) > least:", "if True:",
     "a class at its minimum is pushed"),
    (MINIMUM, "buffers.reservoir", ".members) > least:\n            return slot", ".members) > 0:\n"
     "            return slot", "a class below its minimum takes from one"),
    (EQUAL, "buffers.reservoir", "+ (group is None))", ")", "a new class is not counted"),
    (MINIMUM, "buffers.reservoir", "if group is not None and size == least and", "if False and",
     "a rare class is not renewed"),
    (MINIMUM, "buffers.reservoir", "and size == least and drawn * group.seen <",
     "and drawn * group.seen < 9 *", "every class renews itself"),
    (MINIMUM, "buffers.reservoir", "        if size < least:", "        if size <= 3 * least:",
     "classes get more than their minimum"),
    (BALANCED, "buffers.balanced", "            largest.full = True\n", "",
     "full is forgotten at the first loss"),
    (BALANCED, "buffers.balanced", "rng.randrange(group.seen)", "rng.randrange(self._seen)",
     "a class is judged by the whole stream"),
    (BALANCED, "buffers.balanced", "rng.randrange(group.seen)", "rng.randrange(group.seen + 3)",
     "a class is counted wrong"),
    (BALANCED, "buffers.balanced", "replace(rng.choice(largest.members), item)",
     "replace(rng.randrange(self._capacity), item)", "any class gives room"),
    (BALANCED, "buffers.balanced", "replace(rng.choice(largest.members), item)",
     "replace(largest.members[0], item)", "the same slot gives room"),
    (BALANCED, "buffers.balanced", "replace(group.members[drawn], item)",
     "replace(group.members[0], item)", "the same slot is renewed"),
    (BALANCED, "buffers.balanced", "replace(group.members[drawn], item)",
     "replace(drawn % self._capacity, item)", "a full class takes from others"),
    (BALANCED, "buffers.longterm", "            group.seen += 1\n", "            pass\n",
     "a class is not counted"),
    (RING, "buffers.ring", "self._slot_of.popitem(last=False)", "self._slot_of.popitem()",
     "the newest leaves"),
    (RING, "buffers.ring", "self._slot_of.pop(own[0])", "self._slot_of.pop(own[-1])",
     "the source's newest leaves"),
    (RING, "buffers.ring", "if own is not None and len(own) >= self._source_max:", "if False:",
     "cap ignored"),
    (RING, "buffers.ring", "len(own) >= self._source_max", "len(own) > self._source_max",
     "cap exceeded by one"),
    (RING, "buffers.ring", "if slot != last:", "if False:", "purge loses the age of an item"),
    (RING, "buffers.ring", "        self._leave(old.source)\n", "",
     "the source keeps what left"),
    (TWO, "buffers.compartments", "None if aged is None else self._long.insert(aged)", "aged",
     "what leaves the ring is gone"),
    (TWO, "buffers.compartments", "aged = self._recent.insert(item)",
     "self._long.insert(item)\n        aged = self._recent.insert(item)", "an item is kept twice"),
    (TWO, "buffers.compartments", "self._long.insert(aged)\n", "self._long.insert(item)\n",
     "the fresh item is kept for long"),
    (TWO, "buffers.compartments", "self._long.purge(source) + self._recent.purge(source)",
     "self._recent.purge(source)", "purge of the ring only"),
    (TWO, "buffers.compartments", "self._long.purge(source) + self._recent.purge(source)",
     "self._long.purge(source) or self._recent.purge(source)", "purge of one compartment"),
    (TWO, "retrieval", "int(self.share * k + rng.random())", "int(self.share * k)",
     "the share is rounded down"),
    (TWO, "retrieval", "int(self.share * k + rng.random())", "int(0.5 * k + rng.random())",
     "the share is not used"),
    (TWO, "retrieval", "n_long = min(k - wanted, len(long))", "n_long = k - wanted",
     "what the one can't give is missing"),
    (TWO, "retrieval", "sum(i >= n_long for i in rng.sample(range(n), min(k, n)))",
     "min(round(k * 0.4), len(recent))", "a uniform draw prefers the ring"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("of", "module", "rule", "without"),
    [pytest.param(*m[:4], id=f"{m[0]}: {m[4]}") for m in MUTANTS],
)
def test_the_suite_rejects_a_changed_rule(of: str, module: str, rule: str, without: str) -> None:
    with pytest.raises((AssertionError, LookupError, ValueError, ReplayError)) as failure:
        run_changed(module, rule, without, of)
    assert "times" not in str(failure.value)


@pytest.mark.parametrize("of", policies())
def test_the_unchanged_policy_passes_where_mutants_fail(of: str) -> None:
    run_changed("buffers.base", "NONE = Slots()\n", "NONE = Slots()\n\n", of)
    assert sys.modules["replay.buffers"] is package
    assert replay.buffers is package
