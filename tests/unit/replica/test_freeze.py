"""A frozen model answers, keeps feedback as frozen rows, and learns what came before."""

from __future__ import annotations

import asyncio
import inspect
import textwrap
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
import replica_world as worlds

import online.replica.exchange
from online.messages.structs import FeedbackRequest, PredictRequest
from online.rows import history
from paramserver.core import rewrites, wire
from paramserver.errors import ShardAway
from replay.journal.base import Verdict


class Told(worlds.Client):  # type: ignore[misc]
    """What the server answers, with a decision that it has not made itself."""

    control, frozen = 0, False

    def __init__(self, server: Any) -> None:
        super().__init__(server)
        self.reported: dict[str, int] = {}
        self.pushed = 0

    async def sync(self, request: wire.SyncRequest, timeout_s: float) -> wire.SyncReply:
        decided = {"control": self.control, "frozen": self.frozen}
        reply = await super().sync(request, timeout_s)
        self.reported[request.replica] = request.control
        self.pushed += len(request.pushes)
        return msgspec.structs.replace(reply, **decided)


class Partly(Told):
    """Another shard than the first may be away: no reply, but what the first says is decided."""

    away = False

    async def sync(self, request: wire.SyncRequest, timeout_s: float) -> wire.SyncReply:
        reply = await super().sync(request, timeout_s)
        if self.away:
            raise ShardAway("m", "away", reply.control, reply.frozen, reply.rewrite)
        return reply


def told(world: Any, control: int, *, frozen: bool) -> None:
    """The control row ``control`` freezes or unfreezes the model."""
    if not isinstance(world.client, Told):
        world.client = Told(world.server)
    world.client.control, world.client.frozen = control, frozen


async def acted(world: Any, *replicas: Any) -> None:
    """Until the replicas have reported the newest control row."""
    control = world.client.control
    await worlds.until(
        lambda: all(world.client.reported.get(r.replica) == control for r in replicas)
    )


def event(name: str, label: float = 1e9) -> FeedbackRequest:
    return FeedbackRequest(features={name: 1.0}, label=label, event_id=name)


async def sent(serving: Any, request: FeedbackRequest) -> tuple[int, str, Any]:
    status, receipt = await serving.feedback(request)
    return status, receipt.status, receipt


def test_bans_and_freezes_hold_while_a_shard_is_away(tmp_path: Path) -> None:
    async def scene(world: Any) -> None:
        world.client = Partly(world.server)
        replica = await world.replica()
        serving = world.serving(replica)
        assert (await sent(serving, event("before")))[1] == "learned"
        await worlds.until(lambda: world.server.status()["count"] == 1)
        world.client.away = True
        banned = msgspec.json.encode(rewrites.Source("bad", True))
        row, _ = world.journal().write_control("m", rewrites.SOURCE, "ban", banned)
        told(world, row.seq, frozen=False)
        await acted(world, replica)
        bad = FeedbackRequest(features={"bad": 1.0}, label=1.0, event_id="bad", source="bad")
        assert (await sent(serving, bad))[1] == "quarantined"
        assert (await sent(serving, event("owed")))[1] == "learned", "of others all goes on"
        told(world, row.seq + 1, frozen=True)
        await worlds.until(lambda: replica.learner.frozen)
        assert (await sent(serving, event("after")))[1] == "frozen"
        assert world.client.reported[replica.replica] == row.seq, "a learned row is owed"
        world.client.away = False
        await acted(world, replica)
        assert [world.weight(replica, f) for f in ("before", "owed", "after")] == [1, 1, 0]

    worlds.play(tmp_path, scene)


def test_a_freeze_behind_a_rewrite_waits_for_all_shards(tmp_path: Path) -> None:
    async def scene(world: Any) -> None:
        world.client = Partly(world.server)
        replica = await world.replica()
        await worlds.until(lambda: replica.learner.ready)
        later = ShardAway("m", "away", 9, True, replica.learner.rewrite + 1)
        await replica.exchange._decide(later)
        assert (replica.learner.control, replica.learner.frozen) == (0, False)

    worlds.play(tmp_path, scene)


