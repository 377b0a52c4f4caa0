"""Names without end: lies of new names together weigh little, whatever the model thinks of each."""

from __future__ import annotations

import random
from math import log

import pytest

from paramserver.filters import newcomers, surprise, unlikely
from paramserver.filters.arrivals import EARNED, Arrivals
from paramserver.filters.base import Event, Source
from paramserver.filters.chain import by_name
from paramserver.filters.newcomers import Newcomers
from paramserver.filters.rate import Rate

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
        monkeypatch.setattr(newcomers, "_FADE", 1.0 - 1.0 / 256.0)
    first = [sum(lies_of_new_names(3, seed)[0][:100]) for seed in (1, 2, 3)]
    assert (sum(first) < 45.0) is works, first


def honest_new_names(tests: tuple[str, ...], seed: int, *, hard: bool = False) -> list[float]:
    """What each row of new names weighs, of three rows each, half of all, while nobody lies.

    The stream becomes hard now and then: for a hundred rows everybody's labels surprise.  ``hard``:
    of those rows only.
    """
    chain, draw = by_name(tests, None, None, answers=("true", "false")), random.Random(seed)
    weights, names = list[float](), 0
    for i in range(BEFORE + 1_200):
        expected = draw.betavariate(0.5, 0.5)
        said = draw.random() < expected
        is_hard = i >= BEFORE and i // 100 % 3 == 0
        if is_hard and draw.random() < 0.4:
            said = not said
        new = i >= BEFORE and draw.random() < 0.5
        source = f"new-{names // 3}" if new else f"s{draw.randrange(HONEST)}"
        loss = -log(max(expected if said else 1.0 - expected, 1e-4))
        event = Event(
            source, i.to_bytes(16, "little"), None, loss,
            label="true" if said else "false", answer="true" if expected > 0.5 else "false",
        )  # fmt: skip
        verdict = chain.decide(event)
        if new:
            names += 1
            weights += [verdict.factor if verdict.taken else 0.0] * (is_hard or not hard)
        chain.observe(event, verdict)
    return weights


@pytest.mark.parametrize("works", [True, False])
def test_honest_new_names_are_compared_with_what_others_say_at_the_same_time(
    monkeypatch: pytest.MonkeyPatch, works: bool
) -> None:
    if not works:  # the mutant: with what each of the others said lately
        monkeypatch.setattr(newcomers, "_MORE_MAX", 0.0)
    tests, seeds = ("surprise",), (1, 2, 3)
    weights = [weight for seed in seeds for weight in honest_new_names(tests, seed, hard=True)]
    assert (sum(weights) > 0.9 * len(weights)) is works, sum(weights) / len(weights)


@pytest.mark.parametrize("works", [True, False])
def test_honest_new_names_share_no_budget(monkeypatch: pytest.MonkeyPatch, works: bool) -> None:
    if not works:  # the mutant: a quarter of the window at most
        monkeypatch.setattr(Arrivals, "agrees_with_new", False)
    tests = ("rate", "surprise")
    weights = [weight for seed in (1, 2, 3) for weight in honest_new_names(tests, seed)]
    assert (sum(weights) > 0.9 * len(weights)) is works, sum(weights) / len(weights)


def test_established_liars_hide_little_of_what_new_names_do() -> None:
    """Half of the established sources' events are lies, and their source is not in doubt yet."""
    new = Newcomers()
    for n in range(300):
        new.count(new=False, hit=n % 2 == 0)
        new.count(new=True, hit=n % 5 != 0)
    assert new.weight(0.2) < 0.1
    assert new.weight(0.2, hit=False) < 0.1
    assert not new.agree


@pytest.mark.parametrize("blamed", [True, False])
def test_new_names_are_not_compared_with_sources_in_doubt(blamed: bool) -> None:
    new = Newcomers()
    for n in range(300):
        new.count(new=False, hit=False)
        new.count(new=False, hit=True, blamed=blamed)
        new.count(new=True, hit=n % 2 == 0)
    assert new.agree is not blamed


def test_what_has_no_loss_is_within_the_budget() -> None:
    arrivals, rate = Arrivals(), Rate()
    rate.watch(arrivals)
    assert not arrivals.agrees_with_new, "no test knows anything of new sources"
    arrivals.newcomers.append(new := Newcomers())
    assert not arrivals.agrees_with_new, "nobody is established"
    for i in range(300):
        new.count(new=False, hit=False)
        arrivals.add(f"s{i % 20}", new=False)
        arrivals.add(f"new-{i}", new=True)
    arrivals.refresh([Source(f"s{i}", taken=20) for i in range(20)])
    assert arrivals.agrees_with_new
    said, stranger = Event("x", b"0", loss=0.1), Source("x")
    assert rate.judge(said, stranger).factor == 1.0
    assert rate.judge(Event("x", b"0"), stranger).factor < 0.6
