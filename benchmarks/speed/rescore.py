"""Re-scoring of two real tables beside a loop of ``predict_one`` and Ray Data's plain ``map``.

All of it with Ray running and two workers.  A rate is of the rows between the first block read and
the last one scored and written; ``wall`` has everything around it: plan, actors, audit, pointer.
"""

from __future__ import annotations

import contextlib
import gzip
import pickle
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
from river import forest, linear_model, optim, preprocessing, tree

from evaluation.errors import StreamUnusable
from online.models.adapters.linear import Linear
from online.models.adapters.opaque import Opaque
from online.models.base import Model
from online.rescore.pool import deal
from online.rescore.run import Outcome, Request, Scored, execute
from online.service.on_ray.scoring_ray import ray_for

WORKERS: Final = 2
_TRAINED: Final = 20_000
_PEER_FILES: Final = 8
_KDD: Final = [
    "duration",
    "protocol_type",
    "service",
    "flag",
    "src_bytes",
    "dst_bytes",
    "land",
    "wrong_fragment",
    "urgent",
    "hot",
    "num_failed_logins",
    "logged_in",
    "num_compromised",
    "root_shell",
    "su_attempted",
    "num_root",
    "num_file_creations",
    "num_shells",
    "num_access_files",
    "num_outbound_cmds",
    "is_host_login",
    "is_guest_login",
    "count",
    "srv_count",
    "serror_rate",
    "srv_serror_rate",
    "rerror_rate",
    "srv_rerror_rate",
    "same_srv_rate",
    "diff_srv_rate",
    "srv_diff_host_rate",
    "dst_host_count",
    "dst_host_srv_count",
    "dst_host_same_srv_rate",
    "dst_host_diff_srv_rate",
    "dst_host_same_src_port_rate",
    "dst_host_srv_diff_host_rate",
    "dst_host_serror_rate",
    "dst_host_srv_serror_rate",
    "dst_host_rerror_rate",
    "dst_host_srv_rerror_rate",
]
_ACS: Final = [
    "AGEP",
    "SCHL",
    "MAR",
    "RELP",
    "DIS",
    "ESP",
    "CIT",
    "MIG",
    "MIL",
    "ANC",
    "NATIVITY",
    "DEAR",
    "DEYE",
    "DREM",
    "SEX",
    "RAC1P",
]


@dataclass(frozen=True, slots=True)
class Speed:
    """A model on a table.

    ``rows_per_s`` ours; ``loop``: ``predict_one`` row by row in one process, reading included;
    ``alone``: without reading; ``naive``: Ray Data's ``map`` of it.  ``times_loop`` is what is
    asked for: 5 for the linear model, 3 for trees.
    """

    what: str
    method: str
    rows: int
    rows_per_s: float
    loop: float
    alone: float
    naive: float
    times_loop: float
    times_alone: float
    times_naive: float
    wall_s: float

    @property
    def good(self) -> bool:
        """Whether it is as fast as was asked for."""
        return self.times_loop >= (5.0 if self.method == "columns" else 3.0)


@dataclass(frozen=True, slots=True)
class Memory:
    """Most memory of driver and workers together, in MB, at one and ten times the rows."""

    what: str
    rows: int
    once_mb: float
    tenfold_mb: float
    ratio: float

    @property
    def good(self) -> bool:
        """Whether ten times the rows need at most a fifth more."""
        return self.ratio <= 1.2


def logreg() -> Any:
    """Logistic regression behind a standardisation."""
    return preprocessing.StandardScaler() | linear_model.LogisticRegression(optim.SGD(0.05))


MODELS: Final[dict[str, tuple[Callable[[], Any], int]]] = {
    "logreg": (logreg, 100_000),
    "hoeffding": (tree.HoeffdingTreeClassifier, 60_000),
    "forest": (partial(forest.ARFClassifier, n_models=10, seed=7), 10_000),
}
"""River's models, and how many rows the peers score."""

CASES: Final = (
    ("kdd99", "logreg"), ("kdd99", "hoeffding"), ("acs", "logreg"), ("acs", "hoeffding"),
    ("acs", "forest"),
)  # fmt: skip


