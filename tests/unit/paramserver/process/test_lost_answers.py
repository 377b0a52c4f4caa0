"""Decisions whose answer from the store was lost: they are repeated, and taken once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from server_world import LINEAGE, World, learned, sync

from paramserver import errors
from paramserver.core.rewrites import Promote, banned
from paramserver.core.standing_decisions import Answers, Upgrade


@pytest.fixture
def world(tmp_path: Path) -> Any:
    return World(tmp_path / "snapshots")


@pytest.mark.parametrize(
    "decide",
    [
        lambda server: server.ban("liar", True),
        lambda server: server.answers(msgspec.json.encode(Answers(True))),
        lambda server: server.upgrade(msgspec.json.encode(Upgrade(True))),
        lambda server: server.promote(msgspec.json.encode(Promote(LINEAGE.spec, "t" * 64, {}, {}))),
    ],
    ids=["ban", "answers", "upgrade", "promote"],
)
def test_a_decision_whose_answer_was_lost_is_acted_on_when_it_is_repeated(
    world: Any, decide: Any
) -> None:
    server = learned(world, 4)
    world.store.failing["write_control"] = "after"
    with pytest.raises(errors.DecisionUncertain):
        decide(server)
    world.store.failing.clear()
    assert decide(server)["control"] == 1
    assert len(world.store.control) == 1
    assert sync(server).control == 1, "or no replica hears of it before the next decision"


def test_a_ban_whose_row_comes_late_is_not_taken_for_another_one(
    world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = learned(world, 4)
    write, lost = world.store.write_control, list[Any]()

    def late(*args: Any) -> Any:
        if not lost:
            lost.append(args)
        if args[3] == lost[0][3]:
            raise OSError("no answer")
        write(*lost[0])  # the store stood still, and goes on
        return write(*args)

    monkeypatch.setattr(world.store, "write_control", late)
    with pytest.raises(errors.DecisionUncertain):
        server.ban("first", True)
    server.ban("second", True)
    assert banned(world.store.control) == {"first": 1, "second": 2}
    assert sync(server).control == 2
