"""A model has another number of parameter servers after a restart: each event counts once."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.fixtures.learners import COUNT_LABEL
from online.errors import StartRefused
from online.rebuild.fsck import check
from online.service.embedded import Embedded
from online.settings.config import EMBEDDED, Settings
from paramserver.clients.in_process import InProcess


class World:
    """A folder of a model that counts events, each in a weight of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.sent = folder, 0
        self.lines: list[str] = []

    def settings(self, shards: int) -> Settings:
        model: dict[str, Any] = {
            "name": "m", "task": "regression", "learner": "benchmarks.fixtures.learners:counting",
            "sync": {"merge": "sum"}, "shards": shards, "filters": "none",
            "snapshots": {"interval_s": 3600},
        }  # fmt: skip
        given = {"cluster": EMBEDDED, "port": 0, "state_dir": self.folder, "models": [model]}
        return Settings.model_validate(given)

    @contextlib.contextmanager
    def served(self, shards: int, **how: bool) -> Iterator[Embedded]:
        service = Embedded(self.settings(shards), self.lines.append)
        service.start(**how)
        try:
            yield service
        finally:
            service.stop()

    def learn(self, service: Embedded, n: int) -> None:
        for i in range(self.sent, self.sent + n):
            receipt = service.client.feedback(
                "m", COUNT_LABEL, features={f"e{i}": 1.0}, event_id=str(i)
            )
            assert receipt.status == "learned", receipt
        self.sent += n

    def check(self, service: Embedded) -> None:
        """All that was learned counts once."""
        rows: list[dict[str, Any]] = [{f"e{i}": 1.0} for i in range(-1, self.sent)]
        told = service.client.predict_many("m", rows).predictions
        base, *values = (float(row.prediction) for row in told)
        counts = Counter((value - base) * 2**10 for value in values)
        assert counts == {1.0: self.sent}
        assert service.client.status("m")["learned"] == self.sent

    def good(self, shards: int) -> None:
        found = check(self.settings(shards), "m")
        assert found.good, str(found)


def late(*_: object) -> str:
    raise TimeoutError


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path / "state")


def test_each_event_counts_once_with_any_number_of_servers(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    epoch = 0
    for n, shards in enumerate((2, 3, 1, 4, 2)):
        with world.served(shards) as service:
            if n:
                world.check(service)
            world.learn(service, 20)
            if n == 1:  # it ends as if it was killed: what comes then is learned from the journal
                service.model.snapshot()
                world.learn(service, 5)
                monkeypatch.setattr(InProcess, "last_snapshot", late)
            else:
                monkeypatch.undo()
            status = service.client.status("m")
            assert status["server"]["epoch"] > epoch, "versions only grow"
            epoch = status["server"]["epoch"]
            assert len(status["server"].get("shards", [1])) == shards
            repeat = service.client.feedback("m", COUNT_LABEL, features={"e3": 1.0}, event_id="3")
            assert repeat.duplicate
        world.good(shards)
    said = [line for line in world.lines if "instead of" in line]
    assert [line.split()[2] for line in said] == ["3", "1", "4", "2"], said
    assert said[1].endswith("with 40 events"), "five more were learned again"


def test_decisions_are_those_of_before(world: World) -> None:
    with world.served(2) as service:
        world.learn(service, 10)
        good = service.model.snapshot()["name"]
        for name in ("x", "y"):
            service.client.feedback("m", COUNT_LABEL, features={name: 1.0})
        service.model.rollback(good)
        service.model.freeze()
    with world.served(3) as service:
        world.check(service)
        assert service.client.status("m")["rewrites"]["frozen"]
        service.model.unfreeze()
        world.learn(service, 10)
        world.check(service)
        assert service.client.status("m")["rewrites"]["undone"] == 2
    world.good(3)


def test_without_a_cut_of_the_same_rows_the_start_is_refused(world: World) -> None:
    with world.served(2) as service:
        world.learn(service, 10)
    for name in (world.folder / "snapshots" / "+1" / "m").rglob("*.snapshot"):
        name.unlink()
    with pytest.raises(StartRefused, match="no snapshot with the same rows"):
        Embedded(world.settings(3), world.lines.append).start()
    with world.served(3, relearn=True) as service:
        world.check(service)
    with world.served(3) as service:
        world.check(service)
    with world.served(1) as service:
        world.check(service)
