"""Losses of sources add up over replicas, and are bounded; what is made of them."""

from __future__ import annotations

import random
from collections.abc import Callable
from json import dumps
from math import log

import pytest
from msgspec.structs import replace

from online.trust.sources import Reputations
from paramserver.core.blocks import Block, Blocks, merge
from paramserver.evidence.losses import LOSSES, NUMBER_LOSSES, UNSAID_LOSSES, Losses
from paramserver.filters.base import Event
from paramserver.filters.chain import Chain, by_name
from paramserver.filters.sources import SOURCES_MAX, keep_bounds


def events(n: int, seed: int = 0) -> list[Event]:
    draw = random.Random(seed)
    out = []
    for i in range(n):
        label = "true" if draw.random() < 0.1 else "false"
        loss = draw.expovariate(1.0) * (3.0 if label == "true" else 0.2)
        key = i.to_bytes(16, "little")
        out.append(Event(f"s{draw.randrange(12)}", key, None, loss, label=label, answer="false"))
    return out


def chains(n: int) -> list[Chain]:
    return [by_name(("surprise",), None, None, answers=("true", "false")) for _ in range(n)]


def dealt(to: list[Chain], sent: list[Event], pull: Callable[[Chain, Blocks], object]) -> Blocks:
    """Each event to the next chain, which exchanges with the server after twenty."""
    server: Blocks = {}
    for i, event in enumerate(sent):
        chain = to[i % len(to)]
        chain.observe(event, chain.decide(event))
        if i // len(to) % 20 == 19:
            touched = merge(server, chain.cut())
            keep_bounds(server, touched, SOURCES_MAX)
            pull(chain, server)
    for chain in to:
        merge(server, chain.cut())
    for chain in to:
        pull(chain, server)
    return server


def odds(losses: Losses, label: str, loss: float) -> tuple[float, float]:
    """How often honest and wrong ones of this label lose so much."""
    found = losses.sums.odds().of(label, loss)
    assert found is not None, label
    return found


@pytest.mark.parametrize("shared", [True, False])
def test_two_replicas_expect_what_one_would(shared: bool) -> None:
    sent = events(600)
    (one,), pair = chains(1), chains(2)
    for event in sent:
        one.observe(event, one.decide(event))
    dealt(pair, sent, Chain.rebase if shared else lambda chain, server: None)
    expected = one.losses.sums.nulls()
    assert expected.keys() == {"true", "false"}
    assert expected["true"] > expected["false"]
    assert (pair[0].losses.sums.nulls() == pair[1].losses.sums.nulls() == expected) is shared
    assert (pair[0].losses.events == 600) is shared


def test_old_losses_leave_everywhere() -> None:
    pair = chains(2)
    server = dealt(pair, events(5_000), Chain.rebase)
    block = server[LOSSES]
    assert 1_024 <= sum(block.data.values()) <= 1_400
    for chain in pair:
        assert 1_024 <= chain.losses.events <= 1_400
        assert len(chain.losses) <= 1_400
    held = block.data
    keep_bounds(server, {LOSSES: {f"99\n1\ntrue\n{'s' * 256}"}}, SOURCES_MAX)
    assert block.data is held, "nothing was too old"
    server[LOSSES].data["99\n1\ntrue\ns0"] = 1
    keep_bounds(server, {LOSSES: {"99\n1\ntrue\ns0"}}, SOURCES_MAX)
    assert set(server[LOSSES].data) == {"99\n1\ntrue\ns0"}
    assert len(held) > 1, "a snapshot that shares it has it as it was"


