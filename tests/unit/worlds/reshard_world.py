"""A state folder whose model was served by two servers, and what is said about their number."""

from __future__ import annotations

from pathlib import Path

from online.learning.counters import DIGEST
from online.models.loaded import Loaded
from online.models.loading.from_settings import load_model
from online.rebuild import reshard
from online.settings.config import Settings
from online.settings.model import ModelSettings
from online.settings.places import open_journal
from online.settings.whole import cut_of, histories_of
from paramserver.core import resharding
from paramserver.core.blocks import Block, Blocks
from paramserver.core.resharding import Reshard
from paramserver.core.shards import Cut, ShardStore
from paramserver.core.state import SnapshotState
from paramserver.process.lineage import Lineage, begin_epoch, publish
from paramserver.store import Store
from replay.journal.base import Journal, NewRow, Verdict


class World:
    """A state folder whose model was served by two servers."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.journal: Journal = open_journal(self.settings(2))
        self.spec = self.loaded(2).spec_hash
        self.partition = self.journal.register("m", "r", self.spec, 0.0).id
        rows = [NewRow(bytes([i]) * 16, f"e{i}", "s", Verdict.ACCEPTED, b"", 0.0) for i in range(9)]
        self.journal.append(self.partition, 0, rows)
        self.lineage = Lineage("m", self.spec, "{}", "sum")
        for store in self.stores(2):
            for _ in range(3):
                begin_epoch(store, self.lineage)

    def settings(self, shards: int) -> Settings:
        model = {"name": "m", "task": "binary", "learner": "ftrl", "shards": shards}
        return Settings.model_validate({"state_dir": self.folder, "models": [model]})

    def model(self, shards: int) -> ModelSettings:
        return self.settings(shards).models[0]

    def loaded(self, shards: int) -> Loaded:
        return load_model(self.model(shards), self.settings(shards), b"\0" * 32)

    def stores(self, shards: int) -> list[Store]:
        return [self.journal, *(ShardStore(self.journal, k) for k in range(1, shards))]

    def publish(self, count: int, *clocks: int, control: int = 0) -> None:
        """Snapshots of both servers, whose clocks may differ."""
        values: Blocks = {
            "w": Block("additive", {f"k{i}": float(i) for i in range(40)}),
            DIGEST: Block("digest", {"count": clocks[0], "sum": 5}),
        }
        histories = histories_of(self.settings(2), self.model(2), self.spec)
        parts = Cut(2).blocks(values)
        for store, history, part, last in zip(
            self.stores(2), histories, parts, clocks, strict=True
        ):
            clock = {self.partition: last}
            state = SnapshotState("m", self.spec, "{}", (3, count), part, clock, control=control)
            publish(store, history, state, None)

    def reshard(self, after: int, before: int = 2) -> reshard.Resharded:
        one = next(iter(reshard.specs_of(self.model(1), self.settings(1))))
        said = Reshard(one, before, before, after, done=True, why="settings")
        settings, model, loaded = self.settings(after), self.model(after), self.loaded(after)
        return reshard.reshard(self.journal, settings, model, loaded, before, said)

    def begun(self, shards: int) -> SnapshotState:
        """What the servers of a lineage begin with, together."""
        return cut_of(self.settings(shards), self.model(shards), self.loaded(shards).spec_hash)[1]


def one(world: World) -> str:
    return next(iter(reshard.specs_of(world.model(1), world.settings(1))))


def decided(world: World, given: int, *, running: bool = False) -> int:
    controls = world.journal.controls("m", 0)
    return resharding.decided(controls, one(world), given, running=running)


def saying(world: World, given: int, before: int, shards: int, *, done: bool = False) -> Reshard:
    specs = reshard.specs_of(world.model(1), world.settings(1))
    return reshard.saying(specs, given, before, shards, done=done, why="operator")


def handed_on(world: World, shards: int) -> bool:
    """Whether the server of a model with so many decides nothing any more."""
    specs = reshard.specs_of(world.model(1), world.settings(1))
    spec = next(spec for spec, n in specs.items() if n == shards)
    return resharding.handed_on(world.journal.controls("m", 0), spec)
