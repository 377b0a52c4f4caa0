"""Stored joins: short ids of the caller's own, and of predictions whose token would be too long."""

from __future__ import annotations

import asyncio
import inspect
import sys
import threading
import types
from collections.abc import Sequence
from pathlib import Path
from struct import Struct
from typing import Any

import msgspec
import pytest
import replica_world as worlds
from join_world import label, predict, refusal, written
from river import linear_model

import online.replica.replica
import online.replica.writer
from online.messages.structs import Event, FeedbackRequest, PredictRequest
from online.models.adapters.linear import Linear
from online.models.base import Prediction as Answer
from online.models.experts.linear import EXPERTS
from online.models.selfrate import SelfRate
from online.settings.limits import Limits
from replay import codec
from replay.errors import JournalFull, JournalUnavailable
from replay.example import NOTES_BYTES_MAX, LabelHalf, PredictionHalf
from replay.journal.base import Appended, Half, NewRow
from replay.journal.batch import Bounds
from replay.journal.sqlite.journal import SqliteJournal

_NOTED = Struct("<d")


def test_prediction_first(tmp_path: Path) -> None:
    async def scene(world: Any) -> None:
        replica = await world.replica()
        serving = world.serving(replica)
        assert predict(serving, "order:7") == "order:7"
        await written(replica)
        assert replica.counts["joins_kept"] == 1
        status, what, receipt = await label(serving, "order:7", source="shop", weight=2.0)
        assert (status, what, receipt.event_id) == (200, "learned", "order:7")
        assert receipt.idempotent
        assert world.weight(replica, "a") == 2, "with its weight, on the features predicted"
        assert (await label(serving, "order:7"))[:2] == (200, "duplicate")
        status, what, receipt = await label(serving, "order:7", 3.0, source="another")
        assert (status, what, receipt.first_outcome) == (409, "conflict", "learned")
        assert receipt.reason == "the label recorded first is 1000000000.0"
        row = world.journal().read(replica.writer.partition, 1, 9)[0]
        example = codec.decode(row.payload)
        assert (row.event_id, row.source, example.features) == ("order:7", "shop", {"a": 1.0})
        assert example.score is not None
        assert example.predicted_at is not None
        await replica.stop(5)

    worlds.play(tmp_path, scene)


def test_what_a_model_notes_gets_into_the_row_by_every_way(tmp_path: Path) -> None:
    async def scene(world: Any) -> None:
        replica = await world.replica(build=lambda: SelfRate().model_for("regression"))
        plain = world.serving(replica)
        for feature, own in (("a", None), ("b", "order:7")):
            await label(plain, predict(plain, own, feature), 3.0)
        await plain.feedback(FeedbackRequest(features={"c": 1.0}, label=3.0))
        rows = world.journal().read(replica.writer.partition, 1, 9)
        noted = [codec.decode(row.payload) for row in rows]
        assert [[*x.features] for x in noted] == [["a"], ["b"], ["c"]]
        for example in noted:
            assert example.notes is not None
            assert example.score is not None
            numbers = [number for (number,) in _NOTED.iter_unpack(example.notes)]
            assert len(numbers) >= EXPERTS, (
                "of each expert, and of the newest label once there is one"
            )
            assert min(numbers) <= example.score[""] <= max(numbers)
        await replica.stop(5)

    worlds.play(tmp_path, scene)


def test_notes_that_are_too_long_are_left_out(tmp_path: Path) -> None:
    class Verbose(Linear):
        notes = bytes(NOTES_BYTES_MAX)

        def predict(self, features: Any) -> Answer:
            return Answer(1.0, None, self.notes)

    async def scene(world: Any) -> None:
        replica = await world.replica(build=lambda: Verbose(linear_model.LinearRegression()))
        serving = world.serving(replica)
        for own, kept in (("at-the-bound", True), ("beyond", False)):
            await label(serving, predict(serving, own))
            row = world.journal().read(replica.writer.partition, 1, 9)[-1]
            assert (codec.decode(row.payload).notes is not None) is kept
            Verbose.notes += b"!"
        await replica.stop(5)

    worlds.play(tmp_path, scene)