def table(name: str, data_dir: Path | None) -> tuple[pa.Table, list[bool]]:
    """A table with a column ``id``, and its labels.  Raises StreamUnusable."""
    if data_dir is None:
        raise StreamUnusable(name, "no data directory is set", "Set ONLINE_DATA_DIR")
    if name == "kdd99":
        path = data_dir / "kdd99_10pct" / "kddcup.data_10_percent.gz"
        with _opened(name, path) as file, gzip.open(file) as stream:
            read = pacsv.read_csv(stream, pacsv.ReadOptions(column_names=[*_KDD, "label"]))
        labels = [label != "normal." for label in read["label"].to_pylist()]
        read = read.drop_columns(["label"])
    else:
        folder = data_dir / "acs_employment_MA"
        with _opened(name, folder / "employment_MA_analysis.pq") as file:
            read = pq.read_table(file)
        with _opened(name, folder / "employment_MA_analysis_target.pq") as file:
            targets = pq.read_table(file)
        labels = [bool(x) for x in targets.column(targets.num_columns - 1).to_pylist()]
        read = read.select(_ACS)
        for i, name in enumerate(_ACS):  # codes as texts
            if pa.types.is_dictionary(read.schema.field(name).type):
                read = read.set_column(i, name, read[name].cast(pa.string()))
    number = pa.array(np.arange(read.num_rows))
    return read.append_column("id", number), labels


def _opened(name: str, path: Path) -> Any:
    try:
        return path.open("rb")
    except OSError as error:
        raise StreamUnusable(name, f"{path}: {error.strerror}", "Set ONLINE_DATA_DIR") from None


def numeric(found: pa.Table) -> pa.Table:
    """The table with its codes as numbers, and without its other texts."""
    columns = {}
    for name in found.column_names:
        with contextlib.suppress(pa.ArrowInvalid):
            texts = pa.types.is_string(found.schema.field(name).type)
            columns[name] = found[name].cast(pa.float64()) if texts else found[name]
    return pa.table(columns)


def trained(estimator: Any, found: pa.Table, labels: list[bool]) -> bytes:
    """The pickle of an estimator that has learned rows spread over the table."""
    at = np.unique(np.linspace(0, found.num_rows - 1, _TRAINED).astype(np.int64))
    for x, i in zip(found.drop_columns(["id"]).take(at).to_pylist(), at.tolist(), strict=True):
        estimator.learn_one(x, labels[i])
    return pickle.dumps(estimator)


def make(pickled: bytes) -> Model:
    """The model that was trained in this process, in any other."""
    estimator = pickle.loads(pickled)
    if hasattr(estimator, "steps"):
        return Linear(estimator)
    return Opaque(estimator, task="binary", key=b"\0" * 32, why_not_mergeable="it is a tree")


def ours(
    files: tuple[str, ...], output: str, pickled: bytes, *, name: str = "m"
) -> tuple[Outcome, float]:
    """A whole run of our own on the Ray that runs, and its seconds."""
    source = Scored(name, "binary", "0" * 64, "1.1", "1-1", partial(make, pickled))
    began = time.monotonic()

    @contextlib.contextmanager
    def start(plan: Any, maker: Any) -> Iterator[Any]:
        yield deal(plan, output, maker, WORKERS)

    outcome = execute(
        Request(files, output, key="id"), source, start, store=None, now_s=0.0,
        progress=lambda done, of: None,
    )  # fmt: skip
    return outcome, time.monotonic() - began


def loop(path: str, pickled: bytes) -> tuple[float, float]:
    """Rows a second of ``predict_one``, reading included, and alone."""
    model = pickle.loads(pickled)
    rows, alone, began = 0, 0.0, time.perf_counter()
    for file in sorted(Path(path).iterdir()):
        listed = pq.read_table(file, use_threads=False).drop_columns(["id"]).to_pylist()
        from_s = time.perf_counter()
        for x in listed:
            model.predict_one(x)
        alone += time.perf_counter() - from_s
        rows += len(listed)
    return rows / (time.perf_counter() - began), rows / alone


class _Naive:
    """``predict_one`` as it is given to Ray Data's ``map``."""

    def __init__(self, pickled: bytes) -> None:
        self._model = pickle.loads(pickled)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        began = time.monotonic()
        key = row.pop("id")
        found = self._model.predict_one(row)
        return {"id": key, "prediction": found, "began": began, "ended": time.monotonic()}


def naive(path: str, pickled: bytes) -> float:
    """Rows a second of Ray Data's ``map``, from its first row to its last."""
    import ray.data

    data = ray.data.read_parquet(path, override_num_blocks=_PEER_FILES).map(
        _Naive, fn_constructor_args=(pickled,), num_cpus=1,
        compute=ray.data.ActorPoolStrategy(size=WORKERS),
    )  # fmt: skip
    began, ended, rows = float("inf"), 0.0, 0
    for batch in data.iter_batches(batch_size=None, batch_format="numpy"):
        began, ended = min(began, batch["began"].min()), max(ended, batch["ended"].max())
        rows += len(batch["began"])
    return rows / (ended - began)


