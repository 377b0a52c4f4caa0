"""A source is forgotten by every replica of a service, and mutants of that are found."""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import replica_world as worlds
import test_quarantine as quarantine
from forgetting_world import SPEC, built

from online.errors import RequestError, StartRefused
from online.learning.counters import event_hash
from online.messages.structs import FeedbackRequest
from online.rebuild.forget import Bases
from online.rebuild.rebuild import ForgetScope
from online.replica.follower import Follower
from online.replica.ordered_follower import OrderedFollower
from online.rows.history import Decisions
from online.settings.model import Snapshots
from paramserver import errors
from paramserver.core import rewrites
from paramserver.process import lineage
from paramserver.process.actor import ParameterServer, ServerSettings
from paramserver.process.lineage import Lineage
from paramserver.snapshots.places import lineage_place, open_snapshots

WANTED = [1, 1, 0]


async def nothing_yet(self: Follower) -> list[Any]:
    """A follower that has been given no turn yet."""
    return []


def event(name: str, source: str) -> FeedbackRequest:
    return FeedbackRequest(features={name: 1.0}, label=1e9, event_id=name, source=source)


async def send(serving: Any, source: str, *names: str) -> list[str]:
    """Statuses; of a repeat what became of the first sending."""
    out = []
    for name in names:
        _, receipt = await serving.feedback(event(name, source))
        out.append(receipt.first_outcome if receipt.duplicate else receipt.status)
    return out


async def restart(world: Any, replicas: Any) -> ParameterServer:
    """A server after the one that has died, which all replicas have met."""
    restarted = ParameterServer(
        Lineage("m", SPEC, "{}", "sum"), world.journal, str(world.folder / "snapshots"),
        ServerSettings(), background=False,
    )  # fmt: skip
    assert restarted.restore(), "from before the row: the state aside is loaded again"
    world.client.server = restarted
    await worlds.until(lambda: all(r.learner.version[0] == 3 for r in replicas))
    return restarted


async def forgotten(world: Any, ordered: bool = False) -> None:
    often = Snapshots(interval_s=0.1)
    first = await world.replica("r1", ordered=ordered, snapshots=often)
    second = await world.replica("r2", ordered=ordered, snapshots=often)
    one = quarantine.cluster(world, first)
    servings = [world.serving(replica) for replica in (first, second)]
    replicas = (first, second)

    async def are(**expected: int) -> None:
        """Until every replica has learned each event so often."""
        for replica in replicas:
            await worlds.until(
                lambda r=replica: {n: world.weight(r, n) for n in expected} == expected
            )

    def pushed() -> bool:
        clock = world.server._running.server.clock
        return all(clock.get(r.writer.partition, 0) >= r.writer.known for r in replicas)

    await send(servings[0], "good", "a", "b")
    await send(servings[1], "good", "c")
    await are(a=1, b=1, c=1)
    await worlds.until(pushed)
    world.server.snapshot()
    for serving, names in zip(servings, ("xd", "ye"), strict=True):
        await send(serving, "bot", names[0])
        await send(serving, "good", names[1])
    await are(x=1, y=1, d=1, e=1)
    await worlds.until(pushed)
    world.server.snapshot()
    poisoned = world.server.snapshots()[0]["name"]
    await send(servings[0], "bot", "z")
    assert (await one.ban("m", "bot", banned=True))["complete"]

    made, base = await asyncio.to_thread(
        built, world.journal(), world.folder / "snapshots", ForgetScope("bot"), worlds.counting,
        ordered=ordered,
    )  # fmt: skip
    assert base != poisoned
    assert await send(servings[1], "good", "late") == ["learned"], "while it is built"
    assert await send(servings[1], "bot", "v") == ["quarantined"]
    done = await one.forget("m", "aside-1", "bot", None, base, made.undone)
    assert (done["undone"], done["complete"], done["missing"]) == (3, True, [])
    await are(a=1, b=1, c=1, d=1, e=1, late=1, x=0, y=0, z=0, v=0)
    assert await send(servings[0], "bot", "x", "z", "v") == ["undone", "undone", "quarantined"]
    assert not first.learner.includes(first.writer.partition, 3), "x"
    page = await one.events("m", "undone", None, 100)
    assert [e["event_id"] for e in page["events"]] == ["x", "z", "y"]
    again = await one.relearn("m", "undone", None, 100)
    assert (again["learned"], again["banned"]) == (0, 3)
    with pytest.raises(errors.RollbackRefused, match="'bot', which was forgotten since"):
        world.server.rollback(poisoned)

    restarted = await restart(world, replicas)
    await are(a=1, b=1, c=1, d=1, e=1, late=1, x=0, y=0, z=0)
    place = lineage_place(str(world.folder / "snapshots"), "m", SPEC)
    assert "aside-1" in open_snapshots(place).names()
    restarted.snapshot()
    journal = world.journal()
    decisions = Decisions(SPEC)
    decisions.read(journal, "m")
    assert decisions.undone.count == 3
    rows = [row for p in journal.partitions("m") for row in journal.read(p.id, 1, 99)]
    learned = [row for row in rows if decisions.learned(row)]
    assert first.learner.tally.digest == (len(learned), sum(map(hashed, learned)) % 2**64)
    vars(one._controls["m"])["_server"] = restarted
    assert (await one.ban("m", "bot", banned=False))["complete"]
    assert (await one.relearn("m", "undone", None, 100))["learned"] == 3
    await are(x=1, y=1, z=1, a=1)
    await asyncio.gather(first.stop(5), second.stop(5))


