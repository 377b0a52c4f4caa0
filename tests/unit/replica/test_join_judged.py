"""Stored joins are judged when the halves meet, whichever half came second, and once."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from replica_world import KEYS, World, play, row, until
from test_filtering import counted, nats, opened, rows_of, told

import online.replica.joining
from online.messages.structs import FeedbackRequest, PredictRequest
from online.rows import joins
from online.rows.joins import Labelled, Predicted, entry_of
from replay import codec
from replay.example import Example, WaitingLabel
from replay.journal.base import Appended, NewRow, Verdict
from replay.journal.sqlite.journal import SqliteJournal

LIES = 20


def then() -> float:
    """The time of the rows of ``opened``: they are not a day old."""
    return 2.0


ORDERS = (
    "prediction first",
    "label first",
    "label first, elsewhere",
    "prediction first, elsewhere",
)


async def lie(world: World, pair: Sequence[Any], n: int, order: str) -> None:
    """One lie of source x, by a short id; the halves come in this order, to these replicas."""
    here = world.serving(pair[0])
    there = world.serving(pair[1] if order.endswith("elsewhere") else pair[0])
    asked = PredictRequest(features={f"x-{n}": 1.0}, id=f"lie-{n}")
    said = FeedbackRequest(label=1e9, id=f"lie-{n}", source="x")
    if order.startswith("prediction"):
        there.predict(asked)
        await until(lambda: all(replica.writer.idle for replica in pair))
        await here.feedback(said)
    else:
        assert (await there.feedback(said))[1].status == "waiting"
        here.predict(asked)
        await until(lambda: pair[0].counts["joins_joined"] > n)


def verdicts(world: World) -> list[Verdict]:
    journal = world.journal()
    found = [r for p in journal.partitions("m") for r in journal.read(p.id, 1, 999)]
    journal.close()
    return [r.verdict for r in sorted(found, key=lambda r: r.seq) if r.source == "x"]


@pytest.mark.parametrize("order", ORDERS)
def test_lies_by_short_ids_are_caught_as_those_with_features_are(
    tmp_path: Path, order: str
) -> None:
    async def scene(world: World) -> None:
        inline = await world.replica("inline", filters=told, now_s=then)
        await opened(inline)
        learned = counted(await inline.writer.record(rows_of("x", LIES, 100)))
        await inline.stop(2)
        assert learned == {"learned": 2, "clipped": 4, "quarantined": 14}

    async def stored(world: World) -> None:
        pair = [await world.replica(name, filters=told, now_s=then) for name in "ab"]
        for replica in pair:
            await opened(replica)
        for n in range(LIES):
            await lie(world, pair, n, order)
        found = verdicts(world)
        kinds = (Verdict.ACCEPTED, Verdict.CLIPPED, Verdict.QUARANTINED)
        assert [Counter(found)[kind] for kind in kinds] == [2, 4, 14], "as inline"
        assert nats(pair[0]) < -6.0
        for replica in pair:
            await until(lambda r=replica: nats(r) < -6.0)  # and the others know
            await replica.stop(2)

    play(tmp_path / "inline", scene)
    play(tmp_path / "stored", stored)


def test_the_receipt_says_why_and_the_row_holds_the_evidence(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        replica = await world.replica(filters=told, now_s=then)
        await opened(replica)
        for n in range(LIES):
            await lie(world, [replica, replica], n, "prediction first")
        serving = world.serving(replica)
        serving.predict(PredictRequest(features={"x": 1.0}, id="one-more"))
        await until(lambda: replica.writer.idle)
        said = FeedbackRequest(label=1e9, id="one-more", source="x")
        code, receipt = await serving.feedback(said)
        assert (code, receipt.status) == (202, "quarantined")
        assert "the source is quarantined" in receipt.reason
        stored = world.journal().find("m", KEYS.join(None, "lie-0"))
        assert stored is not None
        judged = codec.decode(stored.payload).judged
        assert judged is not None
        assert judged.evidence["told"] < 0
        before = nats(replica)
        assert (await serving.feedback(said))[1].status == "duplicate"
        assert nats(replica) == before, "a repeat says nothing twice"
        await replica.stop(2)

    play(tmp_path, scene)


@pytest.mark.parametrize("when", ["before the label", "while it waits"])
def test_a_ban_stops_a_label_that_waits(tmp_path: Path, when: str) -> None:
    async def scene(world: World) -> None:
        replica = await world.replica()
        serving = world.serving(replica)

        async def ban() -> None:
            world.server.ban("x", True)
            await until(lambda: replica.control.decisions.banned("x"))

        if when == "before the label":
            await ban()
        said = FeedbackRequest(label=1e9, id="a", source="x")
        assert (await serving.feedback(said))[1].status == "waiting"
        if when == "while it waits":
            await ban()
        serving.predict(PredictRequest(features={"a": 1.0}, id="a"))
        await until(lambda: replica.counts["joins_joined"] == 1)
        assert verdicts(world) == [Verdict.QUARANTINED]
        assert world.weight(replica, "a") == 0
        await replica.stop(2)

    play(tmp_path, scene)


@pytest.mark.parametrize("seed", range(3))
def test_halves_that_come_to_two_replicas_at_once_make_one_judged_row(
    tmp_path: Path, seed: int
) -> None:
    draw = random.Random(seed)

    async def scene(world: World) -> None:
        pair = [await world.replica(name, filters=told, now_s=then) for name in "ab"]
        for replica in pair:
            await opened(replica)
        servings = [world.serving(replica) for replica in pair]
        names = [f"id-{n}" for n in range(40)]
        halves = [(name, half) for name in names for half in ("p", "l", "l")]
        draw.shuffle(halves)

        async def one(name: str, half: str) -> None:
            serving = servings[draw.randrange(2)]
            if half == "p":
                serving.predict(PredictRequest(features={name: 1.0}, id=name))
            else:
                await serving.feedback(FeedbackRequest(label=1e9, id=name, source=f"h{name}"))

        await asyncio.gather(*(one(*half) for half in halves))
        await until(lambda: all(replica.writer.idle for replica in pair))
        for replica in pair:
            await until(lambda r=replica: r.learner.tally.digest[0] == 16 + 40)
        journal = world.journal()
        rows = [r for p in journal.partitions("m") for r in journal.read(p.id, 1, 999)]
        joined = [r for r in rows if r.event_id.startswith("id-")]
        assert sorted(r.event_id for r in joined) == sorted(names)
        assert all(codec.decode(r.payload).judged is not None for r in joined)
        assert journal.usage("m").halves == 0
        for replica in pair:
            assert all(world.weight(replica, name) == 1 for name in names)
            await replica.stop(2)

    play(tmp_path, scene)


# -- what another replica may do between two steps of one join -----------------------------------


class Beset(SqliteJournal):
    """Another replica writes just before an append in which a row joins two halves."""

    other: Any = None

    def append(
        self, partition: int, known: int, rows: Sequence[NewRow], epoch: int = 0
    ) -> Appended:
        act, Beset.other = Beset.other, None
        if act is not None and any(row.over is not None for row in rows):
            act(self)
        else:
            Beset.other = act
        return super().append(partition, known, rows, epoch)


def label_row(own: str, source: str, label: float = 1e9, at: float = 2e9) -> NewRow:
    key = KEYS.join(None, own)
    waiting = WaitingLabel(label, 1.0, None, source, own, at, (key,))
    return NewRow(
        key, own, source, Verdict.ACCEPTED, codec.encode_labels([waiting]), at,
        half=joins.Half.LABEL,
    )  # fmt: skip


def beset(tmp_path: Path, act: Any, second: str) -> tuple[World, list[Any]]:
    """A label meets its prediction, or it is met by it, while another replica acts."""
    seen: list[Any] = []

    async def scene(world: World) -> None:
        seen.append(world)
        journal = Beset(world.folder / "journal.db", disk_low_mb=0)
        replica = await world.replica(journal=journal)
        serving = world.serving(replica)
        said = FeedbackRequest(label=1e9, id="a", source="s")
        asked = PredictRequest(features={"a": 1.0}, id="a")
        if second == "label":
            serving.predict(asked)
            await until(lambda: replica.counts["joins_kept"] == 1)
        else:
            await serving.feedback(said)
        Beset.other = lambda journal: act(world)
        if second == "label":
            seen.append((await serving.feedback(said))[1])
        else:
            serving.predict(asked)
            await until(lambda: replica.writer.idle)
        Beset.other = None
        await replica.stop(2)

    play(tmp_path, scene)
    return seen[0], seen[1:]


def rows_in(world: World) -> list[Any]:
    journal = world.journal()
    return [r for p in journal.partitions("m") for r in journal.read(p.id, 1, 99)]


def other_append(world: World, *rows: NewRow) -> None:
    journal = world.journal()
    journal.append(journal.register("m", "other", "x", 1.0).id, 0, rows)
    journal.close()


@pytest.mark.parametrize("second", ["label", "prediction"])
def test_another_replica_joins_first(tmp_path: Path, second: str) -> None:
    def act(world: World) -> None:
        given = row("a")
        other_append(world, NewRow(
            KEYS.join(None, "a"), "a", "else", Verdict.ACCEPTED,
            codec.encode(Example({"a": 1.0}, 5.0)), given.at,
        ))  # fmt: skip

    world, answers = beset(tmp_path, act, second)
    assert [r.source for r in rows_in(world)] == ["else"]
    assert [a.status for a in answers] == (["conflict"] if second == "label" else [])


@pytest.mark.parametrize("second", ["label", "prediction"])
def test_the_other_half_expires_in_between(tmp_path: Path, second: str) -> None:
    def act(world: World) -> None:
        journal = world.journal()
        assert journal.expire("m", 1e12, 9) == 1
        journal.close()

    world, answers = beset(tmp_path, act, second)
    assert rows_in(world) == []
    assert world.journal().usage("m").halves == 1, "the second half waits in its place"
    assert [a.status for a in answers] == (["waiting"] if second == "label" else [])


def test_another_label_comes_while_the_prediction_takes_the_first(tmp_path: Path) -> None:
    def act(world: World) -> None:
        first = joins.labels_of(standing(world, "a"))
        (mine,) = codec.decode_labels(label_row("a", "late").payload)
        both = codec.encode_labels([*first, mine])
        over = codec.encode_labels(first)
        given = label_row("a", "late")
        other_append(world, NewRow(
            given.key, "a", "late", Verdict.ACCEPTED, both, given.at, half=given.half, over=over,
        ))  # fmt: skip

    world, _ = beset(tmp_path, act, "prediction")
    assert [r.source for r in rows_in(world)] == ["s"], "the first one still"
    assert world.journal().usage("m").halves == 0


def standing(world: World, own: str) -> Any:
    """The half that stands under an id, as whoever brings another one is told."""
    journal = world.journal()
    partition = journal.register("m", "looks", "x", 1.0).id
    probe = label_row(own, "nobody")
    (outcome,) = journal.append(partition, 0, [probe]).outcomes
    journal.close()
    assert outcome.met is not None
    return outcome.met


# -- labels of several sources -------------------------------------------------------------------


def test_labels_of_several_sources_wait_side_by_side_up_to_a_bound(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        from online.errors import RequestError
        from online.settings.limits import Limits

        replica = await world.replica(limits=Limits(feedback_wait_s=60, waiting_labels_max=3))
        serving = world.serving(replica)

        def said(source: str, label: float = 1e9) -> Any:
            return serving.feedback(FeedbackRequest(label=label, id="a", source=source))

        for source in ("s1", "s2", "s3"):
            assert (await said(source))[1].status == "waiting"
        with pytest.raises(RequestError) as caught:
            await said("s4")
        assert (caught.value.status, caught.value.code) == (429, "joins_full")
        assert (await said("s2", 3.0))[1].status == "waiting", "its first one stands"
        assert world.journal().usage("m").halves == 1
        serving.predict(PredictRequest(features={"a": 1.0}, id="a"))
        await until(lambda: replica.counts["joins_joined"] == 1)
        assert [r.source for r in rows_in(world)] == ["s1"]
        assert (await said("s2"))[1].status == "duplicate"
        assert (await said("s3", 3.0))[1].status == "conflict"
        await replica.stop(2)

    play(tmp_path, scene)


def test_a_label_whose_time_is_over_makes_room(tmp_path: Path) -> None:
    now = [1e9]

    async def scene(world: World) -> None:
        from online.settings.limits import Limits

        replica = await world.replica(
            limits=Limits(feedback_wait_s=60, waiting_labels_max=1), now_s=lambda: now[0],
            token_lifetime=100, dedupe_window=200,
        )  # fmt: skip
        serving = world.serving(replica)
        await serving.feedback(FeedbackRequest(label=1e9, id="a", source="s1"))
        now[0] += 101
        await serving.feedback(FeedbackRequest(label=1e9, id="a", source="s2"))
        assert [x.source for x in joins.labels_of(standing(world, "a"))] == ["s2"]
        await replica.stop(2)

    play(tmp_path, scene)


def test_a_label_of_a_journal_of_before_is_met(tmp_path: Path) -> None:
    """It waits alone, and says its source in the store's own column."""

    async def scene(world: World) -> None:
        import msgspec

        old = bytes([codec.FORMAT]) + msgspec.msgpack.encode((1e9, 2.0, None))
        given = label_row("a", "shop")
        other_append(world, NewRow(
            given.key, "a", "shop", Verdict.ACCEPTED, old, time.time(), half=given.half,
        ))  # fmt: skip
        replica = await world.replica()
        serving = world.serving(replica)
        second = await serving.feedback(FeedbackRequest(label=3.0, id="a", source="late"))
        assert second[1].status == "waiting"
        serving.predict(PredictRequest(features={"a": 1.0}, id="a"))
        await until(lambda: replica.counts["joins_joined"] == 1)
        (joined,) = rows_in(world)
        example = codec.decode(joined.payload)
        assert (joined.source, joined.event_id, example.label, example.weight) == (
            "shop", "a", 1e9, 2.0,
        )  # fmt: skip
        await replica.stop(2)

    play(tmp_path, scene)


def test_an_event_that_others_are_always_faster_than_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from online.errors import RequestError

    monkeypatch.setattr(online.replica.joining, "ROUNDS_MAX", 3)
    monkeypatch.setattr(Labelled, "take", lambda self, outcomes: None)

    async def scene(world: World) -> None:
        replica = await world.replica()
        with pytest.raises(RequestError) as caught:
            await world.serving(replica).feedback(FeedbackRequest(label=1.0, id="a"))
        assert caught.value.status == 503
        assert replica.writer.waiting == 0
        await replica.stop(2)

    play(tmp_path, scene)


def test_which_kind_of_entry_a_row_is() -> None:
    label = label_row("a", "s")
    prediction = NewRow(label.key, "a", "", Verdict.ACCEPTED, b"x", 1.0, half=joins.Half.PREDICTION)
    assert isinstance(entry_of(label, 1, 0.0), Labelled)
    assert isinstance(entry_of(prediction, 1, 0.0), Predicted)
    assert entry_of(row("a"), 1, 0.0).rows[0].event_id == "a"
