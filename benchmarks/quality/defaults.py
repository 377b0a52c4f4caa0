"""A model that nobody has tuned is worth this: built-ins at their defaults beside river's best.

Streams of many kinds are tested, then learned, row by row: numbers, categories, texts, ids, few
classes and many, labels at once and late.  Each learner runs over each stream in a process of its
own.
"""

from __future__ import annotations

import itertools
import json
import multiprocessing
import re
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from river import ensemble, forest, linear_model, naive_bayes, optim, preprocessing, tree

from benchmarks.fixtures.sources import Row, Source, named
from evaluation.learner import Answer
from evaluation.metrics import Task
from evaluation.prequential import prequential
from online.models.base import Model, Prediction, learn_example
from online.models.loading.load import load
from replay.example import Example, Features, Label, label_text

RATES: Final = (0.0025, 0.005, 0.0125, 0.025, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6)
"""Of river's SGD; the best of them in hindsight is the peer."""


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


def _patches(source: Source) -> Any:
    if source.task == "regression":
        return None
    made = ensemble.SRPClassifier(n_models=10, seed=42)
    return Worded(made, source.text, one_hot=True)


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
    "srp": _patches,
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
    source = named(stream)
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


@dataclass(frozen=True, slots=True)
class Rank:
    """A learner's place among all, in the mean of the streams; 1 is the best.

    Attributes:
        best: Streams on which nobody is better.
        behind: Points of accuracy, or per cent of the error, behind the best; in the mean.
    """

    what: str
    streams: int
    rank: float
    best: int
    behind: float


def ranks(lines: Sequence[Line]) -> list[Rank]:
    """Everybody's mean rank; of river's rates the best one of each stream stands for all.

    Who does not take a stream is the last there.
    """
    by_stream: dict[str, dict[str, float]] = {}
    for line in lines:
        scores = by_stream.setdefault(line.stream, {})
        score = -(line.mae or 0.0) if line.accuracy is None else line.accuracy
        what = "river, best rate" if line.what.startswith("river ") else line.what
        scores[what] = max(score, scores.get(what, score))
        rules = {"no-change": line.no_change, "majority": line.majority}
        scores |= {rule: score for rule, score in rules.items() if score is not None}
    names = {name for scores in by_stream.values() for name in scores}
    found = []
    for name in names:
        places, behind, best = [], [], 0
        for scores in by_stream.values():
            own = scores.get(name)
            if own is None:
                places.append(float(len(names)))
                continue
            better = sum(score > own for score in scores.values())
            places.append(better + (1.0 + sum(score == own for score in scores.values())) / 2.0)
            most = max(scores.values())
            behind.append(100.0 * (most - own) / (1.0 if most > 0.0 else -most))
            best += not better
        mean = sum(places) / len(places)
        found.append(
            Rank(name, len(behind), round(mean, 2), best, round(sum(behind) / len(behind), 2))
        )
    return sorted(found, key=lambda one: (one.rank, one.what))


def run(
    data: Path,
    *,
    streams: Sequence[str],
    learners: Sequence[str],
    rows: int | None = None,
    jobs: int = 1,
    kept: Path | None = None,
    progress: Callable[[str], None] = lambda line: None,
) -> list[Line]:
    """Each of the learners over each of the streams.

    ``kept``: a file of lines that are there already, and are not measured again; others are added.
    Lines of another limit of ``rows`` (``asked`` in the file) stay there and are not taken.
    """
    lines = []
    if kept is not None and kept.exists():
        told = [json.loads(text) for text in kept.read_text().splitlines()]
        lines = [Line(**one) for one in told if one.pop("asked", 0) == rows]
        lines = [one for one in lines if one.stream in streams and one.what in learners]
    there = {(line.stream, line.what) for line in lines}
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    with ProcessPoolExecutor(jobs, mp_context=context, max_tasks_per_child=1) as pool:
        asked = [
            pool.submit(measure, stream, name, data, rows)
            for stream, name in itertools.product(streams, learners)
            if (stream, name) not in there
        ]
        for done in as_completed(asked):
            if (line := done.result()) is not None:
                if kept is not None:
                    with kept.open("a") as file:
                        file.write(json.dumps({**asdict(line), "asked": rows}) + "\n")
                progress(
                    f"{line.stream}, {line.what}: {line.accuracy} {line.balanced} {line.log_loss} "
                    f"{line.auc} {line.mae} {line.us:.0f} us"
                )
                lines.append(line)
    return sorted(lines, key=lambda line: (streams.index(line.stream), learners.index(line.what)))
