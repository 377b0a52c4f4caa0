"""What a release says of its age and quality, and what devices say of its answers."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import edge_world as worlds
import httpx
import msgspec
import pytest
from fastapi import FastAPI
from replica_world import SPEC, row

from online.commands.publish import edge
from online.commands.publish.export import freshness, left_behind
from online.edge.errors import PublishRefused
from online.edge.manifest import canonical
from online.edge.releases.channel import COMPARED_LEAST, DIFFERING_LEAST, Channel, Reports
from online.http.routes.edge import routes
from online.learning.counters import DIGEST, METRICS
from online.settings import config
from paramserver.core import rewrites
from paramserver.core.blocks import Block
from paramserver.core.replicas import Replicas
from paramserver.core.state import SnapshotState
from paramserver.core.wire import FORMAT, SyncRequest
from replay.journal.sqlite.journal import SqliteJournal

NOW = 1_800_000_000.0


def state_of(**more: Any) -> SnapshotState:
    values = {
        DIGEST: Block("digest", {"count": 12, "sum": 1}),
        METRICS: Block("count", {"n": 10.0, "correct": 9.0}),
    }
    return SnapshotState("m", SPEC, "{}", (3, 4), values, {1: 2}, created_at=NOW, **more)


def test_a_release_says_through_which_row_it_was_trained_how_good_and_on_what_stream(
    tmp_path: Path,
) -> None:
    (tmp_path / "online.yaml").write_text("models:\n- {name: m, task: binary, learner: logreg}\n")
    settings = config.load(tmp_path / "online.yaml", {"state_dir": tmp_path / "state"}, {})
    (served,) = settings.models
    plain = freshness(settings, served, state_of())
    assert "trained_through" not in plain, "there is no journal"
    (tmp_path / "state").mkdir(exist_ok=True)
    journal = SqliteJournal(tmp_path / "state" / "journal.db", disk_low_mb=0)
    first, second = (journal.register("m", name, SPEC, 0.0).id for name in ("a", "b"))
    journal.append(first, 0, [row(f"e{i}") for i in range(3)])
    journal.append(second, 0, [row("later")])
    told = freshness(settings, served, state_of(metrics={"drift_state": 2.0}))
    assert told["trained_through"] == {"event": f"{first}:2", "at": 1.0}, "not the row behind it"
    assert told["quality"] == {"accuracy": 0.9, "rows": 10}
    assert (told["events"], told["drift"]) == (12, "watch")
    closed = freshness(settings, served, state_of(closed=frozenset({second})))
    assert closed["trained_through"]["event"] == f"{second}:1"
    journal.close()
    about = {"freshness": told}
    assert edge._rows_since(Channel(), about) == 12
    before = Channel().published({"targets": {}, "freshness": {"events": 5}}, 100)
    assert edge._rows_since(before, about) == 7
    assert len(canonical({**told, "rows_since": 7})) < 300, "of 1,536 for the manifest"


def test_the_snapshot_has_the_state_of_the_replica_that_is_worst_off() -> None:
    replicas = Replicas(60.0)
    assert "drift_state" not in replicas.metrics()
    for name, report in (("a", {"drift_state": 1.0}), ("b", {"drift_state": 3.0}), ("c", {})):
        replicas.note(SyncRequest(FORMAT, name, 1, [], None, False, [], report=report), 0.0)
    assert replicas.metrics()["drift_state"] == 3.0


def folder_with(tmp_path: Path, devices: list[tuple[int, int]]) -> Reports:
    """What three devices and more have told over HTTP: rows compared, and with another label."""
    world = worlds.World(tmp_path)
    world.publish(1, NOW)
    world.publish(2, NOW, percent=1)
    app = FastAPI()
    app.include_router(routes(lambda model: None, tmp_path, guarded=False))

    async def tell() -> None:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x") as to:
            for i, (rows, differ) in enumerate(devices):
                said = {"outcome": "used", "asked": rows, "differ": differ}
                body = {"sequence": 2, "device": f"d{i}", **said}
                answer = await to.post("/v1/models/m/edge/reports", json=body)
                assert answer.json() == {"counted": True}

    asyncio.run(tell())
    return world.folder.reports(2)


@pytest.mark.parametrize(
    ("devices", "bad"),
    [
        ([(100, 20)] * 5, False),  # a fifth of the rows: the service learns on
        ([(100, 21)] * (DIFFERING_LEAST - 1) + [(100, 0)], False),
        ([(100, 21)] * DIFFERING_LEAST, True),
        ([(COMPARED_LEAST - 1, 19)] * 10, False),
        ([(100, 100)] * 3 + [(100, 0)] * 27, False),
        ([(100, 100)] * 3 + [(100, 0)] * 26, True),
    ],
)
def test_a_release_that_answers_otherwise_than_the_service_goes_no_further(
    tmp_path: Path, devices: list[tuple[int, int]], bad: bool
) -> None:
    reports = folder_with(tmp_path, devices)
    assert reports.used == len(devices)
    assert (reports.bad is not None) == bad, reports
    channel = Channel().published({"targets": {}}, 1)
    if bad:
        with pytest.raises(PublishRefused, match="otherwise than the service"):
            channel.promoted(None, reports)
    else:
        assert channel.promoted(None, reports).percent == 10


def test_lines_of_an_older_service_are_read(tmp_path: Path) -> None:
    world = worlds.World(tmp_path)
    world.publish(1, NOW)
    path = world.folder.path / "reports" / "1"
    path.parent.mkdir()
    path.write_text("".join(json.dumps(line) + "\n" for line in (["a", "used"], ["b", "failed"])))
    assert world.folder.reports(1) == Reports(1, 1)


ROWS = {1: (0, 5)}


@pytest.mark.parametrize(
    ("note", "through", "before", "found"),
    [
        (rewrites.Relearn(SPEC, "s", 0, {}, [], {}, 1.0), 5, 0, "relearn"),
        (rewrites.Forget(SPEC, "bot", None, None, "s", 0, {}, [], {}), 5, 0, "forget"),
        (rewrites.Rollback(SPEC, "s", 0, {}, [], ROWS), 5, 0, "rollback"),
        (rewrites.Rollback(SPEC, "s", 0, {}, [], ROWS), 6, 0, None),
        (rewrites.Relearn(SPEC, "s", 0, {}, [], {}, 1.0), 5, 1, None),
    ],
)
def test_a_release_that_a_rewrite_left_behind_says_so(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    note: rewrites.Note,
    through: int,
    before: int,
    found: str | None,
) -> None:
    data = {"state_dir": str(tmp_path), "models": [{**config.DEFAULT_MODEL, "name": "m"}]}
    settings = config.load(None, data, {})
    about = {"freshness": {"rewrite": before, "trained_through": {"event": f"1:{through}"}}}
    assert left_behind(settings, settings.models[0], about) is None, "there is no journal"
    journal = SqliteJournal(tmp_path / "journal.db", disk_low_mb=0)
    kind = type(note).__name__.lower()
    journal.write_control("m", kind, "it", msgspec.json.encode(note))
    journal.close()
    assert left_behind(settings, settings.models[0], about) == found
    assert left_behind(settings, settings.models[0], {"freshness": {}}) is None, "an older one"
    channel = Channel().published({"targets": {}, "freshness": {"events": 5}}, 100)
    edge._print(channel, False, "m", left_behind_by=found)
    said = capsys.readouterr().out
    assert (f"OLD: a {found} came after it" in said) == (found is not None)
