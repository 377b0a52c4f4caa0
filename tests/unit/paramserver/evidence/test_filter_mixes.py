"""Whoever sends one of two labels only is held to what such labels are, not to what others send."""

from __future__ import annotations

import random
from collections.abc import Callable
from math import log

import pytest

from paramserver.evidence.mixes import Mixes
from paramserver.evidence.odds import Odds
from paramserver.evidence.sums import Sums
from paramserver.filters.base import Event
from paramserver.filters.chain import Chain, by_name

MIXED, OTHERS = 12, 5


def sent(
    others: Callable[[bool], bool | None],
    rows: int = 3_000,
    share: float = 0.5,
    seed: int = 3,
    alone: bool = False,
) -> tuple[Chain, float]:
    """Twelve sources send every row that they see, five more what ``others`` says of the truth.

    Returns the chain, and what a row of the five weighs.  ``share``: of rows that are true.
    ``alone``: the twelve send only what is false.
    """
    chain = by_name(("surprise",), None, None, answers=("true", "false"))
    draw, weights = random.Random(seed), []
    for i in range(rows):
        expected = draw.betavariate(share, 1.0 - share)  # the model is calibrated, mostly sure
        truth, source = draw.random() < expected, draw.randrange(MIXED + OTHERS)
        said = truth if source < MIXED else others(truth)
        if said is None or (alone and said and source < MIXED):
            continue
        loss = -log(max(expected if said else 1.0 - expected, 1e-4))
        answer = "true" if expected > 0.5 else "false"
        event = Event(
            f"s{source}", i.to_bytes(16, "little"), None, loss,
            label="true" if said else "false", answer=answer,
        )  # fmt: skip
        verdict = chain.decide(event)
        if source >= MIXED:
            weights.append(verdict.factor if verdict.taken else 0.0)
        chain.observe(event, verdict)
    return chain, sum(weights) / len(weights)


def condemned(chain: Chain) -> set[str]:
    return {source.name for source in chain.sources if source.quarantined}


@pytest.mark.parametrize("works", [True, False])
@pytest.mark.parametrize(("share", "seed"), [(0.5, 3), (0.5, 6)])
def test_who_reports_one_label_only_is_not_condemned_for_those_that_the_model_missed(
    monkeypatch: pytest.MonkeyPatch, share: float, seed: int, works: bool
) -> None:
    if not works:  # the mutant: all that it sends where the other label is answered is a surprise
        monkeypatch.setattr(Mixes, "rate", lambda self, rate, *args, **given: rate)
    chain, weight = sent(lambda truth: True if truth else None, share=share, seed=seed, alone=True)
    assert (condemned(chain) == set()) is works
    assert weight > 0.9 or not works, weight


def test_who_says_one_label_of_any_row_is_condemned() -> None:
    chain, weight = sent(lambda truth: True)
    assert condemned(chain) == {f"s{i}" for i in range(MIXED, MIXED + OTHERS)}
    assert weight < 0.4, weight


@pytest.mark.parametrize("works", [True, False])
def test_who_turns_the_rarer_label_into_the_other_one_sends_one_label_and_is_condemned(
    monkeypatch: pytest.MonkeyPatch, works: bool
) -> None:
    """Most of what it says is right: its labels are denied more often than the others' are."""
    if not works:  # the mutant: who sends one label only has a free pass
        monkeypatch.setattr(Mixes, "_both", lambda self: 0)
        monkeypatch.setattr(Mixes, "_is_denied", lambda self, counts, at: False)
    chain, _ = sent(lambda truth: False, share=0.2)
    assert (len(condemned(chain)) >= 4) is works, condemned(chain)


@pytest.mark.parametrize("works", [True, False])
def test_of_five_that_alone_send_a_label_whose_is_denied_more_often_is_allowed_no_more(
    monkeypatch: pytest.MonkeyPatch, works: bool
) -> None:
    if not works:  # the mutant
        monkeypatch.setattr(Mixes, "_is_denied", lambda self, counts, at: False)
    mixes = Mixes(("true", "false"))
    for i in range(1_200):
        source, denied = i % 12, i % 60 < 36 if i % 12 == 0 else i % 60 < 12
        mixes.hear(f"s{source}", "true" if source < 5 else "false", 2.0 if denied else 0.1)
        if i % 50 == 49:
            mixes.refresh()
    assert (mixes.rate(0.2, "s0", "false") == 0.2) is works
    assert mixes.rate(0.2, "s1", "false") > 0.9


def test_of_labels_that_are_not_two_nothing_is_said() -> None:
    mixes = Mixes()
    for i in range(400):
        mixes.hear(f"s{i % 9}", "a" if i % 9 else "b", 0.1)
        if i % 50 == 49:
            mixes.refresh()
    assert mixes.rate(0.2, "s0", "a") == 0.2


@pytest.mark.parametrize("works", [True, False])
def test_true_rows_that_the_model_knows_do_not_hide_lies_of_the_same_label(
    monkeypatch: pytest.MonkeyPatch, works: bool
) -> None:
    """Five liars begin late, send one label only, and a fifth or two of it are lies."""
    if not works:  # the mutant: who sends one label only is not held to the mix of the others
        monkeypatch.setattr(Mixes, "_both", lambda self: 0)
    for seed, share in ((5501, 0.2), (5502, 0.2), (7101, 0.4)):
        weight, honest = hidden(seed, share)
        assert honest > 0.9, honest
        assert (weight < 0.2) is works, weight


