"""One label of a million is no mean of all: targets of regression are bounded, by every way in."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from replica_world import World, play
from river import linear_model, preprocessing

from benchmarks.fixtures.several_replicas import Dealt
from evaluation.errors import StreamUnusable
from evaluation.streams import open_stream
from evaluation.summary import summary
from online.errors import RequestError
from online.learning.bounds import Bounds, with_target
from online.messages.structs import Event, FeedbackRequest, PredictRequest
from online.models.adapters.linear import Linear
from online.models.loading.load import load
from online.serving.feedback.receipts import refused
from online.settings.config import data_dir
from online.settings.model import ModelSettings
from replay import codec
from replay.example import SENT_LABEL, Example, Features
from replay.journal.base import Row, Verdict

FAR = 1e6


def plain() -> Linear:
    return Linear(preprocessing.StandardScaler() | linear_model.LinearRegression())


def drawn(n: int, seed: int = 0) -> list[tuple[Features, float]]:
    draw = random.Random(seed)
    rows: list[tuple[Features, float]] = []
    for _ in range(n):
        a, b = draw.gauss(0, 1), draw.gauss(0, 1)
        rows.append(({"a": a, "b": b}, 10.0 + 3.0 * a - b + draw.gauss(0, 0.3)))
    return rows


async def teach(serving: Any, n: int = 150) -> None:
    sent = [
        Event(features=x, label=y, event_id=f"e{i}", source="s")
        for i, (x, y) in enumerate(drawn(n))
    ]
    assert {x.status for x in await serving.record(sent)} == {"learned"}


X: Features = {"a": 0.5, "b": 0.5}


async def _features(serving: Any, label: float) -> Any:
    return await _told(serving, features=dict(X), event_id="x", label=label)


async def _token(serving: Any, label: float) -> Any:
    if not hasattr(serving, "token"):
        serving.token = serving.predict(PredictRequest(features=dict(X))).id
    return await _told(serving, id=serving.token, label=label)


async def _join(serving: Any, label: float) -> Any:
    serving.predict(PredictRequest(features=dict(X), id="visit-1"))
    return await _told(serving, id="visit-1", label=label)


async def _label_first(serving: Any, label: float) -> Any:
    await _told(serving, id="visit-2", label=label)
    serving.predict(PredictRequest(features=dict(X), id="visit-2"))
    while True:  # the prediction is written behind its answer
        told = await _told(serving, id="visit-2", label=label)
        if told.status != "waiting":
            return told


async def _many(serving: Any, label: float) -> Any:
    event = Event(features=dict(X), label=label, event_id="m")
    return (await serving.feedback(FeedbackRequest(events=[event])))[1].events[0]


async def _told(serving: Any, **event: Any) -> Any:
    try:
        return (await serving.feedback(FeedbackRequest(**event)))[1]
    except RequestError as error:
        return refused(error)


WAYS: dict[str, Callable[..., Any]] = {
    "features": _features, "token": _token, "stored join": _join, "label first": _label_first,
    "one of many": _many,
}  # fmt: skip


def rows_of(world: World, replica: Any) -> list[Row]:
    return list(world.journal().read(replica.writer.partition, 1, 10_000))


@pytest.mark.parametrize("way", WAYS)
def test_a_target_far_off_is_clipped_by_every_way(tmp_path: Path, way: str) -> None:
    async def scene(world: World) -> None:
        replica = await world.replica(build=plain, task="regression")
        serving = world.serving(replica)
        await teach(serving)
        told = await WAYS[way](serving, FAR)
        assert "clipped" in (told.status, told.first_outcome), told
        again = await WAYS[way](serving, FAR)
        assert (again.status, again.first_outcome) == ("duplicate", "clipped"), again
        other = await WAYS[way](serving, 2 * FAR)
        assert other.status == "conflict", other
        assert str(FAR) in other.reason, "the label recorded first is what was sent"
        found = rows_of(world, replica)[-1]
        example = codec.decode(found.payload)
        assert found.verdict is Verdict.CLIPPED
        assert example.raw == {SENT_LABEL: FAR}
        assert 10.0 < float(example.label) < 30.0
        twin = plain()
        for one in rows_of(world, replica):
            taught = codec.decode(one.payload)
            twin.learn(taught.features, taught.label, 1.0)
        mine, plainly = replica.learner.predict(X).label, twin.predict(X).label
        assert mine == pytest.approx(plainly, rel=1e-9)
        assert float(mine) < 30.0
        assert summary("regression", replica.learner.tally.counters).mae < 10.0
        await replica.stop(1.0)

    play(tmp_path, scene)


def test_the_sender_is_told_which_number_was_far(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        replica = await world.replica(build=plain, task="regression")
        serving = world.serving(replica)
        await teach(serving)
        told = await _features(serving, FAR)
        assert told.status == "clipped"
        assert "label = 1000000.0" in told.reason
        assert "no room" not in told.reason
        assert float(replica.newest_label) < 30.0, "as the baseline that foretells no change"
        await replica.stop(1.0)

    play(tmp_path, scene)


def test_without_filters_a_target_is_what_was_sent(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        replica = await world.replica(build=plain, task="regression")
        replica.learner.bounds.on = False
        serving = world.serving(replica)
        await teach(serving)
        assert (await _features(serving, FAR)).status == "learned"
        assert codec.decode(rows_of(world, replica)[-1].payload).label == FAR
        assert float(replica.learner.predict(X).label or 0.0) > 100.0
        await replica.stop(1.0)

    play(tmp_path, scene)


def test_a_final_target_is_bounded_by_itself(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        replica = await world.replica(build=plain, task="regression")
        serving = world.serving(replica)
        await teach(serving)
        event = {"features": dict(X), "event_id": "p"}
        told = await _told(serving, **event, label=FAR, provisional=True)
        assert told.status == "clipped", told
        told = await _told(serving, **event, label=11.0)
        assert told.status == "learned", told
        first, final = rows_of(world, replica)[-2:]
        taught, lesson = codec.decode(first.payload), codec.decode(final.payload)
        assert (lesson.label, lesson.raw, final.verdict) == (11.0, None, Verdict.ACCEPTED)
        assert lesson.corrects is not None
        assert lesson.corrects.label == taught.label < 30.0, "what was taught is taken back"
        event["event_id"] = "q"
        assert (await _told(serving, **event, label=11.0, provisional=True)).status == "learned"
        assert (await _told(serving, **event, label=-FAR)).status == "clipped"
        assert float(codec.decode(rows_of(world, replica)[-1].payload).label) > -30.0
        await replica.stop(1.0)

    play(tmp_path, scene)


def dealt(learner: str, filters: str, seed: int, label: float | None, events: int = 1) -> float:
    """Mean error of five hundred answers behind some events of a stranger."""
    given = {"name": "m", "task": "regression", "learner": learner, "filters": filters}
    settings = ModelSettings.model_validate(given)
    built = load(learner, {}, task="regression", classes=None, key=bytes(32), base_dir=Path())
    assert built.build is not None
    loop, errors = Dealt(settings, 2, build=built.build), []
    for n, (x, y) in enumerate(drawn(900, seed)):
        if label is not None and 400 <= n < 400 + events:
            loop.step("stranger", {"a": 0.0, "b": 0.0}, label)
        if n >= 400:
            errors.append(abs(float(loop.model.predict(x).label or 0.0) - y))
        loop.step(f"user-{n % 12}", x, y)
    return sum(errors) / len(errors)


@pytest.mark.parametrize("learner", ["linear", "linreg", "fm"])
@pytest.mark.parametrize("label", [1e6, -1e100])
def test_one_event_costs_next_to_nothing(learner: str, label: float) -> None:
    seed = random.Random(f"{learner} {label}").randrange(1 << 30)
    clean = dealt(learner, "default", seed, None)
    assert dealt(learner, "default", seed, label) < 1.1 * clean
    assert dealt(learner, "none", seed, label) > 3.0 * clean, "a control: it is what ruins a model"


def test_a_target_that_goes_elsewhere_for_good_is_followed() -> None:
    bounds, draw = Bounds(targets=True), random.Random(5)
    clipped = []
    for n in range(600):
        example = Example({}, draw.gauss(1.0, 1.0) * (1.0 if n < 300 else 1_000.0))
        taught = with_target(bounds, example)
        clipped.append(taught is not example)
        bounds.add(taught)
    assert not any(clipped[:300])
    assert 5 < sum(clipped[300:]) < 60, sum(clipped)
    assert not any(clipped[450:])
    labels = Bounds()
    assert with_target(labels, Example({}, 1e100)) == Example({}, 1e100), "of other tasks none is"


@pytest.mark.data
@pytest.mark.parametrize("column", ["nswprice", "vicprice", "nswdemand"])
def test_no_honest_target_of_a_real_stream_is_clipped(column: str) -> None:
    try:
        rows = list(open_stream("elec2", data_dir()).rows)
    except StreamUnusable as error:
        pytest.skip(str(error))
    bounds, clipped = Bounds(targets=True), 0
    for features, _ in rows:
        example = Example({}, float(features[column] or 0.0))
        taught = with_target(bounds, example)
        clipped += taught is not example
        bounds.add(taught)
    assert (len(rows), clipped) == (45_312, 0)


def test_targets_of_any_unit_are_learned_from_many_sources() -> None:
    """Yen instead of millions of yen: the same verdicts, though each error is in millions."""
    found = []
    for unit in (1.0, 5e7):
        draw = random.Random(1)
        dealt = Dealt(ModelSettings(name="m", task="regression", learner="linreg"), replicas=1)
        for n in range(300):
            x = {name: draw.gauss(0.0, 1.0) for name in "abc"}
            dealt.step(f"s{n % 12}", x, unit * (sum(x.values()) + draw.gauss(0.0, 0.1) + 3.0))
        found.append(dealt.counts)
    assert found[0] == found[1]
    assert found[0]["quarantined"] == 0
