"""A state folder that tables are learned into, and the plain learner beside it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import rescore_world as worlds
from river import linear_model, optim, preprocessing
from typer.testing import CliRunner

from online.commands.cli import app
from online.models.adapters.linear import Linear
from online.models.loading.from_settings import load_model, merge_rule
from online.rows.prediction_ids import EventKeys, Keys
from online.settings import config
from online.settings.places import open_journal, snapshots_path
from paramserver.errors import BackfillRefused
from paramserver.process import bases
from paramserver.process.actor import ParameterServer
from paramserver.process.lineage import Lineage, Recovered, publish, recover
from paramserver.snapshots.history import SnapshotHistory
from paramserver.snapshots.places import lineage_place, open_snapshots
from paramserver.snapshots.store import Retention
from replay import codec
from replay.example import Example
from replay.journal.base import NewRow, Verdict


class Folder:
    """A state folder without a service, and what a start would find in it."""

    def __init__(self, root: Path) -> None:
        self.root, self.file = root, root / "online.yaml"
        self.models(lr=0.1)

    def models(self, lr: float) -> None:
        learner = f"{{name: m, task: binary, learner: logreg, params: {{lr: {lr}, scale: plain}}}}"
        self.file.write_text(f"state_dir: {self.root / 'state'}\nmodels:\n  - {learner}\n")
        self.settings = config.load(self.file, {}, {})
        self.settings.state_dir.mkdir(exist_ok=True)
        keys = Keys.from_file(self.settings.key_path)
        self.loaded = load_model(self.settings.models[0], self.settings, keys.secret)
        rule = merge_rule(self.settings.models[0], self.loaded.model)
        self.lineage = Lineage("m", self.loaded.spec_hash, self.loaded.spec_text, rule)

    def history(self) -> SnapshotHistory:
        place = lineage_place(snapshots_path(self.settings), "m", self.lineage.spec)
        return SnapshotHistory(open_snapshots(place), Retention())

    def started(self) -> Recovered:
        """What a server starts with; it publishes it, as a server would."""
        with contextlib.closing(open_journal(self.settings)) as journal:
            history = self.history()
            found = recover(journal, history, self.lineage, 1)
            now = found.server.begin_snapshot(1.0, found.snapshot, {})
            if not found.at_head:
                publish(journal, history, now, found.base)
            return found

    def weights(self) -> dict[str, float]:
        values = self.started().server.values
        return dict(values["weights"].data) if "weights" in values else {}

    def controls(self) -> Sequence[Any]:
        with contextlib.closing(open_journal(self.settings)) as journal:
            return journal.controls("m", 0)

    def backfills(self) -> list[str]:
        found = bases.backfills(self.controls(), self.lineage.spec)
        return [based.note.snapshot for based in found]

    def feed(self, n: int) -> None:
        """Events that a replica has written."""
        with contextlib.closing(open_journal(self.settings)) as journal:
            partition = journal.register("m", "r", self.lineage.spec, 0.0).id
            payload = codec.encode(Example({"a": 1.0}, True))
            keys = [(str(i), EventKeys(near=True).event("", str(i))) for i in range(n)]
            rows = [NewRow(k, i, "", Verdict.ACCEPTED, payload, 1.0) for i, k in keys]
            journal.append(partition, 0, rows)

    def backfill(self, *given: str) -> dict[str, Any]:
        """The command; its facts."""
        command = ["backfill", "--config", str(self.file), "--json", "--label", "y", *given]
        result = CliRunner().invoke(app, command, catch_exceptions=True)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == 0, result.output
        facts: dict[str, Any] = json.loads(result.stdout)
        return facts

    def aside(self, facts: dict[str, Any]) -> list[tuple[int, str, str]]:
        paths = sorted(Path(facts["quarantine"]).glob("*.parquet"))
        rows = [row for path in paths for row in pq.read_table(path).to_pylist()]
        return [(row["row"], row["column"], row["reason"]) for row in rows]


def labelled(rows: int, seed: int = 0) -> pa.Table:
    found = worlds.table(rows, seed)
    y = np.asarray(found["a"]) + np.asarray(found["b"]) > 0
    return found.append_column("y", pa.array(y)).append_column(
        "at", pa.array(np.arange(rows, dtype=np.float64))
    )


def a_file(folder: Folder, rows: int = 3_000, seed: int = 0) -> str:
    table = labelled(rows, seed).drop_columns(["id", "at"])
    return str(worlds.write(folder.root / f"t{seed}.parquet", table, group=700))


def alone(tables: Sequence[pa.Table]) -> Linear:
    """The plain model that has learned the rows one by one."""
    estimator = preprocessing.StandardScaler() | linear_model.LogisticRegression(optim.SGD(0.1))
    model = Linear(estimator)
    for table in tables:
        for row in table.drop_columns(["id", "at"]).to_pylist():
            label = row.pop("y")
            model.learn(row, label, 1.0)
    return model


def near(found: dict[str, float], model: Linear) -> bool:
    expected = model.cut()["weights"].data
    return found.keys() == expected.keys() and all(
        abs(found[name] - w) <= 1e-12 for name, w in expected.items()
    )


class Service:
    """A parameter server and the routes that the command asks, in this process."""

    def __init__(self, folder: Folder, monkeypatch: Any) -> None:
        self.folder, self.asked = folder, list[str]()
        self.meanwhile: Callable[[], None] = lambda: None
        self.server = ParameterServer(
            folder.lineage, lambda: open_journal(folder.settings),
            snapshots_path(folder.settings), background=False,
        )  # fmt: skip
        assert self.server.restore()
        monkeypatch.setattr("online.commands.change.backfill._running", lambda *_: self.client())

    def client(self) -> httpx.Client:
        return httpx.Client(transport=httpx.MockTransport(self.answer), base_url="http://service")

    def answer(self, request: httpx.Request) -> httpx.Response:
        what = request.url.path.rpartition("/")[2]
        self.asked.append(what)
        if what == "models":
            return httpx.Response(200, json={"models": [{"model": "m"}]})
        if what == "m":
            return httpx.Response(200, json={"spec": self.folder.lineage.spec[:16]})
        if what == "snapshots":
            made = self.server.snapshot()
            self.meanwhile()
            return httpx.Response(200, json=made)
        body = json.loads(request.content)
        try:
            done = self.server.backfill(body.pop("snapshot"), json.dumps(body).encode())
        except BackfillRefused as error:
            return httpx.Response(422, json={"error": {"message": str(error)}})
        return httpx.Response(200, json=done)

    def asides(self) -> list[str]:
        names = self.folder.history()._snapshots.names()
        return [name for name in names if name.startswith("aside-")]
