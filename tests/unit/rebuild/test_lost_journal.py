"""A journal that comes back older than the snapshots: refused, or gone on without if told so."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import pytest
from loss_world import LossWorld, SqliteStore, accepted, checked, history_of, live, send, settled
from replica_world import SPEC, until

from online.errors import StartRefused
from online.rebuild.forget import Bases, check_reach, influence
from online.rebuild.rebuild import ForgetScope
from online.rebuild.relearn import window_of
from online.rows.history import Decisions
from online.service.state.check_state import Models
from paramserver.errors import PublishFailed, RollbackRefused
from paramserver.process import shortfall
from replay.errors import JournalDamaged, JournalUnavailable
from replay.journal.sqlite.file import SqliteFile

Make = Callable[[], LossWorld]


def rounds(world: LossWorld, r: random.Random, *, cut: bool) -> set[str]:
    """Two lives of feedback with snapshots, and the store set back; events that were learned."""
    names: set[str] = set()

    async def some(replicas: list[Any], tag: str, n: int) -> None:
        wanted = [f"{tag}{i}" for i in range(n)]
        for i, name in enumerate(wanted):
            answers = await send(replicas[i % len(replicas)], [name])
            assert answers == {"learned": 1}
        names.update(wanted)
        await settled(world, replicas)
        world.server.snapshot()

    async def first(replicas: list[Any]) -> None:
        for k in range(r.randint(1, 3)):
            await some(replicas, f"a{k}-", r.randint(4, 12))
        if r.random() < 0.5:
            world.server.ban("before", True)
        if not cut:
            world.store.keep()
        world.server.ban("after", True)
        for k in range(r.randint(1, 3)):
            await some(replicas, f"b{k}-", r.randint(4, 12))
        if cut and r.random() < 0.5:
            world.store.keep_cut(r)

    live(world, first)
    if r.random() < 0.7:  # new partitions, that a copy of before does not know
        world.begin()

        async def second(replicas: list[Any]) -> None:
            await some(replicas, "c", r.randint(4, 12))
            if cut:
                world.store.keep_cut(r)

        live(world, second)
    elif cut:

        async def third(replicas: list[Any]) -> None:
            await some(replicas, "d", 6)
            world.store.keep_cut(r)

        live(world, third)
    world.store.put_back()
    return names


def restart(world: LossWorld) -> str | None:
    """Why a new server refuses to start; None: it serves."""
    try:
        world.begin()
    except AssertionError:
        return str(world.server.status()["reason"])
    return None


def check_round(world: LossWorld, seed: int, *, cut: bool) -> int:
    """One fault, from the refusal on; how many events were lost (0: the file is not opened)."""
    r = random.Random(seed)
    names = rounds(world, r, cut=cut)
    try:
        world.journal().close()
    except JournalDamaged:  # a flipped bit is seen as what it is
        assert "the journal is damaged" in (restart(world) or "")
        return 0
    with closing(world.journal()) as journal:
        rows = {
            row.event_id for p in journal.partitions("m") for row in journal.read(p.id, 1, 1000)
        }
        lost = names - rows
        missing = shortfall.shortfall(journal, history_of(world.folder), "m", SPEC)
    reason = restart(world)
    if not lost and not missing:
        assert reason is None
        return 0
    assert reason is not None, f"{len(lost)} events are lost without a word"
    assert "--accept-loss" in reason
    assert missing.events == len(lost), "every one had been in a snapshot"
    if lost:
        assert f"it lacks {len(lost)} event" in reason
    found = checked(world)
    assert not found.good
    assert found.lacks == len(lost)
    (note,) = accepted(world)
    assert note.events == len(lost)
    assert note.difference[0] == len(lost)
    assert restart(world) is None
    found = checked(world)
    assert found.good, str(found)
    assert found.digest_equal
    assert world.server.status()["control"] >= note.control

    async def go_on(replicas: list[Any]) -> None:
        await settled(world, replicas)
        for name in sorted(names):
            await until(lambda name=name: world.weight(replicas[0], name) == 1.0)
        again = await send(replicas[0], sorted(names))
        assert again == +type(again)({"repeat": len(names) - len(lost), "learned": len(lost)})
        assert await send(replicas[1], ["new"]) == {"learned": 1}
        await settled(world, replicas)
        world.server.snapshot()
        for name in sorted(names):
            wanted = 2.0 if name in lost else 1.0
            await until(lambda name=name, wanted=wanted: world.weight(replicas[1], name) == wanted)
        assert set(world.server._running.server.banned or ()) >= {"after"}  # type: ignore[union-attr]

    live(world, go_on)
    found = checked(world)
    assert found.good, str(found)
    assert found.digest_equal
    with closing(world.journal()) as journal:
        assert accepted(world) == [], "nothing is missing any more"
        (loss,) = [shortfall.accepted(journal.controls("m", 0), SPEC)]
        assert loss is not None
        assert loss.note == msgspec.convert(msgspec.to_builtins(note), type(note), str_keys=True)
    assert restart(world) is None
    return len(lost)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("cut", [False, True])
def test_an_older_store(world: LossWorld, seed: int, cut: bool) -> None:
    check_round(world, seed, cut=cut)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(100, 120))
@pytest.mark.parametrize("cut", [False, True])
def test_an_older_store_many_times(world: LossWorld, seed: int, cut: bool) -> None:
    check_round(world, seed, cut=cut)


def _with_a_gap(world: LossWorld) -> dict[str, str]:
    """Three snapshots: before the copy, in the gap, and the newest; what they are called."""
    names = {}

    async def life(replicas: list[Any]) -> None:
        for tag in ("before", "within", "newest"):
            if tag == "newest":
                world.server.ban("late", True)
            await send(replicas[0], [f"{tag}-{i}" for i in range(5)])
            await settled(world, replicas)
            names[tag] = world.server.snapshot()["name"]
            if tag == "before":
                world.store.keep()
                await send(replicas[0], [f"{tag}-later-{i}" for i in range(2)])

    live(world, life)
    world.store.put_back()
    return names


@pytest.mark.parametrize("to", ["before", "within", "newest"])
def test_a_rollback_to_any_snapshot_hangs_nothing(world: LossWorld, to: str) -> None:
    names = _with_a_gap(world)
    assert "it lacks 12 events" in (restart(world) or "")
    assert [note.events for note in accepted(world)] == [12]
    assert restart(world) is None

    async def life(replicas: list[Any]) -> None:
        await settled(world, replicas)
        world.server.rollback(names[to])
        assert await send(replicas[0], ["x", "y"]) == {"learned": 2}
        await settled(world, replicas)
        world.server.snapshot()
        for name, wanted in (("before-0", 1), ("within-0", to != "before"), ("x", 1)):
            await until(lambda name=name, wanted=wanted: world.weight(replicas[1], name) == wanted)
        await until(lambda: world.weight(replicas[1], "newest-0") == (to == "newest"))

    live(world, life)
    found = checked(world)
    assert found.good, str(found)
    assert found.digest_equal is not False


def test_what_would_learn_into_the_gap_refuses(world: LossWorld) -> None:
    names = _with_a_gap(world)
    accepted(world, now_s=5e9)
    assert restart(world) is None
    decisions = Decisions(SPEC)
    with closing(world.journal()) as journal:
        decisions.read(journal, "m")
        assert decisions.bans == ["late"], "the copy did not know it"
        assert decisions.summary()["lost"] == {"control": decisions.seq, "events": 12, "at": 5e9}
        found = influence(journal, "m", decisions, ForgetScope("test"), 0.0)
        with pytest.raises(StartRefused, match=r"lost 12 events .* may have been of 'test'"):
            check_reach(found, ForgetScope("test"))
        with pytest.raises(StartRefused, match="since 5000000000"):
            check_reach(found, ForgetScope("test", 4.9e9))
        check_reach(found, ForgetScope("test", 5e9))
        bases = Bases(journal, "m", decisions, journal.partitions("m"))
        history = history_of(world.folder)
        history.index()
        head = journal.head("m", SPEC).snapshot
        with pytest.raises(StartRefused, match="12 events behind it are lost"):
            bases.named(history, head, names["within"])
        assert head is not None
        assert bases.named(history, head, head).name == head
        with pytest.raises(StartRefused, match="lost 12 events since the first of these rows"):
            window_of(journal, "m", decisions, 0.0, 1000)
        with pytest.raises(StartRefused, match="--relearn --accept-loss"):
            Models._check_gap(journal, "m", SPEC)
    with pytest.raises(RollbackRefused, match="12 events since are lost"):
        world.server.recover(0, 4e9)


def test_the_order_of_commits_goes_on_beyond_what_is_lost(world: LossWorld) -> None:
    """A model that is learned in order passes over what stands below its position."""

    async def first(replicas: list[Any]) -> None:
        await send(replicas[0], [f"a{i}" for i in range(4)])
        await settled(world, replicas)
        world.server.snapshot()
        world.store.keep()

    async def more(replicas: list[Any]) -> None:
        await send(replicas[0], [f"b{i}" for i in range(20)])
        await settled(world, replicas)
        world.server.snapshot()

    live(world, first, n=1, ordered=True)
    world.begin()
    live(world, more, n=1, ordered=True)
    position = world.server.status()["clock"], world.server._running.server.position  # type: ignore[union-attr]
    assert position[1] >= 24
    world.store.put_back()
    assert "it lacks 20 events" in (restart(world) or "")
    accepted(world)
    assert restart(world) is None

    async def go_on(replicas: list[Any]) -> None:
        assert await send(replicas[0], ["c0", "c1", "b0"]) == {"learned": 3}
        assert await send(replicas[0], ["a0"]) == {"repeat": 1}
        for name, wanted in (("c0", 1.0), ("c1", 1.0), ("b0", 2.0), ("b1", 1.0), ("a0", 1.0)):
            await until(lambda name=name, wanted=wanted: world.weight(replicas[0], name) == wanted)
        await settled(world, replicas)
        world.server.snapshot()

    live(world, go_on, n=1, ordered=True)
    assert checked(world).good


@pytest.mark.parametrize("freezes", [True, False])
def test_a_freeze_is_as_the_snapshot_knows_it(world: LossWorld, freezes: bool) -> None:
    """Frozen since the copy, or no longer: what was decided stands."""
    done = {True: "frozen", False: "learned"}

    async def life(replicas: list[Any]) -> None:
        assert await send(replicas[0], ["a"]) == {"learned": 1}
        await settled(world, replicas)
        name = world.server.snapshot()["name"]
        if not freezes:
            world.server.freeze()
            await until(lambda: replicas[0].learner.frozen, 240.0)
        world.store.keep()
        world.server.freeze() if freezes else world.server.unfreeze()
        await until(lambda: replicas[0].learner.frozen is freezes, 240.0)
        world.server.rollback(name)  # which makes a state that is written
        world.server.snapshot()

    live(world, life, n=1)
    world.store.put_back()
    assert "decisions, a snapshot knows" in (restart(world) or "")
    accepted(world)
    assert restart(world) is None
    assert bool(world.server.status()["frozen"]) is freezes

    async def go_on(replicas: list[Any]) -> None:
        await until(lambda: replicas[0].learner.frozen is freezes, 240.0)
        assert await send(replicas[0], ["d"]) == {done[freezes]: 1}

    live(world, go_on, n=1)


def test_an_acceptance_that_is_interrupted_anywhere_is_refused_until_it_is_given_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each write of the journal may be the last one; given again, it comes to the same."""
    for step in range(1, 60):
        folder = tmp_path / str(step)
        folder.mkdir()
        world = LossWorld(folder, SqliteStore(folder))
        _with_a_gap(world)
        left = step

        def write(self: SqliteFile, inner: Any = SqliteFile.write) -> Any:
            nonlocal left
            left -= 1
            if left < 0:
                raise JournalUnavailable("the power is gone")
            return inner(self)

        with monkeypatch.context() as patch:
            patch.setattr(SqliteFile, "write", write)
            try:
                accepted(world)
                done = True
            except (JournalUnavailable, PublishFailed):
                done = False
        if done:
            break
        reason = restart(world)
        assert reason is not None, f"it starts after {step} steps"
        assert "--accept-loss" in reason
        (note,) = accepted(world)
        assert (note.events, note.difference[0]) == (12, 12)
        assert restart(world) is None
        found = checked(world)
        assert found.good, str(found)
    assert step > 9


