"""Names and classes have a bound: a row at it is learned without what is new, or refused."""

from __future__ import annotations

import asyncio
import itertools
from pathlib import Path
from typing import Any, Final

import pytest
import replica_world as worlds
from forgetting_world import built
from river import linear_model, optim

from online.errors import RequestError
from online.learning.ranges import RANGE
from online.learning.vocabulary import BROUGHT, FULL, NAMES, Classes, Vocabulary, left_out
from online.messages.structs import Event, FeedbackRequest, PredictRequest
from online.models.adapters.linear import Linear
from online.models.features.hashed import Words
from online.models.ftrl import Ftrl
from online.models.loading import load
from online.rebuild.rebuild import ForgetScope
from online.settings.limits import Limits
from paramserver.core import blocks as algebra
from paramserver.core.blocks import Blocks
from replay import codec
from replay.example import Example, Features

HOLD_S: Final = 20.0


def row(*names: str) -> Features:
    return dict.fromkeys(names, 1.0)


def learned(vocabulary: Vocabulary, features: Features, source: str = "a") -> Features:
    """Decide about a row and learn it; what is left of it."""
    taught, _ = vocabulary.taught(features, source, 0.0, HOLD_S)
    vocabulary.add(Example(taught, True), source)
    return taught


def bounded(most: int, share: float = 1.0, words: Words | None = None) -> Vocabulary:
    made = Vocabulary(words)
    made.most, made.share = most, share
    return made


# -- the rule --------------------------------------------------------------------------------


def test_at_the_bound_a_row_is_learned_without_its_new_names() -> None:
    known = bounded(3)
    first = row("a", "b")
    assert learned(known, first) is first, "the very row"
    assert learned(known, row("b", "c", "d")) == row("b", "c"), "as many as there is room for"
    taught, left = known.taught({"a": 2.0, "e": 3.0}, "a", 0.0, HOLD_S)
    assert (taught, left) == ({"a": 2.0}, {"e": 3.0})
    assert known.taught(row("e"), "a", 0.0, HOLD_S) == ({}, row("e"))
    assert len(known) == 3


def test_many_rows_at_once_do_not_pass_the_bound_together() -> None:
    known = bounded(10)
    taught = [known.taught(row(f"n{i}"), "a", 0.0, HOLD_S)[0] for i in range(30)]
    assert sum(map(len, taught)) == 10
    assert known.taught(row("n3", "z"), "b", 0.0, HOLD_S)[0] == row("n3"), "it is promised already"


def test_a_promise_that_nobody_keeps_ends() -> None:
    known = bounded(2)
    known.taught(row("a", "b"), "a", 100.0, HOLD_S)
    assert known.taught(row("c"), "a", 119.0, HOLD_S)[0] == {}
    assert known.taught(row("c"), "a", 120.0, HOLD_S)[0] == row("c")
    known.taught(row("d"), "a", 120.0, 600.0)
    assert known.taught(row("e"), "a", 140.0, HOLD_S)[0] == row("e"), "the one that holds less long"
    assert known.taught(row("f"), "a", 141.0, HOLD_S)[0] == {}, "the other one goes on"
    known.add(Example(row("d", "e"), True), "a")
    assert not known._promised_to


def test_no_source_brings_more_than_its_share() -> None:
    known = bounded(100, 0.25)
    flood = [learned(known, row(*(f"{i}-{j}" for j in range(10))), "flood") for i in range(50)]
    assert sum(map(len, flood)) == 25
    for honest in "xyz":
        assert learned(known, row(*(f"{honest}{i}" for i in range(25))), honest)
    assert len(known) == 100
    assert learned(known, row("late", "x1"), "late") == row("x1")
    assert learned(known, row("flood", "x1"), "flood") == row("x1"), "known names stay known to all"


def test_words_of_a_text_are_names_and_the_rest_of_it_is_learned() -> None:
    known = bounded(4, words=Words(["body"], 22, 0))
    assert learned(known, {"body": "Free money", "n": 2.0}) == {"body": "Free money", "n": 2.0}
    taught, left = known.taught({"body": "free prize money, free!", "k": "v"}, "a", 0.0, HOLD_S)
    assert (taught, left) == ({"body": "free prize money, free!"}, {"k": "v"})
    taught, left = known.taught({"body": "Free yacht money", "n": 1}, "a", 0.0, HOLD_S)
    assert (taught, left) == ({"body": "free money", "n": 1}, {"body": "Free yacht money"})
    assert known.taught({"body": "yacht", "n": 1}, "a", 0.0, HOLD_S)[0] == {"n": 1}
    assert known.taught({"flag": True, "none": None}, "a", 0.0, HOLD_S)[0] == {}


