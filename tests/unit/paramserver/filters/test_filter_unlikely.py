"""Lies where the model is wrong in one of four: seldom far off, often unlikely."""

from __future__ import annotations

import math
import random

import pytest

from benchmarks.attacks import floods
from paramserver.evidence.losses import Losses
from paramserver.evidence.mixes import Mixes
from paramserver.evidence.odds import NONE
from paramserver.evidence.sums import Sums
from paramserver.evidence.voices import Voices
from paramserver.filters.arrivals import Arrivals
from paramserver.filters.base import PASS, Event, Source
from paramserver.filters.chain import by_name
from paramserver.filters.rate import Rate
from paramserver.filters.surprise import Surprise
from paramserver.filters.unlikely import _CREDIT_MAX, Unlikely

BEFORE, AMONG = 800, 300
LEARNER = "phishing"
"""Whose task and learner: binary, logistic regression."""

SEVERAL = "insects"
"""Whose learner knows several classes, and takes no weights."""

SHOWN = 0.6
LIKELY, DENIED = 0.12, 2.2
"""Losses of one label and of the other on the same row."""


def noisy_rows(seed: int) -> list[floods.Row]:
    """Labels of which nobody can tell more than four of five."""
    draw = random.Random(seed)
    out: list[floods.Row] = []
    for _ in range(BEFORE + AMONG):
        x = [draw.gauss(0.0, 1.0) for _ in range(4)]
        odds = 1.6 * x[0] - 1.2 * x[1] + 0.8 * x[2]
        label = draw.random() < 1.0 / (1.0 + math.exp(-odds))
        out.append(({f"x{i}": v for i, v in enumerate(x)}, label))
    return out


def hard_rows(seed: int) -> list[floods.Row]:
    """Four classes, of which the features tell nobody more than seven of ten."""
    draw = random.Random(seed)
    out: list[floods.Row] = []
    for _ in range(BEFORE + AMONG):
        label = draw.randrange(4)
        shown = label if draw.random() < SHOWN else draw.randrange(4)
        x = [draw.gauss(3.0 * (i == shown), 0.7) for i in range(4)]
        out.append(({f"x{i}": v for i, v in enumerate(x)}, label))
    return out


def flooded(seed: int, liars: int, lies: int) -> tuple[floods.Played, set[str], float]:
    groups = floods.flood(noisy_rows(seed), BEFORE, liars, lies, seed)
    names = {event[0] for group in groups for event in group if event[3]}
    truth = [[event for event in group if not event[3]] for group in groups]
    clean = floods.play(LEARNER, truth, BEFORE, "none").accuracy
    return floods.play(LEARNER, groups, BEFORE, "default"), names, clean


@pytest.mark.parametrize(("liars", "lies", "works"), [(8, 1, True), (8, 1, False), (8, 15, True)])
def test_liars_are_caught_where_the_model_is_often_wrong(
    monkeypatch: pytest.MonkeyPatch, liars: int, lies: int, works: bool
) -> None:
    if not works:  # the mutant: only losses that nine of ten honest ones are not above
        monkeypatch.setattr(Unlikely, "judge", lambda self, event, source: PASS)
    found, names, clean = flooded(41, liars, lies)
    caught = len(found.quarantined & names) >= floods.CAUGHT_MIN * liars
    assert (caught and found.accuracy >= clean - floods.POINTS) is works, found
    if works:
        assert 70.0 < clean < 85.0
        assert not found.set_aside, "honest rows"
        assert not found.quarantined - names


@pytest.mark.parametrize("works", [True, False])
def test_liars_are_caught_where_the_model_is_wrong_in_one_of_three(
    monkeypatch: pytest.MonkeyPatch, works: bool
) -> None:
    """Honest labels are denied as often as not: beside wrong ones they look honest."""
    if not works:  # the mutant: no wrong labels are known
        monkeypatch.setattr(Sums, "odds", lambda self: NONE)
    groups = floods.flood(hard_rows(43), BEFORE, 6, 1, 43)
    names = {event[0] for group in groups for event in group if event[3]}
    truth = [[event for event in group if not event[3]] for group in groups]
    clean = floods.play(SEVERAL, truth, BEFORE, "none").accuracy
    found = floods.play(SEVERAL, groups, BEFORE, "default")
    caught = len(found.quarantined & names) >= floods.CAUGHT_MIN * len(names)
    assert (caught and found.accuracy >= clean - floods.POINTS) is works, (found, clean)
    assert clean < 70.0, "the model knows too much"
    if works:
        assert sum(found.set_aside.values()) <= 0.05 * AMONG, "honest rows"
        assert not found.quarantined - names


