"""Offsets by key, where they were not chosen: ratings, questions by subject, made-up visits.

What offsets are made of was chosen on the ratings of users with even numbers and on visits of one
seed; shown are users with odd numbers, other seeds, and questions.  Beside them: the shared model
alone, the same with keys as categories, and for films `fm` and river's BiasedMF with the best of
four rates in hindsight.
"""

from __future__ import annotations

import asyncio
import csv
import gzip
import itertools
import math
import random
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt

from benchmarks.fixtures.dealt import Dealt
from benchmarks.fixtures.desk import inside
from benchmarks.quality import factors
from evaluation.errors import StreamUnusable
from evaluation.metrics import Task
from online.learning.vocabulary import NAMES, Vocabulary, words_of
from online.messages.structs import PredictRequest
from online.models.base import Model
from online.models.loading.from_settings import load_model
from online.serving.serving import Serving
from online.settings.config import Settings
from online.settings.config import load as load_settings
from paramserver.core.blocks import COUNT, Block, Blocks, from_wire, merge, to_wire
from paramserver.core.wire import WireBlock
from replay.example import Features, Label

Rows = Sequence[tuple[Features, Label]]

KEYS: Final = 100_000
SEEDS: Final = (1, 2, 3)
_SHARE_MIN: Final = 1e-6


@dataclass(frozen=True, slots=True)
class Line:
    """How one learner did on one stream: RMSE of a number, area and log loss of two labels."""

    stream: str
    learner: str
    rows: int
    rmse: float | None
    auc: float | None
    log_loss: float | None


@dataclass(frozen=True, slots=True)
class Cost:
    """A model of many keys beside the shared one alone, asked about the same rows in turn.

    CPU times of a prediction in µs: median and 99th percentile; bytes a key in Python's memory, in
    the model that answers and in the values that a replica has pulled, its name among the model's
    names included, and in a message.
    """

    learner: str
    what: str
    keys: int
    p50: float
    p99: float
    p50_ratio: float
    p99_ratio: float
    bytes_model: float
    bytes_values: float
    bytes_sent: float


def settings_of(learner: str, task: Task, entity: Any = None, **params: Any) -> Settings:
    """Return settings of one model without filters."""
    model = {"name": "m", "task": task, "learner": learner, "params": params, "filters": "none"}
    return load_settings(None, {"models": [{**model, "entity": entity}]}, {})


def model_of(learner: str, task: Task, entity: Any = None, **params: Any) -> Model:
    """Return an untrained model."""
    settings = settings_of(learner, task, entity, **params)
    return load_model(settings.models[0], settings, bytes(32)).model


# -- ratings of films --------------------------------------------------------------------------

_BOTH: Final = ("user", "film")
_TEXT: Final = {"text": ["genres"]}


class _Rater:
    """A model that sees only some columns of a rating."""

    def __init__(self, model: Any, task: Task, columns: Iterable[str]) -> None:
        self._model, self._binary, self._columns = model, task == "binary", (*columns, "genres")

    def row(self, rating: factors.Rating) -> Features:
        """Return the columns that it sees."""
        whole = factors.row_of(rating)
        return {name: whole[name] for name in self._columns}

    def answer(self, rating: factors.Rating) -> float:
        """Answer the number or the probability of true."""
        found = self._model.predict(self.row(rating))
        return float(found.probabilities[True] if self._binary else found.label)

    def learn(self, rating: factors.Rating, y: float) -> None:
        """Learn the row at hand."""
        self._model.learn(self.row(rating), bool(y) if self._binary else y, 1.0)


class _Replicas:
    """Four replicas that take turns, offsets by user and film on top."""

    def __init__(self, entity: Any, task: Task) -> None:
        settings = settings_of("linear", task, entity, **_TEXT)
        build = partial(load_model, settings.models[0], settings, bytes(32))
        self._dealt = Dealt(settings.models[0], 4, build=lambda: build().model)
        self._task = task

    def answer(self, rating: factors.Rating) -> float:
        """Answer as the replica does whose turn it is."""
        replicas = self._dealt.replicas
        model = replicas[(self._dealt.n + 1) % len(replicas)].learner.serving
        return _Rater(model, self._task, _BOTH).answer(rating)

    def learn(self, rating: factors.Rating, y: float) -> None:
        """Let it learn the row, and one exchange if it is time."""
        label = bool(y) if self._task == "binary" else y
        self._dealt.step("a", factors.row_of(rating), label)


def _linear(columns: Sequence[str], entity: Any, task: Task) -> Any:
    return _Rater(model_of("linear", task, entity, **_TEXT), task, columns)


