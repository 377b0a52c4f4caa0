"""Targets of honest streams teach what they are, rare and large ones too; a lone lie does not."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from replica_world import World, play
from river import linear_model, preprocessing

import online.learning.ranges
from online.learning.bounds import Bounds, target_taught, with_target
from online.learning.ranges import SOURCE_VOTES, TARGETS, VOTES, VOTES_ANY, TargetRange
from online.messages.structs import Event
from online.models.adapters.linear import Linear
from online.settings.purposes import PURPOSES
from paramserver.core.blocks import Blocks, merge
from replay.example import Example

N = 5_000
Draw = random.Random
STREAMS: dict[str, Callable[[Draw, int], float]] = {
    "one per cent claims": lambda d, n: d.gauss(5e4, 8e3) if d.random() < 0.01 else 0.0,
    "five per cent claims": lambda d, n: d.gauss(5e4, 8e3) if n and d.random() < 0.05 else 0.0,
    "zero, then prices": lambda d, n: d.gauss(2e5, 4e4) if n else 0.0,
    "a tenth a thousand times larger": lambda d, n: (
        d.gauss(3, 0.5) * (1e3 if d.random() < 0.1 else 1.0)
    ),
    "growth": lambda d, n: 1.01 ** min(n, 2_000) * d.gauss(1.0, 0.02),
    "normal": lambda d, n: d.gauss(10.0, 3.0),
    "log-normal": lambda d, n: d.lognormvariate(0.0, 1.0),
    "pareto": lambda d, n: d.paretovariate(1.5),
    "trend": lambda d, n: 1_000.0 + n + d.gauss(0.0, 1.0),
    "negative": lambda d, n: -d.lognormvariate(5.0, 1.0),
    "another unit": lambda d, n: d.gauss(10.0, 0.1) * (1e3 if n > 2_500 else 1.0),
    "another sign": lambda d, n: d.gauss(1_000.0, 1.0) * (-1.0 if n > 2_000 else 1.0),
}


def taught(sent: Sequence[float], bounds: Bounds | None = None, source: str = "") -> list[float]:
    """The numbers that labels teach, each learned before the next."""
    held, found = Bounds(targets=True) if bounds is None else bounds, []
    for label in sent:
        example = with_target(held, Example({}, label))
        held.add(example, source)
        found.append(float(example.label))
    return found


@pytest.mark.parametrize("stream", STREAMS)
def test_an_honest_stream_teaches_its_own_mean(stream: str) -> None:
    for seed in range(3):
        draw = Draw(f"{stream} {seed}")
        sent = [STREAMS[stream](draw, n) for n in range(N)]
        found = taught(sent)
        clipped = sum(a != b for a, b in zip(sent, found, strict=True))
        assert clipped <= 10, (stream, seed, clipped)
        assert sum(found[500:]) == pytest.approx(sum(sent[500:]), rel=0.05), (stream, seed)


def test_streams_need_what_a_targets_range_asks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: without votes, or without a youth, what is rare is never learned."""
    draw = Draw(1)
    sent = [STREAMS["another unit"](draw, n) for n in range(N)]
    monkeypatch.setattr(online.learning.ranges, "VOTES", N)
    assert sum(taught(sent)) < 0.5 * sum(sent)
    monkeypatch.setattr(TargetRange, "young", 0)
    sent = [STREAMS["one per cent claims"](draw, n) for n in range(N)]
    assert sum(taught(sent)) < 0.5 * sum(sent)


RATINGS = [1.0 + n % 9 / 2 for n in range(200)]


@pytest.mark.parametrize("label", [1e6, -1e100, 1e12])
def test_some_lies_are_learned_as_the_end_of_what_came_lately(label: float) -> None:
    bounds = Bounds(targets=True)
    taught(RATINGS, bounds)
    assert set(taught([label] * 5, bounds, "stranger")) <= {1.0, 5.0}
    assert target_taught(bounds, label) in (1.0, 5.0)
    bounds.on = False
    assert target_taught(bounds, label) == label, "the control"