def test_a_row_that_is_a_repeat_takes_its_loss_back() -> None:
    (chain,) = chains(1)
    reputations = Reputations(chain, dict)
    for event in events(200):
        chain.observe(event, chain.decide(event))
        reputations.decided(event.key, event.source)
    before = chain.losses.sums.nulls(), chain.losses.events
    again = Event("s1", b"again", None, 50.0, label="true", answer="false")
    chain.observe(again, chain.decide(again))
    effects = reputations.decided(again.key, again.source)
    assert sum(effects.more[LOSSES].data.values()) == 1
    assert chain.losses.events == before[1] + 1
    reputations.take_back(again.key)
    assert (chain.losses.sums.nulls(), chain.losses.events) == before


def test_what_was_not_said_is_counted_beside_and_is_no_event() -> None:
    """Three labels of which the model is right in half of the cases; two replicas."""
    pair, draw, server = [Losses(), Losses()], random.Random(3), dict[str, float]()
    for i in range(1_200):
        label, *others = draw.sample(["a", "b", "c"], 3)
        said, unsaid = (0.3, 2.0) if draw.random() < 0.5 else (1.2, draw.choice([0.5, 1.9]))
        pair[i % 2].add(f"s{draw.randrange(12)}", label, said, (others[0], unsaid))
    for losses in pair:
        cut = losses.cut()
        assert cut.keys() == {LOSSES, UNSAID_LOSSES}
        said = {key.split("\n", 3)[3] for key in cut[LOSSES].data}
        assert said <= {f"s{i}" for i in range(12)}, "earlier versions take each for a source"
        for block in cut.values():
            for key, n in block.data.items():
                server[key] = server.get(key, 0) + n
    for losses in pair:
        losses.rebase(server)
    one, other = pair
    assert one.events == other.events <= 1_280
    assert one.sums.odds() == other.sums.odds()
    assert not [source for source, _, _ in one.heard if not source]
    assert one.sums.nulls().keys() == {"a", "b", "c"}
    for label in "abc":
        (easy, _), (hard, wrong) = (odds(one, label, x) for x in (0.3, 2.0))
        assert easy > 0.3
        assert wrong > 4.0 * hard
    assert one.sums.odds().of("d", 0.3) is None
    for n in range(99, 104):  # what is old leaves
        one.rebase({f"{n}\n1\na\ns0": 1})
    assert one.sums.odds().of("b", 0.3) is None


@pytest.mark.parametrize("answers", [("a", "b"), ()])
def test_many_lies_of_a_few_do_not_make_them_usual(answers: tuple[str, ...]) -> None:
    """Six of twenty-six say ``b`` where the model is not sure, and the others seldom: ``a``.

    The model answers every row with a half, or is sure.
    """
    losses, draw, liars = Losses(answers=answers), random.Random(5), 0

    def add(source: str, label: str, loss: float, unsaid: float) -> None:
        other = ("a" if label == "b" else "b", unsaid)
        losses.add(source, label, loss, None if answers else other)

    for i in range(1_000):
        honest, sure = f"s{draw.randrange(20)}", draw.random() < 0.8
        label = draw.choice("ab") if sure else "a"
        add(honest, label, *((0.05, 3.0) if sure else (0.69, 0.69)))
        if i >= 400 and losses.add(f"liar{i % 6}", "b", 0.69, None if answers else ("a", 0.69)):
            liars += 1
    assert liars > 200, "as many as the others' by far"
    said, unsaid = odds(losses, "b", 0.69)
    assert unsaid > 1.5 * said, "nobody else says so there"
    said, unsaid = odds(losses, "a", 0.69)
    assert said > 1.5 * unsaid
    said, unsaid = odds(losses, "b", 0.05)
    assert said > 5.0 * unsaid, "where the model is sure all is as it was"


def test_what_is_taken_back_before_it_is_known_is_no_event_of_anybody() -> None:
    losses = Losses(answers=("a", "b"))
    losses.add("x", "b", 2.35)  # as of "a" it would have lost what the next one did
    losses.rebase({"1\n-53\na\nx": -1})
    assert losses.sums.odds().of("a", 0.1) is None