def hashed(row: Any) -> int:
    return event_hash(row.key)


@pytest.mark.parametrize("ordered", [False, True])
def test_who_waits_for_a_row_that_came_with_the_values_is_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ordered: bool
) -> None:
    """The row was committed, and the forget counted it before this replica learned it."""

    async def scene(world: Any) -> None:
        replica = await world.replica("r", ordered=ordered)
        one, serving = quarantine.cluster(world, replica), world.serving(replica)
        assert await send(serving, "bot", "x") == ["learned"]
        await send(serving, "good", "a")
        assert (await one.ban("m", "bot", banned=True))["complete"]
        with monkeypatch.context() as held:
            for follower in (Follower, OrderedFollower):
                held.setattr(follower, "_rows", nothing_yet)
            late = asyncio.create_task(send(serving, "good", "late"))
            await worlds.until(lambda: replica.writer.known == 3)
            made, base = await asyncio.to_thread(
                built, world.journal(), world.folder / "snapshots", ForgetScope("bot"),
                worlds.counting, ordered=ordered,
            )  # fmt: skip
            done = await one.forget("m", "aside-1", "bot", None, base, made.undone)
            assert done["undone"] == 1
            await worlds.until(lambda: replica.learner.rewrite > 0)
        assert await late == ["learned"]
        assert replica.writer.waiting == 0, "its slot is free again"
        await worlds.until(lambda: [world.weight(replica, n) for n in ("late", "a", "x")] == WANTED)
        await replica.stop(5)

    worlds.play(tmp_path, scene)


@pytest.mark.parametrize("ordered", [False, True])
def test_a_source_is_forgotten_by_every_replica(tmp_path: Path, ordered: bool) -> None:
    worlds.play(tmp_path, partial(forgotten, ordered=ordered))


@pytest.mark.parametrize(
    ("place", "name", "mutant"),
    [
        (rewrites.Forget, "taken", lambda self: {}),
        (rewrites, "brings_back", lambda *given: None),
        (ForgetScope, "meant", lambda self, row: False),
        (Bases, "clock", lambda self, c: {p.id: 0 for p in self._partitions}),
        (lineage, "needed", lambda history, name: history.load(history.listed()[0].name)),
        (Decisions, "banned", lambda self, source: False),
    ],
)
def test_mutants_of_a_forget_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: object, name: str, mutant: object
) -> None:
    monkeypatch.setattr(place, name, mutant)
    monkeypatch.setattr(worlds, "PATIENCE_S", worlds.IN_VAIN_S)
    found = (AssertionError, TimeoutError, StartRefused, errors.ForgetRefused)
    with pytest.raises((*found, RequestError, pytest.fail.Exception)):
        worlds.play(tmp_path, forgotten)
