"""Single events that come at once are recorded together, and each is answered for itself."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Any

import pytest
import replica_world as worlds
from test_ordinary import NAMES, ODD, event, taught

from online.errors import RequestError
from online.messages.sender import sender
from online.messages.structs import Event, FeedbackRequest, Receipt
from online.serving.feedback.ordinary import Ordinary
from online.serving.serving import Serving
from online.settings.limits import Limits
from online.settings.tokens import Grant
from replay.errors import JournalUnavailable


def request(one: Event) -> FeedbackRequest:
    return FeedbackRequest(
        one.label, one.id, one.features, one.event_id, one.source, one.weight, one.event_time
    )


async def sent(serving: Serving, events: list[Event]) -> list[Any]:
    """What single requests are answered that come in one turn of the loop."""
    asked = [serving.feedback(request(one)) for one in events]
    return await asyncio.gather(*asked, return_exceptions=True)


def groups(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of events that are read together from now on."""
    sizes: list[int] = []
    read = Ordinary.read

    def counted(self: Ordinary, events: Any) -> Any:
        sizes.append(len(events))
        return read(self, events)

    monkeypatch.setattr(Ordinary, "read", counted)
    return sizes


def test_each_is_answered_as_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene(world: worlds.World) -> None:
        serving, rng = await taught(world), random.Random(1)
        sizes = groups(monkeypatch)
        events = [event(rng, 1000 + i) for i in range(12)]
        events[3] = event(rng, 2000, features=dict.fromkeys(NAMES, 1e6))
        events[5] = event(rng, 2001, features=None)
        events[8] = event(rng, 1000, label=not events[0].label)
        events[9] = event(rng, 1001, label=events[1].label)
        told = await sent(serving, events)
        assert sizes == [12]
        assert isinstance(told[5], RequestError)
        assert told[5].status == 422
        answers = [t for i, t in enumerate(told) if i != 5]
        kinds = [receipt.status for _, receipt in answers]
        assert kinds == [
            "learned", "learned", "learned", "clipped", "learned", "learned", "learned",
            "conflict", "duplicate", "learned", "learned",
        ]  # fmt: skip
        assert [status for status, _ in answers].count(409) == 1
        names = [receipt.event_id for _, receipt in answers]
        assert names == [e.event_id for i, e in enumerate(events) if i != 5]
        seen = [int(r.seen.split(":")[1]) for _, r in answers if r.status == "learned"]
        assert len(set(seen)) == len(seen)
        assert serving.replica.writer.waiting == 0
        counts = serving.replica.counts
        assert counts["feedback_learned"] == 200 + 8
        await serving.replica.stop(1.0)

    worlds.play(tmp_path, scene)


@pytest.mark.parametrize("name", ["an outlier", "not a number", "a new name", "a weight", "old"])
def test_what_is_odd_is_answered_as_when_it_comes_alone(tmp_path: Path, name: str) -> None:
    async def scene(world: worlds.World) -> None:
        serving, rng = await taught(world), random.Random(2)
        odd = [event(rng, 5000 + n, **ODD[name]) for n in (1, 2)]
        (alone,) = await sent(serving, odd[:1])
        told = await sent(serving, [event(rng, 5011), odd[1], event(rng, 5012)])
        assert [t[1].status for t in (told[0], told[2])] == ["learned", "learned"]
        if isinstance(alone, RequestError):
            assert isinstance(told[1], RequestError)
            assert (told[1].status, told[1].code) == (alone.status, alone.code)
        else:
            assert (told[1][0], told[1][1].status) == (alone[0], alone[1].status)
        await serving.replica.stop(1.0)

    worlds.play(tmp_path, scene)


def test_a_model_that_raises_on_all_of_them_is_asked_about_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scene(world: worlds.World) -> None:
        serving, rng = await taught(world), random.Random(7)

        def fails(names: Any, x: Any) -> Any:
            raise ArithmeticError("columns")

        monkeypatch.setattr(serving.replica.learner.serving, "predict_columns", fails)
        told = await sent(serving, [event(rng, 5000 + i) for i in range(4)])
        assert [answer[1].status for answer in told] == ["learned"] * 4
        await serving.replica.stop(1.0)

    worlds.play(tmp_path, scene)


def test_who_goes_away_changes_nothing_for_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scene(world: worlds.World) -> None:
        serving, rng = await taught(world), random.Random(8)
        events = [event(rng, 5000 + i) for i in range(4)]
        partition, let_go = serving.replica.writer._at, asyncio.Event()
        append = partition.append

        async def waits(rows: Any) -> Any:
            await let_go.wait()
            return await append(rows)

        monkeypatch.setattr(partition, "append", waits)
        asked = [asyncio.ensure_future(serving.feedback(request(one))) for one in events]
        await worlds.until(lambda: serving.replica.writer.writing)
        assert serving.replica.writer.waiting == 4
        asked[1].cancel()
        let_go.set()
        told = await asyncio.gather(*asked, return_exceptions=True)
        assert isinstance(told[1], asyncio.CancelledError)
        assert [told[i][1].status for i in (0, 2, 3)] == ["learned"] * 3
        assert serving.replica.writer.waiting == 0
        ((_, again),) = await sent(serving, events[1:2])
        assert (again.status, again.first_outcome) == ("duplicate", "learned")
        assert serving.replica.learner.tally.digest[0] == 204
        await serving.replica.stop(1.0)

    worlds.play(tmp_path, scene)