def test_a_flood_that_is_taken_does_not_become_usual() -> None:
    """Each of eight of 26 sends twice in a row of fifteen lies; all of it is taken."""
    draw, arrivals = random.Random(3), Arrivals()
    names = [f"s{i}" for i in range(26)]
    sources = {name: Source(name) for name in names}
    for n in range(2_000 + 60):
        sent = [draw.choice(names[: 26 if n < 2_000 else 18])]
        sent += [draw.choice(names[18:]) for _ in range(15 if n >= 2_000 else 0)]
        for name in sent:
            arrivals.add(name, new=False)
            sources[name].taken += 1
            if sum(s.taken for s in sources.values()) % 50 == 0:
                arrivals.refresh(sources.values())
    assert arrivals.flooding == set(names[18:])


def judged(test: Unlikely, source: Source, *, hit: bool, label: str = "true") -> float:
    """One event of a source; its weight."""
    event = Event(source.name, b"", loss=DENIED if hit else LIKELY, label=label)
    opinion = test.judge(event, source)
    test.learn(event, opinion, source, taken=True)
    total = source.evidence.get(test.name, 0.0) + opinion.evidence
    source.evidence[test.name] = max(total, -8.0)
    source.taken += 1
    return opinion.factor


def world(seed: int, many: int = 26) -> tuple[Unlikely, list[Source], random.Random]:
    """A test that has nulls, and sources that it knows."""
    draw, losses = random.Random(seed), Losses(answers=("true", "false"))
    sources = [Source(f"s{i}", taken=50) for i in range(many)]
    for i in range(1_000):
        name, label = draw.choice(sources).name, ("true", "false")[i % 2]
        losses.add(name, label, DENIED if draw.random() < 0.2 else LIKELY)
    surprise = Surprise(losses=losses)
    test = Unlikely(surprise)
    for at in (surprise, test):
        at.refresh(sources)
    for label in ("true", "false"):
        likely, denied = (losses.sums.odds().of(label, x) for x in (LIKELY, DENIED))
        assert likely is not None
        assert denied is not None
        assert likely[0] > 3.0 * likely[1]
        assert denied[1] > 3.0 * denied[0]
    return test, sources, draw


def sent(
    test: Unlikely, sources: list[Source], draw: random.Random, rates: dict[str, float], n: int
) -> dict[str, float]:
    """Events in any order; the weight of each source's."""
    weight = dict.fromkeys((s.name for s in sources), 0.0)
    for _ in range(n):
        source = draw.choice(sources)
        hit = draw.random() < rates.get(source.name, 0.2)
        weight[source.name] += judged(test, source, hit=hit)
    return weight


def test_honest_sources_are_not_condemned_and_one_that_is_worse_is_not() -> None:
    for seed in range(3):
        test, sources, draw = world(seed)
        weight = sent(test, sources, draw, {"s3": 0.35}, 5_000)
        assert all(s.evidence[test.name] > -6.0 for s in sources)
        assert sum(weight.values()) > 0.98 * 5_000, "an unlucky one uses no more than its share"


def test_who_says_it_in_seven_of_ten_is_condemned_although_it_has_behaved() -> None:
    test, sources, draw = world(5)
    sent(test, sources, draw, {}, 2_000)
    assert all(s.evidence[test.name] <= _CREDIT_MAX for s in sources), "little is kept"
    liars = [f"s{i}" for i in range(18, 26)]
    low = set[str]()
    for _ in range(26):
        sent(test, sources, draw, dict.fromkeys(liars, 0.75), 80)
        low |= {s.name for s in sources if s.evidence[test.name] < -6.0}
    assert len(low & set(liars)) >= 7
    assert low <= set(liars)


@pytest.mark.parametrize("shared", [True, False])
def test_those_in_doubt_share_an_allowance(monkeypatch: pytest.MonkeyPatch, shared: bool) -> None:
    test, sources, draw = world(6)
    if not shared:  # the mutant
        monkeypatch.setattr(Unlikely, "_refill", lambda self: setattr(self, "_left", 3.0))
    liars = {f"s{i}" for i in range(18, 26)}
    sent(test, sources, draw, dict.fromkeys(liars, 0.75), 26 * 10)
    weight = sent(test, sources, draw, dict.fromkeys(liars, 0.75), 26 * 10)
    theirs = sum(w for name, w in weight.items() if name in liars)
    honest = sum(w for name, w in weight.items() if name not in liars)
    assert (theirs < 0.2 * honest) is shared
    assert honest > 0.9 * 18 * 10


