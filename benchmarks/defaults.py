"""A model that nobody has tuned is worth this: built-ins at their defaults beside river's best.

Streams of many kinds are tested, then learned, row by row: numbers, categories, texts, ids, few
classes and many, labels at once and late.  Each learner runs over each stream in a process of its
own.
"""

from __future__ import annotations

import csv
import gzip
import itertools
import multiprocessing
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from river import forest, linear_model, naive_bayes, optim, preprocessing, tree

from benchmarks.edge import sms
from evaluation.errors import StreamUnusable
from evaluation.learner import Answer
from evaluation.metrics import Task
from evaluation.prequential import prequential
from evaluation.streams import open_stream
from online.models.base import Model, Prediction, learn_example
from online.models.load import load
from replay.example import Example, Features, Label, label_text

Row = tuple[Features, Label]

RATES: Final = (0.0025, 0.005, 0.0125, 0.025, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6)
"""Of river's SGD; the best of them in hindsight is the peer."""

_KDD_ROWS: Final = 50_000
_ACS_ROWS: Final = 60_000
_MNIST_ROWS: Final = 10_000


# -- streams ---------------------------------------------------------------------------------


def _acs(data: Path) -> Iterator[Row]:
    """People of a survey, codes as categories; whether each is employed."""
    import pyarrow.parquet as pq

    table = pq.read_table(_file(data, "acs_employment_MA", "employment_MA_reference.pq"))
    names = [n for n in table.column_names if n.isupper() or n == "RAC1P"]
    for row in table.slice(0, _ACS_ROWS).to_pylist():
        yield {n: row[n] for n in names}, bool(row["employed"])


def _kdd(data: Path) -> Iterator[Row]:
    """Connections, every tenth of the file, with the kind of attack; three columns are texts."""
    path = _file(data, "kdd99_10pct", "kddcup.data_10_percent.gz")
    with gzip.open(path, "rt") as lines:
        for line in itertools.islice(lines, 0, 10 * _KDD_ROWS, 10):
            *values, label = line.rstrip(".\n").split(",")
            row: Features = {
                f"{i}": v if i in (1, 2, 3) else float(v) for i, v in enumerate(values)
            }
            yield row, label


