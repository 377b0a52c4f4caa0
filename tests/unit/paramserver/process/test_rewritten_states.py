"""What rollbacks, freezes, forgets and promotions make of rows and values."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from server_world import LINEAGE, Control, World, learned, sync, value

from paramserver import errors
from paramserver.core import rewrites
from paramserver.core.blocks import Block
from paramserver.core.rewrites import Rollback, Undone
from paramserver.core.state import SnapshotState
from paramserver.process.actor import ServerSettings
from paramserver.process.lineage import replayed
from paramserver.snapshots.store import Retention


@pytest.fixture
def world(tmp_path: Path) -> Any:
    return World(tmp_path / "snapshots")


def rollback_row(seq: int, control: int, undone: dict[int, tuple[int, int]]) -> Any:
    note = Rollback("s", "n", control, {}, [], undone)
    return Control(seq, "rollback", f"{seq}", msgspec.json.encode(note))


def test_undone_follows_the_snapshots_that_are_gone_back_to() -> None:
    first = rollback_row(3, 0, {1: (4, 9), 2: (0, 2)})
    assert rewrites.undone([]) == Undone()
    undone = rewrites.undone([first])
    assert (undone.ranges, undone.count) == ({1: ((4, 9),), 2: ((0, 2),)}, 7)
    places = [(1, 4), (1, 5), (1, 9), (1, 10), (2, 0), (2, 1), (3, 1)]
    assert [undone.has(*place) for place in places] == [0, 1, 1, 0, 0, 1, 0]
    # to a snapshot from after it: what it undid stays so
    later = rollback_row(5, 4, {1: (12, 14)})
    assert rewrites.undone([first, later]).ranges == {1: ((4, 9), (12, 14)), 2: ((0, 2),)}
    touching = rollback_row(5, 4, {1: (9, 14)})
    assert rewrites.undone([first, touching]).ranges[1] == ((4, 14),)
    # to one from before it, with some of those rows: they are back
    back = rollback_row(6, 2, {1: (7, 12)})
    assert rewrites.undone([first, later, back]).ranges == {1: ((7, 12),)}


def test_frozen_by_the_first_of_repeated_freezes() -> None:
    rows = [Control(i + 1, kind) for i, kind in enumerate(["freeze", "failed", "freeze"])]
    assert rewrites.frozen_by(rows) == 1
    assert rewrites.frozen_by([*rows, Control(4, "unfreeze"), Control(5, "freeze")]) == 5
    assert rewrites.frozen_by([*rows, Control(4, "unfreeze")]) == 0
    assert rewrites.newest_rewrite(rows) == 0
    assert rewrites.newest_rewrite([*rows, Control(4, "rollback"), Control(5, "failed")]) == 4


def test_held_until_no_start_needs_it() -> None:
    needed = rewrites.Needed(7, "1-1")
    assert rewrites.held(needed, [6, 9]) == {"1-1"}
    assert rewrites.held(needed, [7, 9]) == set()
    assert rewrites.held(needed, []) == {"1-1"}, "before it is known what is kept"
    assert rewrites.held(None, []) == set()


def aside(server: Any, last: int = 9, **more: Any) -> SnapshotState:
    """A state without row 8 of partition 1, as far as ``last``, published as ``aside-1``."""
    now = server._running.server.state(0.0, None, {})
    values = {"w": Block("additive", {"k": float(last - 1)})}
    built = replace(now, values=values, clock={1: last}, closed=frozenset(), **more)
    server._running.history.publish("aside-1", built)
    return built


def forget(server: Any, undone: dict[int, list[int]] | None = None, name: str = "aside-1") -> Any:
    return server.forget(name, "bot", None, "1-1", {1: [7, 1]} if undone is None else undone)


def test_a_state_without_a_source_takes_the_place_of_the_values(world: Any) -> None:
    server = learned(world, 4, 6)
    sync(server, (1, 7, 9))
    server.ban("bot", True)
    aside(server)
    sync(server, (1, 10, 11))  # while it was built
    answer = forget(server)
    assert answer == {"snapshot": "aside-1", "version": [2, 5], "undone": 1, "control": 2}
    reply = sync(server)
    assert (reply.rewrite, reply.clock, value(server)) == (2, {1: 9}, 8.0)
    assert sync(server, (1, 10, 11)).acks[0].status == "applied"
    again = world.serving()  # the newest snapshot is from before the row
    assert (sync(again).rewrite, sync(again).clock, value(again)) == (2, {1: 9}, 8.0)
    sync(again, (1, 10, 11))
    assert "aside-1" in again._running.history._snapshots.names()
    world.settings = ServerSettings(retention=Retention(1, 0, 0, 0))
    last = world.serving()
    for row in (10, 11, 12):
        world.now_s += 10
        sync(last, (1, row, row))
        last.snapshot()
    assert "aside-1" not in last._running.history._snapshots.names(), "all that are kept are newer"
    with pytest.raises(errors.RollbackRefused):
        last.rollback("aside-1")


def test_what_no_row_names_is_removed_at_a_start(world: Any) -> None:
    server = learned(world, 4)
    aside(server, 4)
    again = world.serving()
    assert again._running.history._snapshots.names() == ["1-1"]
    assert [row["name"] for row in again.snapshots()] == ["1-1"]


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ("not banned", "not banned"),
        ("rolled back", "rewritten meanwhile"),
        ("missing", "no snapshot"),
        ("a snapshot", "no separately built state"),
        ("beyond", "ends at row 101"),
        ("removed", "ends at row 9"),
        ("behind", "beyond the end"),
        ("no spans", "not valid spans"),
        ("odd", "not valid spans"),
        ("many", "3 spans, at most 2"),
        ("another", "spec other"),
    ],
)
def test_a_state_that_can_not_take_the_place_is_refused(
    world: Any, monkeypatch: pytest.MonkeyPatch, wrong: str, why: str
) -> None:
    server = learned(world, 4, 6)
    sync(server, (1, 7, 9))
    if wrong != "not banned":
        server.ban("bot", True)
    if wrong != "missing":
        more = {"spec": "other"} if wrong == "another" else {}
        aside(server, {"beyond": 101, "behind": 7}.get(wrong, 9), **more)
    if wrong == "rolled back":
        server.rollback("1-2")
    if wrong == "removed":
        world.store.rows[1] = replace(world.store.rows[1], trimmed=10)
    monkeypatch.setattr(rewrites, "SPANS_MAX", 2)
    undone = {"no spans": [7, -1], "odd": [7], "many": [1, 1, 1, 1, 1, 1]}.get(wrong, [7, 1])
    before = (server._running.server.version, len(world.store.control))
    with pytest.raises(errors.ForgetRefused, match=why):
        forget(server, {1: undone}, "1-2" if wrong == "a snapshot" else "aside-1")
    assert (server._running.server.version, len(world.store.control)) == before
    assert server.ping() == "serving"


def test_one_fresh_state_at_a_time_and_none_of_a_frozen_model(world: Any) -> None:
    server = learned(world, 4, 6)
    assert server.may_relearn(0, 60.0)
    assert not server.may_relearn(0, 60.0), "one in a minute"
    world.now_s += 60
    assert not server.may_relearn(7, 60.0), "of somebody who does not know the newest rewrite"
    assert server.may_relearn(0, 60.0)
    aside(server, 6)
    answer = server.relearn("aside-1", 5.0, {1: [0, 4]}, {"rows": 2.0})
    assert answer == {"snapshot": "aside-1", "version": [2, 3], "undone": 4, "control": 1}
    row = world.store.control[-1]
    note = rewrites.note_of(row)
    assert (row.kind, note.since, note.evidence) == ("relearn", 5.0, {"rows": 2.0})
    assert (sync(server).clock, value(server)) == ({1: 6}, 5.0)
    again = world.serving()
    assert (sync(again).rewrite, sync(again).clock, value(again)) == (1, {1: 6}, 5.0)
    again.freeze()
    world.now_s += 60
    assert not again.may_relearn(1, 60.0)
    aside(again, 6)
    with pytest.raises(errors.RelearnRefused, match="frozen"):
        again.relearn("aside-1", 5.0, {}, {})


def test_a_ban_names_the_row_that_decided_about_its_source(world: Any) -> None:
    server = learned(world, 4)
    assert server.ban("bot", False)["control"] == 0, "nothing was decided about it"
    assert [server.ban("bot", banned)["control"] for banned in (True, False)] == [1, 2]
    assert server.ban("other", True)["control"] == 3
    assert server.ban("bot", False)["control"] == 2, "a repeat"
    assert server.ban("new", False)["control"] == 3, "the newest row"


def test_a_store_that_does_not_answer_a_promotion_is_named(world: Any) -> None:
    server = learned(world, 4)
    note = msgspec.json.encode(rewrites.Promote(LINEAGE.spec, "t" * 64, {}, {}))
    world.store.failing["controls"] = "before"
    with pytest.raises(errors.NothingDecided, match="controls failed"):
        server.promote(note)
    world.store.failing.clear()
    assert server.promote(note) == {"control": 1, "before": LINEAGE.spec, "after": "t" * 64}


def test_a_promotion_leaves_every_lineage_as_it_is() -> None:
    state = SnapshotState("m", "s", "", (1, 1), {}, {1: 5})
    note = rewrites.Promote("s", "t", {}, {})
    row = Control(3, "promote", "k", msgspec.json.encode(note))
    assert replayed(state, [row], _never) == replace(state, control=3)


def _never(name: str) -> SnapshotState:
    raise AssertionError(f"nobody asks for {name}")
