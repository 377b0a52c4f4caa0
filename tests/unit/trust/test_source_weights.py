"""Events count as they weigh among those of their source, at whichever replica; and early trust."""

from __future__ import annotations

from math import exp, log
from random import Random

import pytest

from benchmarks.attacks import floods
from online.trust.sources import Reputations
from paramserver.core.blocks import COUNT, Block, merge
from paramserver.evidence.sums import Null
from paramserver.filters import sources
from paramserver.filters.arrivals import Arrivals
from paramserver.filters.base import Event, Source
from paramserver.filters.chain import Chain, by_name
from paramserver.filters.newcomers import Newcomers
from paramserver.filters.surprise import Surprise

LABELS = ("true", "false")


def judging() -> Chain:
    return by_name(("surprise",), None, None, answers=LABELS)


def sent(chain: Chain, source: str, weights: list[float]) -> None:
    for i, weight in enumerate(weights):
        event = Event(source, b"%d" % i, None, 0.1, label="true", answer="true", weight=weight)
        chain.observe(event, chain.decide(event))


@pytest.mark.parametrize("known", [True, False])
def test_light_rows_at_one_replica_are_light_beside_heavy_ones_at_another(
    monkeypatch: pytest.MonkeyPatch, known: bool
) -> None:
    if not known:  # the mutant: each replica knows only what it has received
        monkeypatch.setattr(sources, "EXTRA", "another block")
    busy, other = judging(), judging()
    sent(busy, "x", [0.01] * 20)
    values = busy.cut()
    sent(other, "x", [2.0] * 20)
    merge(values, other.cut())
    if not known:
        del values["another block"]
    for chain in (busy, other):
        chain.rebase(values)
        assert (chain.sources.get("x").weight == pytest.approx(1.005)) is known


def test_what_a_row_weighs_is_taken_back_with_it() -> None:
    chain = judging()
    reputations = Reputations(chain, dict)
    for i, weight in enumerate((0.5, 2.0)):
        event = Event("x", b"%d" % i, None, 0.1, label="true", answer="true", weight=weight)
        chain.observe(event, chain.decide(event))
        reputations.decided(event.key, "x")
    assert chain.sources.get("x").weight == 1.25
    reputations.take_back(b"1")
    assert chain.sources.get("x").weight == 0.5


@pytest.mark.parametrize(("usual", "against"), [(1.0, 1.0), (2.0, 0.5), (0.1, 1.0)])
def test_heavy_truth_does_not_make_lies_light(usual: float, against: float) -> None:
    """Lies count beside others' events, unless all sources send such heavy ones."""
    source = Source("x", taken=100, extra=100.0)
    assert source.weight == 2.0
    assert source.shares(1.0, usual) == (0.5, against)
    assert source.shares(2.0, usual) == (1.0, 1.0)


@pytest.mark.parametrize("weight", [0.01, 1.0, 2.0])
def test_events_that_all_weigh_the_same_count_whole(weight: float) -> None:
    source = Source("x")
    for n in range(20):
        source.taken, source.extra = n, n * (weight - 1.0)
        for usual in (0.01, 1.0, 2.0):
            assert source.shares(weight, usual) == pytest.approx((1.0, 1.0))


def test_new_names_weigh_no_more_than_light_established_ones() -> None:
    new = Newcomers()
    for _ in range(300):
        new.count(new=False, hit=False, weight=0.01)
    assert new.most(1.0) == pytest.approx(0.01, rel=0.1)


def test_what_other_replicas_have_taken_counts_as_it_weighs() -> None:
    test, known = Surprise(answers=LABELS), Source("x", taken=100, extra=-90.0)
    test.bounds = {"true": Null(1.0, 4.0, 0.5)}
    for _ in range(300):
        test.hear(known, "true", 0.1)
    assert test._new.most(1.0) == pytest.approx(0.1, rel=0.1)


@pytest.mark.parametrize("works", [True, False])
def test_a_flood_from_the_first_row_is_not_trusted_for_what_it_has_taught(
    monkeypatch: pytest.MonkeyPatch, works: bool
) -> None:
    if not works:  # the mutant: whom the model contradicts has no budget either
        monkeypatch.setattr("paramserver.filters.rate.Rate._is_agreed", lambda self, source: True)
    rows = floods.rows_of("phishing", None, 0)[:400]
    found = floods.play("phishing", floods.flood(rows, 0, 3, 4, 981), 0, "default")
    assert (found.accuracy > 70.0) is works, found
    assert (len(found.quarantined) == 3) is works
    assert not found.set_aside, "honest rows"


@pytest.mark.parametrize("shifts", [True, False])
def test_sources_known_from_before_are_caught_when_all_events_become_light(
    monkeypatch: pytest.MonkeyPatch, shifts: bool
) -> None:
    if not shifts:  # the mutant: beside what the sources ever sent, each event is next to nothing
        monkeypatch.setattr(
            Arrivals, "shift", property(lambda self: 1.0, lambda self, x: None), False
        )
    names = [f"s{i:02d}" for i in range(26)]
    chain, draw = by_name(("rate", "samples", "surprise"), None, None, answers=LABELS), Random(7)
    known = {"filter.taken": 2_000, "filter.evidence.surprise": 8.0}
    chain.reset({name: Block(COUNT, dict.fromkeys(names, x)) for name, x in known.items()})
    for i in range(3_000):
        source, label = draw.choice(names), draw.choice(LABELS)
        lies = i > 500 and source < "s06"
        wrong = (draw.random() < 0.15) is not lies
        share = 1.0 / (1.0 + exp(draw.gauss(-2.0, 0.5)))
        loss = -log(1.0 - share if wrong else share)
        answer = label if loss < log(2.0) else LABELS[label == LABELS[0]]
        key = i.to_bytes(16, "little")
        event = Event(source, key, None, loss, weight=0.05, label=label, answer=answer)
        chain.observe(event, chain.decide(event))
    caught = [name for name in names if chain.sources.get(name).quarantined]
    assert caught == (names[:6] if shifts else [])
