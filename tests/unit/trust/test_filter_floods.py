"""Floods of sources that have behaved, names without end, and a replica that hears few."""

from __future__ import annotations

import random

import pytest

from benchmarks.attacks import floods
from online.trust.filtering import Filtering, _unweighed
from paramserver.evidence.losses import Losses
from paramserver.evidence.voices import Voices
from paramserver.filters.arrivals import Arrivals
from paramserver.filters.base import PASS, Source
from paramserver.filters.chain import Chain, by_name
from paramserver.filters.chain import Verdict as Judged
from paramserver.filters.newcomers import Newcomers
from paramserver.filters.surprise import Surprise
from paramserver.filters.unlikely import Unlikely
from replay import codec
from replay.example import Example
from replay.journal.base import NewRow, Verdict

NAME, BEFORE = "phishing", 700
ROWS = floods.rows_of(NAME, None, 0)[: BEFORE + 250]


def flooded(filters: str, liars: int = 8, lies: int = 15) -> tuple[floods.Played, set[str]]:
    groups = floods.flood(ROWS, BEFORE, liars, lies, 31)
    names = {event[0] for group in groups for event in group if event[3]}
    return floods.play(NAME, groups, BEFORE, filters), names


@pytest.mark.parametrize("allowance", [True, False])
def test_a_flood_by_sources_that_have_behaved_is_stopped(
    monkeypatch: pytest.MonkeyPatch, allowance: bool
) -> None:
    monkeypatch.setattr(Unlikely, "judge", lambda self, event, source: PASS)  # which does it, too
    if not allowance:  # the mutant: what surprises too often weighs as much as before
        monkeypatch.setattr(Voices, "weight", lambda self, source, taken: 1.0)
    found, liars = flooded("default")
    good = len(found.quarantined & liars) >= 0.8 * len(liars) and found.accuracy > 85.0
    assert good is allowance, found
    if allowance:
        assert not found.set_aside, "honest rows"
        assert not found.quarantined - liars


def test_without_filters_that_flood_turns_the_model_round() -> None:
    """Control."""
    assert flooded("none")[0].accuracy < 30.0