def test_an_older_snapshot_than_the_accepted_one_is_not_gone_on_from_unasked(
    world: LossWorld,
) -> None:
    _with_a_gap(world)
    (note,) = accepted(world)
    place = world.folder / "snapshots" / "m" / SPEC[:16]
    (place / f"{note.snapshot}.snapshot").unlink()
    reason = restart(world)
    assert reason is not None
    assert "from before the journal lost 12 events" in reason
    (again,) = accepted(world, now_s=200.0)
    assert (again.base, again.events) == (note.base, 12)
    assert restart(world) is None
    assert checked(world).good


def test_snapshots_of_another_journal_are_not_gone_on_from(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    for folder, n in ((one, 3), (other, 9)):
        folder.mkdir()
        world = LossWorld(folder, SqliteStore(folder))

        async def life(replicas: list[Any], world: LossWorld = world, n: int = n) -> None:
            await send(replicas[0], [f"e{i}" for i in range(n)])
            await settled(world, replicas)
            world.server.snapshot()

        live(world, life, n=1)
        with closing(world.journal()) as journal:
            journal.seal(1)
    shutil.copytree(other / "snapshots", one / "snapshots", dirs_exist_ok=True)
    mixed = LossWorld.__new__(LossWorld)
    mixed.store, mixed.folder = SqliteStore(one), one
    assert "it lacks 6 events" in (restart(mixed) or "")
    with pytest.raises(StartRefused, match="of another journal"):
        accepted(mixed)