def test_senders_are_not_mixed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene(world: worlds.World) -> None:
        serving, rng = await taught(world), random.Random(3)
        sizes = groups(monkeypatch)

        async def of(grant: Grant, n: int, source: str) -> Any:
            sender.set(grant)
            return await serving.feedback(request(event(rng, 5000 + n, source=source)))

        a, b = Grant(source="a"), Grant(source="b")
        jobs = [of(a, 1, "a"), of(b, 2, "b"), of(a, 3, "a"), of(b, 4, "a")]
        told = await asyncio.gather(*jobs, return_exceptions=True)
        assert sizes == [2, 2]
        assert [t[1].status for t in told[:3]] == ["learned"] * 3
        assert isinstance(told[3], RequestError)
        assert told[3].code == "source_fixed"
        await serving.replica.stop(1.0)

    worlds.play(tmp_path, scene)


def test_each_counts_for_itself_where_few_may_wait(tmp_path: Path) -> None:
    async def scene(world: worlds.World) -> None:
        few = Limits(ongoing_max=16)  # half of them may wait for the journal
        serving, rng = await taught(world, limits=few), random.Random(4)
        told = await sent(serving, [event(rng, 5000 + i) for i in range(20)])
        refused = [t for t in told if isinstance(t, RequestError)]
        assert {(error.status, error.code) for error in refused} == {(429, "busy")}
        assert len(refused) == 12
        assert serving.replica.writer.waiting == 0
        more = await sent(serving, [event(rng, 5100 + i) for i in range(8)])
        assert [answer[1].status for answer in more] == ["learned"] * 8
        await serving.replica.stop(1.0)

    worlds.play(tmp_path, scene)


def test_a_commit_that_fails_refuses_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene(world: worlds.World) -> None:
        serving, rng = await taught(world), random.Random(5)
        partition = serving.replica.writer._at

        async def fails(rows: Any) -> Any:
            raise JournalUnavailable("no disk")

        with monkeypatch.context() as patched:
            patched.setattr(partition, "append", fails)
            told = await sent(serving, [event(rng, 5000 + i) for i in range(5)])
        assert [(t.status, t.code) for t in told] == [(503, "journal_refused")] * 5
        assert serving.replica.writer.waiting == 0
        again = await sent(serving, [event(rng, 5000 + i) for i in range(5)])
        assert [answer[1].status for answer in again] == ["learned"] * 5
        await serving.replica.stop(1.0)

    worlds.play(tmp_path, scene)


def test_a_commit_that_stands_still_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scene(world: worlds.World) -> None:
        serving, rng = await taught(world, limits=Limits(feedback_wait_s=60)), random.Random(6)
        serving.replica.writer._queue._wait_s = 0.5
        partition, let_go = serving.replica.writer._at, asyncio.Event()
        append = partition.append

        async def stands(rows: Any) -> Any:
            await let_go.wait()
            return await append(rows)

        with monkeypatch.context() as patched:
            patched.setattr(partition, "append", stands)
            begun = [asyncio.ensure_future(sent(serving, [event(rng, 5000 + i) for i in range(3)]))]
            await asyncio.sleep(0)
            await worlds.until(lambda: serving.replica.writer.writing)
            begun += [
                asyncio.ensure_future(sent(serving, [event(rng, 5000 + i) for i in range(3, 6)]))
            ]
            written, held = await asyncio.gather(*begun)
        assert {(t.status, t.code) for t in written} == {(503, "journal_unavailable")}
        assert {(t.status, t.code) for t in held} == {(503, "journal_held")}
        let_go.set()
        await worlds.until(lambda: serving.replica.writer.waiting == 0)
        serving.replica.writer._queue._wait_s = 60.0  # however slow the machine is
        again: list[tuple[int, Receipt]] = await sent(
            serving, [event(rng, 5000 + i) for i in range(6)]
        )
        kinds = [receipt.status for _, receipt in again]
        assert set(kinds[:3]) <= {"duplicate", "conflict"}  # they were written after all
        assert kinds[3:] == ["learned"] * 3
        await serving.replica.stop(1.0)

    worlds.play(tmp_path, scene)


def test_without_the_count_of_requests_all_would_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("online.replica.queue.Queue._check", lambda *_: None)
    with pytest.raises(AssertionError):
        test_each_counts_for_itself_where_few_may_wait(tmp_path)
