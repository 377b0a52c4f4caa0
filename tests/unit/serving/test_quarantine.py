"""Rows that are set aside: listed, decided about once, learned once; and banned sources."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import replica_world as worlds
from msgspec.structs import replace

import online.rows.history
import online.serving.operating.held_events
from online.errors import RequestError
from online.messages.structs import FeedbackRequest
from online.replica.control_log import ControlLog
from online.replica.writer import Writer
from online.serving.operating import held_events
from online.serving.operating.status import Cluster
from paramserver import errors
from paramserver.process.actor import ServerSettings
from replay.journal.base import Verdict


class Control:
    """Commands to the server in this process."""

    def __init__(self, world: Any) -> None:
        self._server = world.server

    async def call(self, method: str, timeout_s: float, *args: object) -> Any:
        await asyncio.sleep(0)
        return getattr(self._server, method)(*args)


def cluster(world: Any, replica: Any) -> Cluster:
    """Answers of one replica."""
    journal = {"m": replica.store.journal}
    return Cluster({"m": replica}, {"m": Control(world)}, journal, lambda name: {})


def event(name: str, source: str = "good") -> FeedbackRequest:
    return FeedbackRequest(features={name: 1.0}, label=1e9, event_id=name, source=source)


async def sent(serving: Any, request: FeedbackRequest) -> tuple[int, Any]:
    status, receipt = await serving.feedback(request)
    return status, receipt


async def set_aside(replica: Any, *names: str, source: str = "test") -> None:
    """Write rows with the verdict, as a filter does."""
    rows = [replace(worlds.row(n), verdict=Verdict.QUARANTINED, source=source) for n in names]
    recorded = await replica.writer.record(rows)
    assert [r.status for r in recorded] == ["quarantined"] * len(names)


async def listed(one: Cluster, source: str | None = None) -> Counter[str]:
    page = await one.events("m", "quarantined", None, 100, source)
    return Counter(e["status"] for e in page["events"])


async def everyone_releases(world: Any) -> None:
    first, second = await world.replica("r1"), await world.replica("r2")
    a, b = cluster(world, first), cluster(world, second)
    await set_aside(first, "x", "y", "z", source="bot")
    assert world.weight(first, "x") == 0
    assert await listed(b) == {"quarantined": 3}
    assert await listed(b, "other") == {}
    rows = [f"{first.writer.partition}:{i}" for i in (1, 2)]
    shown = await b.quarantined("m", rows[0], None)
    assert (shown["event_id"], shown["source"], shown["features"]) == ("x", "bot", {"x": 1.0})
    assert (await b.decide_rows("m", "discarded", rows[1:]))["discarded"] == 1
    both = await asyncio.gather(*(c.decide_rows("m", "released", rows) for c in (a, b, a)))
    assert [(done["released"], done["discarded"]) for done in both] == [(1, 1)] * 3
    assert sum(done["learned"] for done in both) == 1, both
    assert (await a.decide_rows("m", "discarded", rows[:1]))["released"] == 1, "the first stands"
    done = await a.decide_source("m", "released", "bot", None, 100)
    assert (done["released"], done["learned"], done["cursor"]) == (2, 1, None)
    await worlds.until(lambda: world.weight(first, "z") == 1 and world.weight(second, "z") == 1)
    assert [world.weight(first, f) for f in "xyz"] == [1, 0, 1]
    assert await listed(b) == {"released": 2, "discarded": 1}
    for name, status in (("x", "released"), ("y", "discarded")):
        row = replace(worlds.row(name), source="bot")
        (again,) = await second.writer.record([row])
        assert (again.status, again.repeat, again.learned_as is not None) == (
            status, True, status == "released",
        )  # fmt: skip
    await asyncio.gather(first.stop(5), second.stop(5))


async def discarded_in_turns(world: Any) -> None:
    replica = await world.replica()
    one = cluster(world, replica)
    await set_aside(replica, *"abc", source="bot")
    first = await one.decide_source("m", "discarded", "bot", None, 100)
    assert (first["discarded"], first["duplicate"]) == (3, 0)
    await set_aside(replica, *"de", source="bot")
    then = await one.decide_source("m", "discarded", "bot", None, 100)
    assert (then["discarded"], then["duplicate"]) == (2, 3)
    await replica.stop(5)


def test_what_was_discarded_before_is_not_counted_again(tmp_path: Path) -> None:
    worlds.play(tmp_path, discarded_in_turns)


def test_each_is_decided_and_learned_once_whoever_asks(tmp_path: Path) -> None:
    worlds.play(tmp_path, everyone_releases)


@pytest.mark.parametrize(
    ("place", "name", "mutant"),
    [
        (
            online.rows.history,
            "event_key",
            lambda kind, text: threading.get_native_id().to_bytes(16),
        ),
        (online.rows.history.Decisions, "choice", lambda self, event: None),
        (online.rows.history.Decisions, "choice", lambda self, event: "released"),
        (online.rows.history, "decide", lambda journal, model, key, choice: None),
    ],
)
def test_mutants_of_a_release_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: object, name: str, mutant: object
) -> None:
    monkeypatch.setattr(place, name, mutant)
    with pytest.raises((AssertionError, TimeoutError)):
        worlds.play(tmp_path, everyone_releases)


def test_what_is_not_quarantined_can_not_be_decided_about(tmp_path: Path) -> None:
    async def scene(world: Any) -> None:
        replica = await world.replica()
        one, serving = cluster(world, replica), world.serving(replica)
        await sent(serving, event("a"))
        for name in (
            f"{replica.writer.partition}:1",
            "99:1",
            "a",
            "0:0",
            "\x00",
            f"{2**63}:1",
            f"1:{2**63}",
        ):
            with pytest.raises(RequestError) as raised:
                await one.decide_rows("m", "released", [name])
            assert (raised.value.status, raised.value.field) == (422, "rows[0]")
            with pytest.raises(RequestError) as raised:
                await one.quarantined("m", name, "good")
            assert (raised.value.status, raised.value.code) == (404, "unknown_event")
        await set_aside(replica, "b")
        world.server.freeze()
        with pytest.raises(RequestError, match="is frozen"):
            await one.decide_source("m", "released", "test", None, 10)
        assert await listed(one) == {"quarantined": 1}, "nothing was decided"
        world.server.unfreeze()
        await replica.stop(5)

    worlds.play(tmp_path, scene)


class Kept:
    """A memory that keeps nothing, and notes who is purged."""

    distil, replayed, buffer = 0.0, 0, ()

    def __init__(self) -> None:
        self.purged: list[str] = []

    def lesson(self, label: Any) -> tuple[()]:
        return ()

    def keep(self, *row: Any) -> None:
        pass

    def purge(self, source: str) -> int:
        self.purged.append(source)
        return 1


async def banned(world: Any) -> None:
    worlds.Held.open.set()
    worlds.Held.appends = 0
    journal = worlds.Held(world.folder / "journal.db", disk_low_mb=0)
    replica = await world.replica(journal=journal)
    memory = replica.learner.memory = Kept()
    one, serving = cluster(world, replica), world.serving(replica)
    assert (await sent(serving, event("a", "bot")))[1].status == "learned"
    worlds.Held.open.clear()
    judged = asyncio.create_task(sent(serving, event("b", "bot")))
    await worlds.until(lambda: worlds.Held.appends == 2)  # judged, and not written yet
    ban = asyncio.create_task(one.ban("m", "bot", banned=True))
    await worlds.until(lambda: replica.control.decisions.banned("bot"))
    met = world.client.met
    await worlds.until(lambda: world.client.met > met + 3)
    assert not ban.done(), "a row that was judged before is on its way"
    worlds.Held.open.set()
    assert (await judged)[1].status == "learned"
    done = await ban
    assert (done["complete"], done["banned"]) == (True, True)
    await worlds.until(lambda: "bot" in memory.purged)
    status, receipt = await sent(serving, event("c", "bot"))
    assert (status, receipt.status) == (202, "quarantined")
    assert (await sent(serving, event("d", "good")))[1].status == "learned"
    status, receipt = await sent(serving, event("c", "bot"))
    assert (status, receipt.status, receipt.first_outcome) == (202, "duplicate", "quarantined")
    assert [world.weight(replica, f) for f in "abcd"] == [1, 1, 0, 1]
    assert (await one.ban("m", "bot", banned=True))["control"] == done["control"]
    assert (await one.decide_source("m", "released", "bot", None, 9))["learned"] == 1
    assert (await one.ban("m", "bot", banned=False))["complete"]
    assert (await sent(serving, event("e", "bot")))[1].status == "learned"
    assert [world.weight(replica, f) for f in "abcde"] == [1] * 5
    await replica.stop(5)


def test_rows_of_a_banned_source_are_quarantined_from_when_it_is_complete(tmp_path: Path) -> None:
    worlds.play(tmp_path, banned)


@pytest.mark.parametrize("rule", ["judged", "committing"])
def test_mutants_of_a_ban_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rule: str
) -> None:
    if rule == "judged":
        monkeypatch.setattr(ControlLog, "judged", lambda self, row: row)
    else:
        monkeypatch.setattr(
            Writer, "judged_by", property(lambda s: 2**62, lambda s, v: None), False
        )
    with pytest.raises((AssertionError, TimeoutError)):
        worlds.play(tmp_path, banned)


def test_a_ban_is_bounded_and_survives_a_restart(tmp_path: Path) -> None:
    world = worlds.World(tmp_path)
    world.server._running.settings = ServerSettings(banned_max=2)
    for source in ("a", "b", "a"):
        assert world.server.ban(source, True)["banned"]
    with pytest.raises(errors.BanRefused, match="2 sources are"):
        world.server.ban("c", True)
    world.server.ban("a", False)
    world.server.ban("c", True)
    decisions = online.rows.history.Decisions(worlds.SPEC)
    decisions.read(world.journal(), "m")
    assert {s for s in decisions.sources if decisions.banned(s)} == {"b", "c"}
    assert world.server.ban("b", True)["control"] == 2
    assert decisions.summary()["banned"] == ["b", "c"]


@pytest.mark.parametrize("waits", [True, False])
def test_what_is_learned_again_is_answered_when_the_server_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, waits: bool
) -> None:
    """Else a rollback right after it would leave the row on top of values that hold the event."""
    monkeypatch.setattr(held_events, "PUSH_S", 240.0 if waits else 0.0)

    async def scene(world: Any) -> None:
        replica = await world.replica()
        one = cluster(world, replica)
        await set_aside(replica, "x", source="bot")
        partition = replica.writer.partition
        world.client.down = True
        asked = asyncio.create_task(one.decide_rows("m", "released", [f"{partition}:1"]))
        await worlds.until(lambda: world.weight(replica, "x") == 1)
        if waits:
            assert not asked.done(), "the server has not heard of it"
        else:  # the control
            assert (await asked)["learned"] == 1
            assert replica.learner.clock.get(partition, 0) < 2
        world.client.down = False
        assert (await asked)["learned"] == 1
        await worlds.until(lambda: replica.learner.clock.get(partition, 0) == 2)
        await replica.stop(30)

    worlds.play(tmp_path, scene)
