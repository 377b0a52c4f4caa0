"""A pass has as many rows as half a millisecond has room for, or .85 of one if that is few."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import replica_world as worlds
from test_long_bodies import turns as others
from test_ordinary import event, taught

from online.replica import follower
from online.replica.learning_cost import PassSize
from online.watch.drift import TOGETHER

US = 1e-6


async def passes(
    world: worlds.World, patch: pytest.MonkeyPatch, costs: Sequence[float]
) -> list[list[int]]:
    """How many rows the newest passes were to have, where a row takes so long by our clock."""
    serving, rng = await taught(world), random.Random(1)
    learner, now_s, found, sizes = serving.replica.learner, [0.0], list[list[int]](), list[int]()
    clock = SimpleNamespace(perf_counter=lambda: now_s[0], monotonic=time.monotonic)
    patch.setattr(follower, "time", clock)
    real, cost_s = learner.learn_alike, [0.0]

    def learn_alike(rows: Any, examples: Any) -> int:
        n = real(rows, examples)
        now_s[0] += n * cost_s[0]
        sizes.append(len(rows))
        return n

    patch.setattr(learner, "learn_alike", learn_alike)
    for i, cost_s[0] in enumerate(costs, 1):
        sizes.clear()
        await serving.record([event(rng, 1000 * i + k) for k in range(1000)])
        found.append(sizes[-12:-1])  # the last one had what was left
    await serving.replica.stop(1.0)
    return found


def test_cheap_rows_come_in_long_passes_and_dear_ones_in_short_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scene(world: worlds.World) -> None:
        cheap, dear, few, dearest, again = await passes(
            world, monkeypatch, [20 * US, 50 * US, 150 * US, 1000 * US, 20 * US]
        )
        assert 20 <= max(cheap) <= 32, cheap
        assert 8 <= max(dear) <= 13, dear
        assert 5 <= max(few) <= 6, few  # .85 ms: of so few rows the pass itself is the most
        assert max(dearest) == 2, dearest
        assert 20 <= max(again) <= 32, again

    worlds.play(tmp_path, scene)


def test_the_judge_looks_in_a_turn_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scene(world: worlds.World) -> None:
        serving, rng = await taught(world), random.Random(1)
        replica, turns = serving.replica, dict[str, list[int]]()
        assert replica.judge is not None

        def counted(owner: Any, name: str) -> None:
            real, seen = getattr(owner, name), turns.setdefault(name, [])

            def step(*given: Any) -> Any:
                seen.append(count[0])
                return real(*given)

            monkeypatch.setattr(owner, name, step)

        monkeypatch.setattr(replica, "_slow_gauges", dict)  # they look, too, once a second
        async with others() as count:
            counted(replica.judge, "look")
            counted(replica.learner, "learn_alike")
            await serving.record([event(rng, 1000 + k) for k in range(1000)])
        # A look comes behind a pass, which may have many more rows than were missing.
        assert len(turns["look"]) >= 1000 // (4 * TOGETHER), turns
        assert not set(turns["look"]) & set(turns["learn_alike"]), turns
        await replica.stop(1.0)

    worlds.play(tmp_path, scene)


def test_passes_that_do_not_follow_the_clock_are_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PassSize, "adapt", lambda self, n, most, took_s: None)

    async def scene(world: worlds.World) -> None:
        cheap, dear = await passes(world, monkeypatch, [20 * US, 50 * US])
        assert max(cheap) == max(dear), (cheap, dear)

    worlds.play(tmp_path, scene)


def test_the_judge_counts_rows_as_the_scores_do(tmp_path: Path) -> None:
    async def scene(world: worlds.World) -> None:
        serving, rng = await taught(world), random.Random(1)
        judge = serving.replica.judge
        assert judge is not None
        before = judge.summary()["judged"], serving.replica.learner.tally.counters["n"]
        events = [event(rng, 5_000 + k) for k in range(400)]
        for light in events[::2]:
            light.weight = 1e-9
        await serving.record(events)
        after = judge.summary()["judged"], serving.replica.learner.tally.counters["n"]
        assert [now - then for now, then in zip(after, before, strict=True)] == [200, 200]
        await serving.replica.stop(1.0)

    worlds.play(tmp_path, scene)
