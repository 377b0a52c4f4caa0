"""Who lies where the model is not sure says nothing unlikely, but hardly anything else."""

from __future__ import annotations

import math
import random

import pytest

from paramserver.evidence.rising import Rising
from paramserver.filters.base import Event
from paramserver.filters.chain import by_name
from paramserver.filters.unlikely import Unlikely

SOURCES = 20


def told(rising: Rising, unsure: dict[str, float], rows: int, seed: int) -> None:
    """Rows of all sources, of which the model is unsure so often."""
    draw = random.Random(seed)
    for i in range(rows):
        source = draw.choice(list(unsure))
        rising.hear(source, 0.7 if draw.random() < unsure[source] else 0.05, 1.0)
        if i % 50 == 49:
            rising.refresh()


def rising_of(rising: Rising) -> set[str]:
    return {f"s{i}" for i in range(SOURCES) if f"s{i}" in rising.risen}


def usual() -> dict[str, float]:
    """How often of each: ``s1`` has always had the harder rows."""
    return {f"s{i}": 0.5 if i == 1 else 0.15 for i in range(SOURCES)}


def test_who_sends_what_the_model_is_not_sure_of_rises_and_nobody_else() -> None:
    rising = Rising()
    told(rising, usual(), 1_500, 1)
    assert rising_of(rising) == set()
    told(rising, {**usual(), "s0": 0.95}, 600, 2)
    assert rising_of(rising) == {"s0"}
    for lies in range(50, 400, 50):
        told(rising, {**usual(), "s0": 0.95}, 50 * SOURCES, lies)
        assert "s0" in rising.risen, f"after {lies} lies it has become usual by going on"
    told(rising, usual(), 1_000, 4)
    assert rising_of(rising) == set()


def test_who_has_become_harder_for_good_is_held_for_five_hundred_rows() -> None:
    rising, held = Rising(), 0
    told(rising, usual(), 1_500, 1)
    for i in range(100):
        told(rising, {**usual(), "s0": 0.95}, 10 * SOURCES, 100 + i)
        held += "s0" in rising.risen
    assert held < 60, held
    assert "s0" not in rising.risen


def test_new_names_leave_the_others_comparable() -> None:
    rising = Rising()
    told(rising, usual(), 1_500, 1)
    for i in range(40):
        told(rising, {**usual(), "s0": 0.95}, 25, 10 + i)
        for name in range(50):
            rising.hear(f"new{i}-{name % 10}", 0.05, 1.0)
        rising.refresh()
    assert "s0" in rising.risen


def test_where_there_is_nobody_left_to_compare_with_nobody_rises() -> None:
    rising = Rising()
    told(rising, usual(), 1_500, 1)
    told(rising, {**usual(), "s0": 0.95}, 600, 2)
    assert "s0" in rising.risen
    for i in range(1_100):  # more than it remembers: all but the first have gone
        rising.hear(f"new{i}", 0.05, 1.0)
        rising.hear("s0", 0.7, 1.0)
    rising.refresh()
    assert rising_of(rising) == set()


def test_where_all_do_it_is_the_world() -> None:
    rising = Rising()
    told(rising, usual(), 1_500, 1)
    harder = {name: min(3.0 * x, 0.9) for name, x in usual().items()}
    told(rising, harder, 2_000, 2)
    assert rising_of(rising) <= {"s1"}, "of which hardly any row is another one, as of liars"
    told(rising, harder, 6_000, 3)
    assert rising_of(rising) == set(), "and that is usual of it now"


def test_few_sources_are_not_compared() -> None:
    rising = Rising()
    few = {f"s{i}": 0.2 for i in range(7)}
    told(rising, few, 700, 1)
    told(rising, {**few, "s0": 0.9}, 200, 2)
    assert rising_of(rising) == set()


def test_it_remembers_a_thousand_sources() -> None:
    rising = Rising()
    for i in range(1_100):
        rising.hear(f"n{i}", 0.1, 1.0)
    assert len(rising._of) == 1_024


@pytest.mark.parametrize("seen", [True, False])
def test_lies_about_what_the_model_is_not_sure_of_are_held_back(
    seen: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight of 28 say the wrong label where the answer is a half, as the others do now and then."""
    if not seen:
        monkeypatch.setattr(Unlikely, "_rises", lambda self, source: False)
    chain, draw = by_name(("surprise",), None, None, answers=("true", "false")), random.Random(7)
    liars, weights = [f"liar{i}" for i in range(8)], {True: list[float](), False: list[float]()}
    for i in range(2_400):
        lies = i >= 1_600 and i % 2 == 1
        honest = [f"s{draw.randrange(20)}"] if i >= 1_600 else [f"s{i % 20}", draw.choice(liars)]
        source = draw.choice(liars) if lies else draw.choice(honest)
        sure = not lies and draw.random() < 0.85
        answer, label = draw.choice(("true", "false")), draw.choice(("true", "false"))
        share = 0.9 if sure else 0.5
        if sure:
            label = answer
        event = Event(
            source, i.to_bytes(16, "little"), None, -math.log(share), label=label, answer=answer
        )
        verdict = chain.decide(event)
        chain.observe(event, verdict)
        if i >= 1_900:
            weights[lies].append(verdict.factor if verdict.taken else 0.0)
    lied, honestly = (sum(weights[x]) / len(weights[x]) for x in (True, False))
    assert honestly > 0.95, (honestly, lied)
    assert lied < 0.4 if seen else lied > 0.8, (honestly, lied)
