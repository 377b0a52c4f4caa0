"""Exports of models trained on real streams: parity by each runtime, sizes, and times.

Beside ours stand the figures of trials that were made before, with a converter of their own for
each target: ``note``.
"""

from __future__ import annotations

import gzip
import shutil
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import islice, pairwise
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, Final

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from river import forest, preprocessing, tree

from benchmarks.fixtures import datasets
from evaluation.errors import StreamUnusable
from evaluation.metrics import Task
from evaluation.streams import open_stream
from online.edge import manifest
from online.edge.errors import TargetUnavailable
from online.edge.export import export
from online.edge.lowering.evaluate import outputs
from online.edge.lowering.ir import EdgeModel, Forest
from online.edge.lowering.lower import lower
from online.edge.lowering.rows import Encoder
from online.edge.targets import c_file, deltas, grid, onnx_file, pack, runners
from online.edge.targets.gate import BOUNDS, compare, gate
from online.edge.targets.golden import golden
from online.edge.targets.pack import Precision
from online.models.base import Model
from online.models.loading.load import load
from replay.example import Features, Label

Row = tuple[Features, Label]
_ROUNDS: Final = 5
_UPDATES: Final = (1, 10, 100, 200)
_GOLDEN_ROWS: Final = 128
_INSECTS: Final = (2, 3, 4, 5, 11, 12)


@dataclass(frozen=True)
class Case:
    """A model on a stream: ``learner`` is a built-in's name with ``params``, or makes one."""

    stream: str
    task: Task
    learner: str
    params: Mapping[str, Any]
    rows: int


_RATINGS: Final[Mapping[str, Any]] = {
    "inputs": ["month", "hour", "user", "movie"], "ids": {"user": 1024, "movie": 4096},
    "width": 8, "hidden": 64,
}  # fmt: skip

_PLAIN: Final[Mapping[str, Any]] = {"scale": "plain"}

CASES: Final[Mapping[str, Case]] = {
    "logistic": Case("elec2", "binary", "logreg", _PLAIN, 3000),
    "logistic, limited": Case("elec2", "binary", "logreg", {}, 3000),
    "softmax": Case("insects", "multiclass", "softmax", _PLAIN, 3000),
    "linear regression": Case("elec2-demand", "regression", "linreg", _PLAIN, 3000),
    "MLP": Case("elec2", "binary", "mlp", {"hidden": 32, **_PLAIN}, 1000),
    "MLP, 6 classes": Case("insects-places", "multiclass", "mlp", {"hidden": 32, **_PLAIN}, 600),
    "MLP, limited": Case("elec2", "binary", "mlp", {"hidden": 32}, 1000),
    "MLP, ids": Case("ratings", "binary", "mlp", _RATINGS, 2000),
    "FTRL, words": Case("sms", "binary", "ftrl", {"text": ["text"]}, 3000),
    "linear experts, words": Case("sms", "binary", "linear", {"text": ["text"]}, 3000),
    "linear experts, 6 classes": Case("insects", "multiclass", "linear", {}, 2000),
    "linear experts, regression": Case("elec2-demand", "regression", "linear", {}, 2000),
    "auto, words": Case("sms", "binary", "auto", {"text": ["text"]}, 1500),
    "auto, 6 classes": Case("insects", "multiclass", "auto", {}, 1000),
    "auto, regression": Case("elec2-demand", "regression", "auto", {}, 2000),
    "HT majority": Case("elec2", "binary", "ht", {"leaf_prediction": "mc"}, 8000),
    "HT naive Bayes": Case("elec2", "binary", "ht", {"leaf_prediction": "nb"}, 8000),
    "HT adaptive": Case("elec2", "binary", "ht", {}, 8000),
    "HT adaptive, scaled": Case("elec2", "binary", "scaled-ht", {}, 8000),
    "HT adaptive, 6 classes": Case("insects", "multiclass", "ht", {"grace_period": 100}, 4000),
    "HT regressor, mean": Case("elec2-demand", "regression", "htr",
                               {"leaf_prediction": "mean"}, 5000),
    "HT regressor, model": Case("elec2-demand", "regression", "scaled-htr",
                                {"leaf_prediction": "model"}, 5000),
    "HT regressor, adaptive": Case("elec2-demand", "regression", "scaled-htr", {}, 5000),
    "ARF(10) regressor, median": Case("elec2-demand", "regression", "arfr", {}, 800),
    "ARF(10) regressor, mean": Case("elec2-demand", "regression", "arfr",
                                    {"aggregation_method": "mean"}, 800),
    "ARF(10) majority": Case("elec2", "binary", "arf", {"leaf_prediction": "mc"}, 4000),
    "ARF(10) adaptive": Case("elec2", "binary", "arf", {}, 2500),
}  # fmt: skip