@pytest.mark.parametrize("value", ["Free money, free", "", "é Ä_b 1", "x" * 2000])
def test_a_text_without_some_words_is_hashed_as_if_they_had_not_stood_there(value: str) -> None:
    words, model = Words(["body"], 22, 0), Ftrl(0.5, 0.0, 0.0, 0.0, 22, 0, ("body",), True)
    hashed = load._wrap("ftrl", model, "binary", b"", ())
    everything = words.keys("body", value)
    for n in range(len(everything) + 1):
        for absent in itertools.combinations(everything, n):
            left = words.without("body", value, set(absent))
            if left is not None:
                kept = [k for k in everything if k not in absent]
                assert list(words.keys("body", left)) == kept
                assert len(hashed.numbers({"body": left})) == len(kept) + 1  # type: ignore[attr-defined]
            else:
                assert len(absent) == len(everything)


def test_growth_rests_in_between() -> None:
    known = bounded(10_000)
    known.a_second = 1000.0
    learned(known, row("a", "b", "c"))
    assert known.rest_s() == 0.0, "so few are not worth it"
    learned(known, row(*(f"n{i}" for i in range(97))))
    assert known.rest_s() == 0.1
    assert known.rest_s() == 0.0
    learned(known, row("a", "b", "c"))
    assert known.rest_s() == 0.0, "known names cost no rest"


def test_classes() -> None:
    classes = Classes(3)
    assert [classes.admit(c, (), 0.0, HOLD_S) for c in "abcd"] == [True, True, True, False]
    assert classes.admit("a", (), 1.0, HOLD_S), "promised"
    assert not classes.admit("d", {"a"}, 1.0, HOLD_S)
    assert classes.admit("d", {"a"}, 30.0, HOLD_S), "promises of rows that were not learned end"
    assert not classes.admit("e", {"a", "b", "d"}, 60.0, HOLD_S)


def test_a_number_and_its_text_are_one_class() -> None:
    classes = Classes(9)
    assert classes.spelled("3", {"3"}) == 3, "as it was first sent"
    assert classes.spelled(3, {'"3"'}) == "3"
    assert classes.spelled("-4", {"-4"}) == -4
    for known in ({"3", '"3"'}, {'"3"'}, {'"03"', '"x"'}, ()):
        assert classes.spelled("3", known) == "3"
    assert [classes.spelled(x, {"3"}) for x in ("03", "3.0", "", "-", "x", "³", "3" * 5000)] == [
        "03", "3.0", "", "-", "x", "³", "3" * 5000,
    ]  # fmt: skip
    assert classes.admit("7", (), 0.0, HOLD_S)
    assert classes.spelled("7", ()) == 7, "its row is not learned yet"


# -- a view that adds up ---------------------------------------------------------------------


def merged(*deltas: Blocks) -> Blocks:
    values: Blocks = {}
    for delta in deltas:
        algebra.merge(values, delta, 0.5)
    return values


def test_replicas_know_each_others_names_after_an_exchange() -> None:
    one, other = bounded(4), bounded(4)
    learned(one, row("a", "b"), "x")
    learned(other, row("b", "c"), "y")
    values = merged(one.cut(), other.cut())
    learned(one, row("z"), "x")
    for replica in (one, other):
        replica.rebase(values)
    assert (len(one), len(other)) == (4, 3)
    assert learned(one, row("c", "q")) == row("c")
    assert values[NAMES].data == {"a": 1, "b": 2, "c": 1}
    assert values[BROUGHT].data == {"x": 2, "y": 2}
    fresh = bounded(4)
    fresh.reset(values)
    assert len(fresh) == 3
    assert fresh._brought == {"x": 2, "y": 2}


def test_a_row_that_could_not_be_learned_has_brought_nothing() -> None:
    known = bounded(9)
    learned(known, row("a"))
    values = merged(known.cut())
    learned(known, row("b", "c"), "bad")
    values_of = algebra.select(values, known.touched())
    known.mend(values_of)
    assert len(known) == 1
    assert known._brought["bad"] == 0
    assert known.cut() == {}


# -- in a replica ----------------------------------------------------------------------------


LIMITS: Final = Limits(feedback_wait_s=60, names_max=6, names_share=1.0, classes_max=3)


def plain() -> Linear:
    return Linear(linear_model.LogisticRegression(optim.SGD(0.1)))


def event(name: str, features: Features, **more: Any) -> FeedbackRequest:
    return FeedbackRequest(**({"features": features, "label": True, "event_id": name} | more))


async def replica_of(world: Any, **more: Any) -> tuple[Any, Any]:
    replica = await world.replica(**({"build": plain, "task": "binary", "limits": LIMITS} | more))
    replica.learner.vocabulary.most = LIMITS.names_max
    replica.learner.vocabulary.share = LIMITS.names_share
    return replica, world.serving(replica)