def test_a_label_right_behind_its_prediction_finds_it(tmp_path: Path) -> None:
    async def scene(world: Any) -> None:
        replica = await world.replica(limits=Limits(ongoing_max=700, feedback_wait_s=60))
        serving = world.serving(replica)
        sent = []
        for i in range(300):  # more than one commit takes
            sent.append(label(serving, predict(serving, f"id-{i}", f"f{i}")))
        assert {what[:2] for what in await asyncio.gather(*sent)} == {(200, "learned")}
        assert world.weight(replica, "f0") == world.weight(replica, "f299") == 1
        await replica.stop(5)

    worlds.play(tmp_path, scene)


def test_label_first_is_learned_when_the_prediction_comes_and_nobody_waits(tmp_path: Path) -> None:
    async def scene(world: Any) -> None:
        one, two = await world.replica("one"), await world.replica("two")
        status, what, receipt = await label(world.serving(two), "x", event_time=5.0)
        assert (status, what) == (202, "waiting")
        assert "has been recorded yet" in receipt.reason
        assert (await label(world.serving(one), "x"))[:2] == (202, "waiting")
        assert predict(world.serving(one), "x") == "x"
        for replica in (one, two):
            await worlds.until(lambda r=replica: world.weight(r, "a") == 1)
        assert one.counts["joins_joined"] == 1
        for replica in (one, two):
            assert (await label(world.serving(replica), "x"))[:2] == (200, "duplicate")
            status, what, _ = await label(world.serving(replica), "x", 4.0)
            assert (status, what) == (409, "conflict")
        await one.stop(5)
        await two.stop(5)
        assert one.learner.tally.digest[0] == 1

    worlds.play(tmp_path, scene)


def test_the_first_of_two_labels_that_wait_wins(tmp_path: Path) -> None:
    async def scene(world: Any) -> None:
        replica = await world.replica()
        serving = world.serving(replica)
        assert (await label(serving, "x", 1.0))[:2] == (202, "waiting")
        assert (await label(serving, "x", 2.0))[:2] == (202, "waiting")
        predict(serving, "x")
        await worlds.until(lambda: replica.learner.tally.digest[0] == 1)
        assert (await label(serving, "x", 1.0))[:2] == (200, "duplicate")
        assert (await label(serving, "x", 2.0))[:2] == (409, "conflict")
        await replica.stop(5)

    worlds.play(tmp_path, scene)


def test_the_first_of_two_predictions_of_an_id_wins(tmp_path: Path) -> None:
    async def scene(world: Any) -> None:
        replica = await world.replica()
        serving = world.serving(replica)
        assert predict(serving, "x", "first") == predict(serving, "x", "second") == "x"
        await written(replica)
        assert predict(serving, "x", "third") == "x"
        await written(replica)
        assert (await label(serving, "x"))[:2] == (200, "learned")
        assert predict(serving, "x", "fourth") == "x"
        await written(replica)
        assert replica.counts["joins_reused"] == 3
        assert [world.weight(replica, f) for f in ("first", "second", "third", "fourth")] == [
            1, 0, 0, 0,
        ]  # fmt: skip
        await replica.stop(5)

    worlds.play(tmp_path, scene)


def test_a_label_that_waits_too_long_is_unknown(tmp_path: Path) -> None:
    now = [1e9]

    async def scene(world: Any) -> None:
        replica = await world.replica(label_wait=60, now_s=lambda: now[0])
        serving = world.serving(replica)
        assert (await label(serving, "x"))[:2] == (202, "waiting")
        now[0] += 59
        assert (await label(serving, "x"))[:2] == (202, "waiting")
        now[0] += 2
        error = await refusal(serving, "x")
        assert (error.status, error.code, error.field) == (404, "unknown_id", "id")
        assert error.hint
        events = [Event(label=1.0, id="x"), Event(label=1.0, id="y")]
        status, answer = await serving.feedback(FeedbackRequest(events=events))
        assert status == 200
        assert [event.status for event in answer.events] == ["refused", "waiting"]
        assert answer.events[0].error["code"] == "unknown_id"
        assert answer.events[0].error["field"] == "events[0].id"
        predict(serving, "x")  # late, and still it is learned
        await worlds.until(lambda: world.weight(replica, "a") == 1)
        assert (await label(serving, "x"))[:2] == (200, "duplicate")
        await replica.stop(5)

    worlds.play(tmp_path, scene)