RATERS: Final[Mapping[str, Callable[[Task], Any]]] = {
    "linear, genres": partial(_linear, (), None),
    "linear, genres + offsets by user": partial(_linear, ("user",), "user"),
    "linear, genres + offsets by film": partial(_linear, ("film",), "film"),
    "linear, genres + offsets by both": partial(_linear, _BOTH, list(_BOTH)),
    "linear, keys as categories": partial(_linear, _BOTH, None),
    "offsets by both, 4 replicas": partial(_Replicas, list(_BOTH)),
    "keys as categories, 4 replicas": partial(_Replicas, None),
}
PEERS: Final = ("fm", "river BiasedMF")


def films(
    data: Path,
    most: int | None = None,
    progress: Callable[[str], None] = lambda text: None,
) -> list[Line]:
    """Ratings of the users with odd numbers, tested, then learned."""
    rows = factors.ratings(data, "choice")[:most]
    ours = {name: {"": make} for name, make in RATERS.items()}
    found = factors.run(rows, tuple(ours), progress, learners=ours)
    peers = factors.best(factors.run(rows, PEERS, progress))
    return [
        Line("films", one.learner, one.rows, one.rmse, one.auc, one.log_loss)
        for one in [*found, *peers]
    ]


# -- other streams -----------------------------------------------------------------------------


def questions(data: Path, seed: int) -> Rows:
    """Whether a model was right, by the words of a question and its subject.  StreamUnusable."""
    path = data / "routellm_mmlu" / "answers.csv.gz"
    if not path.is_file():
        raise StreamUnusable("routellm_mmlu", f"no file {path}", "Set ONLINE_DATA_DIR")
    with gzip.open(path, "rt", newline="") as lines:
        told = list(csv.DictReader(lines))
    random.Random(seed).shuffle(told)
    true = {"1", "true", "True", "1.0"}
    return [
        ({"prompt": one["prompt"][:400], "key": one["subject"]}, one["weak_right"] in true)
        for one in told
    ]


def visits(seed: int, kind: str, n: int = 20_000, keys: int = 2_000) -> tuple[Rows, Rows]:
    """Numbers and labels that a shared part and each key's level and slope make up.

    Keys come as often as words do.  ``kind``: usual; none: keys mean nothing; turning: each level
    goes round as rows come.
    """
    rng = np.random.default_rng(seed)
    often = 1.0 / np.arange(1, keys + 1) ** 0.9
    key, x = rng.choice(keys, n, p=often / often.sum()), rng.normal(size=(n, 3))
    level, other, slope = (rng.normal(size=keys)[key] for _ in range(3))
    if kind == "turning":
        turned = 6.0 * np.arange(n) / n
        level = level * np.cos(turned) + other * np.sin(turned)
    share = 0.0 if kind == "none" else 1.0
    raw = 1.0 + x @ np.array([1.0, -0.5, 0.0]) + share * (level + 0.5 * slope * x[:, 0])
    numbers = (raw + rng.normal(size=n)).tolist()
    labels = (rng.random(n) < 1.0 / (1.0 + np.exp(-raw))).tolist()
    rows: list[Features] = [
        {"a": a, "b": b, "c": c, "key": f"k{k}"}
        for (a, b, c), k in zip(x.tolist(), key.tolist(), strict=True)
    ]
    return list(zip(rows, numbers, strict=True)), list(zip(rows, labels, strict=True))


SIDES: Final[Mapping[str, tuple[bool, Any]]] = {
    "linear, without the key": (False, None),
    "linear, the key as a category": (True, None),
    "linear + intercepts by key": (True, "key"),
    "linear + intercepts and weights by key": (True, {"key": ["a"]}),
}


def others(
    data: Path | None,
    most: int | None = None,
    progress: Callable[[str], None] = lambda text: None,
) -> list[Line]:
    """Visits of seeds that chose nothing, a mean over them, and questions by subject."""
    found = []
    for kind in ("usual", "none", "turning"):
        given = [visits(seed, kind) for seed in SEEDS]
        for name, side in SIDES.items():
            progress(f"{kind}, {name}")
            scores = [
                _scored("regression", numbers[:most], side)[:1]
                + _scored("binary", labels[:most], side)[1:]
                for numbers, labels in given
            ]
            rmse, auc, loss = np.mean(np.array(scores), axis=0).tolist()
            found.append(Line(kind, name, len(given[0][0][:most]), rmse, auc, loss))
    if data is not None and (data / "routellm_mmlu").is_dir():
        for name in list(SIDES)[:3]:
            progress(f"questions, {name}")
            rows = questions(data, SEEDS[0])[:most]
            _, auc, loss = _scored("binary", rows, SIDES[name], text=["prompt"])
            found.append(Line("questions", name, len(rows), None, auc, loss))
    return found


