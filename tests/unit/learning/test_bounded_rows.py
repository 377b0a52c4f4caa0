"""An outlier is clipped before it is written, by every way in; whoever learns the row agrees."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from forgetting_world import built
from replica_world import World, play, row, until
from river import tree

from online.learning.merged import Learner
from online.learning.ranges import BOUNDED, RANGE
from online.messages.structs import Event, FeedbackRequest, PredictRequest
from online.models.adapters.linear import Linear
from online.models.adapters.opaque import Opaque
from online.models.loading.load import logreg
from online.rebuild.rebuild import ForgetScope
from online.settings.model import ModelSettings
from online.trust.filtering import SOURCES_MIN, filtering_for
from paramserver.core.blocks import Blocks
from replay import codec
from replay.example import Example, Features
from replay.journal.base import Row, Verdict

OUTLIER: Features = {"a": 1e100, "b": 0.5}


def plain() -> Linear:
    return Linear(logreg())


def whole() -> Opaque:
    return Opaque(
        tree.HoeffdingTreeClassifier(), task="binary", key=bytes(32), why_not_mergeable="a test"
    )


def events(n: int, seed: int = 0) -> list[tuple[Features, bool]]:
    draw = random.Random(seed)
    out: list[tuple[Features, bool]] = []
    for _ in range(n):
        a, b = draw.random(), draw.random()
        out.append(({"a": a, "b": b}, a > b))
    return out


async def teach(serving: Any, n: int, source: str = "s", *, seed: int = 0) -> None:
    sent = [
        Event(features=x, label=y, event_id=f"{source}-{i}", source=source)
        for i, (x, y) in enumerate(events(n, seed))
    ]
    for receipt in await serving.record(sent):
        assert receipt.status == "learned", receipt


def rows_of(world: World, partition: int) -> list[Row]:
    return list(world.journal().read(partition, 1, 10_000))


async def _features(serving: Any) -> Any:
    event = FeedbackRequest(features=dict(OUTLIER), label=True, event_id="x")
    return (await serving.feedback(event))[1]


async def _token(serving: Any) -> Any:
    given = serving.predict(PredictRequest(features=dict(OUTLIER))).id
    return (await serving.feedback(FeedbackRequest(id=given, label=True)))[1]


async def _join(serving: Any) -> Any:
    serving.predict(PredictRequest(features=dict(OUTLIER), id="visit-1"))
    return (await serving.feedback(FeedbackRequest(id="visit-1", label=True)))[1]


async def _many(serving: Any) -> Any:
    event = Event(features=dict(OUTLIER), label=True, event_id="m")
    return (await serving.feedback(FeedbackRequest(events=[event])))[1].events[0]


WAYS: dict[str, Callable[..., Any]] = {
    "features": _features, "token": _token, "stored join": _join, "one of many": _many,
}  # fmt: skip


@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("way", WAYS)
def test_an_outlier_is_clipped_by_every_way(tmp_path: Path, way: str, ordered: bool) -> None:
    async def scene(world: World) -> None:
        build: Any = whole if ordered else plain
        replica = await world.replica(build=build, task="binary", ordered=ordered)
        serving = world.serving(replica)
        await teach(serving, 150)
        receipt = await WAYS[way](serving)
        assert receipt.status == "clipped", receipt
        assert "a = 1e+100" in receipt.reason
        assert "b =" not in receipt.reason
        again = await WAYS[way](serving)
        if way != "token":  # each prediction has its own
            assert (again.status, again.first_outcome) == ("duplicate", "clipped")
        found = next(r for r in rows_of(world, replica.writer.partition)[::-1])
        example = codec.decode(found.payload)
        assert example.raw == {"a": 1e100}
        assert 0.7 < float(example.features["a"] or 0) <= 1.0
        assert example.features["b"] == 0.5
        if not ordered:
            twin = plain()
            for r in rows_of(world, replica.writer.partition):
                one = codec.decode(r.payload)
                twin.learn(one.features, one.label, 1.0)
            asked: Features = {"a": 0.3, "b": 0.4}
            mine, plainly = replica.learner.predict(asked), twin.predict(asked)
            assert mine.probabilities == pytest.approx(plainly.probabilities, abs=1e-12)
        await replica.stop(1.0)

    play(tmp_path, scene)


def test_an_answer_is_bounded_as_what_is_learned(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        replica = await world.replica(build=plain, task="binary")
        serving = world.serving(replica)
        await teach(serving, 150)
        _, high, least, most = replica.learner.bounds.ends(["a"])["a"]
        for value, near in ((1e100, most), (-1e4, least), (high * 0.99, high * 0.99)):
            one = serving.predict(PredictRequest(features={"a": value, "b": 0.5}))
            many = serving.predict(PredictRequest(instances=[{"a": value, "b": 0.5}] * 2))
            asked = plain_answer(replica.learner, {"a": near, "b": 0.5})
            assert one.probabilities == asked
            assert [r.probabilities for r in many.predictions] == [asked] * 2
        await replica.stop(1.0)

    play(tmp_path, scene)


def plain_answer(learner: Learner, features: Features) -> dict[str, float]:
    shares = learner.serving.predict(features).probabilities or {}
    return {"true": shares[True], "false": shares[False]}


def test_without_filters_the_outlier_is_learned_as_it_is(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        replica = await world.replica(build=plain, task="binary")
        replica.learner.bounds.on = False
        serving = world.serving(replica)
        await teach(serving, 150)
        assert (await _features(serving)).status == "learned"
        found = codec.decode(rows_of(world, replica.writer.partition)[-1].payload)
        assert (found.features, found.raw) == (OUTLIER, None)
        await replica.stop(1.0)

    play(tmp_path, scene)


@pytest.mark.parametrize("build", [plain, whole])
def test_another_replica_knows_the_ranges_and_learns_the_row_as_it_stands(
    tmp_path: Path, build: Any
) -> None:
    async def scene(world: World) -> None:
        ordered = build is whole
        first = await world.replica("one", build=build, task="binary", ordered=ordered)
        second = await world.replica("two", build=build, task="binary", ordered=ordered)
        await teach(world.serving(first), 150)
        await until(lambda: "a" in second.learner.bounds.ends(["a"]))
        await until(lambda: second.learner.tally.digest[0] == 150)
        assert (await _features(world.serving(second))).status == "clipped"
        await until(lambda: first.learner.tally.digest[0] == 151)
        asked: Features = {"a": 0.2, "b": 0.9}
        await until(lambda: first.learner.own == second.learner.own == 0)
        mine, theirs = (one.learner.predict(asked) for one in (first, second))
        assert mine.label == theirs.label
        assert mine.probabilities == pytest.approx(theirs.probabilities, abs=1e-12)
        assert first.learner.bounds.ends("ab") == second.learner.bounds.ends("ab")
        for one in (first, second):
            await one.stop(1.0)

    play(tmp_path, scene)


def test_a_start_goes_on_with_the_ranges_and_an_older_state_begins_them(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        first = await world.replica("one", build=plain, task="binary")
        await teach(world.serving(first), 150)
        ends = first.learner.bounds.ends("ab")
        await first.stop(1.0)
        world.server.snapshot()
        second = await world.replica("two", build=plain, task="binary")
        assert second.learner.bounds.ends("ab") == ends
        older = {name: b for name, b in second.learner.pulled.items() if name not in BOUNDED}
        second.learner.bounds.reset(older)
        assert (await _features(world.serving(second))).status == "learned"
        await second.stop(1.0)

    play(tmp_path, scene)


def test_after_a_forget_ranges_are_those_of_a_run_without_the_source(tmp_path: Path) -> None:
    folder = tmp_path / "attacked"
    folder.mkdir()

    async def attacked(world: World) -> None:
        replica = await world.replica(build=plain, task="binary")
        serving = world.serving(replica)
        await teach(serving, 100)
        for i in range(40):
            value = float(replica.learner.bounds.ends(["a"])["a"][1]) if i % 2 else 1e9
            event = FeedbackRequest(
                features={"a": value, "z": 1.0}, label=True, event_id=f"{i}", source="bad"
            )
            await serving.feedback(event)
        await teach(serving, 50, "later", seed=1)
        await replica.stop(1.0)
        world.server.snapshot()
        made, _ = built(
            world.journal(), world.folder / "snapshots", ForgetScope("bad"), plain, task="binary"
        )
        values.append(made.state.values)

    async def clean(world: World) -> None:
        replica = await world.replica(build=plain, task="binary")
        for journaled in journal.read(1, 1, 10_000):
            if journaled.source != "bad":
                given = (journaled.key, journaled.event_id, journaled.source, journaled.verdict)
                await replica.writer.record([type(row("x"))(*given, journaled.payload, 1.0)])
        await until(lambda: replica.learner.tally.digest[0] == 150)
        learner: Any = replica.learner
        await until(lambda: not learner.pushes(1))
        other = await world.replica("other", build=plain, task="binary")
        values.append(other.learner.pulled)
        for one in (replica, other):
            await one.stop(1.0)

    values: list[Blocks] = []
    play(folder, attacked)
    journal = World(folder).journal()
    play(tmp_path, clean)
    forgotten, without = values
    for name in (*BOUNDED, "weights", "scaler0"):
        assert (name in forgotten) == (name in without), name
        if name in forgotten:
            ours, plainly = forgotten[name].data, without[name].data
            assert ours.keys() == plainly.keys()
            assert all(ours[k] == pytest.approx(plainly[k], rel=1e-9) for k in ours), name
    assert "z" not in forgotten[RANGE].data


def test_filters_leave_a_clipped_row_clipped_and_set_it_aside_as_any_other(tmp_path: Path) -> None:
    settings = ModelSettings(name="m", task="binary", learner="logreg")

    def filters(learner: Any) -> Any:
        return filtering_for(settings, learner, None, sources_max=1_000, vouched=False)

    async def scene(world: World) -> None:
        replica = await world.replica(build=plain, task="binary", filters=filters)
        serving = world.serving(replica)
        for i in range(SOURCES_MIN + 1):
            await teach(serving, 30, f"s{i}", seed=i)
        assert replica.filters is not None
        assert replica.filters.active
        receipt = await _features(serving)
        assert receipt.status == "clipped"
        assert "a = 1e+100" in receipt.reason
        found = rows_of(world, replica.writer.partition)[-1]
        assert (found.verdict, found.factor) == (Verdict.CLIPPED, 1.0)
        assert codec.decode(found.payload).judged is not None
        await replica.stop(1.0)

    play(tmp_path, scene)


def test_a_model_that_raises_leaves_the_ranges_as_they_were(tmp_path: Path) -> None:
    class Raises(Linear):
        def learn(self, features: Features, label: Any, weight: float) -> None:
            super().learn(features, label, weight)
            if "bad" in features:
                raise ValueError("no")

    async def scene(world: World) -> None:
        replica = await world.replica(build=lambda: Raises(logreg()), task="binary")
        serving = world.serving(replica)
        await teach(serving, 150)
        before = replica.learner.bounds.ends("ab")
        event = FeedbackRequest(features={"a": 3.0, "bad": 1.0}, label=True, event_id="bad")
        assert (await serving.feedback(event))[1].status == "failed"
        assert replica.learner.bounds.ends(["a", "b", "bad"]) == before
        assert (await _features(serving)).status == "clipped"
        await replica.stop(1.0)

    play(tmp_path, scene)


def test_a_row_of_before_has_nothing_else_than_it_was_sent() -> None:
    old = Example({"a": 1.0}, label=True)
    assert codec.decode(codec.encode(old)).raw is None
    new = Example({"a": 1.0}, label=True, raw={"a": 1e9})
    assert codec.decode(codec.encode(new)) == new
