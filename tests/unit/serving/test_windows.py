"""How long ids are known, and what a clock that is set back changes: nothing that was promised."""

from __future__ import annotations

import inspect
import re
import textwrap
from pathlib import Path
from typing import Any

import pytest
import replica_world as worlds

import online.replica.replica
import online.serving.feedback.events
from online.errors import RequestError
from online.messages.structs import Event, FeedbackRequest, PredictRequest
from online.serving.feedback.events import Events

DAY = 86_400.0
NOW = 1.7e9


def event(event_id: str | None, event_time: float | None, label: float = 1e9) -> FeedbackRequest:
    return FeedbackRequest(
        features={"a": 1.0}, label=label, event_id=event_id, event_time=event_time
    )


async def sent(serving: Any, request: FeedbackRequest) -> tuple[int, str]:
    status, receipt = await serving.feedback(request)
    return status, receipt.status


def test_an_event_older_than_the_window_of_its_id_is_expired(tmp_path: Path) -> None:
    async def scene(world: Any) -> None:
        replica = await world.replica(
            now_s=lambda: NOW, dedupe_window=2 * DAY, token_lifetime=1 * DAY
        )
        serving = world.serving(replica)
        edge = NOW - 2 * DAY + 60  # the test takes less
        assert await sent(serving, event("at the edge", edge)) == (200, "learned")
        assert await sent(serving, event("older", edge - 61)) == (410, "expired")
        status, receipt = await serving.feedback(event("older", edge - 61))
        assert (status, receipt.event_id) == (410, "older")
        assert receipt.reason == "the event is 48.0 h old; ids are known for 48 h"
        assert await sent(serving, event(None, edge - DAY)) == (200, "learned"), "no repeat of it"
        assert await sent(serving, event("no time", None)) == (200, "learned")
        assert await sent(serving, event("to come", NOW + DAY)) == (200, "learned")
        many = FeedbackRequest(
            events=[
                Event(features={"a": 1.0}, label=1.0, event_id=name, event_time=at)
                for name, at in (("older", edge - 61), ("fresh", edge))
            ]
        )
        _, answer = await serving.feedback(many)
        assert [receipt.status for receipt in answer.events] == ["expired", "learned"]
        assert replica.counts["feedback_expired"] == 3
        assert replica.learner.tally.digest[0] == 5, "nothing expired was learned"
        await replica.stop(5)

    worlds.play(tmp_path, scene)


def test_an_event_whose_repeats_would_never_expire_is_refused(tmp_path: Path) -> None:
    """Its id is forgotten a day after the window; a time in milliseconds is never so old."""

    async def scene(world: Any) -> None:
        replica = await world.replica(now_s=lambda: now[0])
        serving, now[0] = world.serving(replica), NOW + 30 * DAY
        assert await sent(serving, event("later", now[0])) == (200, "learned")
        now[0] = NOW  # the clock was set back
        assert await sent(serving, event("later", now[0] + 30 * DAY)) == (200, "duplicate")
        with pytest.raises(RequestError, match="ahead of this node") as refused:
            await serving.feedback(event("ahead", NOW * 1000))
        assert (refused.value.status, refused.value.field) == (422, "event_time")
        assert "no milliseconds" in (refused.value.hint or "")
        assert await sent(serving, event(None, NOW * 1000)) == (200, "learned"), "no repeat of it"
        await replica.stop(5)

    now = [NOW]
    worlds.play(tmp_path, scene)


@pytest.mark.parametrize("at", [float("nan"), float("inf"), -float("inf"), 1e15, -1e308])
def test_a_number_that_is_no_time_is_refused_whatever_the_event_is_about(
    tmp_path: Path, at: float
) -> None:
    """With msgpack NaN arrives; it is in no window, so a repeat of it would never expire."""

    async def scene(world: Any) -> None:
        replica = await world.replica(now_s=lambda: NOW)
        serving = world.serving(replica)
        token = serving.predict(PredictRequest(features={"a": 1.0})).id
        sealed = FeedbackRequest(id=token, label=1.0, event_time=at)
        own = FeedbackRequest(id="order-1", label=1.0, event_time=at)
        for request in (event("named", at), event(None, at), sealed, own):
            with pytest.raises(RequestError, match="not a time") as refused:
                await serving.feedback(request)
            assert (refused.value.status, refused.value.field) == (422, "event_time")
        many = FeedbackRequest(
            events=[Event(features={"a": 1.0}, label=1.0, event_time=x) for x in (at, NOW)]
        )
        _, answer = await serving.feedback(many)
        assert [receipt.status for receipt in answer.events] == ["refused", "learned"]
        assert await sent(serving, FeedbackRequest(id=token, label=1.0)) == (200, "learned")
        await replica.stop(5)

    worlds.play(tmp_path, scene)


def test_duplicates_are_looked_up_before_the_window(tmp_path: Path) -> None:
    now = [NOW]

    async def scene(world: Any) -> None:
        replica = await world.replica(now_s=lambda: now[0])
        serving = world.serving(replica)
        assert await sent(serving, event("one", NOW)) == (200, "learned")
        now[0] += 30 * DAY
        assert await sent(serving, event("one", NOW)) == (200, "duplicate")
        assert await sent(serving, event("one", NOW, 2.0)) == (409, "conflict")
        assert await sent(serving, event("two", NOW)) == (410, "expired")
        await replica.stop(5)

    worlds.play(tmp_path, scene)


