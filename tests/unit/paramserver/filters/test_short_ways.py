"""Rows that no test can hold anything against are judged in a short way, with the same result."""

from __future__ import annotations

import random
from collections.abc import Callable
from math import inf
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paramserver.core.blocks import EXTREMA
from paramserver.evidence.losses import Losses
from paramserver.filters.base import Event, Source
from paramserver.filters.chain import NAMES, Chain, by_name
from paramserver.filters.surprise import Surprise
from paramserver.filters.unlikely import Unlikely

LABELS = {2: ("true", "false"), 4: ('"a"', '"b"', '"c"', '"d"')}
SOURCES = 14


def made(labels: int) -> Chain:
    answers = LABELS[2] if labels == 2 else ()
    return by_name(NAMES, None, None, answers=answers)


def in_full(labels: int) -> Chain:
    """A chain that takes no short way: it asks each test about each event, and sums at once."""
    chain = made(labels)
    chain._clear = inf
    for test in chain.filters:
        if isinstance(test, Surprise | Unlikely):
            test._is_sure = lambda *given: False  # type: ignore[method-assign]
    losses, add = chain.losses, chain.losses.add

    def added(*given: Any) -> bool:
        taken = add(*given)
        losses.sums.settle()
        return taken

    losses.add = added  # type: ignore[method-assign]
    return chain


def events(draw: Any, labels: int, n: int) -> list[Event]:
    """Events of honest and hostile sources, one of which may flood, of a model that learns."""
    liars = draw.randrange(6)
    flood, begins = draw.random() < 0.4, draw.randrange(n)
    names = draw.random() < 0.4  # new ones that lie
    heavy, right = draw.random() < 0.3, draw.choice((0.7, 0.85, 0.97))
    said, out = LABELS[labels], []
    for i in range(n):
        who = draw.randrange(SOURCES)
        if flood and i > begins and draw.random() < 0.6:
            who = 0
        name = f"n{i // 90}" if names and draw.random() < 0.2 else f"s{who}"
        label = draw.choice(said[:2]) if draw.random() < 0.8 else draw.choice(said)
        answer = label if draw.random() < right else draw.choice(said)
        lie = (who < liars or name[0] == "n") and i > begins and draw.random() < 0.8
        if lie:
            label = draw.choice([x for x in said if x != label])
        loss = draw.expovariate(6.0) if answer == label else 0.7 + draw.expovariate(0.8)
        other = None
        if labels > 2:
            other = draw.choice([x for x in said if x != label]), draw.expovariate(0.7)
        weight = draw.choice((0.1, 1.0, 1.0, 2.0)) if heavy else 1.0
        row = draw.randrange(1 << 30) if draw.random() < 0.98 else 7
        out.append(Event(
            name, i.to_bytes(16, "little"), None, loss, label=label, answer=answer,
            digest=hash((row, label)), features_digest=row, weight=weight, other=other,
        ))  # fmt: skip
    return out


def apart(seed: int, labels: int, n: int, change: Callable[[Chain], object]) -> bool:
    """Whether the verdicts, or what is known of the sources, differ between both."""
    short, full = made(labels), in_full(labels)
    change(short)
    for event in events(random.Random(seed), labels, n):
        of_both = [chain.decide(event) for chain in (short, full)]
        told = [(v.verdict, v.weight, v.clip, v.score, v.reason) for v in of_both]
        if told[0][0] != told[1][0] or told[0][4] != told[1][4]:
            return True
        if told[0][1:4] != pytest.approx(told[1][1:4], abs=1e-9):
            return True
        for chain, verdict in zip((short, full), of_both, strict=True):
            chain.observe(event, verdict)
        one, other = (chain.sources.get(event.source) for chain in (short, full))
        if (one.offences, one.releases, one.good, one.taken, one.turned_at) != (
            other.offences, other.releases, other.good, other.taken, other.turned_at
        ):  # fmt: skip
            return True
        known = {
            test: nats for test, nats in other.evidence.items() if nats or test in one.evidence
        }
        if one.evidence != pytest.approx(known, abs=1e-9):
            return True
    mine, its = short.cut(), full.cut()
    return mine.keys() != its.keys() or any(
        mine[name].data != its[name].data
        if mine[name].kind == EXTREMA
        else mine[name].data != pytest.approx(its[name].data, abs=1e-9)
        for name in mine
    )


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1 << 30), labels=st.sampled_from((2, 4)))
def test_the_short_way_ends_where_the_long_one_does(seed: int, labels: int) -> None:
    assert not apart(seed, labels, 800, lambda chain: None)


@pytest.mark.parametrize("blamed", [True, False])
def test_who_is_still_weighted_with_new_sources_is_asked_about(blamed: bool) -> None:
    """A source with a test against it is new for longer, and its calm events may weigh less."""
    chain = made(2)
    of_all = next(test for test in chain.filters if isinstance(test, Surprise))
    unlikely = next(test for test in chain.filters if isinstance(test, Unlikely))
    unlikely._doubts["s"], unlikely._asked = 2.0, (unlikely._odds, "true", 0.1, (0.9, 0.1))
    event = Event("s", b"", None, 0.1, label="true", answer="true")
    evidence = {"surprise": 8.0, "unlikely": 2.0} | ({"samples": -2.0} if blamed else {})
    for taken in (10, 16):
        source = Source("s", evidence=evidence, good=True, taken=taken)
        sure = not blamed or taken == 16
        assert (of_all._is_sure(source), unlikely._is_sure(event, source)) == (sure, sure)


def the_allowance_does_not_matter(chain: Chain) -> None:
    for test in chain.filters:
        if isinstance(test, Surprise):
            test._is_sure = lambda source: True  # type: ignore[method-assign]


def credit_is_not_asked_for(chain: Chain) -> None:
    def sure(test: Unlikely) -> Callable[[Event, Source], bool]:
        def likely(event: Event, source: Source) -> bool:
            found = test._found(event.label, event.loss or 0.0)
            return found is not None and found[0] >= found[1]

        return likely

    for test in chain.filters:
        if isinstance(test, Unlikely):
            test._is_sure = sure(test)  # type: ignore[method-assign]


def standing_does_not_matter(chain: Chain) -> None:
    chain._clear = -inf


def losses_wait_for_ever(chain: Chain) -> None:
    chain.losses.sums.settle = lambda: None  # type: ignore[method-assign]


@pytest.mark.parametrize("change", [
    the_allowance_does_not_matter, credit_is_not_asked_for, standing_does_not_matter,
    losses_wait_for_ever,
])  # fmt: skip
def test_a_way_that_is_too_short_would_be_noticed(change: Callable[[Chain], object]) -> None:
    assert any(apart(seed, 2, 800, change) for seed in range(12))


def test_sums_of_losses_wait_for_whoever_asks() -> None:
    losses, at_once = Losses(answers=LABELS[2]), Losses(answers=LABELS[2])
    for i in range(700):
        given = f"s{i % 9}", LABELS[2][i % 7 > 3], 0.02 * (i % 60)
        assert losses.add(*given) == at_once.add(*given)
        at_once.sums.settle()
    assert len(losses.sums.waiting) > 20
    assert losses.sums.nulls() == at_once.sums.nulls()
    odds, its = losses.sums.odds(), at_once.sums.odds()
    for label in LABELS[2]:
        assert odds.said[label] == pytest.approx(its.said[label], abs=1e-12)
        assert odds.unsaid[label] == pytest.approx(its.unsaid[label], abs=1e-12)
    assert (losses.sums._bins, losses.sums.of_sources) == (
        at_once.sums._bins,
        at_once.sums.of_sources,
    )
    assert not losses.sums.waiting
