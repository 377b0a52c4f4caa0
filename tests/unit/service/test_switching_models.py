"""A replica exchanges a model that was promoted, and gives up what was taken back meanwhile."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import pytest

from online.service.parts import model_swap
from online.service.parts.model_swap import ModelSwap
from online.settings.config import Settings
from online.settings.model import ModelSettings
from paramserver.core.resharding import RESHARD
from paramserver.core.rewrites import PROMOTE
from replay.errors import JournalUnavailable

A, B = "logreg", "linear"


class Replica:
    """A model in a replica, as far as an exchange sees it; it starts once ``answers`` is set."""

    def __init__(self, learner: str, *, answers: bool) -> None:
        self.spec, self.store, self.writer = learner, self, SimpleNamespace(idle=True)
        self.answers, self.begun, self.stopped = asyncio.Event(), False, False
        if answers:
            self.answers.set()

    async def read(self, step: Callable[..., Any], *args: Any) -> Any:
        return step(*args)

    async def start(self) -> None:
        self.begun = True
        await self.answers.wait()

    async def stop(self, timeout_s: float) -> None:
        self.stopped = True


class World:
    """One model that serves, promotions of it, and the parts that were made for them."""

    def __init__(self, *, answers: bool = True, rule: str = "average") -> None:
        self.controls: list[Any] = []
        self.serves, self.answers, self.rule = A, answers, rule
        self.made: list[Replica] = []
        self.failing = 0
        self.parts = {"m": self.part(Replica(A, answers=True))}
        self.going = ModelSwap(
            "m", self.parts, self.parts.__setitem__, self.make, self.load, self.as_served
        )

    def part(self, replica: Replica) -> Any:
        journal = SimpleNamespace(controls=self.after)
        return SimpleNamespace(replica=replica, journal=journal, swappable=True)

    def after(self, model: str, seq: int) -> list[Any]:
        if self.failing:
            self.failing -= 1
            raise JournalUnavailable("it is away")
        return [control for control in self.controls if control.seq > seq]

    def decide(self, learner: str, kind: str = PROMOTE) -> None:
        self.serves = learner
        self.controls.append(SimpleNamespace(seq=len(self.controls) + 1, kind=kind))

    def as_served(self) -> Settings:
        model = ModelSettings(name="m", task="binary", learner=self.serves)
        return Settings(models=(model,))

    def load(self, model: ModelSettings) -> Any:
        return SimpleNamespace(spec_hash=model.learner, model=None)

    def make(self, settings: Settings, model: ModelSettings, loaded: Any) -> Any:
        self.made.append(Replica(model.learner, answers=self.answers))
        return self.part(self.made[-1])

    @property
    def answering(self) -> str:
        spec: str = self.parts["m"].replica.spec
        return spec


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_LOOK_S", "_QUIET_S", "_FAILED_S"):
        monkeypatch.setattr(model_swap, name, 0.001)


def play(
    monkeypatch: pytest.MonkeyPatch, scene: Callable[[World], Awaitable[None]], **as_: Any
) -> World:
    async def played() -> World:
        world = World(**as_)
        monkeypatch.setattr(model_swap, "merge_rule", lambda model, _: world.rule)
        world.going.start()
        await scene(world)
        await world.going.stop(240)
        return world

    return asyncio.run(played())


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(240):
        while not condition():
            await asyncio.sleep(0.001)


@pytest.mark.parametrize("kind", [PROMOTE, RESHARD])
def test_the_promoted_model_answers_and_the_one_before_stops(
    monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    async def scene(world: World) -> None:
        before = world.parts["m"].replica
        world.decide(B, kind)
        await until(lambda: world.answering == B)
        await until(lambda: before.stopped)
        assert not world.made[0].stopped

    play(monkeypatch, scene)


def test_who_asks_does_not_wait_while_the_journal_is_opened(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def scene(world: World) -> None:
        opening, opened, make = threading.Event(), threading.Event(), world.going._make

        def slow(*given: Any) -> Any:
            opening.set()
            assert opened.wait(240), "the loop stood still: nobody could answer"
            return make(*given)

        world.going._make = slow
        world.decide(B)
        await until(opening.is_set)
        assert world.answering == A, "and this answers meanwhile"
        opened.set()
        await until(lambda: world.answering == B)

    play(monkeypatch, scene)


def test_the_one_before_goes_on_until_nothing_is_under_way_with_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def scene(world: World) -> None:
        before = world.parts["m"].replica
        before.writer.idle = False
        world.decide(B)
        await until(lambda: world.answering == B)
        for _ in range(100):
            await asyncio.sleep(0)
        assert not before.stopped
        before.writer.idle = True
        await until(lambda: before.stopped)

    play(monkeypatch, scene)


def test_a_promotion_that_is_taken_back_before_its_server_answers_is_given_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def scene(world: World) -> None:
        before = world.parts["m"].replica
        world.decide(B)
        await until(lambda: len(world.made) == 1)
        assert world.answering == A, "its parameter server has not answered"
        world.decide(A)
        await until(lambda: world.made[0].stopped)
        assert (world.answering, before.stopped) == (A, False)
        world.answers = True
        world.decide(B)
        await until(lambda: world.answering == B)
        assert len(world.made) == 2

    play(monkeypatch, scene, answers=False)


def test_a_model_that_is_learned_in_order_waits_for_new_processes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def scene(world: World) -> None:
        world.decide(B)
        await until(lambda: world.going._seen == 1)
        for _ in range(100):
            await asyncio.sleep(0)
        assert (world.answering, world.made) == (A, [])

    play(monkeypatch, scene, rule="ordered")


def test_an_error_is_no_end_of_looking(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def scene(world: World) -> None:
        def broken(*_: Any) -> Any:
            raise ValueError("its code is broken")

        world.failing = 2
        load, world.going._load = world.going._load, broken
        world.decide(B)
        await until(lambda: "its code is broken" in caplog.text)
        assert world.answering == A
        world.going._load = load
        await until(lambda: world.answering == B)

    play(monkeypatch, scene)
    assert "it is away" in caplog.text


def test_a_stop_gives_up_what_was_not_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene(world: World) -> None:
        world.decide(B)
        await until(lambda: bool(world.made) and world.made[0].begun)

    world = play(monkeypatch, scene, answers=False)
    assert world.answering == A
    assert world.made[0].stopped


def test_what_is_made_on_a_thread_while_a_stop_comes_is_stopped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A thread can't be stopped, and what it makes has opened the journal."""
    begun, go_on = threading.Event(), threading.Event()

    async def scene(world: World) -> None:
        make = world.going._make

        def slow(*given: Any) -> Any:
            begun.set()
            assert go_on.wait(240)
            return make(*given)

        world.going._make = slow
        world.decide(B)
        await until(begun.is_set)
        asyncio.get_running_loop().call_later(0.05, go_on.set)

    world = play(monkeypatch, scene)
    assert world.answering == A
    assert [replica.stopped for replica in world.made] == [True]
