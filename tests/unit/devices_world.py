"""Devices that learn from releases of a model and push what they have learned; some of them lie."""

from __future__ import annotations

import base64
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from edge_world import DAY_S, key
from replica_world import SPEC, World

from evaluation.streams import open_stream
from online.edge import on_device, pack
from online.edge.folder import Folder
from online.edge.lower import lower
from online.edge.on_device import Learned
from online.edge.pushes import Push, Pushes
from online.errors import RequestError
from online.features import Door
from online.model_settings import Devices
from online.models.load import load
from online.replica import ModelReplica
from online.rootset import RootSet
from replay.example import Features, Label

Rows = list[tuple[Features, Label]]
ROOT_ROWS: Final = 100
CLASSES: Final = 10


def digits() -> Rows:
    return list(open_stream("digits").rows)


def model(learner: str, task: str = "multiclass", **params: Any) -> Any:
    return load(learner, params, task=task, classes=None, key=bytes(32), base_dir=Path())  # type: ignore[arg-type]


@dataclass
class Scene:
    """A replica, its folder of releases, and what takes deltas."""

    replica: ModelReplica
    pushes: Pushes
    folder: Folder
    packs: dict[int, bytes] = field(default_factory=dict)

    def publish(self, at: float | None = None) -> int:
        """The model as it answers now, as the next release for all; its sequence."""
        served = self.replica.learner.serving
        edge = lower(served, self.replica.settings.task)
        about = {
            "spec": 1, "model": "m", "features": list(edge.columns.names),
            "classes": list(edge.classes), "targets": {},
            "freshness": {
                "version": list(self.replica.learner.version), "spec": SPEC[:16],
                "snapshot_at": time.time() if at is None else at,
            },
        }  # fmt: skip
        channel = self.folder.channel().published(about, 100)
        with self.folder.locked():
            self.folder.path.joinpath("files").mkdir(exist_ok=True)
            self.folder.publish(channel, channel.head(time.time(), DAY_S), key(2))
        self.packs[channel.sequence] = pack.encode(edge)
        return channel.sequence

    async def push(self, body: dict[str, Any]) -> str:
        """What became of it: a status, or an error's code."""
        try:
            return (await self.pushes.take(Push.model_validate(body)))[1].status
        except RequestError as error:
            return error.code

    def score(self, rows: Rows) -> float:
        answers = self.replica.learner.serving.predict_many([x for x, _ in rows])
        return float(np.mean([a.label == y for a, (_, y) in zip(answers, rows, strict=True)]))


async def scene(
    world: World, built: Callable[[], Any], root: Rows, devices: Devices, **more: Any
) -> Scene:
    path = Path("root.csv")
    replica = await world.replica(
        build=built, task=more.pop("task", "multiclass"), devices=devices, root_set=path,
        filters=None, **more,
    )  # fmt: skip
    door = Door(replica.settings, replica.limits, numeric_only=True)
    place = world.folder / "edge" / "m"
    place.mkdir(parents=True, exist_ok=True)
    reference = RootSet(path, root, lambda: replica.learner.serving, together=32)
    return Scene(replica, Pushes(replica, door, place, devices, reference), Folder(place))


def flipped(learned: Learned) -> Learned:
    return replace(learned, weights=-learned.weights, bias=-learned.bias)


def louder(learned: Learned) -> Learned:
    return replace(learned, weights=-10 * learned.weights, bias=-10 * learned.bias)


@dataclass
class Device:
    """Its rows, in the order in which it meets them."""

    name: str
    rows: Rows
    lie: str = ""
    counter: int = 0
    fates: Counter[str] = field(default_factory=Counter)

    def body(self, scene: Scene, sequence: int, n: int, settings: Devices) -> dict[str, Any]:
        start = self.counter * n % len(self.rows)
        batch = (self.rows + self.rows)[start : start + n]
        if self.lie == "labels":
            batch = [(x, (int(y) + 1) % CLASSES) for x, y in batch]
        learned = on_device.learn(scene.packs[sequence], batch, settings.rate)
        if self.lie == "flip":
            learned = flipped(learned)
        learned = louder(learned) if self.lie == "loud" else learned.clipped(settings.clip)
        self.counter += 1
        body = learned.body(self.name, self.counter, sequence)
        if self.lie == "nan":
            nan = np.full(learned.weights.size, np.nan, "<f4")
            body["weights"] = {"float32": base64.b64encode(nan.tobytes()).decode()}
        return body


def fleet(rows: Rows, n: int, lies: Sequence[str], seed: int, classes: int = 3) -> list[Device]:
    """Devices that see a few classes each; the first ones lie."""
    rng = np.random.default_rng(seed)
    made = []
    for i in range(n):
        own = set(rng.choice(CLASSES, classes, replace=False).tolist())
        mine = [row for row in rows if row[1] in own]
        order = rng.permutation(len(mine))[:80]
        made.append(Device(f"d{i}", [mine[j] for j in order], lies[i] if i < len(lies) else ""))
    return made


async def run(
    scene: Scene, devices: list[Device], rounds: int, settings: Devices, n: int = 16
) -> None:
    """Each device pushes once a round; a third of them is a release late."""
    for turn in range(rounds):
        newest = scene.publish()
        for i, device in enumerate(devices):
            late = int(i % 3 == 0 and turn > 0)
            body = device.body(scene, newest - late, n, settings)
            device.fates[await scene.push(body)] += 1
