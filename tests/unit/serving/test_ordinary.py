"""Ordinary events that are read together become the rows that they become one by one."""

from __future__ import annotations

import random
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import pytest
import replica_world as worlds
from river import linear_model, optim, preprocessing

from online.errors import RequestError
from online.messages.sender import sender
from online.messages.structs import Event, FeedbackRequest, PredictRequest, Receipts
from online.models.adapters.linear import Linear
from online.rows.prediction_ids import event_key
from online.serving.feedback.ordinary import EventRow, Ordinary, Unfit
from online.serving.serving import Serving
from online.settings.limits import Limits
from online.settings.tokens import Grant
from replay import codec
from replay.example import Example
from replay.journal.base import NewRow, Verdict
from replay.journal.sqlite.journal import SqliteJournal
from replay.journal.sqlite.schema import FAR_KEYS

NAMES = "abcdef"


def logistic() -> Linear:
    return Linear(preprocessing.StandardScaler() | linear_model.LogisticRegression(optim.SGD(0.05)))


def event(rng: random.Random, i: int, **more: Any) -> Event:
    features: dict[str, Any] = {name: rng.random() for name in NAMES}
    given = {"features": features, "label": rng.random() < 0.5, "event_id": f"e{i}", **more}
    return Event(**given)


async def taught(world: worlds.World, **settings: Any) -> Serving:
    """Predict and feedback of a model that knows the names."""
    replica = await world.replica(build=logistic, task="binary", **settings)
    serving, rng = world.serving(replica), random.Random(0)
    wide = [{name: rng.uniform(-2, 3) for name in NAMES} for _ in range(200)]
    receipts = await serving.record([event(rng, i, features=x) for i, x in enumerate(wide)])
    assert {receipt.status for receipt in receipts} == {"learned"}
    return serving


def same(one: EventRow, other: EventRow) -> None:
    """Both are the same row, up to the last bits of what the model has answered."""
    parts = [msgspec.structs.asdict(asked.row) for asked in (one, other)]
    for part in parts:
        part.pop("payload")
        part.pop("at")
    assert parts[0] == parts[1]
    assert (one.label, one.idempotent) == (other.label, other.idempotent)
    found = [msgspec.structs.asdict(codec.decode(asked.row.payload)) for asked in (one, other)]
    assert one.example == codec.decode(one.row.payload)
    scores = [example.pop("score") for example in found]
    assert scores[0] == pytest.approx(scores[1], abs=1e-12)
    for example in found:
        example.pop("predicted_at")
    assert found[0] == found[1]


def older(folder: Path) -> None:
    """Give the folder a journal of the earlier form of keys."""
    SqliteJournal(folder / "journal.db").close()
    with closing(sqlite3.connect(folder / "journal.db")) as db, db:
        db.execute("UPDATE meta SET value = ? WHERE name = 'keys'", (FAR_KEYS,))


@pytest.mark.parametrize("near", [True, False])
def test_rows_are_those_of_one_by_one(tmp_path: Path, near: bool) -> None:
    if not near:
        older(tmp_path)

    async def scene(world: worlds.World) -> None:
        serving, rng = await taught(world), random.Random(1)
        numbers = {name: rng.choice([1, 0, True, 0.5]) for name in NAMES}
        events = [event(rng, 1000 + i) for i in range(40)]
        events += [event(rng, 2000, features=numbers), event(rng, 2001, source="another")]
        events += [event(rng, 2002, event_time=serving._now_s() - 5.0), event(rng, 2003, label=1)]
        events += [event(rng, 2004, features=dict(reversed(numbers.items())))]
        rng.shuffle(events)
        together = serving._reader.ordinary.read(events)
        for one, asked in zip(events, together, strict=True):
            assert isinstance(asked, EventRow), one
            alone = await serving._reader.read(one, "")
            assert isinstance(alone, EventRow)
            same(asked, alone)
            key = event_key("event", alone.row.source, alone.row.event_id)
            assert alone.row.key[4:] == key[4:]
            assert (alone.row.key[:4] == key[:4]) is not near
        await serving.replica.stop(1.0)

    worlds.play(tmp_path, scene)


def test_a_repeat_is_recognised_in_a_journal_of_the_earlier_form(tmp_path: Path) -> None:
    """What an earlier version learned is known: by id, by token and by an id of the asker."""
    older(tmp_path)

    async def scene(world: worlds.World) -> None:
        serving, rng = await taught(world), random.Random(4)
        writer, payload = serving.replica.writer, codec.encode(Example({"a": 1.0}, True))
        token = serving.predict(PredictRequest(features={"a": 1.0})).id
        nonce = serving._reader._tokens.read(token)[0]
        for kind, name in (("event", "e"), ("token", nonce), ("join", "own")):
            parts = ("default", name) if kind == "event" else (name,)
            key = event_key(kind, *parts)
            old = NewRow(key, name, "default", Verdict.ACCEPTED, payload, serving._now_s())
            assert (await writer.record([old]))[0].status == "learned"
        repeats = [event(rng, 0, event_id="e"), Event(id=token, label=True)]
        for repeat in (*repeats, Event(id="own", label=True)):
            (receipt,) = await serving.record([repeat])
            assert receipt.duplicate, repeat
        await serving.replica.stop(1.0)

    worlds.play(tmp_path, scene)


