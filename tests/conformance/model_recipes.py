"""Models, and rows for each: what the checks of models are made with."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from river import (
    compose,
    ensemble,
    facto,
    feature_extraction,
    linear_model,
    naive_bayes,
    neighbors,
    optim,
    preprocessing,
    stats,
    tree,
)

from evaluation.streams import open_stream
from online.models.auto import Auto
from online.models.choices.interactions import row
from online.models.limited import LimitedScaler
from online.models.network import Network
from replay.example import Features, Label

N = 90
FEW = 42
"""Rows for models whose every row costs a millisecond: the checks take their square."""

Rows = list[tuple[Features, Label]]


def rows_of(stream: str, n: int = N) -> Rows:
    return list(itertools.islice(open_stream(stream).rows, n))


def mixed() -> Rows:
    """Classes in changing order, whole numbers, features that come and go."""
    names = "abcdefg"
    return [
        (
            {names[(i + j) % 7]: (i * 5 + j * 3) % 11 - 5 for j in range(4)},
            ("red", "green", 3)[(i * i) % 7 % 3],
        )
        for i in range(N)
    ]


def targets() -> Rows:
    return [(x, 3.0 * float(x["1"]) - float(x["2"]) + 20.0) for x, _ in rows_of("bananas")]  # type: ignore[arg-type]


def words_rows() -> Rows:
    """Texts, categories, missing values, numbers and names that come and go."""
    words = ["free", "win", "call", "me", "at", "home", "later"]
    return [
        (
            {
                "text": " ".join(words[(i * k) % 7] for k in range(1, 4)),
                "shop": ("north", "South", "")[i % 3],
                "new": i % 2 == 0,
                "size": None if i % 5 == 0 else float(i % 11),
                f"rare {i % 9}": i,
            },
            (i * i) % 7 < 3,
        )
        for i in range(N)
    ]


def choices() -> Rows:
    """Contexts with an action each, some described and some not, and rewards between 0 and 1.

    The context's number takes three values: between more of them it would meet further knots as
    its moments settle, 13 at most.
    """
    return [
        (
            row(
                {"hour": float(i % 3), "shop": ("north", "South")[i % 2], "new": i % 3 == 0},
                f"offer {i * i % 7}",
                {"price": float(i % 4), "kind": ("a", "b")[i % 2]} if i % 5 else {},
            ),
            (i * i) % 7 / 6.0,
        )
        for i in range(N)
    ]


def keyed(rows: Rows) -> Rows:
    """The rows with two keys each, as numbers, texts, null and not at all."""
    out: Rows = []
    for i, (x, y) in enumerate(rows):
        who = {} if i % 7 == 0 else {"who": float(i * i % 5) if i % 2 else str(i * i % 5)}
        out.append(({**x, **who, "where": ("north", "South", None)[i % 3]}, y))
    return out


def scaled(final: Any, *scalers: Any) -> Any:
    return compose.Pipeline(*scalers, final)


class Counting:
    """A small class of a user: predicts the label seen most."""

    def __init__(self) -> None:
        self.counts: dict[Label, int] = {}

    def learn_one(self, x: Features, y: Label) -> None:
        self.counts[y] = self.counts.get(y, 0) + 1

    def predict(self, x: Features) -> Label | None:
        return max(self.counts, key=self.counts.__getitem__) if self.counts else None


class Frozen:
    """A small class that does not learn."""

    def predict_proba_one(self, x: Features) -> dict[bool, float]:
        return {False: 0.25, True: 0.75}


def _sgd() -> Any:
    return optim.SGD(0.125)


RIVER: Mapping[str, tuple[Callable[[], Any], Callable[[], Rows]]] = {
    "logistic": (
        lambda: scaled(linear_model.LogisticRegression(_sgd()), preprocessing.StandardScaler()),
        lambda: rows_of("bananas"),
    ),
    "logistic alone, l2": (
        lambda: linear_model.LogisticRegression(_sgd(), l2=0.01, intercept_init=0.5),
        lambda: rows_of("phishing"),
    ),
    "centred only": (
        lambda: scaled(
            linear_model.LogisticRegression(_sgd()), preprocessing.StandardScaler(with_std=False)
        ),
        lambda: rows_of("bananas"),
    ),
    "min-max": (
        lambda: scaled(linear_model.LogisticRegression(_sgd()), preprocessing.MinMaxScaler()),
        lambda: rows_of("bananas"),
    ),
    "linear": (
        lambda: scaled(linear_model.LinearRegression(_sgd()), preprocessing.StandardScaler()),
        targets,
    ),
    "perceptron": (linear_model.Perceptron, lambda: [(x, y == 3) for x, y in mixed()]),
    "softmax": (
        lambda: scaled(linear_model.SoftmaxRegression(_sgd()), preprocessing.StandardScaler()),
        lambda: rows_of("image_segments"),
    ),
    "logistic, limited": (
        lambda: scaled(linear_model.LogisticRegression(_sgd()), LimitedScaler()),
        lambda: rows_of("bananas"),
    ),
    "softmax, limited": (
        lambda: scaled(linear_model.SoftmaxRegression(_sgd()), LimitedScaler()),
        lambda: rows_of("image_segments"),
    ),
    "softmax alone, l2": (lambda: linear_model.SoftmaxRegression(_sgd(), l2=0.01), mixed),
}
"""Estimators of river that ``Linear`` adapts."""


def _layers(*sizes: int) -> Any:
    torch.manual_seed(3)
    linear = [torch.nn.Linear(a, b) for a, b in itertools.pairwise(sizes)]
    parts = [part for layer in linear for part in (layer, torch.nn.Tanh())]
    return torch.nn.Sequential(*parts[:-1])


def _adam(parameters: Any) -> Any:
    return torch.optim.Adam(parameters, lr=0.01)


def _momentum(parameters: Any) -> Any:
    return torch.optim.SGD(parameters, lr=0.01, momentum=0.5)


BUILT_INS: Mapping[str, tuple[Any, dict[str, object], Callable[[], Rows]]] = {
    "logreg": ("binary", {}, lambda: rows_of("phishing")),
    "softmax": ("multiclass", {}, mixed),
    "linreg": ("regression", {}, targets),
    "ftrl": ("binary", {}, words_rows),
    "fm": ("regression", {}, targets),
    "linear": ("binary", {}, words_rows),
    "rewards": ("regression", {}, choices),
    "auto": ("multiclass", {}, mixed),
    "mlp": ("binary", {"inputs": ["1", "2"]}, lambda: rows_of("bananas", FEW)),
}
"""Task, parameters and rows of each name of ``BUILT_IN`` whose deltas merge."""

MODELS: Mapping[str, tuple[Callable[[], Any], Any, Callable[[], Rows]]] = {
    "one logit": (
        lambda: Network(_layers(2, 8, 1), ["1", "2"]), "binary", lambda: rows_of("bananas"),
    ),
    "two logits, adam": (
        lambda: Network(_layers(2, 8, 2), ["1", "2"], _adam), "binary", lambda: rows_of("bananas"),
    ),
    "probability, momentum": (
        lambda: Network(
            torch.nn.Sequential(_layers(2, 1), torch.nn.Sigmoid()), ["2", "1"], _momentum,
            torch.nn.BCELoss(), scale=False,
        ),
        "binary",
        lambda: rows_of("bananas"),
    ),
    "one logit, limited": (
        lambda: Network(_layers(2, 8, 1), ["1", "2"], scale="limited"), "binary",
        lambda: rows_of("bananas"),
    ),
    "classes": (
        lambda: Network(_layers(7, 3), list("abcdefg"), labels=("red", "green", 3)),
        "multiclass",
        mixed,
    ),
    "auto, two classes": (Auto, "binary", lambda: rows_of("phishing")),
    "regression, float64": (
        lambda: Network(_layers(2, 4, 1).double(), ["1", "2"], _momentum), "regression", targets,
    ),
}  # fmt: skip
"""Models with the verbs of ``online/models/base.py``, or objects whose ``model_for`` makes one."""

OPAQUE: Mapping[str, tuple[Callable[[], Any], Any, Callable[[], Rows]]] = {
    "alma": (
        lambda: scaled(linear_model.ALMAClassifier(), preprocessing.StandardScaler()),
        "binary",
        lambda: rows_of("bananas"),
    ),
    "two scalers, adam": (
        lambda: scaled(
            linear_model.LogisticRegression(optim.Adam()),
            preprocessing.StandardScaler() + preprocessing.MinMaxScaler(),
            preprocessing.RobustScaler(),
        ),
        "binary",
        lambda: rows_of("bananas"),
    ),
    "hoeffding tree": (
        lambda: tree.HoeffdingTreeClassifier(grace_period=20),
        "multiclass",
        lambda: rows_of("image_segments"),
    ),
    "naive bayes, text": (
        naive_bayes.BernoulliNB,
        "multiclass",
        lambda: [({k: v > 0 for k, v in x.items()}, y) for x, y in mixed()],  # type: ignore[operator]
    ),
    "bagging around scalers": (
        lambda: ensemble.BaggingClassifier(
            preprocessing.StandardScaler() | linear_model.LogisticRegression(), n_models=3, seed=1
        ),
        "binary",
        lambda: rows_of("bananas"),
    ),
    "bayesian linear": (linear_model.BayesianLinearRegression, "regression", targets),
    "factorisation machine": (
        lambda: facto.FMClassifier(n_factors=3, seed=1),
        "binary",
        lambda: rows_of("bananas"),
    ),
    "field-aware factorisation machine": (
        lambda: facto.FFMRegressor(n_factors=3, seed=1),
        "regression",
        targets,
    ),
    "aggregates in front": (
        lambda: scaled(
            linear_model.LinearRegression(_sgd()),
            compose.Select("1")
            + feature_extraction.Agg("1", "2", stats.Mean())
            + feature_extraction.TargetAgg("2", stats.Mean()),
            preprocessing.StandardScaler(),
        ),
        "regression",
        targets,
    ),
    "neighbours": (neighbors.KNNRegressor, "regression", targets),
    "own class": (Counting, "multiclass", mixed),
    "own class, frozen": (Frozen, "binary", lambda: rows_of("bananas")),
}
"""Estimators and classes whose state travels whole: ``Opaque`` adapts them."""
