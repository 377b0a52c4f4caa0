"""Labels that change while others write, or the journal fails: each teaches once all the same."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import replica_world as worlds
from provisional_world import asked_of, event, frozen, guess, half, refused, sent, weight

import online.replica.corrections
import online.rows.history
from online.messages.structs import Event, FeedbackRequest, PredictRequest
from online.rows import history
from replay import codec
from replay.errors import JournalHeld, JournalUnavailable
from replay.journal.base import Row
from replay.journal.batch import Bounds
from replay.journal.sqlite.journal import SqliteJournal

Scene = Callable[[Any], Awaitable[None]]


class FailingJournal(SqliteJournal):
    """Appends as often as is left to it (None: always), then refuses definitely.

    ``unread``: the step that gives no answer.
    """

    appends_left: int | None = None
    unread = ""

    def append(self, *args: Any, **more: Any) -> Any:
        if self.appends_left is not None:
            if self.appends_left == 0:
                raise JournalHeld("a test", 1.0)
            self.appends_left -= 1
        return super().append(*args, **more)

    def find(self, model: str, key: bytes) -> Row | None:
        if self.unread == "find":
            raise JournalUnavailable("a test")
        return super().find(model, key)

    def controls(self, *args: Any, **more: Any) -> Any:
        if self.unread == "controls":
            raise JournalUnavailable("a test")
        return super().controls(*args, **more)


class Asked:
    """Passes on what is asked for, and counts what reads."""

    def __init__(self, asked: Any) -> None:
        self.asked, self.reads = asked, 0

    def __getattr__(self, name: str) -> Any:
        self.reads += name in ("read", "read_retrying", "current")
        return getattr(self.asked, name)


async def final_of_a_frozen_model_is_taught_alone(world: Any) -> None:
    replica = await world.replica(build=half)
    serving = world.serving(replica)
    await frozen(world, True, replica)
    assert (await guess(serving, "f", 8.0))[1].status == "frozen"
    assert (await sent(serving, "f", 2.0))[1].status == "frozen"
    await frozen(world, False, replica)
    done = await asked_of(replica).relearn("m", "frozen", None, 10)
    assert (done["learned"], weight(replica, "f")) == (1, 1.0)
    await replica.stop(5)


async def learned_again_while_its_final_label_comes(world: Any, status: str) -> None:
    """Another process has made the page that is learned again, and no row of it is written."""
    first, second = await world.replica("r1", build=half), await world.replica("r2", build=half)
    serving, name = world.serving(first), ""
    await guess(serving, "before", 8.0)
    if status == "frozen":
        await frozen(world, True, first, second)
    else:
        place = {first.writer.partition: 1}
        await worlds.until(lambda: world.server.status()["clock"] == place, 240.0)
        name = world.server.snapshot()["name"]
    await guess(serving, "a", 8.0)
    if status == "frozen":
        await frozen(world, False, first, second)
    else:
        place = {first.writer.partition: 2}
        await worlds.until(lambda: world.server.status()["clock"] == place, 240.0)
        assert world.server.rollback(name)["undone"] == 1
        await worlds.until(lambda: weight(first, "a") == weight(second, "a") == 0.0, 240.0)
    kept: Any = asked_of(second)

    async def meanwhile(*_: Any) -> None:
        assert (await sent(serving, "a", 2.0))[1].status == "learned"

    kept.note = meanwhile
    done = await kept.relearn("m", status, None, 10)
    assert (done["learned"], done["duplicate"]) == (0, 1)
    await worlds.until(lambda: weight(first, "a") == weight(second, "a") != 0.0, 240.0)
    assert weight(second, "a") == 1.0
    await asyncio.gather(first.stop(5), second.stop(5))


async def frozen_one_is_taught_at_the_same_time(world: Any) -> None:
    await learned_again_while_its_final_label_comes(world, history.FROZEN)


async def undone_one_is_taught_at_the_same_time(world: Any) -> None:
    await learned_again_while_its_final_label_comes(world, history.UNDONE)


async def undone_by(world: Any, *replicas: Any) -> None:
    """A provisional label of 8 for a is learned, and taken out by a rollback."""
    serving = world.serving(replicas[0])
    await guess(serving, "before", 8.0)
    place = {replicas[0].writer.partition: 1}
    await worlds.until(lambda: world.server.status()["clock"] == place, 30.0)
    name = world.server.snapshot()["name"]
    await guess(serving, "a", 8.0)
    place = {replicas[0].writer.partition: 2}
    await worlds.until(lambda: world.server.status()["clock"] == place, 30.0)
    assert world.server.rollback(name)["undone"] == 1
    await worlds.until(lambda: all(weight(r, "a") == 0.0 for r in replicas), 30.0)


def meanwhile(replica: Any, act: Callable[[], Awaitable[None]]) -> None:
    """Do something once, after a final label was looked up and before it is written."""
    corrections = replica.writer._corrections
    rows, done = corrections._rows, list[bool]()

    async def looked(finals: Any) -> Any:
        found = await rows(finals)
        if not done:
            done.append(True)
            await act()
        return found

    corrections._rows = looked


async def a_ban_is_lifted_before_the_final_label_is_written(world: Any) -> None:
    first, second = await world.replica("r1", build=half), await world.replica("r2", build=half)
    await undone_by(world, first, second)
    world.server.ban("web", True)
    await worlds.until(lambda: first.control.decisions.banned("web"), 30.0)

    async def lifted() -> None:
        world.server.ban("web", False)
        assert (await asked_of(second).relearn("m", "undone", None, 10))["learned"] == 1

    meanwhile(first, lifted)
    final = event("a", 2.0)
    _, last = await world.serving(first).feedback(final)
    assert last.status == "learned"
    await worlds.until(lambda: weight(first, "a") == weight(second, "a") != 0.0, 30.0)
    assert weight(second, "a") == 1.0
    await asyncio.gather(first.stop(5), second.stop(5))


async def a_rollback_and_a_relearn_come_before_the_final_label_is_written(world: Any) -> None:
    first, second = await world.replica("r1", build=half), await world.replica("r2", build=half)
    await guess(world.serving(first), "before", 8.0)
    place = {first.writer.partition: 1}
    await worlds.until(lambda: world.server.status()["clock"] == place, 30.0)
    name = world.server.snapshot()["name"]
    await guess(world.serving(first), "a", 8.0)
    place = {first.writer.partition: 2}
    await worlds.until(lambda: world.server.status()["clock"] == place, 30.0)

    async def taken_out_and_taught_again() -> None:
        assert world.server.rollback(name)["undone"] == 1
        assert (await asked_of(second).relearn("m", "undone", None, 10))["learned"] == 1

    meanwhile(first, taken_out_and_taught_again)
    assert (await sent(world.serving(first), "a", 2.0))[1].status == "learned"
    # Without the rule it is answered before the replica has read what was decided.
    await worlds.until(lambda: bool(first.control.decisions.rewrites), 30.0)
    rewrite = first.control.decisions.rewrites[-1].seq
    both = (first, second)
    await worlds.until(lambda: all(r.learner.rewrite == rewrite for r in both), 30.0)
    await worlds.until(lambda: all(not r.learner.own for r in both), 30.0)
    await worlds.until(lambda: weight(first, "a") == weight(second, "a"), 30.0)
    assert weight(second, "a") == 1.0
    await asyncio.gather(first.stop(5), second.stop(5))


async def the_first_label_fails_before_the_final_one_is_written(world: Any) -> None:
    replica = await world.replica(build=half)
    await guess(world.serving(replica), "a", 8.0)
    (first,) = replica.store.journal.follow("m", 0, 10).rows

    async def failed() -> None:
        await replica.control.write_failed(first, "a test")

    meanwhile(replica, failed)
    assert (await sent(world.serving(replica), "a", 2.0))[1].status == "learned"
    last = replica.store.journal.follow("m", 0, 10).rows[-1]
    corrects = codec.decode(last.payload).corrects
    assert corrects is not None
    assert corrects.offset == 0, "it takes back what has taught nothing"
    await replica.stop(5)


async def it_dies_after_the_first_row_that_it_writes(world: Any) -> None:
    """The final label of an event that is undone is one row: nothing is taught without it."""
    journal = FailingJournal(world.folder / "journal.db", disk_low_mb=0)
    replica = await world.replica(build=half, journal=journal)
    await undone_by(world, replica)
    journal.appends_left = 2  # the event is known, and one more
    assert (await sent(world.serving(replica), "a", 2.0))[1].status == "learned"
    assert weight(replica, "a") == 1.0
    journal.appends_left = None
    await replica.stop(5)


SCENES: dict[str, Scene] = {
    scene.__name__: scene
    for scene in (
        final_of_a_frozen_model_is_taught_alone,
        frozen_one_is_taught_at_the_same_time,
        undone_one_is_taught_at_the_same_time,
        a_ban_is_lifted_before_the_final_label_is_written,
        a_rollback_and_a_relearn_come_before_the_final_label_is_written,
        the_first_label_fails_before_the_final_one_is_written,
        it_dies_after_the_first_row_that_it_writes,
    )
}


@pytest.mark.parametrize("scene", SCENES.values(), ids=list(SCENES))
def test_a_label_that_is_learned_again_beside_its_final_one_counts_once(
    tmp_path: Path, scene: Scene
) -> None:
    worlds.play(tmp_path, scene)


def _whatever(**_: Any) -> None:
    return None


@pytest.mark.parametrize(
    ("name", "instead", "scene"),
    [
        ("Only", _whatever, final_of_a_frozen_model_is_taught_alone),
        ("Only", _whatever, frozen_one_is_taught_at_the_same_time),
        ("Only", _whatever, undone_one_is_taught_at_the_same_time),
    ],
    ids=["taught again", "frozen", "undone"],
)
def test_a_rule_that_is_left_out_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, instead: Any, scene: Scene
) -> None:
    monkeypatch.setattr(online.rows.history, name, instead)
    with pytest.raises(AssertionError):
        worlds.play(tmp_path, scene)


@pytest.mark.parametrize(
    "scene",
    [
        a_ban_is_lifted_before_the_final_label_is_written,
        a_rollback_and_a_relearn_come_before_the_final_label_is_written,
        the_first_label_fails_before_the_final_one_is_written,
    ],
)
def test_a_final_label_that_is_written_whatever_was_decided_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scene: Scene
) -> None:
    monkeypatch.setattr(online.replica.corrections, "Only", lambda *_: None)
    with pytest.raises(AssertionError):
        worlds.play(tmp_path, scene)


@pytest.mark.parametrize("kept", [False, True], ids=["learned", "frozen"])
def test_final_labels_of_a_commit_are_looked_up_together(tmp_path: Path, kept: bool) -> None:
    async def scene(world: Any) -> None:
        replica = await world.replica(build=half)
        serving = world.serving(replica)
        if kept:
            await frozen(world, True, replica)
        for name in "abcdefgh":
            await guess(serving, name, 8.0, source="default")
        if kept:
            await frozen(world, False, replica)
        corrections = replica.writer._corrections
        store = corrections._store = Asked(replica.store)
        control = corrections._control = Asked(replica.control)
        finals = [Event(2.0, features={name: 1.0}, event_id=name) for name in "abcdefgh"]
        _, receipts = await serving.feedback(FeedbackRequest(events=finals))
        assert {receipt.status for receipt in receipts.events} == {"learned"}
        assert (control.reads, store.reads) == (1, 1)
        await replica.stop(5)

    worlds.play(tmp_path, scene)


def test_final_labels_that_cannot_be_looked_up_are_refused_definitely(tmp_path: Path) -> None:
    async def scene(world: Any) -> None:
        journal = FailingJournal(world.folder / "journal.db", disk_low_mb=0)
        replica = await world.replica(build=half, journal=journal)
        serving = world.serving(replica)
        await guess(serving, "a", 8.0)
        for journal.unread, provisional in (("controls", False), ("find", True)):
            error = await refused(serving, event("a", 2.0, provisional=provisional))
            assert (error.status, error.code) == (503, "journal_refused")
        journal.unread = ""
        await worlds.until(lambda: replica.writer.idle, 240.0)
        assert (await sent(serving, "a", 2.0))[1].status == "learned"
        assert weight(replica, "a") == 1.0
        await replica.stop(5)

    worlds.play(tmp_path, scene)


def test_a_request_that_is_refused_twice_is_counted_off_once(tmp_path: Path) -> None:
    async def scene(world: Any) -> None:
        journal = FailingJournal(world.folder / "journal.db", disk_low_mb=0, bounds=Bounds(1))
        replica = await world.replica(build=half, journal=journal)
        serving = world.serving(replica)
        await guess(serving, "a", 8.0, source="default")
        serving.predict(PredictRequest(features={"b": 1.0}, id="mine"))
        await worlds.until(lambda: replica.writer.idle, 240.0)
        journal.appends_left = 1  # one event is known, and nothing is written
        both = [Event(2.0, features={"a": 1.0}, event_id="a"), Event(1.0, id="mine")]
        error = await refused(serving, FeedbackRequest(events=both))
        await worlds.until(lambda: not replica.writer.writing, 240.0)
        assert (error.status, replica.counts["refused_journal"]) == (503, 2)
        assert replica.writer.waiting == 0
        journal.appends_left = None
        _, receipts = await serving.feedback(FeedbackRequest(events=both))
        assert [receipt.status for receipt in receipts.events] == ["learned", "learned"]
        assert replica.writer.waiting == 0
        await replica.stop(5)

    worlds.play(tmp_path, scene)
