"""What counts as a turn of the world: many sources, each once, and not a flood of lies."""

from __future__ import annotations

from typing import Any

import pytest

from paramserver.evidence.voices import Voices
from paramserver.filters import chain as module
from paramserver.filters import sources
from paramserver.filters.base import PASS, Event, Source
from paramserver.filters.chain import Chain, by_name
from paramserver.filters.sources import Sources
from paramserver.filters.surprise import Surprise

HONEST = [f"h{i}" for i in range(15)]
LIARS = [f"x{i}" for i in range(5)]


def event(n: int, source: str, loss: float) -> Event:
    return Event(source, n.to_bytes(8, "big"), loss=loss, label="true", answer="true")


def surprised(test: Surprise, sent: list[tuple[str, float]]) -> Surprise:
    """The test after quiet events of everybody, and then these."""
    n = 0
    for _ in range(8):
        for name in HONEST + LIARS:
            test.learn(event(n := n + 1, name, 0.1), PASS, known(name), taken=True)
    test.refresh([])
    assert test.bounds
    for name in HONEST + LIARS:
        test.learn(event(n := n + 1, name, 0.1), PASS, known(name), taken=True)
    for name, loss in sent:
        test.learn(event(n := n + 1, name, loss), PASS, known(name), taken=False)
    test.refresh([])
    return test


def known(name: str) -> Source:
    """An established source."""
    return Source(name, taken=100)


def flood() -> list[tuple[str, float]]:
    """Of 32 events 14 are honest, as nearly all of these are expected."""
    lies = [(name, 5.0) for name, n in zip(LIARS, (6, 4, 4, 2, 2), strict=True) for _ in range(n)]
    quiet = [(name, 0.1) for name in [*HONEST[:9], *HONEST[:3]]]
    return [*lies, *quiet, ("h9", 5.0), ("h10", 5.0)]


def test_a_flood_of_lies_by_a_few_is_no_turn() -> None:
    assert not surprised(Surprise(), flood()).turning


def test_all_sources_that_surprise_are_one() -> None:
    names = [*HONEST, *LIARS]
    everybody = [(name, 5.0 if i % 4 else 0.1) for i, name in enumerate([*names, *names])]
    assert surprised(Surprise(), everybody).turning
    assert not surprised(Surprise("true", about=True), everybody).turning, "a lie may do that, too"


def turned(chain: Chain, names: list[str], test: str, after: float) -> None:
    """Good, then bad by one test, then with this evidence."""
    for name in HONEST + LIARS:
        chain.sources.touch(name)
        chain.arrivals.add(name, new=False)
        chain._arrivals += 1
    for name in names:
        source = chain.sources.touch(name)
        for step in (2.0, 2.0, -2.0, -2.0, -2.0, -2.0):
            chain.sources.add(source, test, step, chain._arrivals)
        left = after - source.evidence[test]
        while abs(left) > 1e-9:
            step = max(min(left, 2.0), -2.0)
            chain.sources.add(source, test, step, chain._arrivals)
            left -= step
    chain._look_for_drift(chain._seen_lately())


@pytest.mark.parametrize(
    ("test", "after", "drift"),
    [("surprise", -3.0, True), ("surprise", 1.0, False), ("surprise about true", -3.0, False)],
)
def test_who_has_turned(test: str, after: float, drift: bool) -> None:
    """Many at once; not the unlucky, who are good again, nor by what is about one label."""
    chain = by_name(["surprise"], None, None, answers=("true", "false"))
    turned(chain, [*LIARS, *HONEST[:3]], test, after)
    assert chain.drift is drift


@pytest.mark.parametrize("rule", ["recovered", "about"])
def test_without_that_rule_a_few_liars_and_the_unlucky_are_pardoned(
    rule: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Control."""
    if rule == "recovered":
        monkeypatch.setattr(module, "has_turned", lambda source: True)
        test, after = "surprise", 1.0
    else:
        monkeypatch.setattr(sources, "ABOUT", "nothing")
        test, after = "surprise about true", -3.0
    chain = by_name(["surprise"], None, None, answers=("true", "false"))
    turned(chain, [*LIARS, *HONEST[:3]], test, after)
    assert chain.drift


@pytest.mark.parametrize(("which", "pardons"), [(None, True), ("true", False)])
def test_one_answer_that_turns_freezes_and_pardons_nobody(which: str | None, pardons: bool) -> None:
    chain = by_name(["surprise"], None, None, answers=("true", "false"))
    turned(chain, LIARS, "surprise", -5.0)
    assert not chain.drift
    tests = [t for t in chain.filters if isinstance(t, Surprise)]
    (turning,) = [t for t in tests if t._answer == which and not t._about]
    turning.turning = True
    chain._look_for_drift(chain._seen_lately())
    assert chain.drift
    left = {name: chain.sources.get(name).evidence["surprise"] for name in LIARS}
    assert left == dict.fromkeys(LIARS, 0.0 if pardons else -5.0)


def test_a_flood_would_be_a_turn_if_it_had_a_say_for_each_event(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Control."""
    hear, heard = Voices.hear, [0]

    def of_events(voices: Voices, source: str, taken: int, **given: Any) -> None:
        heard[0] += 1
        hear(voices, f"{source}-{heard[0] // 2}", taken, **given)

    monkeypatch.setattr(Voices, "hear", of_events)
    lies = [(name, 5.0) for name in LIARS for _ in range(12)]
    assert surprised(Surprise(), [*lies, *((name, 0.1) for name in HONEST[:7])]).turning


def test_the_same_flood_is_none_by_sources() -> None:
    lies = [(name, 5.0) for name in LIARS for _ in range(12)]
    assert not surprised(Surprise(), [*lies, *((name, 0.1) for name in HONEST[:7])]).turning


def test_a_table_of_sources_keeps_what_turned() -> None:
    table = Sources()
    source = table.touch("a")
    for step in (2.0, 2.0, -2.0, -2.0, -2.0, -2.0):
        table.add(source, "surprise", step, 7)
    assert source.turned_at == 7
    assert sources.has_turned(source)
