"""Names that were met together share one range, until one of them goes its own way."""

from __future__ import annotations

import random
import tracemalloc

import pytest

from online.learning import bounds as module
from online.learning.bounds import Bounds
from online.learning.counters import DIGEST
from online.learning.ranges import Range, own_range
from paramserver.core.blocks import DIGEST as DIGESTS
from paramserver.core.blocks import Block, Blocks, copy, from_wire, merge, to_wire
from replay.example import Example, Features

WORDS = [f"word {n}" for n in range(40)]


def learn(bounds: Bounds, features: Features) -> None:
    taken, sent = bounds.taught(features)
    bounds.add(Example(taken, label=True, raw=sent))


def apart(bounds: Bounds) -> None:
    """Give each name a range of its own, as if none were shared."""
    for name in bounds.names:
        own_range(bounds._ranges, name)


def row(draw: random.Random) -> Features:
    words: Features = dict.fromkeys(draw.sample(WORDS, draw.randint(1, 12)), 1.0)
    for name in draw.sample(WORDS, draw.randint(0, 3)):
        words[name] = draw.choice([0.0, -0.0, 1.0, 2.0, 1e6, draw.uniform(-3.0, 3.0)])
    return words


def play(seed: int, *, shared: bool) -> list[str]:
    """What two replicas and their server have, after each exchange, to the bit."""
    draw, server, out = random.Random(seed), Blocks(), list[str]()
    replicas = [Bounds(), Bounds()]
    for _ in range(40):
        here = draw.randrange(2)
        for _ in range(draw.randint(1, 40)):
            learn(replicas[here], row(draw))
            if not shared:
                apart(replicas[here])
        n = replicas[here]._open_n
        delta = replicas[here].cut()
        merge(server, {**delta, DIGEST: Block(DIGESTS, {"count": n, "sum": n})})
        if draw.random() < 0.1:
            replicas[here] = Bounds.of(copy(server), on=True)
        if draw.random() < 0.5:
            replicas[1 - here].rebase(from_wire(to_wire(server)))
        for bounds in replicas:
            if not shared:
                apart(bounds)
            out.append(repr(sorted(bounds.ends(WORDS).items())))
            out.append(repr(sorted(bounds._ranges.awake)))
        out.append(repr(sorted((name, b.data) for name, b in delta.items())))
    return out


@pytest.mark.parametrize("seed", range(8))
def test_ranges_are_what_they_were_if_each_name_had_its_own(seed: int) -> None:
    assert play(seed, shared=True) == play(seed, shared=False)


def test_the_check_notices_names_that_move_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    apart_s = [play(seed, shared=False) for seed in range(3)]
    monkeypatch.setattr(module, "own_range", lambda ranges, name: ranges[name])
    assert [play(seed, shared=True) for seed in range(3)] != apart_s


def test_names_of_one_row_take_no_memory_each() -> None:
    names = [f"a long name of a feature {n:06d}" for n in range(20_000)]
    bounds = Bounds()
    for begin in range(0, len(names), 1_000):
        learn(bounds, dict.fromkeys(names[begin : begin + 1_000], 1.0))
    values = bounds.cut()
    values[DIGEST] = Block(DIGESTS, {"count": 20, "sum": 20})
    tracemalloc.start()
    again = Bounds.of(values, on=True)
    each = tracemalloc.get_traced_memory()[0] / len(names)
    tracemalloc.stop()
    assert len({id(held) for held in again._ranges.values()}) <= 20
    assert each <= 70, "an entry of one dict; 170 with a range for each"
    assert all(isinstance(held, Range) and not held.awake for held in again._ranges.values())