def test_feedback_of_a_frozen_model_is_kept_and_not_learned(tmp_path: Path) -> None:
    async def scene(world: Any) -> None:
        told(world, 0, frozen=False)
        replica = await world.replica()
        serving = world.serving(replica)
        assert (await sent(serving, event("before")))[:2] == (200, "learned")
        told(world, 7, frozen=True)
        await acted(world, replica)
        version = replica.version
        token = serving.predict(PredictRequest(features={"a": 1.0})).id
        status, what, receipt = await sent(serving, event("after"))
        assert (status, what, receipt.seen) == (202, "frozen", msgspec.UNSET)
        assert (await sent(serving, FeedbackRequest(id=token, label=1.0)))[:2] == (202, "frozen")
        for request, first in ((event("before"), "learned"), (event("after"), "frozen")):
            status, what, receipt = await sent(serving, request)
            assert (status, what, receipt.first_outcome) == (
                202 if first == "frozen" else 200, "duplicate", first,
            )  # fmt: skip
        status, what, receipt = await sent(serving, event("after", 3.0))
        assert (status, what, receipt.first_outcome) == (409, "conflict", "frozen")
        many = FeedbackRequest(events=[event("x"), event("before"), event("y")])
        status, answer = await serving.feedback(many)
        assert (status, [e.status for e in answer.events]) == (
            200, ["frozen", "duplicate", "frozen"],
        )  # fmt: skip
        assert world.weight(replica, "after") == 0
        assert (replica.version, replica.learner.own) == (version, 0), "the version stands"
        rows = world.journal().read(replica.writer.partition, 1, 99)
        assert [row.verdict for row in rows] == [Verdict.ACCEPTED, *[Verdict.FROZEN] * 4]
        assert not replica.writer.committed, "memory does not grow while it is frozen"

        told(world, 8, frozen=False)
        await acted(world, replica)
        assert (await sent(serving, event("again")))[:2] == (200, "learned")
        assert (await sent(serving, event("after")))[2].first_outcome == "frozen"
        assert [world.weight(replica, f) for f in ("before", "after", "again")] == [1, 0, 1]
        await replica.stop(5)
        status = world.server.status()
        assert status["clock"] in ({replica.writer.partition: 6}, {})

    worlds.play(tmp_path, scene)


def test_a_freeze_is_acted_on_when_all_from_before_is_pushed(tmp_path: Path) -> None:
    worlds.Held.open.clear()
    worlds.Held.appends = 0

    async def scene(world: Any) -> None:
        told(world, 0, frozen=False)
        journal = worlds.Held(world.folder / "journal.db", disk_low_mb=0)
        replica = await world.replica(journal=journal)
        serving = world.serving(replica)
        before = asyncio.create_task(sent(serving, event("before")))
        await worlds.until(
            lambda: worlds.Held.appends == 1
        )  # decided as to be learned, not written yet
        told(world, 7, frozen=True)
        await worlds.until(lambda: replica.learner.frozen)
        after = asyncio.create_task(sent(serving, event("after")))
        met = world.client.met
        await worlds.until(lambda: world.client.met > met + 5)
        assert world.client.reported[replica.replica] == 0
        worlds.Held.open.set()
        assert (await before)[:2] == (200, "learned")
        assert (await after)[:2] == (202, "frozen")
        await acted(world, replica)
        # 2: the frozen row has been passed over, too
        assert replica.learner.clock.get(replica.writer.partition) in (1, 2)
        assert replica.learner.tally.digest[0] == 1
        assert replica.learner.own == 0
        await replica.stop(5)

    worlds.play(tmp_path, scene)