_RIVER: Final[Mapping[str, Callable[..., Any]]] = {
    "ht": tree.HoeffdingTreeClassifier,
    "scaled-ht": lambda **p: preprocessing.StandardScaler() | tree.HoeffdingTreeClassifier(**p),
    "htr": tree.HoeffdingTreeRegressor,
    "scaled-htr": lambda **p: preprocessing.StandardScaler() | tree.HoeffdingTreeRegressor(**p),
    "arfr": lambda **p: forest.ARFRegressor(n_models=10, seed=1, **p),
    "arf": lambda **p: forest.ARFClassifier(n_models=10, seed=1, **p),
}


def river_tree(kind: str, params: Mapping[str, Any]) -> Any:
    """A tree or forest of river; what ``load`` calls."""
    return _RIVER[kind](**params)


def stream_rows(name: str, data: Path | None) -> Iterator[Row]:
    """Rows of a stream.

    ``elec2-demand`` predicts the demand; ``insects-places`` counts the classes 0, 1, 2 …; ``sms``
    is the SMS Spam Collection, ``ratings`` are those of MovieLens.  Raises StreamUnusable.
    """
    if name == "sms":
        yield from datasets.sms(data)
    elif name == "ratings":
        yield from _ratings(data)
    elif name == "elec2-demand":
        yield from datasets.elec2_column(data, "nswdemand")
    elif name == "mnist":
        from benchmarks.studies.memory.digits import mnist

        digits = mnist(data)
        for image, digit in zip(digits.x[:5000], digits.y[:5000].tolist(), strict=True):
            yield {f"p{i}": v for i, v in enumerate(image.tolist()) if v}, int(digit)
    elif name == "insects-places":
        for x, y in open_stream("insects", data).rows:
            yield x, _INSECTS.index(int(y))
    else:
        yield from open_stream(name, data).rows