def run(
    data_dir: Path | None,
    *,
    runs: int = 5,
    rows: int | None = None,
    memory: bool = True,
    progress: Callable[[str], None],
) -> tuple[list[Speed], list[Memory]]:
    """Speeds of all cases (medians of ``runs``), and the memory of one."""
    tables = {name: table(name, data_dir) for name in ("kdd99", "acs")}
    speeds = []
    with (
        tempfile.TemporaryDirectory(prefix="online-rescore-") as folder,
        ray_for("local", folder, WORKERS + 1),  # one for what the plain map reads by
    ):
        _quiet()
        for data, kind in CASES:
            progress(f"{data}, {kind}")
            found, labels = tables[data]
            speeds.append(_case(Path(folder), data, kind, found.slice(0, rows), labels, runs))
        progress("memory")
        found, labels = tables["kdd99"]
        measured = [_memory(Path(folder), found.slice(0, rows), labels)] if memory else []
    return speeds, measured


def _quiet() -> None:
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False


def _case(
    folder: Path, data: str, kind: str, found: pa.Table, labels: list[bool], runs: int
) -> Speed:
    build, peer_rows = MODELS[kind]
    taken = numeric(found) if kind == "logreg" else found
    pickled = trained(build(), taken, labels)
    path, peer = folder / f"{data}-{kind}.parquet", folder / f"{data}-{kind}-peer"
    pq.write_table(taken, path, row_group_size=65_536)
    peer.mkdir()
    size = -(-min(peer_rows, taken.num_rows) // _PEER_FILES)
    for i in range(_PEER_FILES):  # Ray Data's map gets a file a task
        pq.write_table(taken.slice(i * size, size), peer / f"{i}.parquet")
    rates, walls, loops, alones, naives = [], [], [], [], []
    method = ""
    for i in range(runs):  # peers in turn, so that what else the machine does meets all of them
        output = str(folder / f"{data}-{kind}-{i}")
        outcome, wall = ours((str(path),), output, pickled)
        rates.append(outcome.scored / (outcome.last_s - outcome.first_s))
        walls.append(wall)
        method = _method(output, outcome.run)
        with_reading, alone = loop(str(peer), pickled)
        loops.append(with_reading)
        alones.append(alone)
        naives.append(naive(str(peer), pickled))
    rate, one, bare, plain = map(statistics.median, (rates, loops, alones, naives))
    return Speed(
        f"{data}, {kind}", method, taken.num_rows, rate, one, bare, plain,
        rate / one, rate / bare, rate / plain, statistics.median(walls),
    )  # fmt: skip


def _method(output: str, name: str) -> str:
    from online.rescore.run import planned

    made = planned(output, name)
    return "" if made is None else made.method


class _Peak:
    """Most memory of this process and Ray's workers together, looked at 50 times a second."""

    def __init__(self) -> None:
        self.mb, self._before = 0.0, psutil.Process().memory_info().rss
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> _Peak:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(0.02):
            total = psutil.Process().memory_info().rss - self._before  # the bench's own tables
            for process in psutil.Process().children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    if "Scoring" in process.name() or "MapWorker" in " ".join(process.cmdline()):
                        total += process.memory_info().rss
            self.mb = max(self.mb, total / 1e6)


def _memory(folder: Path, found: pa.Table, labels: list[bool]) -> Memory:
    """Peaks at once and ten times the rows; of this process, what it grew by."""
    taken = numeric(found)
    pickled = trained(logreg(), taken, labels)
    where = folder / "tenfold"
    where.mkdir()
    for i in range(10):
        number = pa.array(np.arange(taken.num_rows) + i * taken.num_rows)
        again = taken.set_column(taken.column_names.index("id"), "id", number)
        pq.write_table(again, where / f"{i}.parquet", row_group_size=65_536)
    peaks = {}
    for name, files in (("once", (str(where / "0.parquet"),)), ("tenfold", (str(where),))):
        with _Peak() as peak:
            ours(files, str(folder / f"memory-{name}"), pickled)
        peaks[name] = peak.mb
    once, tenfold = peaks["once"], peaks["tenfold"]
    return Memory("kdd99, logreg", taken.num_rows, once, tenfold, tenfold / once)
