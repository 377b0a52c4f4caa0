"""Twenty devices that learn from releases and push deltas; five of them lie.

In one process, with the real journal, server and replica, and without HTTP.  Devices see three
classes of ten each, or a stretch of time each; a third of them begins one release late.  The lies:

* *flip*: the honest delta turned round;
* *loud*: turned round and ten times as long;
* *nan*: no numbers;
* *labels* (two): learned as the others do, from wrong labels: no longer than an honest one.

Beside them the same fleet without liars, and both without filters and without a bound on length.
"""

from __future__ import annotations

import asyncio
import base64
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, Final

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from benchmarks.fixtures.single_replica import Direct
from evaluation.metrics import Task
from evaluation.streams import open_stream
from online.edge import on_device
from online.edge.lowering.lower import lower
from online.edge.releases.folder import Folder
from online.edge.targets import pack
from online.errors import RequestError
from online.learning.merged import Learner
from online.models.base import Model
from online.models.loading.load import load
from online.replica.replica import ModelReplica
from online.replica.surroundings import Identity, Services
from online.rows.prediction_ids import event_key
from online.rows.validator import Validator
from online.serving.device_pushes import Push, Pushes
from online.settings.config import data_dir
from online.settings.limits import Limits
from online.settings.model import Devices, ModelSettings
from online.trust.root_set import RootSet
from paramserver.filters.chain import Chain
from paramserver.filters.schema import Schema
from paramserver.process.actor import ParameterServer, ServerSettings
from paramserver.process.lineage import Lineage
from replay import codec
from replay.example import Example, Features, Label
from replay.journal.base import NewRow, Verdict
from replay.journal.sqlite.journal import SqliteJournal

LIES: Final = ("flip", "loud", "nan", "labels", "labels")
DEVICES: Final = 20
SPEC: Final = "f" * 64

_BATCH: Final = 16
_VALID_S: Final = 3600.0
_SLOW: Final = 3  # every third device is a release late
_UNBOUND: Final = 1e3

Rows = list[tuple[Features, Label]]


@dataclass(frozen=True)
class Case:
    """A model, and numbers of rows: trusted, learned before, dealt to devices, tested.

    ``first``: drawn from so many, and dealt in the order of time; 0: one part after the other.
    """

    stream: str
    task: Task
    learner: str
    params: Mapping[str, Any]
    root: int
    taught: int
    dealt: int
    asked: int
    first: int = 0


