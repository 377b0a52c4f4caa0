"""The whole of a model with several parameter servers, from snapshots of one moment."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from online.client import Client
from online.commands.publish.export import restored
from online.errors import StartRefused
from online.rescore.snapshot import scored
from online.service.embedded import Embedded
from online.settings.config import EMBEDDED, Settings
from replay.example import Features

WORDS = [f"w{i}" for i in range(12)]


class World:
    """A service in this process, with a model of names and one with a table."""

    def __init__(self, folder: Path) -> None:
        models = [
            {"name": "clicks", "task": "binary", "learner": "ftrl", "shards": 3},
            {
                "name": "films", "task": "regression", "learner": "fm", "shards": 2,
                "params": {"table": True, "k": 4},
            },
        ]  # fmt: skip
        self.settings = Settings.model_validate(
            {"cluster": EMBEDDED, "port": 0, "state_dir": folder, "models": models}
        )
        self.service = Embedded(self.settings, lambda _: None)
        self.service.start()

    @property
    def client(self) -> Client:
        return self.service.client


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    made = World(tmp_path_factory.mktemp("aligned"))
    try:
        for i in range(60):
            made.client.feedback("clicks", i % 3 > 0, features={WORDS[i % 12]: 1.0, "x": i / 60})
            made.client.feedback("films", float(i % 5), features={"u": f"u{i % 7}", "f": f"f{i}"})
        yield made
    finally:
        made.service.stop()


@pytest.mark.parametrize("name", ["clicks", "films"])
def test_an_export_and_a_run_of_scores_have_what_all_servers_have(world: World, name: str) -> None:
    made = world.client.model(name).snapshot()["name"]
    model = next(one for one in world.settings.models if one.name == name)
    rows: list[Features] = [{"u": "u1", "f": "f8"}]
    if name == "clicks":
        rows = [{word: 1.0} for word in WORDS]
    state, exported = restored(world.settings, model, made)
    assert state.clock
    run = scored(model, world.settings)
    assert run.snapshot == made
    for row in rows:
        answer = world.client.predict(name, row)
        for built in (exported, run.make()):
            found = built.predict(row)
            if name == "films":
                assert found.label == pytest.approx(answer.prediction, rel=1e-5), row
                continue
            assert isinstance(answer.probabilities, dict)
            assert found.probabilities is not None
            told = answer.probabilities["true"]
            assert found.probabilities[True] == pytest.approx(told, rel=1e-5), row


def test_a_snapshot_of_one_server_alone_is_not_the_model(world: World) -> None:
    model = world.settings.models[0]
    with pytest.raises(StartRefused, match="no snapshot 7-7 with the same rows"):
        restored(world.settings, model, "7-7")
