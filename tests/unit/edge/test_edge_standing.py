"""How releases for devices stand: what the page lists, and what the course of a model marks."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
from edge_world import World

from online.edge.releases.folder import releases_in, write
from online.monitoring.samples import Mark, happened, sample

NOW = 1_790_000_000.0


def states(world: World) -> list[tuple[int, str]]:
    return [(r["sequence"], r["state"]) for r in world.folder.standing()["releases"]]


def test_every_release_says_who_uses_it(tmp_path: Path) -> None:
    world = World(tmp_path / "edge")
    assert world.folder.standing() == {"sequence": 0, "releases": []}
    world.publish(1, NOW)
    assert states(world) == [(1, "everybody")]
    world.publish(2, NOW + 60, percent=10)
    assert states(world) == [(2, "some"), (1, "the others")]
    world.publish(3, NOW + 120)
    assert states(world) == [(3, "everybody"), (2, "kept"), (1, "kept")]
    world.folder.report(3, "phone", "used")
    world.folder.report(3, "watch", "failed")
    told = world.folder.standing()
    assert (told["reports"]["used"], told["reports"]["failed"]) == (1, 1)
    newest = told["releases"][0]
    assert (newest["version"], newest["events"], newest["rewrite"]) == ("1.3", 3, None)
    assert newest["targets"]["edgepack"] > 0
    assert releases_in(tmp_path)("m") == told


def status(edge: dict[str, Any] | None) -> dict[str, Any]:
    return {"quality": {}, "replicas": {}, "learned": 0, "edge": edge}


def test_the_course_marks_each_release_and_what_was_said_of_it(tmp_path: Path) -> None:
    world = World(tmp_path / "edge")
    taken = sample(status(world.folder.standing()), NOW, None)
    assert list(happened(None, taken)) == []
    marks: list[Mark] = []
    for at in (1.0, 2.0, 3.0):
        if at != 3.0:  # nothing is said of the third look
            world.publish(int(at), NOW + at, percent=100 if at == 1 else 10)
        now = sample(status(world.folder.standing()), NOW + at, taken)
        marks += happened(taken, now)
        taken = now
    assert [(m.kind, m.text) for m in marks] == [
        ("edge", "release 1 to 100 % of devices"), ("edge", "release 2 to 10 % of devices"),
    ]  # fmt: skip
    halted = {**world.folder.standing(), "halted": True}
    (mark,) = happened(taken, sample(status(halted), NOW + 4, taken))
    assert mark.text == "release 2 halted"


def test_a_disk_that_fills_leaves_no_half_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    write(tmp_path / "a.pack", b"before")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write(tmp_path / "a.pack", b"after")
    assert [path.name for path in tmp_path.iterdir()] == ["a.pack"]
    assert (tmp_path / "a.pack").read_bytes() == b"before"
