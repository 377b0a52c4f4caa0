"""Nothing is decided where it would not stand, and it is said that nothing was changed."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import msgspec
import pytest
from server_world import LINEAGE, Control, World, learned, sync, value

from paramserver import errors
from paramserver.core.resharding import RESHARD, Reshard
from paramserver.process.sharing import Shard, Sharing


@pytest.fixture
def world(tmp_path: Path) -> Any:
    return World(tmp_path / "snapshots")


def test_nothing_is_decided_while_another_number_of_servers_begins(world: Any) -> None:
    """The lineage that begins would not know it, or would refuse to start after it."""
    server = learned(world, 4, 6)
    wish = Reshard("one", 2, 2, 3, False, "operator", LINEAGE.spec, "3" * 64)
    failed = Reshard("one", 2, 3, 2, True, "failed", "3" * 64, LINEAGE.spec)
    said = [Control(1, RESHARD, "a", msgspec.json.encode(wish))]
    world.store.control += said
    for decide in (
        lambda: server.rollback("1-1"), server.freeze, lambda: server.ban("bot", True)
    ):  # fmt: skip
        with pytest.raises(errors.HandedOn, match="which may take minutes") as told:
            decide()
        assert told.value.definite
    assert world.store.control == said
    assert (sync(server).rewrite, sync(server).frozen, value(server)) == (0, False, 6.0)
    world.store.control.append(Control(2, RESHARD, "b", msgspec.json.encode(failed)))
    assert server.rollback("1-1")["control"] == 3
    assert (value(server), server.freeze()["frozen"]) == (4.0, 4)


def test_who_confirms_its_epoch_has_decided_and_waits_for_no_snapshot(
    world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, held, head = learned(world, 4), list[bool](), world.store.head

    def looked(*given: Any) -> Any:
        held.append(server._running.deciding.locked())
        return head(*given)

    monkeypatch.setattr(world.store, "head", looked)
    with server._running.publishing:  # a large table is being written
        asked = threading.Thread(target=server.confirm, daemon=True)
        asked.start()
        asked.join(60)
        assert not asked.is_alive()
    assert held == [True], "nobody decides meanwhile"


@pytest.mark.parametrize("back", ["rollback", "recover"])
def test_other_shards_keep_no_snapshot_for_what_is_not_decided(
    world: Any, monkeypatch: pytest.MonkeyPatch, back: str
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(Sharing, "foreign", lambda *_: None)  # the world's key is another's

    def ask(_: int, method: str, *__: object) -> Any:
        asked.append(method)
        return {"partner": "1-1", "contained": {}}.get(method, True)

    server = world.serving(shard=Shard(0, 2, ask, pause=lambda: None))
    sync(server, (1, 1, 4))
    server.snapshot()
    wish = Reshard("one", 2, 2, 3, False, "operator", LINEAGE.spec, "3" * 64)
    wished = Control(1, RESHARD, "a", msgspec.json.encode(wish))

    def go_back() -> Any:
        if back == "rollback":
            return server.rollback("1-1")
        return server.recover(server.status()["rewrite"], world.now_s + 1e9)

    world.store.control.append(wished)
    with pytest.raises(errors.HandedOn):
        go_back()
    assert "partner" not in asked
    world.store.control.clear()
    if back == "rollback":  # the control; weights that have not grown are not recovered
        go_back()
        assert "partner" in asked


def test_a_store_that_does_not_answer_lets_nothing_be_decided(world: Any) -> None:
    server = learned(world, 4)
    world.store.failing["controls"] = "before"
    for decide in (
        server.freeze, lambda: server.ban("bot", True), lambda: server.upgrade(b'{"on":true}')
    ):  # fmt: skip
        with pytest.raises(errors.NothingDecided, match="no decision was recorded") as told:
            decide()
        assert told.value.definite
    world.store.failing.clear()
    assert (world.store.control, sync(server).frozen) == ([], 0)
    assert server.freeze()["frozen"] == 1