def _ratings(data: Path) -> Iterator[Row]:
    """Who rated which movie, both as categories; whether with four stars or more."""
    path = _file(data, "movielens_small", "ratings.csv.gz")
    with gzip.open(_file(data, "movielens_small", "movies.csv.gz"), "rt") as lines:
        genres = {row[0]: row[2] for row in csv.reader(lines)}
    with gzip.open(path, "rt") as lines:
        next(lines)
        told = [line.rstrip("\n").split(",") for line in lines]
    for user, movie, stars, at in sorted(told, key=lambda row: int(row[3])):
        hour = float(int(at) // 3600 % 24)
        row: Features = {
            "user": user, "movie": movie, "genres": genres.get(movie, "").replace("|", " "),
            "hour": hour,
        }  # fmt: skip
        yield row, float(stars) >= 4


def _mnist(data: Path) -> Iterator[Row]:
    from benchmarks.studies.digits import mnist

    digits = mnist(data)
    for image, digit in zip(digits.x[:_MNIST_ROWS], digits.y[:_MNIST_ROWS].tolist(), strict=True):
        yield {f"p{i}": float(v) for i, v in enumerate(image.tolist()) if v}, int(digit)


def _drifting(data: Path, name: str) -> Iterator[Row]:
    """A synthetic stream with known drift; the last column is the class."""
    with gzip.open(_file(data, "synth_known_drift", name), "rt") as lines:
        for line in lines:
            *values, label = line.strip().split(",")
            try:
                numbers = [float(v) for v in values]
            except ValueError:  # a header
                continue
            yield {f"{i}": v for i, v in enumerate(numbers)}, float(label) > 0


def _file(data: Path, *parts: str) -> Path:
    path = data.joinpath(*parts)
    if not path.is_file():
        raise StreamUnusable(parts[0], f"no file {path}", "Set ONLINE_DATA_DIR")
    return path


def _demand(data: Path) -> Iterator[Row]:
    for x, _ in open_stream("elec2", data).rows:
        y = x["nswdemand"]
        assert isinstance(y, float)
        yield {n: v for n, v in x.items() if n != "nswdemand"}, y


@dataclass(frozen=True, slots=True)
class Source:
    """Where a stream is, and what is known of it.

    Attributes:
        delay: Rows after which a label is known.
        text: Features that are taken as bags of words by those who can.
    """

    task: Task
    rows: Callable[[Path], Iterable[Row]]
    delay: int = 0
    text: tuple[str, ...] = ()


def _known(name: str) -> Callable[[Path], Iterable[Row]]:
    return lambda data: open_stream(name, data).rows


STREAMS: Final[Mapping[str, Source]] = {
    "elec2": Source("binary", _known("elec2")),
    "elec2 48 late": Source("binary", _known("elec2"), 48),
    "elec2 336 late": Source("binary", _known("elec2"), 336),
    "elec2 500 late": Source("binary", _known("elec2"), 500),
    "insects": Source("multiclass", _known("insects")),
    "insects 48 late": Source("multiclass", _known("insects"), 48),
    "gas": Source("multiclass", _known("gas")),
    "acs": Source("binary", _acs),
    "kdd99": Source("multiclass", _kdd),
    "sms": Source("binary", sms, text=("text",)),
    "movielens": Source("binary", _ratings, text=("genres",)),
    "phishing": Source("binary", _known("phishing")),
    "bananas": Source("binary", _known("bananas")),
    "image segments": Source("multiclass", _known("image_segments")),
    "digits": Source("multiclass", _known("digits")),
    "mnist": Source("multiclass", _mnist),
    "sea": Source("binary", partial(_drifting, name="sea_0123_abrupto_noise_0.2.csv.gz")),
    "sine": Source("binary", partial(_drifting, name="sine_0123_gradual.csv.gz")),
    "mixed": Source("binary", partial(_drifting, name="mixed_0101_gradual.csv.gz")),
    "random tree": Source("binary", partial(_drifting, name="rt_2563789698568873_abrupto.csv.gz")),
    "demand": Source("regression", _demand),
}


# -- learners --------------------------------------------------------------------------------


class Built:
    """A model of the service, asked and taught as the service does, notes included."""

    def __init__(self, model: Model, task: Task) -> None:
        self.model, self._task = model, task

    def answer_noted(self, x: Features) -> tuple[Answer, Prediction]:
        """Return what the model answers, and its whole prediction."""
        found = self.model.predict(x)
        return Answer(found.label, found.probabilities or None), found

    def learn_one(self, x: Features, y: Label) -> None:
        """Learn a row that was not predicted."""
        self.model.learn(x, y, 1.0)

    def learn_noted(self, x: Features, y: Label, notes: Prediction) -> None:
        """Learn a row as the journal has it."""
        shares = notes.probabilities
        score = None if shares is None else {label_text(k): p for k, p in shares.items()}
        learn_example(self.model, Example(x, y, score=score, notes=notes.notes))


def built(learner: str, task: Task, **params: Any) -> Built:
    """A built-in of the service."""
    made = load(learner, params, task=task, classes=None, key=b"\0" * 32, base_dir=Path())
    return Built(made.model, task)


class Scaled:
    """A linear model of river behind its scaler; values that are no numbers stand beside it.

    Texts are words there, other values categories, each a name of its own with the number 1.
    """

    def __init__(self, model: Any, text: Sequence[str]) -> None:
        self._model, self._text = model, text
        self._scaler = preprocessing.StandardScaler()

    def predict_one(self, x: Features) -> Any:
        """Return the model's answer to the row."""
        return self._model.predict_one(self._row(x))

    def predict_proba_one(self, x: Features) -> Any:
        """Return the model's probabilities for the row."""
        return self._model.predict_proba_one(self._row(x))

    def learn_one(self, x: Features, y: Label) -> None:
        """Learn the moments of the row's numbers, then the row."""
        self._scaler.learn_one(_numbers(x))
        self._model.learn_one(self._row(x), y)

    def _row(self, x: Features) -> dict[str, float]:
        out: dict[str, float] = self._scaler.transform_one(_numbers(x))
        for name, value in x.items():
            if isinstance(value, str) and name in self._text:
                out |= {f"{name} {word}": 1.0 for word in re.findall(r"\w+", value.lower())}
            elif name not in out:
                out[f"{name}={value}"] = 1.0
        return out


def _numbers(x: Features) -> dict[str, float]:
    number = (int, float)
    return {n: float(v) for n, v in x.items() if isinstance(v, number) and not isinstance(v, bool)}


class Worded:
    """A model of river that takes numbers and categories, with texts as words of their own.

    With ``one_hot`` categories are names with the number 1, too.
    """

    def __init__(self, model: Any, text: Sequence[str], *, one_hot: bool = False) -> None:
        self._model, self._text, self._one_hot = model, text, one_hot

    def predict_one(self, x: Features) -> Any:
        """Return the model's answer to the row."""
        return self._model.predict_one(self._row(x))

    def predict_proba_one(self, x: Features) -> Any:
        """Return the model's probabilities for the row."""
        return self._model.predict_proba_one(self._row(x))

    def learn_one(self, x: Features, y: Label) -> None:
        """Learn the row at hand."""
        self._model.learn_one(self._row(x), y)

    def _row(self, x: Features) -> Features:
        out: Features = {name: value for name, value in x.items() if name not in self._text}
        if self._one_hot:
            others = {f"{n}={v}": 1.0 for n, v in out.items() if isinstance(v, (str, bool))}
            out = {**_numbers(out), **others}
        for name in self._text:
            out.update(dict.fromkeys(re.findall(r"\w+", str(x.get(name, "")).lower()), 1.0))
        return out


def _sgd(source: Source, rate: float) -> Any:
    final = {
        "binary": linear_model.LogisticRegression, "multiclass": linear_model.SoftmaxRegression,
        "regression": linear_model.LinearRegression,
    }[source.task](optim.SGD(rate))  # fmt: skip
    return Scaled(final, source.text)


def _bayes(source: Source) -> Any:
    if source.task == "regression":
        return None
    return Worded(naive_bayes.GaussianNB(), source.text, one_hot=True)


def _hat(source: Source) -> Any:
    if source.task == "regression":  # its leaves are linear models, which take no texts
        made = tree.HoeffdingAdaptiveTreeRegressor(seed=42)
        return Worded(made, source.text, one_hot=True)
    return Worded(tree.HoeffdingAdaptiveTreeClassifier(seed=42), source.text)


def _arf(source: Source) -> Any:
    if source.task == "regression":
        made = forest.ARFRegressor(n_models=10, seed=42)
        return Worded(made, source.text, one_hot=True)
    return Worded(forest.ARFClassifier(n_models=10, seed=42), source.text)


class Vowpal:
    """VowpalWabbit at its defaults, by lines of text; labels are told to it before the first row.

    ``words``: options beside those of the task.
    """

    def __init__(self, source: Source, labels: Sequence[Label], words: str) -> None:
        self._source, self._labels = source, list(labels)
        self._at = {label: i + 1 for i, label in enumerate(labels)}
        kind = {
            "binary": "--loss_function logistic --link logistic",
            "multiclass": f"--oaa {len(self._labels)} --loss_function logistic --probabilities",
            "regression": "",
        }[source.task]
        made = import_module("vowpalwabbit")
        self._workspace = made.Workspace(f"--quiet {kind} {words}")

    def predict_one(self, x: Features) -> Any:
        """Return the number that it predicts."""
        return float(self._workspace.predict(self._line(x)))

    def predict_proba_one(self, x: Features) -> dict[Label, float]:
        """Return the row's probabilities."""
        found = self._workspace.predict(self._line(x))
        if self._source.task == "binary":
            return {False: 1.0 - float(found), True: float(found)}
        return dict(zip(self._labels, map(float, found), strict=True))

    def learn_one(self, x: Features, y: Label) -> None:
        """Learn the row at hand."""
        if self._source.task == "binary":
            label: float = 1 if y else -1
        else:
            label = self._at[y] if self._source.task == "multiclass" else float(y)
        self._workspace.learn(f"{label} {self._line(x)}")

    def _line(self, x: Features) -> str:
        parts = []
        for name, value in x.items():
            if isinstance(value, str) and name in self._source.text:
                parts += [f"{name}_{word}" for word in set(_WORDS.findall(value.lower()))]
            elif isinstance(value, (str, bool)) or value is None:
                parts.append(_ODD.sub("_", f"{name}={value}"))
            else:
                parts.append(f"{name}:{value!r}")
        return "| " + " ".join(parts)


_WORDS: Final = re.compile(r"\w+")
_ODD: Final = re.compile(r"[\s:|]")

VOWPAL: Final[Mapping[str, str]] = {"vw": "", "vw -q ::": "-q ::", "vw coin": "--coin"}
"""Its learners, by what is said of them beside the task; they need `vowpalwabbit`."""


def _ours(source: Source, learner: str, **params: Any) -> Any:
    """A built-in at its defaults; ``sgd`` is the one of the task, which takes numbers only."""
    sgd: dict[Task, str] = {"binary": "logreg", "multiclass": "softmax", "regression": "linreg"}
    if learner == "sgd":
        return OnlyNumbers(built(sgd[source.task], source.task, **params))
    if source.text:
        params["text"] = list(source.text)
    return built(learner, source.task, **params)


def _network(source: Source, rows: Sequence[Row]) -> tuple[Any, list[Row]]:
    """A small network at its defaults, and the rows that it takes: numbers; classes by place."""
    names = sorted({name for x, _ in rows for name in _numbers(x)})
    places, outputs = {y: y for _, y in rows}, 1
    if source.task == "multiclass":
        places = {y: i for i, y in enumerate(sorted(places, key=str))}
        outputs = len(places)
    none = dict.fromkeys(names, 0.0)
    told: list[Row] = [({**none, **_numbers(x)}, places[y]) for x, y in rows]
    return built("mlp", source.task, inputs=names, outputs=outputs), told


class OnlyNumbers:
    """A model that takes numbers only, given those of each row."""

    def __init__(self, model: Built) -> None:
        self._model = model

    def answer_noted(self, x: Features) -> tuple[Answer, Prediction]:
        """Return what the model answers to the row's numbers."""
        return self._model.answer_noted({**_numbers(x)})

    def learn_one(self, x: Features, y: Label) -> None:
        """Learn the row's numbers."""
        self._model.learn_one({**_numbers(x)}, y)

    def learn_noted(self, x: Features, y: Label, notes: Prediction) -> None:
        """Learn the row's numbers as the journal has them."""
        self._model.learn_noted({**_numbers(x)}, y, notes)


LEARNERS: Final[Mapping[str, Callable[[Source], Any]]] = {
    "auto": partial(_ours, learner="auto"),
    "linear": partial(_ours, learner="linear"),
    "ftrl": partial(_ours, learner="ftrl"),
    "ftrl, plain": partial(_ours, learner="ftrl", scale="plain"),
    "sgd": partial(_ours, learner="sgd"),
    "sgd, plain": partial(_ours, learner="sgd", scale="plain"),
    **{f"river {rate}": partial(_sgd, rate=rate) for rate in RATES},
    "naive bayes": _bayes,
    "hat": _hat,
    "arf": _arf,
}


# -- runs ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Line:
    """A learner on a stream; ``us`` are microseconds of the processor a row, answer included."""

    stream: str
    what: str
    rows: int
    accuracy: float | None
    balanced: float | None
    log_loss: float | None
    auc: float | None
    mae: float | None
    no_change: float | None
    majority: float | None
    us: float


def measure(stream: str, learner: str, data: Path, limit: int | None = None) -> Line | None:
    """One learner over one stream, in this process; None: it does not take the task."""
    source = STREAMS[stream]
    rows = list(itertools.islice(source.rows(data), limit))
    if (words := VOWPAL.get(learner)) is not None:
        if find_spec("vowpalwabbit") is None:
            return None
        labels = sorted({y for _, y in rows}, key=str) if source.task == "multiclass" else ()
        made: Any = Vowpal(source, labels, words)
    elif learner == "mlp":
        made, rows = _network(source, rows)
    else:
        made = LEARNERS[learner](source)
    if made is None:
        return None
    begun = time.process_time()
    judged = prequential(made, rows, source.task, delay=source.delay)
    us = (time.process_time() - begun) / len(rows) * 1e6
    total = judged.total
    return Line(
        stream, learner, len(rows), total.accuracy, total.balanced_accuracy, total.log_loss,
        total.auc, total.mae, total.no_change, total.majority, us,
    )  # fmt: skip


def run(
    data: Path,
    *,
    streams: Sequence[str],
    learners: Sequence[str],
    rows: int | None = None,
    jobs: int = 1,
    progress: Callable[[str], None] = lambda line: None,
) -> list[Line]:
    """Each of the learners over each of the streams."""
    lines = []
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context, max_tasks_per_child=1) as pool:
        asked = [pool.submit(measure, s, name, data, rows) for s in streams for name in learners]
        for done in as_completed(asked):
            if (line := done.result()) is not None:
                progress(
                    f"{line.stream}, {line.what}: {line.accuracy} {line.balanced} {line.log_loss} "
                    f"{line.auc} {line.mae} {line.us:.0f} us"
                )
                lines.append(line)
    return sorted(lines, key=lambda line: (streams.index(line.stream), learners.index(line.what)))