def test_when_all_of_them_say_it_the_world_has_turned() -> None:
    test, sources, draw = world(7)
    sent(test, sources, draw, {}, 1_000)
    weight = sent(test, sources, draw, {s.name: 0.85 for s in sources}, 26 * 30)
    assert sum(weight.values()) > 0.7 * 26 * 30
    assert not [s for s in sources if s.evidence[test.name] < -6.0]


def test_little_that_is_kept_for_a_source_does_not_cost_it_its_standing() -> None:
    rate, source = Rate(), Source("s0", taken=50)
    source.evidence = {"surprise": 8.0, "unlikely": 2.0}
    rate.arrivals.budget = 1.0
    for _ in range(20):
        rate.arrivals.add("s0", new=False)
    assert rate.judge(Event("s0", b""), source) is not None
    assert rate.judge(Event("s0", b""), source).factor == 1.0
    source.evidence["surprise"] = 1.0
    assert rate.judge(Event("s0", b""), source).factor < 1.0


def test_the_test_is_asked_where_surprise_is() -> None:
    def tests(names: tuple[str, ...]) -> list[str]:
        return [test.name for test in by_name(names, None, None).filters]

    assert "unlikely" in tests(("surprise",))
    assert "unlikely" not in tests(("samples",))


def test_what_is_in_doubt_is_no_measure_for_others() -> None:
    surprise = Surprise()
    losses = surprise.losses
    event = Event("s0", b"", loss=3.0, label="true")
    source = Source("s0", evidence={"unlikely": -3.0})
    surprise.learn(event, PASS, source, taken=True)
    assert losses.events == 0
    source.evidence["unlikely"] = 1.0
    surprise.learn(event, PASS, source, taken=True)
    assert losses.events == 1


def test_the_gap_between_events_of_a_source() -> None:
    voices = Voices()
    for name in ("a", "b", "b", "c"):
        voices.hear(name, 10, hit=False, far=False)
    assert voices.gap("c") == 1
    assert voices.gap("a") == 4


@pytest.mark.parametrize("works", [True, False])
def test_when_a_label_has_become_hard_those_who_alone_send_it_are_compared_with_each_other(
    monkeypatch: pytest.MonkeyPatch, works: bool
) -> None:
    """What the others send is as easy as it was: beside them all six would seem to lie."""
    if not works:  # the mutant: compared with all that send, whatever they send
        alone = lambda self, source, label: self.voices.middle(source)  # noqa: E731
        monkeypatch.setattr(Unlikely, "_middle", alone)
    test, sources, draw = world(5)
    test._odds = test._odds._replace(held=frozenset({"true"}))
    for _ in range(2_000):
        source = draw.choice(sources)
        alone_with_it = source in sources[:6]
        hit = draw.random() < (0.5 if alone_with_it else 0.05)
        judged(test, source, hit=hit, label="true" if alone_with_it else "false")
    worst = min(source.evidence[test.name] for source in sources)
    assert (worst > -6.0) is works, worst


@pytest.mark.parametrize("works", [True, False])
def test_half_of_the_sources_that_send_one_label_are_compared_with_each_other(
    monkeypatch: pytest.MonkeyPatch, works: bool
) -> None:
    """Nobody holds a label that half of them send; it has become hard, and the other has not."""
    if not works:  # the mutant: compared with those who send the other label
        monkeypatch.setattr(Mixes, "is_nearly_all", lambda self, source, label: False)
    test, sources, draw = world(5)
    test._surprise.mixes = Mixes(("true", "false"))
    for _ in range(2_000):
        source = draw.choice(sources)
        one = source in sources[:13]
        hit, label = draw.random() < (0.5 if one else 0.05), "true" if one else "false"
        test._surprise.mixes.hear(source.name, label, DENIED if hit else LIKELY)
        judged(test, source, hit=hit, label=label)
    worst = min(source.evidence[test.name] for source in sources)
    assert (worst > -6.0) is works, worst


@pytest.mark.parametrize("works", [True, False])
def test_a_source_is_in_doubt_no_longer_than_it_gives_cause(
    monkeypatch: pytest.MonkeyPatch, works: bool
) -> None:
    """One whose rows were hard for a while: doubts had as much memory as evidence."""
    if not works:  # the mutant
        monkeypatch.setattr("paramserver.filters.unlikely._DOUBT_MIN", -8.0)
    test, sources, draw = world(5)
    sent(test, sources, draw, {}, 1_000)
    sent(test, sources, draw, {"s3": 1.0}, 26 * 15)
    assert test._doubts["s3"] < -1.0
    weight = sent(test, sources, draw, {"s3": 0.0}, 26 * 15)
    assert (test._doubts["s3"] > 0.0) is works, weight["s3"]