def _ratings(data: Path | None) -> Iterator[Row]:
    """Who rated which movie when, in the order of time; whether with four stars or more."""
    for user, movie, stars, at in datasets.ratings(data):
        days, hour = divmod(at // 3600, 24)
        ids = {"user": float(user), "movie": float(movie)}
        yield {"month": days / 30.4, "hour": float(hour), **ids}, stars >= 4


def build(case: Case, first: Features) -> Model:
    """The untrained model; a network's inputs are the features of the first row."""
    params = dict(case.params)
    learner = case.learner
    if learner == "mlp" and "inputs" not in params:
        params["inputs"] = list(first)
        params["outputs"] = len(_INSECTS) if case.task == "multiclass" else 1
        if case.stream == "mnist":
            params |= {"inputs": [f"p{i}" for i in range(784)], "outputs": 10}
    if learner in _RIVER:
        params = {"kind": learner, "params": params}
        learner = "benchmarks.edge.exported:river_tree"
    return load(
        learner, params, task=case.task, classes=None, key=b"\0" * 32, base_dir=Path()
    ).model


def trained(case: Case, data: Path | None, rows: int | None = None) -> tuple[Model, list[Features]]:
    """The model after the stream's first rows, and the newest of them."""
    played = list(islice(stream_rows(case.stream, data), rows or case.rows))
    model = build(case, played[0][0])
    for x, y in played:
        model.learn(x, y, 1.0)
    return model, [x for x, _ in played[-_GOLDEN_ROWS:]]


@dataclass(frozen=True, slots=True)
class Proof:
    """One file by one runtime."""

    what: str
    target: str
    precision: str
    bytes: int
    rows: int
    max_abs: float
    bound: float
    agree: float
    us_a_row: float | None
    good: bool


def prove(what: str, model: Model, task: Task, rows: list[Features]) -> Iterator[Proof]:
    """Every target of a model by its own runtime; a runtime that is absent is left out."""
    edge = lower(model, task)
    precisions: tuple[Precision, ...] = ("float64", "float32")
    for precision in precisions:
        if precision == "float64" and edge.computed == "float32":
            continue
        proof = golden(model, edge, rows, precision, np.random.default_rng(0), thresholds=10_000)
        packed = pack.encode(edge, precision)
        converted = onnx_file.convert(edge, precision)
        asks: list[tuple[str, int, Callable[[runners.Rows], Any]]] = [
            ("edgepack, Node", len(packed), partial(runners.run_node, packed)),
            ("edgepack, NumPy", len(packed), partial(runners.run_pack, packed)),
            ("ONNX Runtime", len(converted), partial(runners.run_onnx, converted, edge)),
        ]
        median_of_trees = isinstance(edge.body, Forest) and edge.body.median
        if precision == "float32" and not median_of_trees:
            asks.append(("C99, gcc", len(c_file.words(edge)), partial(runners.run_c, edge)))
        for target, size, ask in asks:
            try:
                found = ask(proof.rows)
            except TargetUnavailable:
                continue
            us = None
            if isinstance(found, runners.NodeAnswers):
                found, us = found["outputs"], found["us"]
            parity = compare(found, proof)
            bound = BOUNDS[precision]
            good = parity.max_abs <= bound and parity.agree == 1.0
            yield Proof(what, target, precision, size, parity.rows, parity.max_abs, bound,
                        parity.agree, us, good)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Size:
    """One size beside what is allowed, and what the trials had."""

    what: str
    bytes: int
    allowed: int
    note: int
    good: bool


def sizes(data: Path | None) -> list[Size]:
    """Sizes that have a bound."""
    model, _ = trained(CASES["logistic"], data)
    edge = lower(model, "binary")
    found = [
        ("JavaScript runtime, gzip -9", len(gzip.compress(runners.runtime_js(), 9)), 4096, 724)
    ]
    for precision, note in (("float32", 354), ("float64", 466)):
        data_ = onnx_file.convert(edge, precision)  # type: ignore[arg-type]
        found.append((f"scaler + logistic, ONNX {precision}", len(data_), 500, note))
    if (flash := cortex_bytes(edge)) is not None:
        found.append(("scaler + logistic, C99 on Cortex-M0, text + rodata", flash, 300, 216))
    for what, kind in (("majority", "mc"), ("adaptive", "nba")):
        leaves, packed = _forest_pack(kind, data)
        found.append((f"ARF(10) {what}, {leaves} leaves, edgepack", packed, 9216, 8288))
    return [Size(what, n, most, note, n <= most) for what, n, most, note in found]


def _forest_pack(kind: str, data: Path | None) -> tuple[int, int]:
    """Leaves and bytes of a forest's pack once it has 240 leaves."""
    case = Case("elec2", "binary", "arf", {"leaf_prediction": kind}, 0)
    played = stream_rows(case.stream, data)
    model: Model | None = None
    for i, (x, y) in enumerate(played):
        model = build(case, x) if model is None else model
        model.learn(x, y, 1.0)
        if i % 50 == 49:
            edge = lower(model, case.task)
            assert isinstance(edge.body, Forest), "an ARF is a forest"
            if len(edge.body.base) >= 240:
                return len(edge.body.base), len(pack.encode(edge))
    raise StreamUnusable(
        case.stream, "it ends before the forest has 240 leaves", "Take a longer one"
    )


def cortex_bytes(edge: EdgeModel) -> int | None:
    """text + rodata of the pack and what it calls on a Cortex-M0, libraries apart; None: no gcc."""
    gcc, size = shutil.which("arm-none-eabi-gcc"), shutil.which("arm-none-eabi-size")
    if gcc is None or size is None:
        return None
    with TemporaryDirectory() as place:
        folder = Path(place)
        (folder / "edge_model.h").write_text(c_file.interpreter())
        (folder / "model.h").write_text(c_file.convert(edge))
        ask = "void ask(const float *x, float *y) { edge_predict(x, y); }"
        (folder / "ask.c").write_text(
            f'#include "model.h"\nvoid ask(const float *, float *);\n{ask}'
        )
        flags = ["-mcpu=cortex-m0", "-mthumb", "-Os", "-c"]
        subprocess.run([gcc, *runners.C_FLAGS, *flags, "ask.c"], cwd=folder, check=True)
        told = subprocess.run([size, "ask.o"], cwd=folder, check=True, capture_output=True)
    text, rw, bss = (int(n) for n in told.stdout.split(b"\n")[1].split()[:3])
    assert rw + bss == 0, "nothing is in RAM"
    return text


@dataclass(frozen=True, slots=True)
class Publishing:
    """Milliseconds from a snapshot to signed files, medians of five.

    ``cpu_ms`` is the processor's time of it all, which other load leaves alone; it is judged.
    """

    what: str
    lower_ms: float
    encode_ms: float
    golden_ms: float
    gate_ms: float
    sign_ms: float
    total_ms: float
    cpu_ms: float
    allowed_ms: float
    manifest_bytes: int
    good: bool


def publish(what: str, case: Case, data: Path | None, allowed_ms: float) -> Publishing:
    """edgepack and ONNX of a snapshot, float32: encode, gate, sign."""
    model, rows = trained(case, data)
    edge = lower(model, case.task)
    key = Ed25519PrivateKey.generate()
    told = export(model, case.task, rows, about=_about(), targets=("edgepack", "onnx")).manifest
    times: list[list[float]] = []
    spent: list[float] = []
    for _ in range(_ROUNDS):
        marks, cpu = [time.perf_counter()], time.process_time()

        def mark(marks: list[float] = marks) -> None:
            marks.append(time.perf_counter())

        edge = lower(model, case.task)
        mark()
        new_pack = pack.encode(edge)
        new_onnx = onnx_file.convert(edge)
        mark()
        proof = golden(model, edge, rows, "float32", np.random.default_rng(0))
        mark()
        gate("edgepack", runners.run_pack(new_pack, proof.rows), proof, BOUNDS["float32"])
        gate("onnx", runners.run_onnx(new_onnx, edge, proof.rows), proof, BOUNDS["float32"])
        mark()
        signed, _ = manifest.sign(told, key)
        mark()
        spent.append(1000 * (time.process_time() - cpu))
        times.append([1000 * (b - a) for a, b in pairwise(marks)])
    lowered, encoded, golden_ms, gated, sealed = (median(c) for c in zip(*times, strict=True))
    total = median(sum(row) for row in times)
    cpu_ms = median(spent)
    return Publishing(
        what, lowered, encoded, golden_ms, gated, sealed, total, cpu_ms, allowed_ms, len(signed),
        cpu_ms <= allowed_ms,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Update:
    """An update that is sent to a client that has the pack before, by its size and errors.

    ``samples`` counts rows from the first pack.
    """

    what: str
    samples: int
    full_bytes: int
    exact_bytes: int
    steps_bytes: int
    steps_share: float
    allowed_share: float
    off: float
    agree: float


def updates(what: str, case: Case, data: Path | None) -> list[Update]:
    """Differences after 1, 10, 100 and 200 rows more, each of the pack that was sent before.

    ``off`` and ``agree`` are of the weights in steps beside the model itself, over 1,000 rows that
    the export did not see.
    """
    played = list(islice(stream_rows(case.stream, data), case.rows + _UPDATES[-1] + 1000))
    model = build(case, played[0][0])
    for x, y in played[: case.rows]:
        model.learn(x, y, 1.0)
    edge, at, found = lower(model, case.task), case.rows, []
    encoder = Encoder(edge)
    asked = [encoder.row(x) for x, _ in played[-1000:]]
    rng = np.random.default_rng(0)
    exact_old = pack.encode(edge)
    held = grid.on_grid(edge, None, [x for x, _ in played[at - 128 : at]], rng)
    for samples in _UPDATES:
        for x, y in played[at : case.rows + samples]:
            model.learn(x, y, 1.0)
        at = case.rows + samples
        edge = lower(model, case.task)
        new = pack.encode(edge)
        seen = [x for x, _ in played[at - 128 : at]]
        small = deltas.smallest(held, made := grid.on_grid(edge, held, seen, rng))
        a, b = outputs(pack.decode(made), asked), outputs(edge, asked)
        agree = float((a.argmax(axis=1) == b.argmax(axis=1)).mean())
        if a.shape[1] == 1:
            agree = float(((a > 0.5) == (b > 0.5)).mean())
        full = len(gzip.compress(new, 9))
        found.append(
            Update(what, samples, full, len(deltas.exact(exact_old, new)), len(small),
                   len(small) / full, 0.06, float(np.abs(a - b).max()), agree)
        )  # fmt: skip
        exact_old, held = new, made
    return found


UPDATED: Final = {
    "MLP 8-32-1": CASES["MLP"],
    "MLP 33-32-6": CASES["MLP, 6 classes"],
    "MLP 784-64-10": Case("mnist", "multiclass", "mlp", {"hidden": 64, "scale": False}, 1000),
    "softmax": CASES["softmax"],
    "MLP, ids 1024 and 4096 x 8": CASES["MLP, ids"],
}  # fmt: skip


def _about() -> dict[str, Any]:
    return {
        "model": "prices", "sequence": 1, "created": 0.0, "expires": 604_800.0,
        "freshness": {"version": [3, 120], "snapshot_at": 0.0, "spec": "0" * 16, "events": 1000},
    }  # fmt: skip


PUBLISHED: Final = {
    "logistic": 50.0, "softmax": 50.0, "MLP": 50.0, "ARF(10) majority": 300.0,
    "ARF(10) adaptive": 300.0,
}  # fmt: skip


def run(data: Path | None, progress: Callable[[str], None]) -> Iterable[tuple[str, list[Any]]]:
    """The tables, with their titles."""
    proofs: list[Proof] = []
    for what, case in CASES.items():
        progress(what)
        model, rows = trained(case, data)
        proofs += prove(what, model, case.task, rows)
    yield "parity by runtime", proofs
    progress("sizes")
    yield "sizes", sizes(data)
    found = []
    for what, allowed in PUBLISHED.items():
        progress(f"publishing {what}")
        found.append(publish(what, CASES[what], data, allowed))
    yield "from a snapshot to signed files", found
    sent: list[Update] = []
    for what, case in UPDATED.items():
        progress(f"updates of {what}")
        sent += updates(what, case, data)
    yield "updates", sent