ODD: dict[str, dict[str, Any]] = {
    "an outlier": {"features": dict.fromkeys(NAMES, 1e6)},
    "not a number": {"features": dict.fromkeys(NAMES, float("nan"))},
    "beyond the validator": {"features": dict.fromkeys(NAMES, 1e101)},
    "an integer beyond the validator": {"features": dict.fromkeys(NAMES, 2**53 + 1)},
    "an integer beyond all floats": {"features": dict.fromkeys(NAMES, 10**400)},
    "a new name": {"features": {"z": 0.5}},
    "text": {"features": {"a": "x"}},
    "nothing": {"features": {}},
    "no features": {"features": None},
    "a list": {"features": {"a": [1.0]}},
    "no label": {"label": msgspec.UNSET},
    "labels": {"label": [True]},
    "another label": {"label": "yes"},
    "a weight": {"weight": 2.0},
    "no weight": {"weight": "1"},
    "an id": {"id": "mine"},
    "orders": {"event_id": "e\x1b[2J"},
    "a source of orders": {"source": "s\x1b[2J"},
    "old": {"event_time": 5.0},
    "ahead": {"event_time": 1.7e12},
}


@pytest.mark.parametrize("name", list(ODD))
def test_all_that_is_odd_is_left_to_who_reads_one_by_one(tmp_path: Path, name: str) -> None:
    async def scene(world: worlds.World) -> None:
        serving, rng = await taught(world), random.Random(2)
        events = [event(rng, 1), event(rng, 2, **ODD[name]), event(rng, 3)]
        found = serving._reader.ordinary.read(events)
        assert [one is None for one in found] == [False, True, False]
        await serving.replica.stop(1.0)

    worlds.play(tmp_path, scene)


def test_the_sender_decides_for_all(tmp_path: Path) -> None:
    async def scene(world: worlds.World) -> None:
        serving, rng = await taught(world), random.Random(3)
        events = [event(rng, 1), event(rng, 2, source="own")]
        sender.set(Grant(source="own"))
        assert [one is None for one in serving._reader.ordinary.read(events)] == [True, False]
        sender.set(Grant(weight_max=0.5))
        assert serving._reader.ordinary.read(events) == [None, None]
        await serving.replica.stop(1.0)

    worlds.play(tmp_path, scene)


def test_a_body_of_all_kinds_is_answered_in_its_order(tmp_path: Path) -> None:
    async def scene(world: worlds.World) -> None:
        serving, rng = await taught(world, limits=Limits(feedback_wait_s=60)), random.Random(4)
        odd = event(rng, 9, features=None)
        events = [event(rng, 10_000 + i) for i in range(300)]
        events[7], events[150] = odd, event(rng, 10_000)
        events[200] = event(rng, 77_000, features=dict.fromkeys(NAMES, 1e6))
        status, answer = await serving.feedback(FeedbackRequest(events=events))
        assert status == 200
        assert isinstance(answer, Receipts)
        told = [receipt.status for receipt in answer.events]
        assert (told[7], told[200]) == ("refused", "clipped")
        assert told[150] in ("duplicate", "conflict")
        others = [s for i, s in enumerate(told) if i not in (7, 150, 200)]
        assert set(others) == {"learned"}
        offsets = [int(str(r.seen).split(":")[1]) for r in answer.events if r.status == "learned"]
        assert offsets == sorted(offsets)
        before, after = answer.events[0], answer.events[1]
        assert before.version == after.version_before
        await serving.replica.stop(1.0)

    worlds.play(tmp_path, scene)


def test_without_the_ranges_an_outlier_would_be_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "online.learning.bounds.Bounds.inside", lambda self, names, x, most: x[:, 0] == x[:, 0]
    )
    with pytest.raises(AssertionError):
        test_all_that_is_odd_is_left_to_who_reads_one_by_one(tmp_path, "an outlier")


def test_a_row_that_no_row_may_hold_is_refused_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scene(world: worlds.World) -> None:
        serving, rng = await taught(world), random.Random(5)
        asked: list[str] = []

        class Odd(Unfit):
            asleep = False

            def refusal(self, row: Any, example: Any) -> RequestError | None:
                asked.append(row.event_id)
                odd = RequestError(422, "value_refused", "odd")
                return odd if row.event_id == "e801" else None

        reader = serving._reader
        reader.ordinary = Ordinary(
            serving.replica,
            serving._validator,
            reader.answer_ids.known,
            Odd(serving.replica),
            serving._now_s,
        )
        several = [event(rng, i) for i in (803, 804, 801, 805)]
        several[1] = event(rng, 804, weight=0.5)
        receipts = await serving.record(several)
        assert [r.status for r in receipts] == ["learned", "learned", "refused", "learned"]
        assert asked == ["e803", "e801", "e805"]
        await serving.replica.stop(1.0)

    worlds.play(tmp_path, scene)