@pytest.mark.parametrize("bounded", [True, False])
def test_new_names_with_nine_lies_each_do_not_say_what_is_usual(
    monkeypatch: pytest.MonkeyPatch, bounded: bool
) -> None:
    """A lie for each honest row, of which the model is right in four of five, and often unsure."""
    if not bounded:  # the mutant: whoever has been seen says how much a source may count
        whole = {f"h{i}" for i in range(12)} | {f"new{i}" for i in range(100)}
        monkeypatch.setattr("paramserver.evidence.odds.Votes._known", lambda self: whole)
    (chain,), draw = chains(1), random.Random(1)
    weights: dict[bool, list[float]] = {True: [], False: []}
    for i in range(2_400):
        lies = i >= 900 and i % 2 == 1
        share = min(max(draw.betavariate(5, 1.2), 0.02), 0.98)  # of what is true
        right = draw.choice(("true", "false"))
        wrong = "false" if right == "true" else "true"
        true = not lies and draw.random() >= 0.1
        name = f"new{(i - 900) // 18}" if lies else f"h{draw.randrange(12)}"
        event = Event(
            name, i.to_bytes(16, "little"), None, -log(share if true else 1.0 - share),
            label=right if true else wrong, answer=right if share > 0.5 else wrong,
        )  # fmt: skip
        verdict = chain.decide(event)
        chain.observe(event, verdict)
        if i >= 1_400:
            weights[lies].append(verdict.factor if verdict.taken else 0.0)
    lied, honestly = (sum(weights[x]) / len(weights[x]) for x in (True, False))
    assert (honestly > 0.9 and lied < 0.15) is bounded, (honestly, lied)


def test_of_two_labels_the_other_one_is_known() -> None:
    losses = Losses(answers=("true", "false"))
    for i in range(400):
        losses.add(f"s{i % 12}", "true", 0.12 if i % 4 else 2.2)
    assert losses.sums.odds().of("false", 2.2) is None, "nobody has said it"
    for i in range(4):
        losses.add(f"s{i}", "false", 0.12)
    assert odds(losses, "false", 2.2)[1] > 0.6, "what was true would have lost so much as false"
    assert odds(losses, "true", 0.12)[0] > 0.6
    assert losses.sums.odds().honest < 0.3


@pytest.mark.parametrize("senders", [3, 6])
def test_who_alone_sends_a_label_is_compared_with_nobody(senders: int) -> None:
    """Conversions are reported by some, and what did not convert by others: true ones are hard.

    But they are likelier on rows that converted, so the model learns them whole.  Reports begin
    late: that nobody has said a label is no reason either.  Six are compared with each other.
    """
    (chain,), draw, whole = chains(1), random.Random(9), 0
    for i in range(1_200):
        rare = i >= 300 and draw.random() < 0.1
        name = f"t{draw.randrange(senders)}" if rare else f"f{draw.randrange(12)}"
        loss, label = (2.5, "true") if rare else (0.05, "false")
        event = Event(name, i.to_bytes(16, "little"), None, loss, label=label, answer="false")
        verdict = chain.decide(event)
        whole += rare and verdict.factor == 1.0
        chain.observe(event, verdict)
    condemned = [source.name for source in chain.sources if source.quarantined]
    assert not condemned
    assert whole > 60, "true labels are learned"
    assert (chain.losses.sums.odds().of("true", 2.5) is None) is (senders == 3)
    assert ("true" in chain.losses.sums.nulls()) is (senders > 3)
    if senders == 3:
        assert not any(chain.losses.sums.odds().alone["true"])


