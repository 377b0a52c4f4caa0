"""What is kept between two looks says the same as a look at everything, and is looked at once."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from paramserver.core.blocks import COUNT, Block
from paramserver.evidence.generations import Newest
from paramserver.evidence.losses import LOSSES
from paramserver.evidence.sums import Null
from paramserver.filters import surprise
from paramserver.filters.base import Event
from paramserver.filters.chain import Chain, by_name
from paramserver.filters.sources import SOURCES_MAX, keep_bounds
from paramserver.filters.surprise import Surprise


class Watched(dict[str, float]):
    """Counts that know how often somebody walked over all of them."""

    walks = 0

    def __iter__(self) -> Iterator[str]:
        self.walks += 1
        return super().__iter__()


def key(generation: int, i: int) -> str:
    return f"{generation}\n{i}\ntrue\ns{i % 26}"


def test_no_generation_has_all_counts_looked_at_again() -> None:
    data = Watched({key(generation, i): 1 for generation in (5, 6, 7) for i in range(500)})
    values, newest = {LOSSES: Block(COUNT, data)}, Newest()

    def come(generation: int, i: int) -> int:
        before = data.walks
        data[key(generation, i)] = 1
        keep_bounds(values, {LOSSES: {key(generation, i)}}, SOURCES_MAX, newest)
        return data.walks - before

    assert come(7, 500) == 1, "they had not been seen before"
    assert [come(7, i) for i in range(490, 520)] == [0] * 30
    assert (come(5, 501), come(8, 0), come(8, 1)) == (0, 0, 0)
    assert values[LOSSES].data is data, "nothing was too old"
    come(10, 0)
    assert len(values[LOSSES].data) == len(data) - 501, "those of the fifth are gone"


@pytest.mark.parametrize("seed", range(8))
def test_what_stays_is_what_a_look_at_all_keeps(seed: int) -> None:
    draw, newest, now = random.Random(seed), Newest(), 0
    data: dict[str, float] = {}
    for step in range(1_500):
        now += draw.random() < 0.03
        for _ in range(draw.randrange(4)):  # some come late, and one leaps ahead
            ahead = 7 if draw.random() < 0.002 else 0
            data[key(max(now - draw.choice((0, 0, 0, 1, 2, 5, 9)), 0) + ahead, step % 300)] = 1
        if draw.random() < 0.01:  # a snapshot holds the ones before
            data = dict(data)
        if draw.random() < 0.01 and data:  # or they are let go of
            data.popitem()
        expected = Newest().keep(data)
        kept = newest.keep(data)
        assert kept == expected, (step, now)
        data = data if kept is None else kept
    assert now > 20


def events(n: int) -> list[Event]:
    draw = random.Random(3)
    out = []
    for i in range(n):
        label = "true" if draw.random() < 0.4 else "false"
        answer = label if draw.random() < 0.8 else "true"
        loss = draw.expovariate(1.0) * (0.2 if answer == label else 3.0)
        name = i.to_bytes(16, "little")
        out.append(Event(f"s{draw.randrange(12)}", name, None, loss, label=label, answer=answer))
    return out


def verdicts(chain: Chain, sent: list[Event]) -> list[object]:
    out: list[object] = []
    for event in sent:
        out.append(verdict := chain.decide(event))
        chain.observe(event, verdict)
    return out


def test_tests_of_one_answer_share_what_they_look_back_at(monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[float] = []
    correlation = surprise._Lately._correlation

    def counted(lately: surprise._Lately, bounds: Mapping[str | None, Null]) -> float:
        looks.append(correlation(lately, bounds))
        return looks[-1]

    monkeypatch.setattr(surprise._Lately, "_correlation", counted)
    monkeypatch.setattr(surprise, "_KEPT", 128)
    sent = events(600)  # the arrays are full four times
    shared = by_name(("surprise",), None, None, answers=("true", "false"))
    found = verdicts(shared, sent)
    assert 15 <= len(looks) <= 24, "twelve times, once for all four and once for the first"
    assert max(looks) > 0.0, "nothing is compared"

    apart = by_name(("surprise",), None, None, answers=("true", "false"))
    of_all, *others = [test for test in apart.filters if isinstance(test, Surprise)]
    for test in others:  # each keeps its own
        test._lately = surprise._Lately()

    def add(*given: Any) -> None:
        for test in others:
            test._lately.add(*given)

    monkeypatch.setattr(of_all.every, "add", add)
    assert verdicts(apart, sent) == found