def _scored(
    task: Task, rows: Rows, side: tuple[bool, Any], **params: Any
) -> tuple[float, float, float]:
    """RMSE, or area and log loss, of answers that were given before each row was learned."""
    sees, entity = side
    model, answers = model_of("linear", task, entity, **params), np.zeros(len(rows))
    for i, (whole, label) in enumerate(rows):
        row = whole if sees else {name: x for name, x in whole.items() if name != "key"}
        found = model.predict(row)
        shares = found.probabilities
        answers[i] = float(found.label or 0.0) if shares is None else shares[True]
        model.learn(row, label, 1.0)
    labels = np.array([float(label) for _, label in rows])
    if task == "regression":
        return (math.sqrt(float(((answers - labels) ** 2).mean())), 0.0, 0.0)
    shares_of = np.clip(answers, _SHARE_MIN, 1.0 - _SHARE_MIN)
    logs = labels * np.log(shares_of) + (1.0 - labels) * np.log1p(-shares_of)
    return (0.0, factors.area(answers, labels > 0), -float(logs.mean()))


# -- what it costs -----------------------------------------------------------------------------


def costs(keys: int = KEYS, asked: int = 20_000) -> list[Cost]:
    """Predictions and memory of a model that knows so many keys, beside the model of one."""
    return [line for learner in ("linear", "logreg") for line in _cost(learner, keys, asked)]


def _cost(learner: str, keys: int, asked: int) -> list[Cost]:
    draw = random.Random(4)
    names = [f"x{i}" for i in range(10)]
    rows: list[Features] = [{n: draw.gauss(0.0, 1.0) for n in names} for _ in range(1_000)]
    questions = [
        (x, {**x, "key": f"user {draw.randrange(keys)}"})
        for x in itertools.islice(itertools.cycle(rows), asked)
    ]

    async def ask() -> list[Cost]:
        with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
            alone = settings_of(learner, "binary").models[0]
            keyed = settings_of(learner, "binary", "key").models[0]
            async with (
                inside(Path(one), alone, {}, 1) as first,
                inside(Path(other), keyed, {}, 1) as second,
            ):
                pair = first.servings[0], second.servings[0]
                models = tuple(serving.replica.learner.serving for serving in pair)
                _teach(models, rows, keys)
                held = _held(models[1], learner)
                in_model = _timed([model.predict for model in models], questions)
                bodies = [
                    tuple(msgspec.json.encode({"features": x}) for x in both) for both in questions
                ]
                served = _timed([partial(_served, serving) for serving in pair], bodies)
                return [
                    _costs_of(learner, "the model's answer", keys, in_model, held),
                    _costs_of(learner, "from body to body", keys, served, held),
                ]

    return asyncio.run(ask())


def _teach(models: Sequence[Model], rows: Sequence[Features], keys: int) -> None:
    one, many = models
    for i in range(keys + 300):
        x = rows[i % len(rows)]
        label = float(x["x0"]) > 0.0  # type: ignore[arg-type]
        if i < 2_000:
            one.learn(x, label, 1.0)
        many.learn({**x, "key": f"user {max(i - 300, 0)}"}, label, 1.0)


def _served(serving: Serving, body: bytes) -> None:
    """Answer a request as the service does between two sockets."""
    msgspec.json.encode(serving.predict(msgspec.json.decode(body, type=PredictRequest)))


def _timed(
    asked: Sequence[Callable[[Any], Any]], questions: Iterable[tuple[Any, ...]]
) -> npt.NDArray[np.float64]:
    """CPU times of both in µs, asked in turn: shape (2, questions)."""
    took: list[list[int]] = [[], []]
    for i, both in enumerate(questions):
        for k in (0, 1) if i % 2 else (1, 0):
            begun = time.thread_time_ns()
            asked[k](both[k])
            took[k].append(time.thread_time_ns() - begun)
    return np.array(took) / 1e3


def _costs_of(
    learner: str, what: str, keys: int, took: npt.NDArray[np.float64], held: tuple[int, int, int]
) -> Cost:
    one, many = np.percentile(took, [50, 99], axis=1).T.tolist()
    model, values, sent = (size / keys for size in held)
    ratios = (many[0] / one[0], many[1] / one[1])
    return Cost(learner, what, keys, many[0], many[1], *ratios, model, values, sent)


def _held(model: Model, learner: str) -> tuple[int, int, int]:
    """Bytes of the model that takes its values, of the values as they are read, and as sent."""
    values: Blocks = {}
    merge(values, model.cut())
    mine = {name: block for name, block in values.items() if name.startswith("entity")}
    mine[NAMES] = Block(COUNT, dict.fromkeys(mine["entity/key"].data, 1))
    sent = msgspec.msgpack.encode(to_wire(mine))
    other = model_of(learner, "binary", "key")
    names = Vocabulary(words_of(other))
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    read = from_wire(msgspec.msgpack.decode(sent, type=dict[str, WireBlock]))
    pulled, _ = tracemalloc.get_traced_memory()
    other.reset(read)
    names.reset(read)
    whole, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return whole - pulled, pulled - before, len(sent)