def hidden(seed: int, lies: float, rows: int = 2_400) -> tuple[float, float]:
    """What a lie weighs, and what an honest row does."""
    chain, draw = by_name(("surprise",), None, None, answers=("true", "false")), random.Random(seed)
    of_lies, of_honest = list[float](), list[float]()
    for i in range(rows):
        expected = draw.betavariate(0.5, 0.5)
        truth, source, lie = draw.random() < expected, f"s{draw.randrange(MIXED)}", False
        if i >= 600 and i % 2:
            source, lie = f"l{draw.randrange(OTHERS)}", draw.random() < lies
            while truth is lie or not (lie or expected > 0.9):  # a lie of any row, or an easy row
                expected = draw.betavariate(0.5, 0.5)
                truth = draw.random() < expected
        said = truth or lie
        loss = -log(max(expected if said else 1.0 - expected, 1e-4))
        event = Event(
            source, i.to_bytes(16, "little"), None, loss,
            label="true" if said else "false", answer="true" if expected > 0.5 else "false",
        )  # fmt: skip
        verdict = chain.decide(event)
        if lie or source[0] == "s":
            (of_lies if lie else of_honest).append(verdict.factor if verdict.taken else 0.0)
        chain.observe(event, verdict)
    return sum(of_lies) / len(of_lies), sum(of_honest) / len(of_honest)


@pytest.mark.parametrize("both", [2, 4])
def test_only_who_sends_less_of_a_label_is_allowed_more_while_few_send_both(both: int) -> None:
    mixes, draw = Mixes(("true", "false")), random.Random(5)
    for i in range(800):
        source = draw.randrange(12)
        share = 1.0 if source == 0 else 0.5 if source <= both else 0.0
        mixes.hear(f"s{source}", "true" if draw.random() < share else "false", 0.1)
        if i % 50 == 49:
            mixes.refresh()
    assert (mixes.rate(0.2, "s0", "false") > 0.9) is (both < 4)
    assert mixes.rate(0.2, "s0", "true") == 0.2
    assert mixes.rate(0.2, "nobody", "false") == 0.2


def test_names_without_end_are_forgotten() -> None:
    mixes = Mixes(("true", "false"))
    for i in range(3_000):
        mixes.hear(f"s{i}", "true", 0.1)
    assert len(mixes._of) <= 1_025


@pytest.mark.parametrize("works", [True, False])
def test_what_few_have_said_is_not_held_against_them_before_the_model_knows_it(
    monkeypatch: pytest.MonkeyPatch, works: bool
) -> None:
    """Five sources report a defect in fifty rows, and the model finds it no likelier there yet."""
    if not works:  # the mutant: a label that few have said is as hard as the others
        monkeypatch.setattr(Sums, "_at_random", lambda self, label: 0.0)
    chain, draw = by_name(("surprise",), None, None, answers=("true", "false")), random.Random(4)
    for i in range(2_400):
        defect, expected = draw.random() < 0.02, draw.uniform(0.01, 0.03)
        source = f"d{draw.randrange(5)}" if defect else f"s{draw.randrange(12)}"
        loss = -log(expected if defect else 1.0 - expected)
        event = Event(
            source, i.to_bytes(16, "little"), None, loss,
            label="true" if defect else "false", answer="false",
        )  # fmt: skip
        chain.observe(event, chain.decide(event))
    assert (condemned(chain) == set()) is works, condemned(chain)


@pytest.mark.parametrize("works", [True, False])
def test_a_label_that_a_minority_sends_with_any_row_weighs_little(
    monkeypatch: pytest.MonkeyPatch, works: bool
) -> None:
    """Six sources are enough to compare them with each other, and all of them say it of any row."""
    if not works:  # the mutant: with four senders a label is no longer asked for
        monkeypatch.setattr(Sums, "_unlearned", lambda self, held: {})
    chain, draw = by_name(("surprise",), None, None, answers=("true", "false")), random.Random(4)
    weights = []
    for i in range(2_400):
        lie, expected = i >= 600 and draw.random() < 0.2, draw.betavariate(1.0, 20.0)
        source = f"l{draw.randrange(6)}" if lie else f"s{draw.randrange(14)}"
        loss = -log(max(expected if lie else 1.0 - expected, 1e-4))
        event = Event(
            source, i.to_bytes(16, "little"), None, loss,
            label="true" if lie else "false", answer="false",
        )  # fmt: skip
        verdict = chain.decide(event)
        assert lie or verdict.taken
        if lie:
            weights.append(verdict.factor if verdict.taken else 0.0)
        chain.observe(event, verdict)
    weight = sum(weights) / len(weights)
    assert (weight < 0.3) is works, weight


@pytest.mark.parametrize("works", [True, False])
def test_new_names_that_send_a_label_with_any_row_weigh_little(
    monkeypatch: pytest.MonkeyPatch, works: bool
) -> None:
    """Each has seven lies: too few to ask it by itself."""
    if not works:  # the mutant
        monkeypatch.setattr(Sums, "_unlearned", lambda self, held: {})
        monkeypatch.setattr(Odds, "is_new", lambda self, label, loss: False)
    chain, draw = by_name(("surprise",), None, None, answers=("true", "false")), random.Random(12)
    weights = list[float]()
    for i in range(2_400):
        lie, share = i >= 1_000 and draw.random() < 0.1, draw.betavariate(1, 200)
        source = f"new-{len(weights) // 7}" if lie else f"s{draw.randrange(20)}"
        loss = -log(max(share, 1e-4) if lie else 1.0 - share)
        event = Event(
            source, i.to_bytes(16, "little"), None, loss,
            label="true" if lie else "false", answer="false",
        )  # fmt: skip
        verdict = chain.decide(event)
        if lie:
            weights.append(verdict.factor if verdict.taken else 0.0)
        chain.observe(event, verdict)
    weight = sum(weights) / len(weights)
    assert (weight < 0.35) is works, weight