def test_a_failed_last_row_does_not_keep_a_freeze_from_being_acted_on(tmp_path: Path) -> None:

    async def scene(world: Any) -> None:
        told(world, 0, frozen=False)
        replica = await world.replica(build=lambda: worlds.Picky(worlds.counting().estimator))
        serving = world.serving(replica)
        world.client.down = True
        assert (await sent(serving, event("good")))[:2] == (200, "learned")
        assert (await sent(serving, event("bad")))[:2] == (422, "failed")
        told(world, 7, frozen=True)
        world.client.down = False
        await acted(world, replica)
        assert replica.learner.own == 0
        await replica.stop(5)

    worlds.play(tmp_path, scene)


def test_the_mutant_that_reports_at_once_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = textwrap.dedent(inspect.getsource(online.replica.exchange.Exchange._note_acted_on))
    # either of them holds back the report of a row that is being committed
    for rule in (
        "if self._learner.frozen and unfinished:",
        "if writer.committing and writer.judged_by < self._learner.control:",
    ):
        assert source.count(rule) == 1
        source = source.replace(rule, "if False:")
    names = dict(vars(online.replica.exchange))
    exec(compile(source, "<mutant>", "exec"), names)
    monkeypatch.setattr(online.replica.exchange.Exchange, "_note_acted_on", names["_note_acted_on"])
    with pytest.raises(AssertionError):
        test_a_freeze_is_acted_on_when_all_from_before_is_pushed(tmp_path)
    worlds.Held.open.set()


def test_a_frozen_replica_stops_without_a_push(tmp_path: Path) -> None:
    async def scene(world: Any) -> None:
        told(world, 0, frozen=False)
        replica = await world.replica()
        serving = world.serving(replica)
        assert (await sent(serving, event("before")))[:2] == (200, "learned")
        told(world, 7, frozen=True)
        await acted(world, replica)
        assert (await sent(serving, event("after")))[:2] == (202, "frozen")
        world.client.down = True
        begun = time.monotonic()
        await replica.stop(300)
        assert time.monotonic() - begun < 150, "it did not wait for a push"
        partition = world.journal().partition(replica.writer.partition)
        assert (partition.sealed, partition.end) == (True, 2)

    worlds.play(tmp_path, scene)


def test_the_second_half_of_a_join_decides(tmp_path: Path) -> None:
    async def scene(world: Any) -> None:
        told(world, 0, frozen=False)
        replica = await world.replica()
        serving = world.serving(replica)
        serving.predict(PredictRequest(features={"a": 1.0}, id="prediction-first"))
        assert (await sent(serving, FeedbackRequest(id="label-first", label=1e9)))[1] == "waiting"
        told(world, 7, frozen=True)
        await acted(world, replica)
        request = FeedbackRequest(id="prediction-first", label=1e9)
        assert (await sent(serving, request))[:2] == (202, "frozen")
        serving.predict(PredictRequest(features={"b": 1.0}, id="label-first"))
        await worlds.until(lambda: replica.counts["joins_joined"] == 1)
        status, what, receipt = await sent(serving, FeedbackRequest(id="label-first", label=1e9))
        assert (status, what, receipt.first_outcome) == (202, "duplicate", "frozen")
        assert replica.learner.tally.digest[0] == 0
        await replica.stop(5)

    worlds.play(tmp_path, scene)


def decide(world: Any, kind: str, decision: Any) -> int:
    control, fresh = world.journal().write_control(
        "m", kind, f"{kind}:{time.monotonic_ns()}", msgspec.json.encode(decision)
    )
    assert fresh
    seq: int = control.seq
    return seq