@pytest.mark.parametrize("works", [True, False])
def test_a_rare_label_that_one_source_sends_with_any_row_weighs_little(
    monkeypatch: pytest.MonkeyPatch, works: bool
) -> None:
    """One honest label in a thousand is true: whoever says it every time is alone with it."""
    if not works:  # the mutant: who is compared with nobody has a free pass
        monkeypatch.setattr("paramserver.evidence.trials.is_unproven", lambda n, more: False)
    (chain,), draw, lies, weight = chains(1), random.Random(12), 0, 0.0
    for i in range(2_400):
        lie = i >= 1_000 and draw.random() < 0.1
        true = not lie and i % 1_000 == 999
        share = draw.betavariate(1, 20 if true else 200)
        label = "true" if lie or true else "false"
        loss = -log(max(share, 1e-4) if label == "true" else 1.0 - share)
        name = "liar" if lie else f"s{draw.randrange(20)}"
        event = Event(name, i.to_bytes(16, "little"), None, loss, label=label, answer="false")
        verdict = chain.decide(event)
        lies, weight = lies + lie, weight + lie * verdict.factor
        assert lie or verdict.taken
        chain.observe(event, verdict)
    assert lies > 100
    assert (weight < 0.25 * lies) is works, (weight, lies)
    assert (weight > 0.95 * lies) is not works, (weight, lies)


def lied(labels: Callable[[int], str], rare: int) -> tuple[int, float, bool]:
    """How many lies one of twenty-one sources tells, what they weigh, whether it is condemned.

    Of six labels the model knows the right one; ``rare``: the lies are of so many others.
    """
    chain, draw, lies, weight = by_name(("surprise",), None, None), random.Random(12), 0, 0.0
    for i in range(1_800):
        lie, true = i >= 800 and draw.random() < 0.1, draw.randrange(6)
        if lie:
            said, loss = 6 + draw.randrange(rare) if rare else (true + 1) % 6, draw.uniform(3, 5)
            other = true, 0.1
        else:
            said, loss = true, draw.uniform(0.1, 0.2)
            wrong = [label for label in range(6 + rare) if label != true]
            other = draw.choice(wrong), draw.uniform(3, 5)
        event = Event(
            "liar" if lie else f"s{draw.randrange(20)}", i.to_bytes(16, "little"), None, loss,
            label=labels(said), answer=labels(true), other=(labels(other[0]), other[1]),
        )  # fmt: skip
        verdict = chain.decide(event)
        lies, weight = lies + lie, weight + lie * verdict.factor
        chain.observe(event, verdict)
    return lies, weight, chain.sources.get("liar").quarantined


@pytest.mark.parametrize("rare", [1, 5, 30])
def test_lies_of_many_rare_labels_weigh_little_together(rare: int) -> None:
    lies, weight, _ = lied(str, rare)
    assert lies > 80
    assert weight < 0.3 * lies, (weight, lies)


@pytest.mark.parametrize("text", ["{}", "{}" + 70 * "x", "name " * 15 + "{}"])
def test_labels_of_any_length_are_compared(text: str) -> None:
    """A letter beyond ASCII takes six characters of JSON: ten of them are a long label."""
    lies, weight, condemned = lied(lambda label: dumps(text.format(label)), 0)
    assert weight < 0.05 * lies, (weight, lies)
    assert condemned


@pytest.mark.parametrize("named", ["", "s"])
def test_a_source_may_have_an_empty_name(named: str) -> None:
    one, other = Losses(), Losses()
    for i in range(20):
        one.add(named, "a", 3.0, ("b", 0.1))
        one.add(f"s{i % 4}", "b", 0.1, ("a", 3.0))
    assert one.events == 40
    for block in one.cut().values():
        other.rebase(block.data)
    assert other.events == 40
    assert {source for source, _, _ in other.heard} == {named, "s0", "s1", "s2", "s3"}
    assert other.sums.odds() == one.sums.odds()
    assert other.sums.odds().alone == {"a": {named}}


def test_what_an_earlier_version_has_counted_as_not_said_is_so() -> None:
    losses = Losses()
    losses.rebase({"1\n1\na\n": 3, "1\n1\nb\ns0": 1})
    assert losses.events == 1
    assert [heard[:2] for heard in losses.heard] == [("s0", "b")]