async def fill(serving: Any) -> None:
    full = row(*(f"n{i}" for i in range(LIMITS.names_max)))
    assert (await serving.feedback(event("full", full)))[1].status == "learned"


OVER: Final[Features] = {"n1": 1.0, "new": 2.0}


async def _features(serving: Any) -> Any:
    return (await serving.feedback(event("over", dict(OVER))))[1]


async def _token(serving: Any) -> Any:
    given = serving.predict(PredictRequest(features=dict(OVER))).id
    return (await serving.feedback(FeedbackRequest(id=given, label=True)))[1]


async def _join(serving: Any) -> Any:
    serving.predict(PredictRequest(features=dict(OVER), id="visit-1"))
    return (await serving.feedback(FeedbackRequest(id="visit-1", label=True)))[1]


async def _many(serving: Any) -> Any:
    one = Event(features=dict(OVER), label=True, event_id="many")
    return (await serving.feedback(FeedbackRequest(events=[one])))[1].events[0]


@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("way", [_features, _token, _join, _many])
def test_by_every_way(tmp_path: Path, way: Any, ordered: bool) -> None:
    async def scene(world: Any) -> None:
        replica, serving = await replica_of(world, ordered=ordered)
        await fill(serving)
        receipt = await way(serving)
        assert receipt.status == "clipped", receipt
        assert receipt.reason.startswith(FULL)
        assert "new" in receipt.reason
        again = await way(serving)
        if way is not _token:
            assert (again.status, again.first_outcome) == ("duplicate", "clipped")
        found = replica.store.journal.read(replica.writer.partition, 2, 1)[0]
        example = codec.decode(found.payload)
        assert example.features == {"n1": 1.0}
        assert example.raw == left_out(example) == {"new": 2.0}
        assert "new" not in replica.learner.bounds.ends(["new", "n1"])
        values = replica.learner.bounds.cut()
        assert "new" not in values.get(RANGE, algebra.Block("extrema", {})).data
        assert len(replica.learner.vocabulary) == LIMITS.names_max
        await replica.stop(1.0)

    worlds.play(tmp_path, scene)


def test_a_row_of_new_names_only_is_refused_and_its_repeat_is_not(tmp_path: Path) -> None:
    async def scene(world: Any) -> None:
        replica, serving = await replica_of(world)
        await serving.feedback(event("early", row("x")))
        await serving.feedback(event("full", row(*"abcde")))
        with pytest.raises(RequestError) as caught:
            await serving.feedback(event("late", {"y\u200d": 1.0}))
        error = caught.value
        assert (error.status, error.code, error.field) == (422, "names_full", "features")
        assert "limits.names_max" in str(error.hint)
        assert replica.counts["names_left_out"] == 1
        replica.learner.vocabulary.reset({})
        replica.learner.vocabulary.most = 0  # as if others had taken all of it
        _, receipt = await serving.feedback(event("early", row("x")))
        assert (receipt.status, receipt.first_outcome) == ("duplicate", "learned")
        await replica.stop(1.0)

    worlds.play(tmp_path, scene)


def test_one_body_does_not_pass_the_bound(tmp_path: Path) -> None:
    async def scene(world: Any) -> None:
        replica, serving = await replica_of(world)
        events = [
            Event(features=row("n0", f"m{i}"), label=True, event_id=f"{i}") for i in range(50)
        ]
        _, receipts = await serving.feedback(FeedbackRequest(events=events))
        statuses = [receipt.status for receipt in receipts.events]
        assert statuses == ["learned"] * 5 + ["clipped"] * 45
        assert len(replica.learner.vocabulary) == LIMITS.names_max
        await replica.stop(1.0)

    worlds.play(tmp_path, scene)


def test_joins_that_wait_for_their_labels_do_not_pass_it_either(tmp_path: Path) -> None:
    async def scene(world: Any) -> None:
        replica, serving = await replica_of(world)
        for i in range(20):
            serving.predict(PredictRequest(features=row("n0", f"m{i}"), id=f"visit-{i}"))
        for i in range(20):
            await serving.feedback(FeedbackRequest(id=f"visit-{i}", label=True))
        assert len(replica.learner.vocabulary) == LIMITS.names_max
        await replica.stop(1.0)

    worlds.play(tmp_path, scene)


def test_whoever_grows_waits(tmp_path: Path) -> None:
    async def scene(world: Any) -> None:
        replica, serving = await replica_of(world)
        replica.learner.vocabulary.most, replica.learner.vocabulary.a_second = 10_000, 200.0
        loop = asyncio.get_running_loop()
        begun = loop.time()
        rows = [Event(features=row(f"g{i}"), label=True, event_id=f"g{i}") for i in range(60)]
        _, receipts = await serving.feedback(FeedbackRequest(events=rows))
        assert {receipt.status for receipt in receipts.events} == {"learned"}
        assert loop.time() - begun >= 58 / 200.0
        await replica.stop(1.0)

    worlds.play(tmp_path, scene)


