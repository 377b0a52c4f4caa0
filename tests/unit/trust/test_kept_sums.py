"""Sums that are kept between events are those that adding everything up again gives."""

from __future__ import annotations

import random
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from online.learning.source_evidence import Evidence, judged_of
from online.trust.sources import Reputations
from paramserver.core.blocks import COUNT, Block, Blocks
from paramserver.core.sums import add_counts
from paramserver.evidence.odds import Votes
from paramserver.evidence.sums import Null
from paramserver.filters.base import Event
from paramserver.filters.chain import by_name
from paramserver.filters.sources import Effects
from paramserver.filters.surprise import _Lately
from replay.journal.base import Verdict


class World:
    """One replica's evidence: rows are judged, learned later or taken back, and cut at times."""

    def __init__(self, seed: int) -> None:
        self.draw, self.n = random.Random(seed), 0
        self.chain = by_name(("surprise",), None, None, answers=("true", "false"))
        self.reputations = Reputations(self.chain, dict)
        self.learner = Evidence()
        self.learner.observer = self.reputations
        self.waiting: list[tuple[bytes, str, Effects]] = []
        self.values: Blocks = {}

    def judge(self) -> None:
        self.n += 1
        label = "true" if self.draw.random() < 0.5 else "false"
        name, loss = f"s{self.draw.randrange(12)}", self.draw.expovariate(2.0)
        event = Event(name, self.n.to_bytes(16, "little"), None, loss, label=label, answer=label)
        self.chain.observe(event, self.chain.decide(event))
        effects = self.reputations.decided(event.key, name)
        self.waiting.append((event.key, name, effects))

    def learn(self) -> None:
        key, source, effects = self.waiting.pop(0)
        place = {"partition": 1, "offset": int.from_bytes(key, "little")}
        row: Any = SimpleNamespace(key=key, source=source, verdict=Verdict.ACCEPTED, **place)
        self.reputations.stands(key, (row.partition, row.offset))
        self.learner.add(row, judged_of(effects, 0.0, ""))

    def take_back(self) -> None:
        key, _, _ = self.waiting.pop(self.draw.randrange(len(self.waiting)))
        self.reputations.take_back(key)

    def cut(self) -> None:
        add_counts(self.values, self.learner.cut())

    def step(self) -> None:
        chance = self.draw.random()
        if chance < 0.5 or not self.waiting:
            self.judge()
        elif chance < 0.92:
            self.learn()
        else:
            self.take_back() if chance < 0.95 else self.cut()

    def expected(self) -> Blocks:
        """All that the values lack."""
        total: Blocks = {}
        add_counts(total, self.learner._open)
        for _, _, effects in self.waiting:
            effects.add_to(total)
        return total


def difference(a: Blocks, b: Blocks) -> float:
    """The largest difference of two sums, where a name that is missing counts nothing."""
    return max(
        abs(a.get(name, Block(COUNT, {})).data.get(key, 0) - block.data[key])
        for name, block in [*b.items(), *((n, Block(COUNT, dict.fromkeys(x.data, 0)))
                                          for n, x in a.items() if n not in b)]
        for key in block.data
    )  # fmt: skip


@pytest.mark.parametrize("told", [True, False])
def test_what_the_values_lack_is_what_was_not_cut_yet(
    monkeypatch: pytest.MonkeyPatch, told: bool
) -> None:
    if not told:  # the mutant: nobody tells that a delta was cut
        monkeypatch.setattr(Reputations, "cut", lambda self, opened: None)
    worst = 0.0
    for seed in range(3):
        world = World(seed)
        for _ in range(1_500):
            world.step()
        world.judge()
        worst = max(worst, difference(world.reputations._ahead, world.expected()))
    assert (worst < 1e-9) is told, worst


def shown(seed: int, change: Callable[[Votes], object]) -> bool:
    """Whether votes that are counted one by one show the same as if counted all at once."""
    draw, votes, sent = random.Random(seed), Votes(), list[tuple[str, str, int, bool]]()
    for step in range(1_200):
        if sent and draw.random() < 0.3:
            label, source, bin_, said = sent.pop(draw.randrange(len(sent)))
            votes.add(label, source, bin_, -1, said=said)
        else:
            one = draw.choice("ab"), f"s{draw.randrange(9)}", draw.randrange(-60, 40), step % 3 > 0
            sent.append(one)
            votes.add(*one[:3], 1, said=one[3])
        if step % 50 == 0:
            change(votes)
            anew = Votes()
            for label, source, bin_, said in sent:
                anew.add(label, source, bin_, 1, said=said)
            mine, its = votes.shown(), anew.shown()
            if mine.keys() != its.keys() or not all(
                np.allclose(mine[label], its[label]) for label in mine
            ):
                return False
    return True


def test_cells_that_did_not_change_are_shown_as_they_were() -> None:
    assert all(shown(seed, lambda votes: None) for seed in range(3))
    assert not shown(0, lambda votes: votes._known_then.update(votes._known())), "the mutant"


def test_surprises_of_different_sources_in_a_row_are_correlated_as_numbers_are() -> None:
    """Counted as hits, they have the covariance that the numbers 0 and 1 have."""
    draw, bounds = random.Random(4), {"a": Null(0.5, 2.0, 0.4), "b": Null(0.2, 2.0, 0.1)}
    for share in (0.0, 0.6):
        lately, hit, told = _Lately(), False, list[tuple[str, bool]]()
        for _ in range(700):
            label = draw.choice("abc")  # of the last nothing is known
            hit = hit if draw.random() < share else draw.random() < 0.3
            source = f"s{draw.randrange(5)}"
            lately.add(source, label, 0.9 if hit else 0.1)
            told += [(source, hit)] if label != "c" else []
        hits = np.array([float(hit) for _, hit in told])
        mean = hits.mean()
        pairs = [
            (hits[i] - mean) * (hits[i + 1] - mean)
            for i in range(len(told) - 1)
            if told[i][0] != told[i + 1][0]
        ]
        expected = min(max(float(np.mean(pairs)) / (mean * (1.0 - mean)), 0.0), 0.8)
        assert lately.again(bounds) == pytest.approx(expected, abs=1e-12)
        assert bool(expected > 0.2) is (share > 0.0)