def test_no_room_for_another_label(tmp_path: Path) -> None:
    async def scene(world: Any) -> None:
        journal = SqliteJournal(world.folder / "journal.db", disk_low_mb=0, bounds=Bounds(halves=1))
        replica = await world.replica(journal=journal)
        serving = world.serving(replica)
        assert (await label(serving, "x"))[:2] == (202, "waiting")
        error = await refusal(serving, "y")
        assert (error.status, error.code, error.retry_after_s) == (429, "joins_full", 1)
        assert replica.counts["joins_refused"] == 1
        predict(serving, "z")
        await written(replica)
        assert replica.counts["joins_dropped"] == 1
        predict(serving, "x")
        await worlds.until(lambda: world.weight(replica, "a") == 1)
        assert (await label(serving, "y"))[:2] == (202, "waiting"), "there is room again"
        await replica.stop(5)

    worlds.play(tmp_path, scene)


# -- written behind --------------------------------------------------------------------------


class Held(SqliteJournal):
    """Appends wait for ``open``."""

    open = threading.Event()
    batches: list[list[Half | None]] = []  # noqa: RUF012

    def append(
        self, partition: int, known: int, rows: Sequence[NewRow], epoch: int = 0
    ) -> Appended:
        assert self.open.wait(240)
        self.batches.append([row.half for row in rows])
        return super().append(partition, known, rows, epoch)


def test_predictions_do_not_wait_and_are_dropped_beyond_the_bound(tmp_path: Path) -> None:
    Held.open.clear()
    Held.batches.clear()

    async def scene(world: Any) -> None:
        journal = Held(world.folder / "journal.db", disk_low_mb=0)
        limits = Limits(joins_queue_max=5, feedback_wait_s=60)
        replica = await world.replica(journal=journal, limits=limits)
        serving = world.serving(replica)
        predict(serving, "taken")
        await worlds.until(lambda: replica.writer.writing)
        for i in range(8):
            assert predict(serving, f"p{i}") == f"p{i}"
        assert replica.counts["joins_dropped"] == 3
        sent = asyncio.create_task(label(serving, "p0"))
        await worlds.until(lambda: replica.writer.waiting == 1)
        assert replica.report()["joins_waiting"] == 5
        Held.open.set()
        assert (await sent)[:2] == (200, "learned")
        assert Held.batches == [[Half.PREDICTION], [*[Half.PREDICTION] * 5, Half.LABEL], [None]], (
            "one commit for all that waits, and one for the row of both halves"
        )
        assert (await label(serving, "p7"))[:2] == (202, "waiting"), "it was dropped"
        assert replica.report()["joins_waiting"] == 0
        await replica.stop(5)

    worlds.play(tmp_path, scene)


def test_large_predictions_are_bounded_by_their_bytes(tmp_path: Path) -> None:
    Held.open.clear()

    async def scene(world: Any) -> None:
        journal = Held(world.folder / "journal.db", disk_low_mb=0)
        limits = Limits(joins_queue_max=8, token_bytes_max=256, feedback_wait_s=60)
        replica = await world.replica(journal=journal, limits=limits)
        serving = world.serving(replica)
        predict(serving, "taken")
        await worlds.until(lambda: replica.writer.writing)
        for i in range(8):
            serving.predict(PredictRequest(features={f"f{k}": 1.0 for k in range(60)}, id=f"p{i}"))
        assert 1 <= replica.report()["joins_waiting"] < 8
        assert replica.report()["joins_waiting"] + replica.counts["joins_dropped"] == 8
        Held.open.set()
        await written(replica)
        await replica.stop(5)

    worlds.play(tmp_path, scene)


def test_what_waits_is_written_before_the_replica_stops(tmp_path: Path) -> None:
    async def scene(world: Any) -> None:
        replica = await world.replica("one")
        predict(world.serving(replica), "x")
        await replica.stop(5)
        other = await world.replica("two")
        assert (await label(world.serving(other), "x"))[:2] == (200, "learned")
        await other.stop(5)

    worlds.play(tmp_path, scene)


def test_a_full_store_drops_predictions_and_says_so(tmp_path: Path) -> None:
    class Full(SqliteJournal):
        def append(self, *args: Any) -> Appended:
            raise JournalFull(1.0, 256)

    async def scene(world: Any) -> None:
        journal = Full(world.folder / "journal.db", disk_low_mb=0)
        replica = await world.replica(journal=journal)
        predict(world.serving(replica), "x")
        await worlds.until(lambda: replica.counts["joins_dropped"] == 1)
        assert replica.incidents
        await replica.stop(5)

    worlds.play(tmp_path, scene)


