"""Snapshots that somebody removes under a server that has nothing to write."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path

import pytest
from server_world import World, learned, sync

from paramserver.errors import PublishFailed
from paramserver.snapshots.store import Disk


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path / "snapshots")


@pytest.mark.parametrize("number", range(10))
def test_a_head_that_is_gone_is_written_anew(world: World, number: int) -> None:
    """Though nothing has changed since: the next start needs the file, whatever memory holds."""
    lasts = [10 * (i + 1) for i in range(number + 1)]
    server = learned(world, *lasts)
    head = server.status()["snapshot"]
    before = world.file(head).read_bytes()
    kind = number % 3
    if kind == 0:
        shutil.rmtree(world.path)
    elif kind == 1:
        for file in world.file(head).parent.glob("*.snapshot"):
            file.unlink()
    else:
        world.file(head).unlink()
    world.now_s += world.settings.interval_s
    server.snapshot_if_due()
    assert world.file(head).exists()
    assert len(world.file(head).read_bytes()) > 0
    status = server.status()
    assert status["vanished"] == (1 if kind == 2 else len(lasts))
    assert f"{head}, the newest, is written anew" in status["incident"]
    again = world.serving()
    assert again.status()["clock"] == {1: lasts[-1]}
    assert again.status()["incident"] is None
    assert before


def test_a_state_folder_that_was_moved_is_not_made_anew_in_its_old_place(tmp_path: Path) -> None:
    """Whoever moves it back would find another one there, and move it into that."""
    state, elsewhere = tmp_path / "state", tmp_path / "elsewhere"
    world = World(state / "snapshots")
    server = learned(world, 10)
    head = server.status()["snapshot"]
    world.file(head)  # it is there
    state.rename(elsewhere)
    world.now_s += world.settings.interval_s
    with contextlib.suppress(PublishFailed):
        server.snapshot_if_due()
    assert not state.exists()
    elsewhere.rename(state)
    world.now_s += world.settings.interval_s
    server.snapshot_if_due()
    assert world.file(head).exists()
    assert world.serving().status()["clock"] == {1: 10}


def test_an_older_one_that_is_gone_is_no_more_listed(world: World) -> None:
    server = learned(world, 10, 20, 30)
    world.file("1-2").unlink()
    head = world.file("1-3").read_bytes()
    row = server.snapshot()
    assert [row["name"] for row in server.snapshots()] == ["1-3", "1-1"]
    assert row["name"] == "1-3"
    assert world.file("1-3").read_bytes() == head, "what is there stays as it is"
    assert server.status()["vanished"] == 1


def test_what_is_created_is_there(world: World) -> None:
    """An operator who asks for one gets a name with a file, or an error."""
    server = learned(world, 10)
    world.file("1-1").unlink()
    name = server.snapshot(pin=True)["name"]
    assert world.file(name).exists()


class _Away(Disk):
    away = False

    def list(self, path: Path) -> list[str]:
        if self.away:
            raise OSError("no answer")
        return super().list(path)


def test_a_place_that_does_not_answer_is_said(world: World) -> None:
    disk = _Away()
    server = world.serving(disk=disk)
    sync(server, (1, 1, 3))
    server.snapshot()
    disk.away = True
    with pytest.raises(PublishFailed, match="no answer"):
        server.snapshot()
    disk.away = False
    assert server.snapshot()["name"] == "1-1"
    assert server.status()["vanished"] == 0
