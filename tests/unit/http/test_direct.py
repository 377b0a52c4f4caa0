"""What comes behind a head that is known is answered as in the usual way, without a task each."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import pytest
import replica_world as worlds
from kept_connection import LIMITS, QUESTIONS, TOKEN, Caller, ways
from test_ordinary import NAMES, event, taught

from online.http.app import App
from online.http.connection.direct import Direct, HeadHandler
from online.http.middleware.access import Access
from online.messages.structs import Event
from online.service.parts.head_cache import CachedHeads
from online.service.parts.request_heads import BoundedHeads
from online.serving.serving import Serving
from online.settings.limits import Limits
from online.settings.tokens import Grant
from replay.errors import JournalFull

OTHER: Final = "b-token-0123456789abcdefghijkl"


def play(
    tmp_path: Path,
    scene: Callable[[Serving, App, worlds.World], Awaitable[None]],
    limits: Limits = LIMITS,
) -> None:
    async def inside(world: worlds.World) -> None:
        serving = await taught(world, limits=limits)
        access = Access(
            {"feedback": [TOKEN, OTHER], "predict": [TOKEN]},
            {
                **{(role, TOKEN): Grant(source="one") for role in ("feedback", "predict")},
                ("feedback", OTHER): Grant(source="two"),
            },
        )
        app = App({"m": serving}, None, limits, access)  # type: ignore[arg-type]
        await scene(serving, app, world)
        assert app._direct.under_way == app._under_way == 0
        await serving.replica.stop(1.0)

    worlds.play(tmp_path, inside)


def test_each_question_is_answered_as_in_the_usual_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[Any] = []

    async def scene(serving: Serving, app: App, world: worlds.World) -> None:
        caller, taken = Caller(app), ways(monkeypatch)
        before, said = Counter(serving.replica.counts), []
        monkeypatch.setattr(type(serving.replica), "age_ms", property(lambda _: 7.0))
        for one in QUESTIONS:
            for body in (QUESTIONS[0], one):
                caller.sends(body, action="predict")
                status, answer = await caller.answered()
                left_out = ("id", "version", "own", "updates_behind")
                said.append((status, {k: v for k, v in answer.items() if k not in left_out}))
        counts = Counter(serving.replica.counts) - before
        found.append((said, {k: n for k, n in counts.items() if k.startswith("predict")}, taken))

    for name in ("direct", "usual"):
        (tmp_path / name).mkdir()
        play(tmp_path / name, scene)
        monkeypatch.setattr(Direct, "offer", lambda *_: None)
    (*direct, taken), (*usual, never) = found
    for one, other in zip(direct[0], usual[0], strict=True):
        assert one == other
    assert direct[1] == usual[1]
    assert {200, 400, 422, 503, 403} == {status for status, _ in direct[0]}
    assert taken[True] >= 8
    assert taken[False] >= 4
    assert never == {}


async def known(app: App, n: int, kind: type[CachedHeads] = BoundedHeads) -> list[Caller]:
    """Callers whose heads are known."""
    rng, callers = random.Random(9), [Caller(app, kind) for _ in range(n)]
    for i, caller in enumerate(callers):
        caller.sends(event(rng, 900 + i, source="one"))
        status, said = await caller.answered()
        assert (status, said["status"]) == (200, "learned"), said
    return callers


def script() -> list[Event | bytes]:
    """Events of one turn: ordinary ones, and what has to be answered in other ways."""
    rng = random.Random(4)
    of = {"source": "one"}
    good = [event(rng, 1000 + i, **of) for i in range(8)]
    return [
        *good, good[0], Event(not good[1].label, None, good[1].features, "e1001", "one"),
        event(rng, 2000, features=dict.fromkeys(NAMES, 1e6), **of), event(rng, 2001, weight=0.5),
        event(rng, 2002, features=None, **of), event(rng, 2003, source="two"),
        event(rng, 2004, label="neither", **of), b"{", b"", b'{"label": true, "id": "nonsense"}',
        b'{"events": []}', b'{"label": true, "odd": 1}', event(rng, 2005, weight=99.0, **of),
    ]  # fmt: skip


def told(answers: list[tuple[int, dict[str, Any]]]) -> list[Any]:
    """What is the same however long it took: not the versions that were met."""
    left_out = ("version", "version_before", "seen")
    return [
        (status, {name: value for name, value in said.items() if name not in left_out})
        for status, said in answers
    ]


def test_a_label_of_a_prediction_is_answered_as_in_the_usual_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[Any] = []

    async def scene(serving: Serving, app: App, world: worlds.World) -> None:
        caller, other, taken = Caller(app), Caller(app, token=OTHER), ways(monkeypatch)
        for _ in range(3):
            caller.sends(QUESTIONS[0], action="predict")
            await caller.answered()
        first, second, third = [said["id"] for _, said in caller.answers]
        bodies = [
            {"id": first, "label": True}, {"id": second, "label": True},
            {"id": second, "label": True}, {"id": second, "label": False},
            {"id": third[:-4] + "AAAA", "label": True}, {"id": third, "label": "odd"},
            {"id": third, "label": True, "event_id": "x"}, {"id": third},
        ]  # fmt: skip
        for body in bodies:
            caller.sends(json.dumps(body).encode())
            await caller.answered()
        other.sends(*[json.dumps(bodies[0]).encode()])
        await other.answered()
        other.sends(json.dumps({"id": third, "label": True}).encode())
        await other.answered()
        said = told([*caller.answers[3:], *other.answers])
        for _, answer in said:
            answer.pop("event_id", None)
        counts = serving.replica.counts
        refused = {name: n for name, n in counts.items() if name.startswith("feedback_")}
        found.append((said, refused, serving.replica.learner.tally.digest[0], taken))

    for name in ("direct", "usual"):
        (tmp_path / name).mkdir()
        play(tmp_path / name, scene)
        monkeypatch.setattr(Direct, "offer", lambda *_: None)
    (*direct, taken), (*usual, never) = found
    assert direct == usual
    assert [status for status, _ in direct[0]] == [200, 200, 200, 409, 404, 422, 422, 422, 403, 403]
    assert taken[True] >= 8
    assert never == {}


@pytest.mark.parametrize("kind", [CachedHeads, BoundedHeads])
def test_each_event_is_answered_as_in_the_usual_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type[CachedHeads]
) -> None:
    found: list[Any] = []

    async def scene(serving: Serving, app: App, world: worlds.World) -> None:
        callers = await known(app, len(script()), kind)
        before, taken = Counter(serving.replica.counts), ways(monkeypatch)
        for caller, one in zip(callers, script(), strict=True):
            caller.sends(one)
        said = [await caller.answered() for caller in callers]
        counts = Counter(serving.replica.counts) - before
        feedback = {name: n for name, n in counts.items() if name.startswith("feedback_")}
        found.append((told(said), feedback, serving.replica.learner.tally.digest, taken))
        assert {len(caller.answers) for caller in callers} == {2}

    (tmp_path / "a").mkdir()
    play(tmp_path / "a", scene)
    monkeypatch.setattr(Direct, "offer", lambda *_: None)
    (tmp_path / "b").mkdir()
    play(tmp_path / "b", scene)
    (*direct, taken), (*usual, never) = found
    assert direct == usual
    statuses = [status for status, _ in direct[0]]
    assert statuses[:11] == [200] * 9 + [409, 200]
    assert {202, 403, 400, 422} <= set(statuses)
    assert taken[True] >= 12
    assert never == {}


def test_all_answers_of_a_turn_need_no_task(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scene(serving: Serving, app: App, world: worlds.World) -> None:
        callers = await known(app, 40)
        rng, begun = random.Random(5), list[Any]()
        start = CachedHeads._start_asgi_task

        def noted(*given: Any) -> None:
            begun.append(given)
            start(*given)

        monkeypatch.setattr(CachedHeads, "_start_asgi_task", noted)
        for i, caller in enumerate(callers):
            caller.sends(event(rng, 3000 + i, source="one"))
        for caller in callers:
            assert (await caller.answered())[1]["status"] == "learned"
        assert begun == []
        for i, caller in enumerate(callers[:3]):  # nor is one that comes alone handed on
            caller.sends(event(rng, 4000 + i, source="one"))
            assert (await caller.answered())[1]["status"] == "learned"
        assert begun == []

    play(tmp_path, scene)


def test_an_event_is_of_the_one_who_sends_it(tmp_path: Path) -> None:
    async def scene(serving: Serving, app: App, world: worlds.World) -> None:
        callers = [Caller(app, token=token) for token in (TOKEN, OTHER, TOKEN, OTHER)]
        rng = random.Random(6)
        for n in range(2):
            for i, caller in enumerate(callers):
                caller.sends(event(rng, 5000 + 10 * n + i, source=("one", "two")[i % 2]))
            for caller in callers:
                assert (await caller.answered())[0] == 200
        for caller in callers:
            caller.sends(event(rng, 5100, source="three"))
        for caller in callers:
            status, said = await caller.answered()
            assert (status, said["error"]["code"]) == (403, "source_fixed")

    play(tmp_path, scene)


def test_who_goes_away_before_the_commit_is_learned_from_and_told_nothing(tmp_path: Path) -> None:
    async def scene(serving: Serving, app: App, world: worlds.World) -> None:
        callers = await known(app, 3)
        before, rng = serving.replica.learner.tally.digest[0], random.Random(7)
        for i, caller in enumerate(callers):
            caller.sends(event(rng, 6000 + i, source="one"))
        gone, closing, stays = callers
        said = gone.wire.said
        gone.wire.closed = True
        gone.protocol.connection_lost(None)
        closing.protocol.shutdown()  # the server ends: the answer is the last one
        await stays.answered()
        await worlds.until(lambda: app._direct.under_way == 0)
        assert gone.wire.said == said
        assert closing.wire.closed
        assert closing.answers[-1][1]["status"] == "learned"
        assert not stays.wire.closed
        assert serving.replica.learner.tally.digest[0] == before + 3

    play(tmp_path, scene)


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_who_sends_one_event_and_goes_away_is_learned_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, turns: int
) -> None:
    async def scene(serving: Serving, app: App, world: worlds.World) -> None:
        (caller,) = await known(app, 1)
        before, said = serving.replica.learner.tally.digest[0], caller.wire.said
        caller.sends(event(random.Random(7), 6100, source="one"))
        for _ in range(turns):
            await asyncio.sleep(0)
        caller.wire.closed = True
        caller.protocol.connection_lost(None)
        for _ in range(8):  # whoever takes it has begun
            await asyncio.sleep(0)
        await worlds.until(lambda: app._direct.under_way == app._under_way == 0)
        assert serving.replica.learner.tally.digest[0] == before + 1
        assert not serving.replica.counts["feedback_refused_disconnected"]
        assert caller.wire.said == said

    for name in ("direct", "usual"):
        (tmp_path / name).mkdir()
        play(tmp_path / name, scene)
        monkeypatch.setattr(Direct, "offer", lambda *_: None)


def test_what_comes_before_the_answer_waits_for_it(tmp_path: Path) -> None:
    async def scene(serving: Serving, app: App, world: worlds.World) -> None:
        callers, rng = await known(app, 2), random.Random(8)
        first, second = callers
        first.sends(event(rng, 7000, source="one"), event(rng, 7001, source="one"))
        second.sends(event(rng, 7002, source="one"))
        await first.answered()
        await second.answered()
        assert [said["event_id"] for _, said in first.answers[1:]] == ["e7000", "e7001"]
        first.sends(event(rng, 7003, source="one"))
        half = first.request(event(rng, 7004, source="one"))
        first.protocol.data_received(half[:70])  # alone in its turn: it is read by the application
        await worlds.until(lambda: len(first.answers) == first.asked)
        first.asked += 1
        first.protocol.data_received(half[70:])
        assert (await first.answered())[1]["event_id"] == "e7004"

    play(tmp_path, scene)


def test_there_is_room_for_as_many_as_in_the_usual_way(tmp_path: Path) -> None:
    async def scene(serving: Serving, app: App, world: worlds.World) -> None:
        callers, rng = await known(app, 20), random.Random(9)
        for i, caller in enumerate(callers):
            caller.sends(event(rng, 8000 + i, source="one"))
        statuses = Counter([(await caller.answered())[0] for caller in callers])
        assert statuses[429] >= 4
        assert statuses[200] + statuses[429] == 20

    play(tmp_path, scene, Limits(feedback_wait_s=60, ongoing_max=16))


def test_a_journal_that_is_full_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene(serving: Serving, app: App, world: worlds.World) -> None:
        callers, rng = await known(app, 4), random.Random(10)

        async def full(rows: Any) -> Any:
            raise JournalFull(1.0, 2.0)

        monkeypatch.setattr(serving.replica.writer._at, "append", full)
        for i, caller in enumerate(callers):
            caller.sends(event(rng, 8500 + i, source="one"))
        for caller in callers:
            status, said = await caller.answered()
            assert (status, said["error"]["code"]) == (503, "journal_full")
        assert serving.replica.counts["feedback_refused_journal_full"] == 4

    play(tmp_path, scene)


def test_an_answer_that_fails_is_one_that_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scene(serving: Serving, app: App, world: worlds.World) -> None:
        callers, rng, at_once = (
            await known(app, 4),
            random.Random(11),
            serving.single_events.plain_receipt,
        )

        def fails(asked: Any, recorded: Any) -> Any:
            if asked.row.event_id == "e8801":
                raise ValueError("it fails")
            return at_once(asked, recorded)

        monkeypatch.setattr(serving.single_events, "plain_receipt", fails)
        for i, caller in enumerate(callers):
            caller.sends(event(rng, 8800 + i, source="one"))
        assert [(await caller.answered())[0] for caller in callers] == [200, 500, 200, 200]

    play(tmp_path, scene)


def test_what_answers_for_the_model_now_takes_the_event(tmp_path: Path) -> None:
    async def scene(serving: Serving, app: App, world: worlds.World) -> None:
        callers, rng = await known(app, 4), random.Random(12)
        replica = await world.replica("another", build=worlds.counting, task="binary")
        replica.counts.clear()
        app._servings["m"] = world.serving(replica)  # type: ignore[index]
        for i, caller in enumerate(callers):
            caller.sends(event(rng, 8900 + i, source="one"))
        for caller in callers:
            assert (await caller.answered())[0] == 200
        assert replica.counts["feedback_learned"] == 4
        await replica.stop(1.0)

    play(tmp_path, scene)


@pytest.mark.parametrize("checked", [True, False])
def test_a_token_that_was_taken_back_is_refused_behind_a_known_head(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, checked: bool
) -> None:
    """The negative control takes each head as admitted by the present tokens."""

    async def scene(serving: Serving, app: App, world: worlds.World) -> None:
        access, rng = app._access, random.Random(5)
        assert access is not None
        if not checked:
            monkeypatch.setattr(
                HeadHandler, "admitted_by", property(lambda _: access.roles, lambda *_: None)
            )
        (caller,) = await known(app, 1)
        access.renew({"feedback": [OTHER], "predict": [OTHER]})
        caller.sends(event(rng, 1, source="one"))
        status, said = await caller.answered()
        assert status == (401 if checked else 200), said
        assert (said.get("status") == "learned") is not checked
        caller.sends(event(rng, 2, source="one"))
        assert (await caller.answered())[0] == status, "nor after that"
        other = Caller(app, token=OTHER)
        for i in (3, 4):
            other.sends(event(rng, i, source="two"))
            assert (await other.answered())[1]["status"] == "learned"

    play(tmp_path, scene)