def test_one_source_moves_no_range_but_three_do_at_once() -> None:
    bounds = Bounds(targets=True)
    taught(RATINGS, bounds)
    assert max(taught([1e6] * (VOTES_ANY - 1), bounds, "one")) == 5.0
    assert taught([1e6], bounds, "one") == [5.0]
    assert taught([1e6], bounds, "one") == [1e6], "it is most of what it sends: the world's"
    other = Bounds(targets=True)
    taught(RATINGS, other)
    for n in range(VOTES):
        assert taught([1e6], other, f"s{n % 3}") == [5.0], n
    assert taught([1e6], other, "s0") == [1e6]


def test_a_stranger_does_not_say_how_far_a_range_moves() -> None:
    bounds = Bounds(targets=True)
    taught(RATINGS, bounds)
    taught([1e100] * (2 * SOURCE_VOTES), bounds, "stranger")
    for n in range(VOTES - SOURCE_VOTES):
        taught([900.0], bounds, f"honest-{n}")
    assert target_taught(bounds, 900.0) == 900.0
    assert target_taught(bounds, 1e6) < 1_000.0


def test_replicas_add_up_their_votes() -> None:
    pair, values = (Bounds(targets=True), Bounds(targets=True)), Blocks()

    def exchange() -> None:
        for one in pair:
            merge(values, one.cut())
        for one in pair:
            one.reset(values)

    taught(RATINGS, pair[0])
    exchange()
    for n in range(VOTES):
        assert taught([1e4], pair[n % 2], f"s{n}") == [5.0], n
        exchange()
    assert [target_taught(one, 1e4) for one in pair] == [1e4, 1e4]
    assert not any(values[TARGETS].data.values()), "and begin anew"
    alone = Bounds(targets=True)
    alone.reset(values)
    assert target_taught(alone, -1e6) > -1e6, "a folder holds the range"


def test_what_is_open_stays_upon_new_values() -> None:
    one, other, values = Bounds(targets=True), Bounds(targets=True), Blocks()
    taught(RATINGS, one)
    merge(values, one.cut())
    one.reset(values)
    other.reset(values)
    for n in range(VOTES - 1):
        taught([1e4], one, f"s{n}")
    taught([1e4, 8.0], other, "another")
    delta = other.cut()
    merge(values, delta)
    one.rebase({name: values[name] for name in delta})
    assert target_taught(one, 1e4) == 5.0
    taught([1e4], one, "last")
    assert target_taught(one, 1e4) == 1e4


def test_an_old_folder_learns_targets_as_they_come() -> None:
    bounds = Bounds(targets=True)
    old = Bounds()
    for n in range(100):
        old.add(Example({"a": float(n)}, 0.0))
    bounds.reset(old.cut())
    assert taught([0.0, 2e5, 1.0, 3e5], bounds) == [0.0, 2e5, 1.0, 3e5]


def plain() -> Linear:
    return Linear(preprocessing.StandardScaler() | linear_model.LinearRegression())


@pytest.mark.parametrize("walked", [True, False])
def test_targets_of_one_body_are_walked_in_order(
    tmp_path: Path, walked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not walked:  # the control: all are judged by what was known before the body
        monkeypatch.setattr(Bounds, "ahead", _standing)

    async def scene(world: World) -> None:
        serving: Any = world.serving(await world.replica(build=plain, task="regression"))
        labels = [1e6 if n == 30 else 1.0 + n % 5 for n in range(60)]
        sent = [
            Event(features={"a": float(n % 7)}, label=label, event_id=f"e{n}", source=f"s{n % 4}")
            for n, label in enumerate(labels)
        ]
        found = [x.status for x in await serving.record(sent)]
        assert found[30] == ("clipped" if walked else "learned"), found
        assert {*found[:30], *found[31:]} == {"learned"}, found

    play(tmp_path, scene)


def _standing(bounds: Bounds) -> Bounds:
    made = Bounds(targets=True)
    made.reset(bounds.cut())
    made.add = lambda example, source="": None  # type: ignore[method-assign]
    return made


def test_only_numbers_whose_range_nobody_said_are_bounded() -> None:
    assert [name for name, one in PURPOSES.items() if one.bounded] == ["regression"]