def test_a_repeat_says_where_a_frozen_event_was_learned_at_last(tmp_path: Path) -> None:
    async def scene(world: Any) -> None:
        told(world, 0, frozen=False)
        replica = await world.replica()
        serving = world.serving(replica)
        told(world, decide(world, rewrites.FREEZE, rewrites.Freeze({}, [])), frozen=True)
        await acted(world, replica)
        assert (await sent(serving, event("a")))[:2] == (202, "frozen")
        told(world, decide(world, rewrites.UNFREEZE, rewrites.Unfreeze()), frozen=False)
        await acted(world, replica)
        assert not (await sent(serving, event("a")))[2].learned_as
        decisions, journal = history.Decisions(worlds.SPEC), world.journal()
        decisions.read(journal, "m")
        page = history.walk(journal, "m", decisions, history.FROZEN, None, 10)
        again = page.events[0].again(time.time())
        assert (await replica.writer.record([again]))[0].status == "learned"
        assert world.weight(replica, "a") == 1
        status, what, receipt = await sent(serving, event("a"))
        assert (status, what, receipt.first_outcome) == (202, "duplicate", "frozen")
        assert receipt.learned_as == f"{replica.writer.partition}:2"
        assert world.weight(replica, "a") == 1
        await replica.stop(5)

    worlds.play(tmp_path, scene)


def test_a_repeat_says_that_an_event_is_undone_and_whether_it_was_learned_again(
    tmp_path: Path,
) -> None:
    async def scene(world: Any) -> None:
        replica = await world.replica()
        serving = world.serving(replica)
        for name in ("kept", "undone"):
            assert (await sent(serving, event(name)))[:2] == (200, "learned")
        partition = replica.writer.partition
        rollback = rewrites.Rollback(worlds.SPEC, "s", 0, {partition: 2}, [], {partition: (1, 2)})
        decide(world, rewrites.ROLLBACK, rollback)
        assert (await sent(serving, event("kept")))[2].first_outcome == "learned"
        status, what, receipt = await sent(serving, event("undone"))
        assert (status, what, receipt.first_outcome) == (200, "duplicate", "undone")
        assert not receipt.learned_as
        decisions, journal = history.Decisions(worlds.SPEC), world.journal()
        decisions.read(journal, "m")
        page = history.walk(journal, "m", decisions, history.UNDONE, None, 10)
        again = page.events[0].again(time.time())
        assert (await replica.writer.record([again]))[0].status == "learned"
        receipt = (await sent(serving, event("undone")))[2]
        assert (receipt.first_outcome, receipt.learned_as) == ("undone", f"{partition}:3")
        await replica.stop(5)

    worlds.play(tmp_path, scene)


def test_freeze_unfreeze_and_rollback_by_the_server(tmp_path: Path) -> None:
    async def scene(world: Any) -> None:
        one, two = await world.replica("one"), await world.replica("two")
        first, second = world.serving(one), world.serving(two)
        assert (await sent(first, event("kept")))[:2] == (200, "learned")
        await worlds.until(lambda: world.server.status()["clock"] == {one.writer.partition: 1})
        name = world.server.snapshot()["name"]
        for serving, event_name in ((first, "a"), (second, "b")):
            assert (await sent(serving, event(event_name)))[:2] == (200, "learned")
        world.server.freeze()
        for replica in (one, two):
            await worlds.until(lambda r=replica: r.learner.frozen and not r.learner.own)
        assert (await sent(second, event("c")))[:2] == (202, "frozen")
        world.server.unfreeze()
        for replica in (one, two):
            await worlds.until(lambda r=replica: not r.learner.frozen)
        undone = world.server.rollback(name)["undone"]
        assert undone in (2, 3), "and the frozen row, if it was in the clock already"
        for replica in (one, two):
            await worlds.until(
                lambda r=replica: (
                    [world.weight(r, f) for f in ("kept", "a", "b", "c")] == [1, 0, 0, 0]
                )
            )
        for serving in (first, second):
            for event_name, was in (("kept", "learned"), ("a", "undone"), ("b", "undone")):
                status, what, receipt = await sent(serving, event(event_name))
                assert (status, what, receipt.first_outcome) == (200, "duplicate", was)
            assert (await sent(serving, event("c")))[2].first_outcome == "frozen"
        assert (await sent(first, event("d")))[:2] == (200, "learned")
        for replica in (one, two):
            await worlds.until(lambda r=replica: world.weight(r, "d") == 1)
            assert replica.learner.tally.digest[0] == 2
            await replica.stop(5)

    worlds.play(tmp_path, scene)