def test_a_clock_set_back_costs_a_living_replica_nothing(tmp_path: Path) -> None:
    now = [NOW]

    async def scene(world: Any) -> None:
        replica = await world.replica(now_s=lambda: now[0])
        serving = world.serving(replica)
        before = serving.predict(PredictRequest(features={"a": 1.0})).id
        now[0] -= 3 * DAY
        after = serving.predict(PredictRequest(features={"a": 1.0})).id
        for token in (before, after):
            assert await sent(serving, FeedbackRequest(id=token, label=1e9)) == (200, "learned")
            assert await sent(serving, FeedbackRequest(id=token, label=1e9)) == (200, "duplicate")
        assert replica.counts["ids_from_the_future"] == 0
        assert replica.age_ms is not None
        assert replica.age_ms < 300_000, "freshness is no matter of the wall clock"
        await replica.stop(5)

    worlds.play(tmp_path, scene)


@pytest.mark.parametrize(("back_s", "refused"), [(3_600.0, False), (3_890.0, False), (4e3, True)])
def test_ids_from_before_a_clock_was_set_back_are_good_after_a_restart(
    tmp_path: Path, back_s: float, refused: bool
) -> None:
    async def scene(world: Any) -> None:
        old = await world.replica("old", now_s=lambda: NOW)
        token = world.serving(old).predict(PredictRequest(features={"a": 1.0})).id
        await old.stop(5)
        new = await world.replica("new", now_s=lambda: NOW - back_s)
        serving = world.serving(new)
        if refused:
            with pytest.raises(RequestError) as caught:
                await serving.feedback(FeedbackRequest(id=token, label=1e9))
            assert (caught.value.status, caught.value.field) == (422, "id")
            assert re.search(r"4\d\d\d s in the future", caught.value.message)
            assert "clock_skew_s" in str(caught.value.hint)
        else:
            request = FeedbackRequest(id=token, label=1e9)
            assert await sent(serving, request) == (200, "learned")
            assert new.counts["ids_from_the_future"] == 1
            assert await sent(serving, request) == (200, "duplicate")
        await new.stop(5)

    worlds.play(tmp_path, scene)


def test_a_repeat_from_before_a_clock_was_set_far_back_gets_its_first_outcome(
    tmp_path: Path,
) -> None:
    async def scene(world: Any) -> None:
        old = await world.replica("old", now_s=lambda: NOW)
        request = FeedbackRequest(
            id=world.serving(old).predict(PredictRequest(features={"a": 1.0})).id, label=1e9
        )
        assert await sent(world.serving(old), request) == (200, "learned")
        await old.stop(5)
        new = await world.replica("new", now_s=lambda: NOW - 30 * DAY)
        assert await sent(world.serving(new), request) == (200, "duplicate")
        assert new.counts["ids_from_the_future"] == 0
        await new.stop(5)

    worlds.play(tmp_path, scene)


def test_a_label_that_waits_across_a_clock_set_back_is_not_forgotten(tmp_path: Path) -> None:
    async def scene(world: Any) -> None:
        old = await world.replica("old", now_s=lambda: NOW)
        request = FeedbackRequest(id="x", label=1e9)
        assert await sent(world.serving(old), request) == (202, "waiting")
        await old.stop(5)
        new = await world.replica("new", now_s=lambda: NOW - 3_600)
        assert await sent(world.serving(new), request) == (202, "waiting")
        world.serving(new).predict(PredictRequest(features={"a": 1.0}, id="x"))
        await worlds.until(lambda: world.weight(new, "a") == 1)
        await new.stop(5)

    worlds.play(tmp_path, scene)


_MUTANTS = {
    "expired before known": (
        "_with_features",
        'age_s > window_s and await self._find(key, f"{field}event_id") is None',
        "age_s > window_s",
        "test_duplicates_are_looked_up_before_the_window",
    ),
    "no window": (
        "_with_features",
        "age_s > window_s and",
        "False and",
        "test_an_event_older_than_the_window_of_its_id_is_expired",
    ),
}


@pytest.mark.parametrize("name", list(_MUTANTS))
def test_mutants_of_the_windows_are_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    method, rule, instead, test = _MUTANTS[name]
    source = textwrap.dedent(inspect.getsource(getattr(Events, method)))
    assert source.count(rule) == 1, name
    names = dict(vars(online.serving.feedback.events))
    exec(compile(source.replace(rule, instead), "<mutant>", "exec"), names)
    monkeypatch.setattr(Events, method, names[method])
    with pytest.raises(AssertionError):
        globals()[test](tmp_path)


def test_a_clock_that_runs_back_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(online.replica.replica, "forward_clock", lambda wall_s, monotonic_s: wall_s)
    with pytest.raises(RequestError, match="future"):
        test_a_clock_set_back_costs_a_living_replica_nothing(tmp_path)
