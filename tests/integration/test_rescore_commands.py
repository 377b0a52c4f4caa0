"""The commands around runs of scores, a table in an object store, and a full disk."""

from __future__ import annotations

import io
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import object_store
import pyarrow.parquet as pq
import pytest
import rescore_world as worlds
from typer.testing import CliRunner

from online.commands.cli import app
from online.rescore.errors import RunRefused, StoreFailed
from online.rescore.run import pointer
from online.rescore.stores import open_store
from online.tables.errors import LocationFailed
from online.tables.places import Folder, Location

TESTS = Path(__file__).parents[1]


def said(*words: str) -> str:
    result = CliRunner().invoke(app, words, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_list_rollback_and_gc(tmp_path: Path) -> None:
    worlds.state_folder(tmp_path)
    output, place = tmp_path / "out", f"sqlite:{tmp_path / 'scores'}"
    store = open_store(place, "m")
    for i in range(4):
        path = worlds.write(tmp_path / f"{i}.parquet", worlds.table(200, first=i))
        worlds.run([path], output, run=f"r{i}", store=store, force=True)
    path = worlds.write(tmp_path / "x.parquet", worlds.table(200, first=9))
    with pytest.raises(KeyboardInterrupt):
        worlds.run([path], output, run="half", stop_after=1)
    both = ("--output", str(output), "--store", place, "--config", str(tmp_path / "online.yaml"))
    listed = json.loads(said("scores", "list", "--output", str(output), "--json"))
    assert [(run["name"], run["current"]) for run in listed] == [
        ("r3", True), ("r2", False), ("r1", False), ("r0", False)
    ]  # fmt: skip
    said("scores", "rollback", *both)
    said("scores", "rollback", "--to", "r1", *both)
    assert store.current().run == pointer(Folder(Location(str(output)))).run
    assert store.get(["1", "201"], 0.0).scores[1] is None  # of r3 only
    text = said("scores", "gc", "--keep", "2", "--unfinished", *both)
    assert "removed r0\n" in text
    assert "removed r0, half" in text
    assert sorted(p.name for p in (output / "runs").iterdir()) == ["r1", "r2", "r3"]
    with pytest.raises(RunRefused):
        CliRunner().invoke(app, ["scores", "rollback", "--to", "r0", *both], catch_exceptions=False)
    assert "r1" in said("scores", "list", *both)


@pytest.fixture(scope="module")
def s3() -> Iterator[tuple[str, Any]]:
    if not object_store.has_s3_server():
        pytest.skip(object_store.NO_S3)
    with object_store.running_s3() as running:
        yield running


def test_from_an_object_store_to_an_object_store(
    tmp_path: Path, s3: tuple[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("ACCESS_KEY_ID", "key"), ("SECRET_ACCESS_KEY", "secret"),
                        ("EC2_METADATA_DISABLED", "true")):  # fmt: skip
        monkeypatch.setenv(f"AWS_{name}", value)
    query, filesystem = s3
    filesystem.create_dir("lake")
    local = worlds.write(tmp_path / "t.parquet", worlds.table(300))
    with filesystem.open_output_stream("lake/day/t.parquet") as stream:
        stream.write(Path(local).read_bytes())
    output = f"s3://lake/scores{query}"
    files = (f"s3://lake/day{query}",)
    with pytest.raises(KeyboardInterrupt):
        worlds.run(files, output, stop_after=1)
    outcome = worlds.run(files, output)
    assert outcome.scored == 200
    worlds.run([local], tmp_path / "out")
    for path in (tmp_path / "out").glob("runs/*/shards/*"):
        data = filesystem.open_input_file(f"lake/scores/runs/{outcome.run}/shards/{path.name}")
        there = pq.read_table(io.BytesIO(data.read()))
        assert there.equals(pq.read_table(path))
    assert worlds.run(files, output).was_published
    with pytest.raises(LocationFailed):
        worlds.run(files, f"s3://nowhere-{os.getpid()}/x{query}")


def test_a_disk_that_is_full(tmp_path: Path) -> None:
    """A file system of 256 KB."""
    small = tmp_path / "small"
    small.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(small)]
    if os.geteuid() != 0 or subprocess.run(words, capture_output=True, check=False).returncode:
        pytest.skip("no small file system can be mounted here")
    try:
        path = worlds.write(tmp_path / "t.parquet", worlds.table(40_000), 2_000)
        with pytest.raises(LocationFailed, match="No space left on device"):
            worlds.run([path], small / "out")
        assert not (small / "out" / "current.json").exists()
        store = open_store(f"sqlite:{small / 'scores'}", "m")
        with pytest.raises(StoreFailed, match=f"sqlite:{small}/scores.*full"):
            worlds.run([path], tmp_path / "out", store=store)
        assert not (tmp_path / "out" / "current.json").exists()
        assert not list(small.glob("scores/*/*"))
        for file in small.rglob("*.parquet"):  # what is there is whole
            assert pq.read_table(file).num_rows == 2_000
    finally:
        subprocess.run(["umount", "--lazy", str(small)], check=True)
