"""Honest sources that send much, or one label only, are judged beside those that do the same."""

from __future__ import annotations

import random
from collections import Counter
from math import exp, log

import pytest

from online.trust.filtering import _unweighed
from paramserver.evidence.losses import Losses
from paramserver.evidence.mixes import Mixes
from paramserver.evidence.sums import Null
from paramserver.evidence.voices import Voices
from paramserver.filters import rate, surprise
from paramserver.filters.arrivals import Arrivals
from paramserver.filters.base import CLIPPED, PASS, Event, Source
from paramserver.filters.chain import by_name
from paramserver.filters.rate import Rate
from paramserver.filters.surprise import Surprise
from paramserver.filters.unlikely import Unlikely

LABELS = ("false", "true")
ROWS, BEGIN = 1_500, 500


def learned(
    senders: dict[str, list[str]], *, weighs: bool = True, begin: int = BEGIN
) -> Counter[str]:
    """Weight learned of each source's rows after the first; ``n of`` a name are its rows.

    Each row is sent by any of those named for its label, which is the likelier one in nine of ten.
    """
    chain = by_name(("rate", "samples", "surprise"), None, None, answers=LABELS[::-1])
    draw, out = random.Random(7), Counter[str]()
    for i in range(ROWS):
        label = draw.choice(LABELS)
        denied = draw.random() < 0.1
        share = 1.0 / (1.0 + exp(draw.gauss(-2.0, 0.5)))
        loss = -log(1.0 - share if denied else share)
        answer = label if loss < log(2.0) else LABELS[label == "false"]
        source = draw.choice(senders[label])
        event = Event(source, i.to_bytes(16, "little"), None, loss, label=label, answer=answer)
        verdict = chain.decide(event)
        if verdict.verdict == CLIPPED and not weighs:
            verdict = _unweighed(verdict)
        chain.observe(event, verdict)
        if i >= begin:
            out[source] += verdict.factor if verdict.taken else 0.0
            out[f"n of {source}"] += 1
    return out


def part_of(found: Counter[str], names: list[str]) -> float:
    """The share of the rows of these sources that is learned."""
    return sum(found[x] for x in names) / sum(found[f"n of {x}"] for x in names)


def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compare no source with the small ones together."""
    monkeypatch.setattr(Surprise, "_beside_small_ones", lambda self, event, source: PASS)


SMALL = [f"s{i:02d}" for i in range(25)]
HALF = {label: SMALL + ["big"] * 25 for label in LABELS}


@pytest.mark.parametrize("weighs", [True, False])
def test_a_source_that_sends_half_of_all_rows_is_learned(weighs: bool) -> None:
    assert part_of(learned(HALF, weighs=weighs), ["big"]) > 0.95


def test_it_was_not_while_a_few_labels_did_not_speak_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Control: each test, also of one label, had to have four nats for it."""
    alone(monkeypatch)
    trust = lambda self: min((e for t, e in self.evidence.items() if t != "unlikely"), default=0.0)  # noqa: E731
    monkeypatch.setattr(Source, "trusted", property(lambda self: trust(self) >= 4.0))
    assert part_of(learned(HALF, begin=200), ["big"]) < 0.95


