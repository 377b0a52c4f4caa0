"""Names without end: lies of new names together weigh little, whatever the model thinks of each."""

from __future__ import annotations

import random
from math import log

import pytest

from paramserver.filters import surprise, unlikely
from paramserver.filters.arrivals import EARNED
from paramserver.filters.base import Event, Source
from paramserver.filters.chain import by_name
from paramserver.filters.surprise import Newcomers

HONEST, BEFORE, LIES = 20, 600, 300


def lies_of_new_names(of_a_name: int, seed: int) -> tuple[list[float], list[float], list[float]]:
    """What each lie weighs, those that are likely to the model, and the last one of each name.

    Every second event is a lie about any row, from a new name after ``of_a_name``.
    """
    chain, draw = by_name(("surprise",), None, None, answers=("true", "false")), random.Random(seed)
    every, likely, last = list[float](), list[float](), list[float]()
    for i in range(BEFORE + 2 * LIES):
        expected = draw.betavariate(0.5, 0.5)
        truth, source = draw.random() < expected, f"s{draw.randrange(HONEST)}"
        lie = i >= BEFORE and i % 2 == 1
        said = truth is not lie
        if lie:
            source = f"new-{len(every) // of_a_name}"
        loss = -log(max(expected if said else 1.0 - expected, 1e-4))
        event = Event(
            source, i.to_bytes(16, "little"), None, loss,
            label="true" if said else "false", answer="true" if expected > 0.5 else "false",
        )  # fmt: skip
        verdict = chain.decide(event)
        if lie:
            every.append(weight := verdict.factor if verdict.taken else 0.0)
            if loss < log(2.0):
                likely.append(weight)
            if len(every) % of_a_name == 0:
                last.append(weight)
        chain.observe(event, verdict)
    return every, likely, last


@pytest.mark.parametrize("works", [True, False])
def test_lies_that_do_not_surprise_share_the_weight_of_those_that_do(
    monkeypatch: pytest.MonkeyPatch, works: bool
) -> None:
    if not works:  # the mutant
        monkeypatch.setattr(Newcomers, "weight", lambda self, rate, **given: 1.0)
    for seed in (1, 2, 3):
        _, likely, _ = lies_of_new_names(3, seed)
        late = likely[len(likely) // 4 :]
        assert len(late) > 20
        assert (sum(late) < 0.2 * len(late)) is works, sum(late) / len(late)


@pytest.mark.parametrize("works", [True, False])
def test_a_name_earns_nothing_by_eight_lies(monkeypatch: pytest.MonkeyPatch, works: bool) -> None:
    if not works:  # the mutant
        for module in (surprise, unlikely):
            monkeypatch.setattr(module, "is_new", _is_new_by_number)
    weights = [weight for seed in (1, 2, 3) for weight in lies_of_new_names(EARNED + 1, seed)[2]]
    assert (sum(weights) < 0.1 * len(weights)) is works, sum(weights) / len(weights)


def _is_new_by_number(source: Source) -> bool:
    return source.taken < EARNED


@pytest.mark.parametrize("works", [True, False])
def test_names_that_come_all_at_once_have_no_share_of_what_came_long_before(
    monkeypatch: pytest.MonkeyPatch, works: bool
) -> None:
    if not works:  # the mutant
        monkeypatch.setattr(surprise, "_FADE", 1.0 - 1.0 / 256.0)
    first = [sum(lies_of_new_names(3, seed)[0][:100]) for seed in (1, 2, 3)]
    assert (sum(first) < 45.0) is works, first
