"""Tables, a model and runs of re-scoring in this process, for the tests."""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from river import linear_model, optim, preprocessing

from online.models.adapters.linear import Linear
from online.models.base import Model
from online.models.loading.from_settings import load_model
from online.rescore.run import Outcome, Request, Scored, execute
from online.rescore.work import Done, Worker
from online.rows.prediction_ids import Keys
from online.settings import config
from online.settings.places import snapshots_path
from online.tables.layout import Shard
from paramserver.core.state import SnapshotState
from paramserver.snapshots import format as snapshot_format
from paramserver.snapshots.places import lineage_place, open_snapshots

NAMES = ("a", "b", "c")


def table(rows: int, seed: int = 0, first: int = 0) -> pa.Table:
    """Three numbers a row, and an id from ``first`` on."""
    rng = np.random.default_rng(seed)
    columns = {name: rng.normal(size=rows) for name in NAMES}
    return pa.table({"id": np.arange(first, first + rows), **columns})


def write(path: Path, found: pa.Table, group: int = 100) -> str:
    """The table as a Parquet file, a shard a row group."""
    pq.write_table(found, path, row_group_size=group)
    return str(path)


def logreg(rows: int = 500, shift: float = 0.0) -> Model:
    """A logistic regression that has learned the sign of a + b (+ shift)."""
    estimator = preprocessing.StandardScaler() | linear_model.LogisticRegression(optim.SGD(0.1))
    model = Linear(estimator)
    teach(model, rows, shift)
    return model


def teach(model: Model, rows: int = 500, shift: float = 0.0) -> None:
    """Let a model learn the sign of a + b + shift."""
    for row in table(rows, seed=7).drop_columns(["id"]).to_pylist():
        model.learn(row, bool(row["a"] + row["b"] + shift > 0), 1.0)


def source(make: Callable[[], Model] = logreg, task: Any = "binary", **other: Any) -> Scored:
    """The model as a snapshot that was never written."""
    given = {"name": "m", "spec": "0" * 64, "version": "1.500", "snapshot": "1-500", **other}
    return Scored(task=task, make=make, **given)


def run(
    files: Sequence[str],
    output: Path,
    *,
    scored: Scored | None = None,
    store: Any = None,
    stop_after: int | None = None,
    now_s: float = 1_000.0,
    **asked: Any,
) -> Outcome:
    """A run in this process; ``stop_after`` shards it raises KeyboardInterrupt."""

    @contextlib.contextmanager
    def start(plan: Any, make: Any) -> Iterator[Any]:
        worker = Worker(plan, str(output), make, time.monotonic)

        def deal(shards: Sequence[Shard]) -> Iterator[Done]:
            for i, shard in enumerate(shards):
                if i == stop_after:
                    raise KeyboardInterrupt
                yield worker.score(shard)

        yield deal

    request = Request(tuple(files), str(output), **{"key": "id", **asked})
    return execute(
        request, scored or source(), start, store=store, now_s=now_s, progress=lambda a, b: None
    )


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of the files of scores and quarantine below a folder, by their path in the run.

    What a process was writing when it was killed has another name, and is none of them.
    """
    places = ("runs/*/shards/*.parquet", "runs/*/quarantine/*.parquet")
    found = [path for place in places for path in folder.glob(place)]
    return {
        "/".join(path.parts[-2:]): hashlib.sha256(path.read_bytes()).hexdigest() for path in found
    }


def state_folder(root: Path) -> config.Settings:
    """A settings file, and a snapshot of a trained model in the state folder."""
    root.mkdir(parents=True, exist_ok=True)
    file = root / "online.yaml"
    file.write_text(
        f"state_dir: {root / 'state'}\n"
        "models:\n  - {name: m, task: binary, learner: logreg}\n"
    )  # fmt: skip
    settings = config.load(file, {}, {})
    settings.state_dir.mkdir(exist_ok=True)
    keys = Keys.from_file(settings.key_path)
    loaded = load_model(settings.models[0], settings, keys.secret)
    teach(loaded.model)
    state = SnapshotState(
        "m", loaded.spec_hash, loaded.spec_text, (1, 500), loaded.model.cut(), {}, created_at=1.0
    )
    place = lineage_place(snapshots_path(settings), "m", loaded.spec_hash)
    open_snapshots(place).publish("1-500", snapshot_format.encode(state))
    return settings


def without_tokens(environ: dict[str, str] | None = None) -> dict[str, str]:
    """This process's environment without what belongs to a Ray of its own."""
    base = dict(os.environ if environ is None else environ)
    return {k: v for k, v in base.items() if k not in ("RAY_AUTH_TOKEN", "RAY_ADDRESS")}


shifted = partial(logreg, 500, 1.0)