def test_nor_while_what_its_budget_kept_out_made_it_smaller(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Control: a small source that sends so much floods, and has the allowance of a small one."""
    alone(monkeypatch)
    monkeypatch.setattr(Source, "sent", property(lambda self: self.taken))
    assert part_of(learned(HALF, weighs=False), ["big"]) < 0.95


@pytest.mark.parametrize("works", [True, False])
def test_one_that_alone_sends_a_label_is_trusted_if_it_fits_its_rows(
    monkeypatch: pytest.MonkeyPatch, works: bool
) -> None:
    alone(monkeypatch)  # by which they are trusted, too
    if not works:
        monkeypatch.setattr(Unlikely, "_is_proven", lambda self, label, source: False)
    found = learned({"false": SMALL, "true": ["one", "two"]})
    assert (part_of(found, ["one", "two"]) > 0.95) is works


@pytest.mark.parametrize("works", [True, False])
def test_a_large_source_that_grows_keeps_the_budget_of_its_size(
    monkeypatch: pytest.MonkeyPatch, works: bool
) -> None:
    if not works:
        monkeypatch.setattr(Arrivals, "own_budget", lambda self, source: self.budget)
    arrivals, draw = Arrivals(), random.Random(3)
    sources = {name: Source(name) for name in (*SMALL, "big")}
    for n in range(3_000):
        many = 0.2 if n < 2_000 else 0.8
        name = "big" if draw.random() < many else draw.choice(SMALL)
        arrivals.add(name, new=False)
        sources[name].taken += 1
        if n % 50 == 0:
            arrivals.refresh(sources.values())
        if n == 2_200:
            break
    assert arrivals.flooding == {"big"}
    assert arrivals.sizes["big"] == pytest.approx(6.0, abs=1.5), "as it was before"
    test = Surprise()
    test.watch(arrivals)
    allowed = test._allowed(sources["big"], flooding=True)
    assert (allowed > 0.5) is works, allowed


def test_a_contradiction_that_was_made_good_costs_no_trust() -> None:
    rate, source = Rate(), Source("s0", taken=50)
    source.evidence = {"surprise": 8.0, "surprise at true": 0.3, "samples": 0.0}
    rate.arrivals.budget = 1.0
    for _ in range(20):
        rate.arrivals.add("s0", new=False)
    assert rate.judge(Event("s0", b""), source).factor == 1.0
    source.evidence["surprise at true"] = -2.0
    assert rate.judge(Event("s0", b""), source).factor < 1.0


@pytest.mark.parametrize("works", [True, False])
@pytest.mark.parametrize("weighs", [True, False])
def test_a_large_source_among_eighty_small_ones_is_soon_trusted(
    monkeypatch: pytest.MonkeyPatch, weighs: bool, works: bool
) -> None:
    if not works:
        alone(monkeypatch)
    tiny = [f"s{i:02d}" for i in range(80)]
    found = learned({x: tiny + ["big"] * 120 for x in LABELS}, weighs=weighs, begin=100)
    assert (part_of(found, ["big"]) > 0.9) is works


@pytest.mark.parametrize("weight", [1.0, 2.0, 0.1])
def test_small_sources_condemn_nobody(weight: float) -> None:
    """A large source that lies where only new ones are beside it loses trust, and no more."""
    test, source = Surprise(answers=LABELS), Source("big", taken=50)
    for i in range(40):
        small = Event(f"s{i}", b"", None, 0.1, label="true", answer="true")
        test.learn(small, PASS, Source(f"s{i}"), taken=True)
    for label, loss, least, most in (("true", 0.1, 2.0, 4.0), ("false", 3.0, 0.0, 4.0)):
        for _ in range(40):
            event = Event("big", b"", None, loss, weight=weight, label=label, answer="true")
            opinion = test.judge(event, source)
            known = source.evidence.get("surprise", 0.0)
            share = source.shares(weight, 1.0)[opinion.evidence < 0.0]
            source.evidence["surprise"] = known + opinion.evidence * share
            assert -1e-9 < source.evidence["surprise"] < most + 1e-9
        assert source.evidence["surprise"] > least - 1e-9


@pytest.mark.parametrize("large", [True, False])
def test_a_large_source_is_held_to_its_own_mix_of_labels(
    monkeypatch: pytest.MonkeyPatch, large: bool
) -> None:
    """It sends nine of ten of what is true, also where the model missed it."""
    if not large:
        monkeypatch.setattr(surprise, "_LARGE", 1e9)
    test = Surprise("false", losses=Losses(answers=LABELS), mixes=Mixes(LABELS))
    for i in range(200):
        test.mixes.hear(SMALL[i % 25], LABELS[i % 25 % 2], 0.1)
        test.mixes.hear(SMALL[i % 25], LABELS[i % 25 % 2 == 0], 0.1)
        test.mixes.hear("big", LABELS[i % 10 > 0], 0.1)
    test.mixes.refresh()
    for name in SMALL:
        for _ in range(4):
            test.voices.hear(name, 20, hit=False, far=False)
    test.bounds = {label: Null(0.5, 4.0, 0.3) for label in LABELS}
    test.voices.usual, event = 20, Event("big", b"", None, 0.9, label="true", answer="false")
    evidence = test.judge(event, Source("big", taken=400)).evidence
    assert (-0.1 < evidence <= 0.0) is large, "in nine of ten such rows an honest one does"
    small = test.judge(event, Source("big", taken=30)).evidence
    assert small < -0.5, "four small sources send both"


def test_tests_of_one_label_blame_together() -> None:
    source = Source("big", taken=50)
    source.evidence = {"surprise": 8.0, "surprise at true": -3.0, "surprise about false": 6.0}
    assert source.trusted
    source.evidence["surprise about false"] = 1.0
    assert not source.trusted, "they are against it together"
    source.evidence |= {"surprise about false": 6.0, "samples": -1.5}
    assert not source.trusted, "another test is"


def seasons(length: int = 200, many: int = 6) -> float:
    """Mean weight of rows that all have one label, and all the other one in the next season."""
    chain = by_name(("surprise",), None, None, answers=LABELS)
    draw, bias, weight = random.Random(3), 0.0, 0.0
    for i in range(length * many):
        label = LABELS[i // length % 2]
        share = 1.0 / (1.0 + exp(-bias - draw.gauss(0.0, 0.5)))
        loss = -log(share if label == "true" else 1.0 - share)
        event = Event(
            f"s{draw.randrange(26):02d}", i.to_bytes(16, "little"), None, loss, label=label,
            answer=LABELS[share > 0.5],
        )  # fmt: skip
        verdict = chain.decide(event)
        chain.observe(event, verdict)
        bias += 0.05 * verdict.factor * ((label == "true") - share)
        weight += verdict.factor if i >= 2 * length else 0.0
    return weight / (length * (many - 2))


@pytest.mark.parametrize("works", [True, False])
def test_nobody_is_held_for_a_label_that_is_hard_for_most(
    monkeypatch: pytest.MonkeyPatch, works: bool
) -> None:
    if not works:
        monkeypatch.setattr(Voices, "is_hard", lambda self, label: False)
    assert (seasons() > 0.85) is works


def test_a_test_about_a_label_is_of_what_was_sent_with_it() -> None:
    test = Surprise("true", about=True)
    assert test._concerns("false", "true")
    assert not test._concerns("true", "false"), "that is for the test of what was answered so"


def beside_new_names(share: float, *, small: float = 0.1, big: float = 0.1) -> float:
    """Weight learned of a large honest source while new names send lies, as a share of its rows.

    ``small``, ``big``: the shares of their rows for which the other label is the likelier one.
    """
    chain = by_name(("rate", "samples", "surprise"), None, None, answers=LABELS[::-1])
    draw, taken, rows = random.Random(7), 0.0, 0
    for i in range(3_000):
        lies = i >= 1_000 and draw.random() < share
        source = f"n{i}" if lies else draw.choice(["big", draw.choice(SMALL)])
        hard = big if source == "big" else small
        denied, label = (draw.random() < hard) is not lies, draw.choice(LABELS)
        odds = 1.0 / (1.0 + exp(draw.gauss(-2.0, 0.5)))
        loss = -log(1.0 - odds if denied else odds)
        answer = label if loss < log(2.0) else LABELS[label == "false"]
        event = Event(source, i.to_bytes(16, "little"), None, loss, label=label, answer=answer)
        verdict = chain.decide(event)
        chain.observe(event, verdict)
        if i >= 1_500 and source == "big":
            taken, rows = taken + (verdict.factor if verdict.taken else 0.0), rows + 1
    return taken / rows


def test_names_that_somebody_makes_up_cost_a_large_source_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert beside_new_names(0.4) > 0.9
    noted = Surprise._note_denied

    def all_alike(self: Surprise, source: Source, label: str | None, *, denied: bool) -> None:
        noted(self, source, label, denied=denied)
        self.arrivals.denied = self._new.denied

    monkeypatch.setattr(Surprise, "_note_denied", all_alike)  # the mutant
    assert beside_new_names(0.4) < 0.5


@pytest.mark.parametrize("works", [True, False])
def test_a_large_source_may_be_denied_a_little_while_small_ones_never_are(
    monkeypatch: pytest.MonkeyPatch, works: bool
) -> None:
    if not works:
        monkeypatch.setattr(surprise, "DENIED_MIN", 0.0)
    share = beside_new_names(0.0, small=0.0, big=0.2)
    assert (share > 0.8) is works, share


def lies_learned(many: int) -> float:
    """Weight of lies of a few sources that send four of five rows from the first on."""
    chain = by_name(("rate", "samples", "surprise", "unlikely"), None, None, answers=LABELS[::-1])
    draw, slope, out = random.Random(5), 0.0, 0.0
    for i in range(900):
        lies = draw.random() < 0.8
        source = f"big {draw.randrange(many)}" if lies else draw.choice(SMALL)
        x = draw.choice([-1.0, 1.0])
        label = LABELS[(x > 0.0) is not lies]
        share = 1.0 / (1.0 + exp(-slope * x - draw.gauss(0.0, 0.3)))
        loss = -log(share if label == "true" else 1.0 - share)
        key, answer = i.to_bytes(16, "little"), LABELS[share > 0.5]
        event = Event(source, key, None, loss, label=label, answer=answer)
        verdict = chain.decide(event)
        chain.observe(event, verdict)
        weight = verdict.factor if verdict.taken else 0.0
        slope += 0.1 * weight * x * ((label == "true") - share)
        out += weight if lies else 0.0
    return out


@pytest.mark.parametrize("works", [True, False])
def test_several_large_sources_do_not_free_each_other_of_their_budgets(
    monkeypatch: pytest.MonkeyPatch, works: bool
) -> None:
    if not works:
        monkeypatch.setattr(rate, "_DENIED_LONG_MAX", 1.0)
    assert (lies_learned(5) < 350.0) is works


@pytest.mark.parametrize("works", [True, False])
def test_beside_a_few_large_sources_new_ones_are_not_judged_by_these(
    monkeypatch: pytest.MonkeyPatch, works: bool
) -> None:
    if not works:  # the mutant: a few large ones are enough for that, but not for the pool
        monkeypatch.setattr(Arrivals, "compares", True)
        monkeypatch.setattr(Rate, "_is_pooled", lambda self, event, source: False)
    assert (lies_learned(5) < 320.0) is works


@pytest.mark.parametrize(
    ("large", "long", "exempt"), [(1, 0.4, True), (2, 0.4, False), (2, 0.2, True), (2, None, True)]
)
def test_one_large_source_needs_no_long_agreement(
    large: int, long: float | None, exempt: bool
) -> None:
    test, source = Rate(), Source("big", taken=400)
    source.evidence, source.denied = {"surprise": 8.0}, 0.1
    test.arrivals.budget, test.arrivals.denied = 2.0, 0.1
    test.arrivals.large, test.arrivals.denied_long = large, long
    for _ in range(4):
        test.arrivals.add("big", new=False)
    assert (test.judge(Event("big", b""), source).factor == 1.0) is exempt


@pytest.mark.parametrize("heard", [True, False])
def test_small_sources_at_another_replica_tell_how_often_the_model_is_denied(heard: bool) -> None:
    chain = by_name(("rate", "samples", "surprise"), None, None, answers=LABELS[::-1])
    surprise_test = next(test for test in chain.filters if isinstance(test, Surprise))
    before = chain.arrivals.denied
    for _ in range(300 if heard else 0):
        for name in SMALL:
            surprise_test.hear(chain.sources.get(name), "true", 0.1)
    assert (chain.arrivals.denied < before) is heard