@pytest.mark.parametrize("hears", [True, False])
def test_a_replica_that_hears_few_judges_as_the_busy_one(
    monkeypatch: pytest.MonkeyPatch, hears: bool
) -> None:
    if not hears:  # the mutant: only what comes here counts
        monkeypatch.setattr(Chain, "catch_up", lambda self, key, version: None)
        monkeypatch.setattr(Filtering, "_hear", lambda self, names: None)
    groups = floods.flood(ROWS, BEFORE, 6, 1, 32)
    busy = floods.play(NAME, groups, BEFORE, "default", 1)
    found = floods.play(NAME, groups, BEFORE, "default", 2, quiet=True)
    if hears:
        assert found.quarantined == busy.quarantined
        assert len(found.quarantined) == 6
        assert not found.set_aside, "honest rows"
        assert found.accuracy >= busy.accuracy - 2.0
    else:
        assert not found.quarantined
        assert found.taken == 250


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("vouched", [True, False])
def test_new_names_are_judged_together(
    monkeypatch: pytest.MonkeyPatch, together: bool, vouched: bool
) -> None:
    if not together:  # the mutant
        monkeypatch.setattr(Newcomers, "weight", lambda self, rate, **given: 1.0)
    rows = ROWS[: BEFORE + 200]
    groups = floods.many_names(rows, BEFORE, 33)
    weights: list[float] = []
    step = floods.Dealt.step

    def noted(self: floods.Dealt, source: str, *args: object, **given: object) -> object:
        row = step(self, source, *args, **given)  # type: ignore[arg-type]
        if source.startswith("new-"):
            weights.append(row.factor if row.verdict.name != "QUARANTINED" else 0.0)
        return row

    monkeypatch.setattr(floods.Dealt, "step", noted)
    found = floods.play(NAME, groups, BEFORE, "default", 1, vouched=vouched)
    assert not found.set_aside, "nobody is set aside for another's evidence"
    late = weights[len(weights) // 2 :]
    assert (sum(late) / len(late) < 0.5) is together


@pytest.mark.parametrize("vouched", [True, False])
def test_sources_of_three_rows_are_all_new_and_nobody_is_set_aside(vouched: bool) -> None:
    groups = floods.few_each(ROWS, 34)
    assert max(_counts(groups).values()) <= 3
    bare = floods.play(NAME, groups, 0, "none")
    found = floods.play(NAME, groups, 0, "default", vouched=vouched)
    assert not found.set_aside
    assert abs(found.accuracy - bare.accuracy) <= 0.3


@pytest.mark.parametrize("works", [True, False])
@pytest.mark.parametrize("vouched", [True, False])
def test_honest_new_names_beside_established_sources_weigh_what_these_do(
    monkeypatch: pytest.MonkeyPatch, vouched: bool, works: bool
) -> None:
    if not works:  # the mutant: less, whatever they say
        monkeypatch.setattr(Newcomers, "agree", False)
        monkeypatch.setattr(Newcomers, "weight", lambda self, rate, **given: 0.5)
    weights = list[float]()
    step = floods.Dealt.step

    def noted(self: floods.Dealt, source: str, *args: object, **given: object) -> object:
        row = step(self, source, *args, **given)  # type: ignore[arg-type]
        if source.startswith("user-"):
            weights.append(row.factor)
        return row

    monkeypatch.setattr(floods.Dealt, "step", noted)
    found = floods.play(NAME, floods.few_each(ROWS, 34, 0.5), 0, "default", vouched=vouched)
    assert not found.set_aside
    assert (sum(weights) > 0.95 * len(weights)) is works, sum(weights) / len(weights)


def _counts(groups: list[list[floods.Sent]]) -> dict[str, int]:
    out: dict[str, int] = {}
    for group in groups:
        for source, *_ in group:
            out[source] = out.get(source, 0) + 1
    return out


@pytest.mark.parametrize("bounded", [True, False])
def test_who_asks_most_does_not_say_most_of_what_has_no_label(bounded: bool) -> None:
    chain = by_name(("rate",) if bounded else (), None, None)
    filters = Filtering(chain, model=lambda: None, clock=dict, count=lambda: 0)  # type: ignore[arg-type, return-value]
    honest, taught = [f"h{i}" for i in range(9)], {"h0": 0.0, "flood": 0.0}
    sources = [source for _ in range(80) for source in (*honest, *["flood"] * 30)]
    for i, source in enumerate(sources):
        example = Example({"x": 1.0}, False, 0.9, provisional=True, late=0.2)
        asked = NewRow(b"%d" % i, str(i), source, Verdict.ACCEPTED, codec.encode(example), i / 10)
        (row,) = filters.judge([asked])
        assert row.verdict in (Verdict.ACCEPTED, Verdict.CLIPPED), "nobody is set aside for it"
        if source in taught and i >= len(sources) // 2:
            taught[source] += row.factor
    assert taught["h0"] == 40.0, "the others weigh what they did"
    assert (taught["flood"] < 4.0 * taught["h0"]) is bounded, taught


def test_a_model_that_takes_no_weight_is_taught_all_of_them_whole() -> None:
    """It would fail at each row that weighs less."""
    chain = by_name(("rate",), None, None)
    filters = Filtering(chain, model=lambda: None, clock=dict, count=lambda: 0, weighs=False)  # type: ignore[arg-type, return-value]
    sources = [source for _ in range(20) for source in (*map(str, range(9)), *["flood"] * 30)]
    for i, source in enumerate(sources):
        example = Example({"x": 1.0}, False, provisional=True, late=1.0)
        asked = NewRow(b"%d" % i, str(i), source, Verdict.ACCEPTED, codec.encode(example), i / 10)
        (row,) = filters.judge([asked])
        assert (row.verdict, row.factor) == (Verdict.ACCEPTED, 1.0), (i, source)


def test_no_flood_fills_the_window_of_arrivals() -> None:
    draw, arrivals = random.Random(1), Arrivals()
    honest = [f"h{i}" for i in range(20)]
    for _ in range(400):
        arrivals.add(draw.choice(honest), new=False)
        for _ in range(15):
            arrivals.add(f"x{draw.randrange(6)}", new=False)
    assert sum(arrivals.count(name) > 0 for name in honest) == 20
    arrivals.refresh([Source(name, taken=100) for name in (*honest, *(f"x{i}" for i in range(6)))])
    assert arrivals.flooding == {f"x{i}" for i in range(6)}
    assert len(arrivals) <= 64 * 26


def test_who_has_always_sent_much_is_no_flood() -> None:
    draw, arrivals = random.Random(1), Arrivals()
    names = [f"s{int(12 * draw.random() ** 4)}" for _ in range(4_000)]
    for name in names:
        arrivals.add(name, new=False)
    arrivals.refresh([Source(name, taken=names.count(name)) for name in set(names)])
    assert arrivals.budget is not None
    assert arrivals.count("s0") > arrivals.budget
    assert not arrivals.flooding


def test_a_flood_leaves_the_others_their_share_of_the_losses() -> None:
    losses, draw = Losses(), random.Random(2)
    for i in range(8_000):
        if i < 2_000 or i % 16 == 0:
            losses.add(f"h{draw.randrange(20)}", "true", 0.1)
        else:
            losses.add(f"x{draw.randrange(6)}", "true", 5.0)
    assert losses.sums.nulls()["true"][0] < 0.2, "the null is the others'"


def test_where_one_source_sends_nearly_all_losses_still_leave() -> None:
    losses = Losses()
    for i in range(60_000):
        losses.add("big" if i % 1_000 else f"s{i % 7}", "true", 0.1 if i < 20_000 else 3.0)
    assert losses.sums.nulls() == {} or losses.sums.nulls()["true"][0] > 2.0


def test_a_flood_whose_rows_have_left_the_window_weighs_what_it_has_earned() -> None:
    test, arrivals = Surprise(numbers=True), Arrivals()
    arrivals.budget, arrivals.flooding = 20.0, frozenset(("night",))
    test.watch(arrivals)
    assert test._allowed(Source("night", taken=100), flooding=True) == 1.0
    for _ in range(40):
        arrivals.add("night", new=False)
    assert test._allowed(Source("night", taken=100), flooding=True) == 0.5


def test_an_allowance_comes_back_when_all_have_used_theirs_up() -> None:
    voices = Voices()
    voices.many, voices.usual = 12, 50
    names = [f"s{i}" for i in range(12)]
    for _ in range(4):
        for name in names:
            voices.hear(name, 50, hit=True, far=False)
    assert voices.rate("s0") is not None
    assert voices.weight("s0", 50) == 0.0
    for _ in range(20):
        for name in names:
            voices.hear(name, 50, hit=False, far=False)
            voices.rate(name)
    assert voices.weight("s0", 50) == 1.0


def test_a_flood_does_not_buy_its_allowance_back() -> None:
    voices = Voices()
    voices.many, voices.usual = 12, 50
    for _ in range(3):
        for i in range(12):
            voices.hear(f"s{i}", 50, hit=False, far=False)
    for _ in range(30):
        for name in ("x1", "x2"):
            voices.hear(name, 50, hit=True, far=False)
        voices.rate("x1")
        for name in ("x1", "x2"):
            voices.hear(name, 50, hit=False, far=False)
    assert voices.weight("x1", 50) < 0.1


@pytest.mark.parametrize(("factor", "verdict"), [(0.1, "quarantined"), (0.5, "accepted")])
def test_a_model_that_takes_no_weight_learns_whole_or_not_at_all(
    factor: float, verdict: str
) -> None:
    """What a flood sends too much of would be learned whole, or else."""
    given = Judged("clipped", 1.0, factor, 3.0, "surprise: often", ())
    made = _unweighed(given)
    assert (made.verdict, made.factor) == (verdict, float(verdict == "accepted"))
    assert made.reason == ("surprise: often" if verdict == "quarantined" else "")


def test_a_flood_does_not_turn_round_a_model_that_takes_no_weight() -> None:
    name, before = "image_segments", 600
    rows = floods.rows_of(name, None, 0)[: before + 60]
    groups = floods.flood(rows, before, 6, 15, 35)
    found = floods.play(name, groups, before, "default")
    liars = {event[0] for group in groups for event in group if event[3]}
    assert len(found.quarantined & liars) >= 5
    assert found.taken < 0.15 * 900
    assert sum(found.set_aside.values()) <= 0.02 * 60


@pytest.mark.parametrize("works", [True, False])
def test_rows_of_a_source_of_good_standing_are_not_set_aside_for_some_surprises(
    monkeypatch: pytest.MonkeyPatch, works: bool
) -> None:
    """A quarter is what a model without weights learns whole; who goes on so has nothing."""
    if not works:  # the mutant: without an allowance nothing is learned
        monkeypatch.setattr("paramserver.filters.surprise._GOOD", 9.0)
    test = Surprise()
    for _ in range(9):
        test.voices.hear("s", 100, hit=True, far=False)
    source = Source("s", taken=100, evidence={"surprise": 8.0})
    assert test._allowed(source, flooding=False) == (0.25 if works else 0.0)
    source.evidence["surprise"] = 6.0
    assert test._allowed(source, flooding=False) == 0.0
    assert test._allowed(Source("s", taken=100), flooding=False) == 0.0