def test_two_replicas_hold_the_bound_after_an_exchange(tmp_path: Path) -> None:
    async def scene(world: Any) -> None:
        one, first = await replica_of(world, name="r1")
        other, second = await replica_of(world, name="r2")
        await fill(first)
        await worlds.until(lambda: len(other.learner.vocabulary) == LIMITS.names_max)
        _, receipt = await second.feedback(event("over", dict(OVER)))
        assert receipt.status == "clipped"
        for replica in (one, other):
            await replica.stop(1.0)

    worlds.play(tmp_path, scene)


def test_after_a_start_and_after_a_forget(tmp_path: Path) -> None:
    """What a source that is forgotten had brought is free again; rows as they were written."""

    async def scene(world: Any) -> None:
        replica, serving = await replica_of(world)
        await serving.feedback(event("good", row("a", "b")))
        await serving.feedback(event("bad", row("x", "y", "z", "w"), source="bad"))
        _, receipt = await serving.feedback(event("over", row("a", "c")))
        assert receipt.status == "clipped"
        await worlds.until(lambda: not replica.learner.pushes(1))
        await replica.stop(1.0)
        world.server.snapshot()
        again, _ = await replica_of(world, name="again")
        assert len(again.learner.vocabulary) == 6
        await again.stop(1.0)
        made, _ = built(
            world.journal(), world.folder / "snapshots", ForgetScope("bad"), plain, task="binary"
        )
        values = made.state.values
        assert set(values[NAMES].data) == {"a", "b"}
        assert set(values["weights"].data) == {"a", "b"}

    worlds.play(tmp_path, scene)


def test_a_class_sent_as_number_and_as_text_is_learned_as_one(tmp_path: Path) -> None:
    async def scene(world: Any) -> None:
        replica, serving = await replica_of(
            world, task="multiclass", build=lambda: Linear(linear_model.SoftmaxRegression())
        )
        labels: list[Any] = [3, "3", "4", 4, 4.0]
        events = [
            Event(features=row("a"), label=label, event_id=f"{i}") for i, label in enumerate(labels)
        ]
        _, receipts = await serving.feedback(FeedbackRequest(events=events))
        assert [r.status for r in receipts.events] == ["learned"] * 5
        assert set(replica.learner.tally.seen) == {"3", '"4"'}
        for i, label in enumerate([3, "3", "4", 4, 4.0]):  # repeats, spelled either way
            _, again = await serving.feedback(event(f"{i}", row("a"), label=label))
            assert again.status == "duplicate"
        await replica.stop(1.0)

    worlds.play(tmp_path, scene)


def test_a_number_that_is_repeated_with_another_sign_of_zero_is_a_duplicate(tmp_path: Path) -> None:
    async def scene(world: Any) -> None:
        replica, serving = await replica_of(
            world, task="regression", build=lambda: Linear(linear_model.LinearRegression())
        )
        told = [
            (await serving.feedback(event("0", row("a"), label=label)))[1].status
            for label in (0.0, -0.0, 0, 1.0)
        ]
        assert told == ["learned", "duplicate", "duplicate", "conflict"]
        await replica.stop(1.0)

    worlds.play(tmp_path, scene)


def test_a_class_more_than_there_may_be_is_refused(tmp_path: Path) -> None:
    async def scene(world: Any) -> None:
        replica, serving = await replica_of(
            world, task="multiclass", build=lambda: Linear(linear_model.SoftmaxRegression())
        )
        events = [Event(features=row("a"), label=f"c{i}", event_id=f"{i}") for i in range(5)]
        _, receipts = await serving.feedback(FeedbackRequest(events=events))
        assert [r.status for r in receipts.events] == ["learned"] * 3 + ["refused"] * 2
        error = receipts.events[-1].error
        assert (error["code"], error["field"]) == ("classes_full", "events[4].label")
        with pytest.raises(RequestError, match="has 3 already"):
            await serving.feedback(FeedbackRequest(id="visit", label="c9"))
        token = serving.predict(PredictRequest(features=row("a"))).id
        with pytest.raises(RequestError, match="has 3 already"):
            await serving.feedback(FeedbackRequest(id=token, label="c9"))
        status, receipt = await serving.feedback(event("more", row("a"), label="c1"))
        assert (status, receipt.status) == (200, "learned")
        serving._reader._classes.most = 0  # as if it had been lowered: repeats are answered
        assert (await serving.feedback(event("more", row("a"), label="c1")))[0] == 200
        await replica.stop(1.0)

    worlds.play(tmp_path, scene)