@pytest.mark.parametrize("losses", [1, 3])
def test_a_lost_answer_is_no_reuse_and_no_duplicate(tmp_path: Path, losses: int) -> None:
    class Lossy(SqliteJournal):
        left = losses

        def append(self, *args: Any) -> Appended:
            appended = super().append(*args)
            if self.left:
                Lossy.left -= 1
                raise JournalUnavailable("the answer was lost")
            return appended

    async def scene(world: Any) -> None:
        replica = await world.replica(journal=Lossy(world.folder / "journal.db", disk_low_mb=0))
        serving = world.serving(replica)
        predict(serving, "x")
        assert (await label(serving, "x"))[:2] == (200, "learned")
        assert replica.counts["joins_reused"] == 0
        assert world.weight(replica, "a") == 1
        await replica.stop(5)

    worlds.play(tmp_path, scene)


def test_a_sealed_writer_writes_what_waits_into_its_next_partition(tmp_path: Path) -> None:
    async def scene(world: Any) -> None:
        first, second = await world.replica("first"), await world.replica("second")
        await second.exchange._adopt(first.writer.partition)
        predict(world.serving(first), "x")
        assert (await label(world.serving(second), "x", 1.0))[1] in ("waiting", "learned")
        for replica in (first, second):
            await worlds.until(lambda r=replica: r.learner.tally.digest[0] == 1)
        await first.stop(5)
        await second.stop(5)

    worlds.play(tmp_path, scene)


def test_a_row_that_a_journal_of_before_has_joined_reads_back() -> None:
    prediction = PredictionHalf({"a": 1.0}, {"": 2.0}, (1, 2, 3), 4.0, None)
    first = codec.encode_prediction(prediction)
    second = bytes([codec.FORMAT]) + msgspec.msgpack.encode(LabelHalf(3.0, 0.5, 6.0))
    example = codec.decode(bytes([codec.JOINED]) + len(first).to_bytes(4, "big") + first + second)
    assert (example.features, example.label, example.weight) == ({"a": 1.0}, 3.0, 0.5)


# -- what the tests above would notice -------------------------------------------------------

_MUTANTS = {
    "what a half meets is not decided about": (
        "left += self._settle(event, outcome)",
        "self._settle(event, outcome)",
        "test_label_first_is_learned_when_the_prediction_comes_and_nobody_waits",
    ),
    "labels before predictions": (
        "events += [Written(entry, waiting, i) for i, entry in enumerate(entries)]",
        "events = [*(Written(entry, waiting, i) for i, entry in enumerate(entries)), *events]",
        "test_predictions_do_not_wait_and_are_dropped_beyond_the_bound",
    ),
    "no bound": (
        "len(self) + len(halves) > self._rows_max or ",
        "",
        "test_predictions_do_not_wait_and_are_dropped_beyond_the_bound",
    ),
    "no bound of bytes": (
        "or self._bytes + size > self._bytes_max",
        "",
        "test_large_predictions_are_bounded_by_their_bytes",
    ),
    "stops before all is written": (
        "self.waiting or len(self._halves) or self.writing",
        "self.waiting",
        "test_what_waits_is_written_before_the_replica_stops",
    ),
    "reuse is not noticed": (
        "outcome.row is not None or (",
        "False and (",
        "test_the_first_of_two_predictions_of_an_id_wins",
    ),
}


@pytest.mark.parametrize("name", list(_MUTANTS))
def test_mutants_of_the_writer_are_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    rule, instead, test = _MUTANTS[name]
    names = (
        "online.rows.joins",
        "online.replica.joining",
        "online.replica.writer",
    )
    sources = {module: inspect.getsource(sys.modules[module]) for module in names}
    (changed,) = (module for module, source in sources.items() if rule in source)
    assert sources[changed].count(rule) == 1, name
    mutants = {}
    for module, source in sources.items():  # the writer imports the others
        mutants[module] = types.ModuleType(module)
        monkeypatch.setitem(sys.modules, module, mutants[module])
        text = source.replace(rule, instead)
        exec(compile(text, "<mutant>", "exec"), mutants[module].__dict__)
    monkeypatch.setattr(online.replica.replica, "Writer", mutants["online.replica.writer"].Writer)
    monkeypatch.setattr(worlds, "PATIENCE_S", worlds.IN_VAIN_S)
    with pytest.raises((AssertionError, TimeoutError, ValueError)):
        globals()[test](tmp_path)