_DIGITS: Final = (100, 120, 1080, 497)
CASES: Final[Mapping[str, Case]] = {
    "softmax, digits": Case("digits", "multiclass", "softmax", {}, *_DIGITS),
    "MLP's last layer, digits": Case(
        "digits", "multiclass", "mlp",
        {"inputs": [f"p{i}" for i in range(64)], "outputs": 10}, *_DIGITS,
    ),
    "logistic, Elec2": Case("elec2", "binary", "logreg", {}, 200, 200, 4000, 2000, 20_000),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Fate:
    """Accuracy in percent before and after, and what became of the deltas.

    ``honest_away``, ``liars_taken``: share of them set aside or refused, and mean weight of the
    liars' (of those that were learned by how much, others 0), in percent.
    """

    what: str
    liars: bool
    filters: bool
    seed: int
    before: float
    after: float
    honest_away: float
    liars_taken: float


@dataclass
class Device:
    """Its rows, in the order in which it meets them, and what became of its deltas."""

    name: str
    rows: Rows
    lie: str = ""
    counter: int = 0
    fates: Counter[str] = field(default_factory=Counter)

    def body(self, scene: Scene, sequence: int, settings: Devices) -> dict[str, Any]:
        """Return the device's next push, which is false if the device lies."""
        start = self.counter * _BATCH % len(self.rows)
        batch = (self.rows + self.rows)[start : start + _BATCH]
        if self.lie == "labels":
            batch = [(x, _wrong(y)) for x, y in batch]
        learned = on_device.learn(scene.packs[sequence], batch, settings.rate)
        if self.lie in ("flip", "loud"):
            times = -1.0 if self.lie == "flip" else -10.0
            learned = replace(learned, weights=times * learned.weights, bias=times * learned.bias)
        if self.lie != "loud":
            learned = learned.clipped(settings.clip)
        self.counter += 1
        body = learned.body(self.name, self.counter, sequence)
        if self.lie == "nan":
            nan = np.full(learned.weights.size, np.nan, "<f4")
            body["weights"] = {"float32": base64.b64encode(nan.tobytes()).decode()}
        return body


def _wrong(label: Label) -> Label:
    return not label if isinstance(label, bool) else (int(label) + 1) % 10


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
        (self.folder.path / "files").mkdir(parents=True, exist_ok=True)
        with self.folder.locked():
            key = Ed25519PrivateKey.from_private_bytes(bytes(32))
            self.folder.publish(channel, channel.head(time.time(), _VALID_S), key)
        self.packs[channel.sequence] = pack.encode(edge)
        return channel.sequence

    async def push(self, body: dict[str, Any]) -> str:
        """Push a delta; return the status that it gets, or the code of the error."""
        try:
            return (await self.pushes.take(Push.model_validate(body)))[1].status
        except RequestError as error:
            return error.code

    async def teach(self, rows: Rows) -> None:
        """Ordinary feedback, before there is a release."""
        made = [
            NewRow(
                event_key("event", "t", str(i)), str(i), "t", Verdict.ACCEPTED,
                codec.encode(Example(x, y)), 1.0,
            )
            for i, (x, y) in enumerate(rows)
        ]  # fmt: skip
        for i in range(0, len(made), 50):
            await self.replica.writer.record(made[i : i + 50])

    def accuracy(self, rows: Rows) -> float:
        """Percent of the rows that the replica answers right."""
        answers = self.replica.learner.serving.predict_many([x for x, _ in rows])
        return 100.0 * float(
            np.mean([answer.label == y for answer, (_, y) in zip(answers, rows, strict=True)])
        )

    def weights(self) -> dict[str, list[float]]:
        """By source, how much of each of its deltas is in the model."""
        out: dict[str, list[float]] = {}
        for row in self.replica.store.journal.read(self.replica.writer.partition, 1, 1 << 20):
            if codec.decode(row.payload).moved is not None:
                taken = row.verdict is not Verdict.QUARANTINED
                out.setdefault(row.source, []).append(row.factor * taken)
        return out


def scene_of(replica: ModelReplica, place: Path, settings: Devices, root: Rows) -> Scene:
    """Make a scene that takes deltas for this replica, with nothing published yet."""
    validator = Validator(replica.settings, replica.limits, numeric_only=True)
    vouched = RootSet(Path("root"), root, lambda: replica.learner.serving, together=32)
    return Scene(replica, Pushes(replica, validator, place, settings, vouched), Folder(place))


def fleet(rows: Rows, lies: Sequence[str], seed: int, most: int = 80) -> list[Device]:
    """Devices of three classes each, of a stretch of time each if there are two; the first lie."""
    rng = np.random.default_rng(seed)
    made, wide = [], len(rows) // DEVICES
    for i in range(DEVICES):
        if isinstance(rows[0][1], bool):
            mine = rows[i * wide : (i + 1) * wide]
        else:
            own = set(rng.choice(10, 3, replace=False).tolist())
            mine = [row for row in rows if row[1] in own]
            mine = [mine[j] for j in rng.permutation(len(mine))[:most]]
        made.append(Device(f"d{i}", mine, lies[i] if i < len(lies) else ""))
    return made


async def play(scene: Scene, devices: Sequence[Device], rounds: int, settings: Devices) -> None:
    """A release and a push of each device, so many times."""
    for turn in range(rounds):
        newest = scene.publish()
        for i, device in enumerate(devices):
            late = int(i % _SLOW == 0 and turn > 0)
            device.fates[await scene.push(device.body(scene, newest - late, settings))] += 1


def run(
    case: str, *, liars: bool, filters: bool, seed: int = 1, rounds: int = 12
) -> tuple[Fate, list[Device]]:
    """One fleet.  Raises StreamUnusable without the stream."""
    about = CASES[case]
    rows = list(islice(open_stream(about.stream, data_dir()).rows, about.first or None))
    if about.first:
        order = np.random.default_rng(0).permutation(len(rows)).tolist()
        start = about.root + about.taught
        order[start : start + about.dealt] = sorted(order[start : start + about.dealt])
        rows = [rows[i] for i in order]
    ends = np.cumsum([about.root, about.taught, about.dealt, about.asked]).tolist()
    parts = [rows[start:end] for start, end in zip([0, *ends[:-1]], ends, strict=True)]
    settings = Devices(rate=0.05, clip=1.0 if filters else _UNBOUND, buffer=10)
    loaded = load(
        about.learner, dict(about.params), task=about.task, classes=None, key=bytes(32),
        base_dir=Path(),
    )  # fmt: skip
    devices = fleet(parts[2], LIES if liars else (), seed)
    with tempfile.TemporaryDirectory(prefix="online-devices-") as folder:
        found = asyncio.run(
            _run(Path(folder), about, loaded.build, parts, settings, devices, rounds,
                 filters=filters)
        )  # fmt: skip
    before, after, weights = found
    honest, lying = devices[len(LIES) * liars :], devices[: len(LIES) * liars]
    away = sum(n for one in honest for fate, n in one.fates.items() if fate not in _TAKEN)
    taken = sum(sum(weights.get(f"device:{one.name}", ())) for one in lying)
    return Fate(
        case, liars, filters, seed, before, after, 100.0 * away / (rounds * len(honest)),
        100.0 * taken / max(rounds * len(lying), 1),
    ), devices  # fmt: skip


_TAKEN: Final = ("learned", "clipped")


async def _run(
    folder: Path, about: Case, build: Callable[[], Model], parts: Sequence[Rows],
    settings: Devices, devices: Sequence[Device], rounds: int, *, filters: bool,
) -> tuple[float, float, dict[str, list[float]]]:  # fmt: skip
    def journal() -> SqliteJournal:
        return SqliteJournal(folder / "journal.db", disk_low_mb=0)

    server = ParameterServer(
        Lineage("m", SPEC, "{}", "sum"), journal, str(folder / "snapshots"), ServerSettings(),
        background=False,
    )  # fmt: skip
    server.restore()
    model = ModelSettings(
        name="m", task=about.task, learner=about.learner, devices=settings, root_set=Path("root")
    )
    learner = Learner(build, task=about.task, spec=SPEC, retain_bytes=1 << 24, rows_max=1024)
    replica = ModelReplica(
        model, Limits(), learner, Identity("r", SPEC), Services(journal(), Direct(server))
    )
    await replica.start()
    scene = scene_of(replica, folder / "edge", settings, parts[0])
    await scene.teach(parts[1])
    before = scene.accuracy(parts[3])
    if not filters:
        scene.pushes.chain = Chain([Schema(getattr(learner.serving, "slope_size", None))])
    await play(scene, devices, rounds, settings)
    after = scene.accuracy(parts[3])
    weights = scene.weights()
    await replica.stop(5.0)
    return before, after, weights


def table(seeds: Sequence[int]) -> Iterator[Fate]:
    """All cases, with and without liars and filters."""
    for case in CASES:
        for seed in seeds:
            for liars in (False, True):
                for filters in (False, True):
                    yield run(case, liars=liars, filters=filters, seed=seed)[0]