def test_losses_that_do_not_vary_are_no_surprise() -> None:
    for loss in (0.0, 1e-9, 0.1, 0.6931471805599453, 34.5):
        losses = Losses()
        for i in range(100):
            losses.add(f"s{i % 5}", "1", loss)
        assert losses.sums.nulls()["1"][0] >= loss


def test_made_up_keys_change_no_source() -> None:
    (chain,) = chains(1)
    chain.rebase({LOSSES: Block("count", {"1\n5\ntrue\nsomebody": 3.0})})
    assert len(chain.sources) == 0
    assert chain.losses.events == 3


@pytest.mark.parametrize("about", [True, False])
def test_lies_about_one_label_are_not_drowned(about: bool) -> None:
    """An eighth of what the liar sends is common and called rare; the rest is true."""
    (chain,) = chains(1)
    if not about:  # the mutant
        chain.filters = tuple(test for test in chain.filters if " about " not in test.name)
    draw = random.Random(1)
    for event in events(3_000):
        if event.source == "s3" and draw.random() < 1 / 8:
            event = replace(event, label="true", loss=9.0)
        elif event.label == "true":
            event = replace(event, answer="true")
        chain.observe(event, chain.decide(event))
    caught = [source.name for source in chain.sources if source.quarantined]
    assert caught == (["s3"] if about else [])


def test_numbers_are_compared_with_those_of_their_fifth_and_side_of_the_answer() -> None:
    losses, draw = Losses(numbers=True), random.Random(4)
    for i in range(1_000):
        value, above = draw.random(), draw.random() < 0.5  # large ones are harder, and above
        size = (0.2 if above else 0.1) * (1.0 + 4.0 * value)
        losses.add(f"s{i % 10}", f"{'+' if above else '-'}{value!r}", size * draw.random())
    nulls = losses.sums.nulls()
    assert nulls.keys() == {f"{fifth}{side}" for fifth in range(5) for side in "+-"}
    assert [losses.sums.kind(f"+{x}") for x in (-1e9, 0.3, 0.5, 0.7, 1e9)] == [
        f"{fifth}+" for fifth in range(5)
    ]
    assert nulls["4+"].high > nulls["4-"].high >= nulls["0-"].high, "never below that of all"
    losses.reset()
    assert losses.sums.kind("-0.9") == "0-", "nothing is known of numbers then"
    assert losses.sums.kind(None) is None
    assert Losses().sums.kind("0.9") == "0.9", "of a class there is one label"


def test_numbers_that_an_earlier_version_has_counted_are_none_of_these() -> None:
    """They stand without their side of the answer, and in other units."""
    old, draw = Losses(), random.Random(5)
    for i in range(400):
        old.add(f"s{i % 12}", draw.choice(["5e-05", "0.001", "12.5"]), draw.random())
    left = old.cut()
    chain = by_name(("surprise",), None, None, numbers=True)
    chain.rebase(left)
    assert chain.losses.events == 0
    chain.losses.add("s1", "+12.5", 2.0)
    assert chain.losses.cut().keys() == {NUMBER_LOSSES}
    server = {NUMBER_LOSSES: left[LOSSES]}
    server[NUMBER_LOSSES].data["99\n1\n+1.0\ns0"] = 1
    keep_bounds(server, {NUMBER_LOSSES: {"99\n1\n+1.0\ns0"}}, 1)
    assert set(server[NUMBER_LOSSES].data) == {"99\n1\n+1.0\ns0"}, "bounded as the others are"


def test_a_number_without_its_side_is_no_label() -> None:
    losses = Losses(numbers=True)
    for i in range(400):
        losses.add(f"s{i % 12}", "5e-05" if i % 2 else "+5e-05", 0.5 + i % 7)
    assert losses.sums.nulls().keys() == {None, "0+"}
    assert [losses.sums.kind(label) for label in ("5e-05", "12.5", "")] == [None, None, ""]
