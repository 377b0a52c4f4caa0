"""Labels that change: a provisional lesson is taken back once, by the final label of its event."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import forgetting_world as forgetting
import pytest
import replica_world as worlds
from msgspec.structs import replace
from provisional_world import asked_of, event, guess, half, provisional_row, refused, sent, weight

import online.replica.answers
import online.replica.corrections
import online.rows.history
from online.learning.base import BaseLearner
from online.messages.structs import Event, FeedbackRequest, PredictRequest
from online.rebuild.rebuild import ForgetScope
from online.replica.corrections import Lesson
from online.rows import history
from online.rows.finals import corrected
from replay.journal.base import Verdict

Scene = Callable[[Any], Awaitable[None]]


async def final_takes_the_place(world: Any) -> None:
    replica = await world.replica(build=half)
    serving = world.serving(replica)
    status, first = await guess(serving, "a", 8.0)
    assert (status, first.status, weight(replica, "a")) == (200, "learned", 4.0)
    assert replica.learner.tally.counters.get("n", 0) == 0, "it counts in no score"
    status, last = await sent(serving, "a", 2.0)
    assert (status, last.status, last.corrects) == (200, "learned", first.seen)
    assert (last.event_id, last.seen) != (first.event_id, first.seen)
    assert weight(replica, "a") == 1.0
    assert replica.learner.tally.counters["n"] == 1
    assert replica.counts["corrected"] == 1
    await replica.stop(5)


async def repeats_say_what_stands(world: Any) -> None:
    replica = await world.replica(build=half)
    serving = world.serving(replica)
    await guess(serving, "a", 8.0)
    again, other = await guess(serving, "a", 8.0), await guess(serving, "a", 6.0)
    assert (again[1].status, other[0], other[1].status) == ("duplicate", 409, "conflict")
    await sent(serving, "a", 2.0)
    for label in (8.0, 6.0, 2.0):
        status, late = await guess(serving, "a", label)
        assert (status, late.status, late.first_outcome) == (200, "duplicate", "learned")
    status, same = await sent(serving, "a", 2.0)
    assert (status, same.status, same.first_outcome) == (200, "duplicate", "learned")
    status, third = await sent(serving, "a", 3.0)
    assert (status, third.status, third.first_outcome) == (409, "conflict", "learned")
    assert "2.0" in third.reason
    assert weight(replica, "a") == 1.0
    await sent(serving, "b", 2.0)
    status, late = await guess(serving, "b", 8.0)
    assert (status, late.status, weight(replica, "b")) == (200, "duplicate", 1.0)
    await replica.stop(5)


async def confirmed_label_is_final_too(world: Any) -> None:
    replica = await world.replica(build=half)
    serving = world.serving(replica)
    await guess(serving, "a", 8.0)
    status, last = await sent(serving, "a", 8.0)
    assert (status, last.status, weight(replica, "a")) == (200, "learned", 4.0)
    assert replica.learner.tally.counters["n"] == 1
    assert (await sent(serving, "a", 2.0))[1].status == "conflict"
    await replica.stop(5)


async def both_in_one_body_and_by_token(world: Any) -> None:
    replica = await world.replica(build=half)
    serving = world.serving(replica)
    token = serving.predict(PredictRequest(features={"b": 1.0})).id
    own = [Event(8.0, features={"a": 1.0}, event_id="a", provisional=True)]
    own += [Event(2.0, features={"a": 1.0}, event_id="a"), Event(8.0, token, provisional=True)]
    own += [Event(2.0, token), Event(2.0, token), Event(8.0, token, provisional=True)]
    _, receipts = await serving.feedback(FeedbackRequest(events=own))
    said = [receipt.status for receipt in receipts.events]
    assert said == ["learned"] * 4 + ["duplicate"] * 2
    assert (weight(replica, "a"), weight(replica, "b")) == (1.0, 1.0)
    await replica.stop(5)


async def replicas_at_once_take_it_back_once(world: Any) -> None:
    first, second = await world.replica("r1", build=half), await world.replica("r2", build=half)
    a, b = world.serving(first), world.serving(second)
    for i in range(8):
        await guess(a, f"e{i}", 8.0)
    finals = [sent(serving, f"e{i}", 2.0) for i in range(8) for serving in (a, b, a)]
    said = [receipt.status for _, receipt in await asyncio.gather(*finals)]
    assert sorted(said) == ["duplicate"] * 16 + ["learned"] * 8
    await worlds.until(
        lambda: all(weight(r, f"e{i}") == 1.0 for r in (first, second) for i in range(8)), 30.0
    )
    await asyncio.gather(first.stop(5), second.stop(5))


async def what_was_not_learned_is_not_taken_back(world: Any) -> None:
    replica = await world.replica(build=half)
    serving = world.serving(replica)
    for verdict, name in ((Verdict.QUARANTINED, "q"), (Verdict.FROZEN, "f")):
        await provisional_row(replica, name, verdict)
        status, last = await sent(serving, name, 2.0)
        assert (status, last.status, weight(replica, name)) == (200, "learned", 1.0)
        assert not isinstance(last.corrects, str)
    assert (await sent(serving, "q", 2.0))[1].status == "duplicate"
    await replica.stop(5)


async def what_is_kept_back_is_not_taught_after_its_final_label(world: Any) -> None:
    replica = await world.replica(build=half)
    serving = world.serving(replica)
    await provisional_row(replica, "q", Verdict.QUARANTINED)
    await provisional_row(replica, "r", Verdict.QUARANTINED)
    kept = asked_of(replica)
    place = f"{replica.writer.partition}:"
    done = await kept.decide_rows("m", "released", [f"{place}2"])
    assert (done["released"], weight(replica, "r")) == (1, 4.0)
    for name in "qr":
        assert (await sent(serving, name, 2.0))[1].status == "learned"
    await kept.decide_rows("m", "released", [f"{place}1"])
    assert (weight(replica, "q"), weight(replica, "r")) == (1.0, 1.0)
    world.server.freeze()
    await worlds.until(lambda: replica.learner.frozen, 240.0)
    assert (await guess(serving, "f", 8.0))[1].status == "frozen"
    world.server.unfreeze()
    await worlds.until(lambda: not replica.learner.frozen, 240.0)
    await sent(serving, "f", 2.0)
    done = await kept.relearn("m", "frozen", None, 10)
    assert (done["learned"], done["duplicate"], weight(replica, "f")) == (0, 1, 1.0)
    await replica.stop(5)


async def what_failed_is_not_taken_back(world: Any) -> None:
    replica = await world.replica(build=half)
    serving = world.serving(replica)
    key = worlds.KEYS.event("web", "x")
    replica.control.decisions.failed[key.hex()] = "it raised"
    await provisional_row(replica, "x", Verdict.ACCEPTED)
    await sent(serving, "x", 2.0)
    assert weight(replica, "x") == 1.0
    await replica.stop(5)


async def released_meanwhile(world: Any) -> None:
    """Released, and not taught yet when the final label comes."""
    replica = await world.replica(build=half)
    serving = world.serving(replica)
    await provisional_row(replica, "q", Verdict.QUARANTINED)
    key = worlds.KEYS.event("web", "q")
    history.decide(replica.store.journal, "m", key, history.RELEASED)
    assert (await sent(serving, "q", 2.0))[1].status == "learned"
    kept = asked_of(replica)
    await kept.decide_rows("m", "released", [f"{replica.writer.partition}:1"])
    assert weight(replica, "q") == 1.0
    await replica.stop(5)


SCENES: dict[str, Scene] = {
    scene.__name__: scene
    for scene in (
        final_takes_the_place,
        repeats_say_what_stands,
        confirmed_label_is_final_too,
        both_in_one_body_and_by_token,
        replicas_at_once_take_it_back_once,
        what_was_not_learned_is_not_taken_back,
        what_is_kept_back_is_not_taught_after_its_final_label,
        what_failed_is_not_taken_back,
        released_meanwhile,
    )
}


@pytest.mark.parametrize("scene", SCENES.values(), ids=list(SCENES))
def test_a_provisional_label_counts_until_the_final_one_and_no_longer(
    tmp_path: Path, scene: Scene
) -> None:
    worlds.play(tmp_path, scene)


def _never_met(*_: Any) -> bool:
    return False


def _nothing_before(self: BaseLearner, example: Any) -> None:
    return None


def _first_is_always_taken_back(*place: Any) -> Lesson:
    return Lesson(place[-1], b"")


@pytest.mark.parametrize(
    ("owner", "name", "instead", "scene"),
    [
        (online.replica.answers, "may_change", _never_met, final_takes_the_place),
        (BaseLearner, "_before", _nothing_before, final_takes_the_place),
        (
            online.replica.corrections,
            "lesson",
            _first_is_always_taken_back,
            what_was_not_learned_is_not_taken_back,
        ),
    ],
    ids=["finals are duplicates", "nothing is taken back", "always taken back"],
)
def test_a_rule_that_is_left_out_is_noticed(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    owner: Any,
    name: str,
    instead: Any,
    scene: Scene,
) -> None:
    monkeypatch.setattr(owner, name, instead)
    with pytest.raises(AssertionError):
        worlds.play(tmp_path, scene)


@pytest.mark.parametrize(
    ("source", "left"), [("web", 1.0), ("shop", 4.0)], ids=["the first's", "the final's"]
)
def test_forgetting_one_of_both_sources_leaves_the_lesson_of_the_other(
    tmp_path: Path, source: str, left: float
) -> None:
    async def scene(world: Any) -> None:
        replica = await world.replica(build=half)
        serving = world.serving(replica)
        await guess(serving, "a", 8.0)
        await sent(serving, "other", 5.0)
        # the same event: what its label is is said by another source
        (asked,) = [await serving._reader.read(event("a", 2.0), "")]
        await replica.writer.record([replace(asked.row, source="shop")], [asked.example])
        assert weight(replica, "a") == 1.0
        journal = world.journal()
        made, _ = forgetting.built(journal, world.folder / "snapshots", ForgetScope(source), half)
        journal.close()
        weights = made.state.values["weights"].data
        assert weights["a"] == left
        assert made.undone, "a row is out"
        await replica.stop(5)

    worlds.play(tmp_path, scene)


def test_a_label_that_nobody_could_take_back_is_refused_with_the_remedy(tmp_path: Path) -> None:
    async def scene(world: Any) -> None:
        replica = await world.replica(build=half)
        serving = world.serving(replica)
        nameless = replace(event("a", 1.0, provisional=True), event_id=None)
        error = await refused(serving, nameless)
        assert (error.status, error.field) == (422, "event_id")
        serving.predict(PredictRequest(features={"a": 1.0}, id="mine"))
        error = await refused(serving, FeedbackRequest(1.0, id="mine", provisional=True))
        assert (error.status, error.field) == (422, "provisional")
        await replica.stop(5)
        other = await world.replica("r2")  # learns by the sign of the error
        error = await refused(world.serving(other), event("a", 1.0, provisional=True))
        assert (error.status, error.code) == (422, "not_revised")
        assert "Absolute" in error.message
        assert (await sent(world.serving(other), "a", 1.0))[1].status == "learned"
        await other.stop(5)

    worlds.play(tmp_path, scene)


def test_a_row_is_a_final_one_only_by_its_key(tmp_path: Path) -> None:
    async def scene(world: Any) -> None:
        replica = await world.replica(build=half)
        serving = world.serving(replica)
        await guess(serving, "a", 8.0)
        await sent(serving, "a", 2.0)
        first, last = replica.store.journal.read(replica.writer.partition, 1, 2)
        assert corrected(first) is None
        assert corrected(last) == (first.partition, first.offset)
        assert corrected(replace(first, event_id=last.event_id)) is None
        await replica.stop(5)

    worlds.play(tmp_path, scene)
