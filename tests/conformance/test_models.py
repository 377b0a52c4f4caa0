"""Every kind of model keeps the promises, and models that break one are found out."""

from __future__ import annotations

import itertools
import pickle
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from msgspec.structs import replace
from river import (
    compose,
    ensemble,
    linear_model,
    naive_bayes,
    neighbors,
    optim,
    preprocessing,
    tree,
)

from evaluation.streams import open_stream
from online.models.base import Model, Prediction
from online.models.checks import CheckFailed, check_model, yield_checks
from online.models.errors import LabelUnknown, LearnerUnusable
from online.models.ftrl import CLASSES_MAX, Ftrl
from online.models.linear import Linear, why_not_mergeable
from online.models.load import BUILT_IN, load
from online.models.network import Network
from online.models.opaque import Opaque
from online.models.selfrate import SelfRate, SelfRateModel
from paramserver.blocks import Block, Blocks
from replay.example import Example, Features, Label

KEY = b"k" * 32
N = 90

Rows = list[tuple[Features, Label]]


def _rows(stream: str, n: int = N) -> Rows:
    return list(itertools.islice(open_stream(stream).rows, n))


def _mixed() -> Rows:
    """Classes in changing order, whole numbers, features that come and go."""
    names = "abcdefg"
    return [
        (
            {names[(i + j) % 7]: (i * 5 + j * 3) % 11 - 5 for j in range(4)},
            ("red", "green", 3)[(i * i) % 7 % 3],
        )
        for i in range(N)
    ]


def _targets() -> Rows:
    return [(x, 3.0 * float(x["1"]) - float(x["2"]) + 20.0) for x, _ in _rows("bananas")]  # type: ignore[arg-type]


def _words() -> Rows:
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


def _scaled(final: Any, *scalers: Any) -> Any:
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


MERGEABLE: Mapping[str, tuple[Callable[[], Any], Callable[[], Rows]]] = {
    "logistic": (
        lambda: _scaled(linear_model.LogisticRegression(_sgd()), preprocessing.StandardScaler()),
        lambda: _rows("bananas"),
    ),
    "logistic alone, l2": (
        lambda: linear_model.LogisticRegression(_sgd(), l2=0.01, intercept_init=0.5),
        lambda: _rows("phishing"),
    ),
    "centred only": (
        lambda: _scaled(
            linear_model.LogisticRegression(_sgd()), preprocessing.StandardScaler(with_std=False)
        ),
        lambda: _rows("bananas"),
    ),
    "min-max": (
        lambda: _scaled(linear_model.LogisticRegression(_sgd()), preprocessing.MinMaxScaler()),
        lambda: _rows("bananas"),
    ),
    "linear": (
        lambda: _scaled(linear_model.LinearRegression(_sgd()), preprocessing.StandardScaler()),
        _targets,
    ),
    "perceptron": (
        linear_model.Perceptron,
        lambda: [(x, y == 3) for x, y in _mixed()],
    ),
    "softmax": (
        lambda: _scaled(linear_model.SoftmaxRegression(_sgd()), preprocessing.StandardScaler()),
        lambda: _rows("image_segments"),
    ),
    "softmax alone, l2": (lambda: linear_model.SoftmaxRegression(_sgd(), l2=0.01), _mixed),
}


def _layers(*sizes: int) -> Any:
    torch.manual_seed(3)
    linear = [torch.nn.Linear(a, b) for a, b in itertools.pairwise(sizes)]
    parts = [part for layer in linear for part in (layer, torch.nn.Tanh())]
    return torch.nn.Sequential(*parts[:-1])


def _adam(parameters: Any) -> Any:
    return torch.optim.Adam(parameters, lr=0.01)


def _momentum(parameters: Any) -> Any:
    return torch.optim.SGD(parameters, lr=0.01, momentum=0.5)


NETWORKS: Mapping[str, tuple[Callable[[], Network], Any, Callable[[], Rows]]] = {
    "one logit": (
        lambda: Network(_layers(2, 8, 1), ["1", "2"]), "binary", lambda: _rows("bananas"),
    ),
    "two logits, adam": (
        lambda: Network(_layers(2, 8, 2), ["1", "2"], _adam), "binary", lambda: _rows("bananas"),
    ),
    "probability, momentum": (
        lambda: Network(
            torch.nn.Sequential(_layers(2, 1), torch.nn.Sigmoid()), ["2", "1"], _momentum,
            torch.nn.BCELoss(), scale=False,
        ),
        "binary",
        lambda: _rows("bananas"),
    ),
    "classes": (
        lambda: Network(_layers(7, 3), list("abcdefg"), labels=("red", "green", 3)),
        "multiclass",
        _mixed,
    ),
    "regression, float64": (
        lambda: Network(_layers(2, 4, 1).double(), ["1", "2"], _momentum), "regression", _targets,
    ),
}  # fmt: skip

OPAQUE: Mapping[str, tuple[Callable[[], Any], Any, Callable[[], Rows]]] = {
    "alma": (
        lambda: _scaled(linear_model.ALMAClassifier(), preprocessing.StandardScaler()),
        "binary",
        lambda: _rows("bananas"),
    ),
    "two scalers, adam": (
        lambda: _scaled(
            linear_model.LogisticRegression(optim.Adam()),
            preprocessing.StandardScaler() + preprocessing.MinMaxScaler(),
            preprocessing.RobustScaler(),
        ),
        "binary",
        lambda: _rows("bananas"),
    ),
    "hoeffding tree": (
        lambda: tree.HoeffdingTreeClassifier(grace_period=20),
        "multiclass",
        lambda: _rows("image_segments"),
    ),
    "naive bayes, text": (
        naive_bayes.BernoulliNB,
        "multiclass",
        lambda: [({k: v > 0 for k, v in x.items()}, y) for x, y in _mixed()],  # type: ignore[operator]
    ),
    "bagging around scalers": (
        lambda: ensemble.BaggingClassifier(
            preprocessing.StandardScaler() | linear_model.LogisticRegression(), n_models=3, seed=1
        ),
        "binary",
        lambda: _rows("bananas"),
    ),
    "neighbours": (neighbors.KNNRegressor, "regression", _targets),
    "own class": (Counting, "multiclass", _mixed),
    "own class, frozen": (Frozen, "binary", lambda: _rows("bananas")),
}


@pytest.mark.parametrize("name", MERGEABLE)
def test_mergeable_models_keep_the_promises(name: str) -> None:
    build, rows = MERGEABLE[name]
    assert why_not_mergeable(build()) is None
    check_model(lambda: Linear(build()), rows())


@pytest.mark.parametrize(
    ("task", "rows"),
    [("binary", _words), ("multiclass", _mixed), ("regression", _targets)],
)
@pytest.mark.parametrize("recipe", [Ftrl(text=["text"]), Ftrl(l1=0.1, l2=0.1, bits=4, scale=False)])
def test_ftrl_keeps_the_promises(recipe: Ftrl, task: Any, rows: Callable[[], Rows]) -> None:
    check_model(lambda: recipe.model_for(task), rows())


def test_ftrl_bounds_its_classes_and_its_settings() -> None:
    served = Ftrl().model_for("multiclass")
    for i in range(CLASSES_MAX):
        served.learn({"a": 1.0}, i, 1.0)
    served.cut()
    with pytest.raises(LabelUnknown):
        served.learn({"a": 1.0}, "one more", 1.0)
    assert served.cut() == {}
    for wrong in ({"text": "message"}, {"alpha": 0}, {"l1": -1}, {"bits": 40}):
        with pytest.raises(LearnerUnusable, match=next(iter(wrong))):
            Ftrl(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("task", "rows"),
    [
        ("binary", _words),
        ("binary", lambda: _rows("phishing")),
        ("multiclass", _mixed),
        ("multiclass", lambda: _rows("image_segments")),
        ("regression", _targets),
    ],
)
@pytest.mark.parametrize("recipe", [SelfRate(text=["text"]), SelfRate(bits=4)])
def test_linear_experts_keep_the_promises(
    recipe: SelfRate, task: Any, rows: Callable[[], Rows]
) -> None:
    check_model(lambda: recipe.model_for(task), rows())


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_keep_the_promises(name: str) -> None:
    build, task, rows = NETWORKS[name]
    check_model(lambda: build().model_for(task), rows())


@pytest.mark.parametrize("name", OPAQUE)
def test_opaque_models_keep_the_promises(name: str) -> None:
    build, task, rows = OPAQUE[name]
    check_model(lambda: Opaque(build(), task=task, key=KEY, why_not_mergeable="tree"), rows())


@pytest.mark.parametrize("name", [name for name in BUILT_IN if name != "sealed"])
def test_built_in_models_keep_the_promises(name: str) -> None:
    task, rows = {
        "logreg": ("binary", lambda: _rows("phishing")),
        "softmax": ("multiclass", _mixed),
        "linreg": ("regression", _targets),
        "ftrl": ("binary", _words),
        "linear": ("binary", _words),
        "mlp": ("binary", lambda: _rows("bananas")),
    }[name]
    params = {"inputs": ["1", "2"]} if name == "mlp" else {}
    loaded = load(name, params, task=task, classes=None, key=KEY, base_dir=Path())  # type: ignore[arg-type]
    assert loaded.model.mergeable
    check_model(loaded.build, rows())


@pytest.mark.parametrize("name", MERGEABLE)
def test_a_model_trained_before_is_the_base_of_its_values(name: str) -> None:
    build, rows = MERGEABLE[name]
    given = rows()

    def trained() -> Model:
        estimator = build()
        for features, label in given[:30]:
            estimator.learn_one(features, label)
        return Linear(estimator)

    assert trained().structure != Linear(build()).structure
    check_model(trained, given[30:])


# -- models that break a promise ---------------------------------------------------------------


class InsertsOnPredict(Linear):
    """Asks river's pipeline itself, whose scaler inserts unknown names."""

    def predict(self, features: Features) -> Prediction:
        probabilities = self.estimator.predict_proba_one(features)
        return Prediction(max(probabilities, key=probabilities.__getitem__), probabilities)


class ManyTakesTheFirstOrder(Linear):
    """Takes each row's values in its own order of names."""

    def predict_many(self, rows: Sequence[Features]) -> list[Prediction]:
        names = list(rows[0])
        return super().predict_many([dict(zip(names, x.values(), strict=False)) for x in rows])


class ForgetsIntercept(Linear):
    def cut(self) -> Blocks:
        return {name: block for name, block in super().cut().items() if name != "intercept"}


class ByPosition(Linear):
    """Names the keys of its delta by the order in which it met the features."""

    def __init__(self, estimator: Any) -> None:
        super().__init__(estimator)
        self.order: list[str] = []

    def learn(self, features: Features, label: Label, weight: float) -> None:
        self.order += [name for name in features if name not in self.order]
        super().learn(features, label, weight)

    def cut(self) -> Blocks:
        return {
            name: Block(
                b.kind, {str(self.order.index(k)) if k else k: v for k, v in b.data.items()}
            )
            for name, b in super().cut().items()
        }

    def _named(self, values: Blocks) -> Blocks:
        names = self.order or ["1", "2"]
        return {
            name: Block(b.kind, {names[int(k)] if k else k: v for k, v in b.data.items()})
            for name, b in values.items()
            if b.kind != "digest"
        }

    def rebase(self, values: Blocks) -> None:
        super().rebase(self._named(values))

    def reset(self, values: Blocks) -> None:
        super().reset(self._named(values))


class LosesOpenDelta(Linear):
    def rebase(self, values: Blocks) -> None:
        self.cut()
        super().rebase(values)


class RebaseOverwrites(Linear):
    """Takes values as they are: what was learned since the cut is gone from the answers."""

    def rebase(self, values: Blocks) -> None:
        own = super().cut()
        super().rebase(values)
        self._owed = own

    def cut(self) -> Blocks:
        owed, self._owed = getattr(self, "_owed", {}), {}
        return owed or super().cut()


class CutsTwice(Linear):
    """Gives the last delta again when there is nothing new."""

    def cut(self) -> Blocks:
        new = super().cut()
        self._last = new or getattr(self, "_last", {})
        return self._last


class ResetKeepsNames(Linear):
    def reset(self, values: Blocks) -> None:
        self.cut()
        self.rebase(values)


class KeepsInput(Linear):
    """Learns a row when the next one comes, from the caller's own dict."""

    _row: tuple[Features, Label, float] | None = None

    def learn(self, features: Features, label: Label, weight: float) -> None:
        self._settle()
        self._row = (features, label, weight)

    def _settle(self) -> None:
        if self._row is not None:
            super().learn(*self._row)
            self._row = None

    def cut(self) -> Blocks:
        self._settle()
        return super().cut()

    def reset(self, values: Blocks) -> None:
        self._row = None
        super().reset(values)


class ChangesInput(Linear):
    def predict(self, features: Features) -> Prediction:
        answer = super().predict(features)
        features.pop("1", None)
        return answer


class RunningExtrema(Linear):
    """Pushes one more key with each row."""

    rows = 0

    def learn(self, features: Features, label: Label, weight: float) -> None:
        self.rows += 1
        super().learn({**features, f"row {self.rows}": 0.0}, label, weight)


class SharesBlocks(Linear):
    """Keeps the block that it gives away."""

    def cut(self) -> Blocks:
        self._given = super().cut()
        return self._given

    def predict(self, features: Features) -> Prediction:
        given = getattr(self, "_given", None)
        if given and not any(block.data for block in given.values()):
            return Prediction(None, None)
        return super().predict(features)


class WeightLeavesTraces(Linear):
    def learn(self, features: Features, label: Label, weight: float) -> None:
        for scaler in self._scalers:
            scaler.learn(features)
        super().learn(features, label, weight)


MUTANTS = {
    InsertsOnPredict: "predict changes nothing",
    ManyTakesTheFirstOrder: "many is one by one",
    ForgetsIntercept: "delta composes",
    ByPosition: "replicas agree",
    LosesOpenDelta: "rebase keeps the open delta",
    RebaseOverwrites: "rebase keeps the open delta",
    CutsTwice: "cut empties the delta",
    ResetKeepsNames: "reset is exact",
    KeepsInput: "input is left alone",
    ChangesInput: "input is left alone",
    RunningExtrema: "growth is bounded",
    SharesBlocks: "blocks are not shared",
}


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.__name__)
def test_broken_models_are_found_out(mutant: type[Linear]) -> None:
    build, rows = MERGEABLE["logistic"]
    failed = {}
    for check in yield_checks():
        try:
            check(lambda: mutant(build()), rows())
        except CheckFailed as error:
            failed[check.__name__] = error.check
    assert any(name.startswith(MUTANTS[mutant]) for name in failed.values()), failed


def _forgets_losses(model: SelfRateModel) -> None:
    cut = model.cut
    model.cut = lambda: {k: b for k, b in cut().items() if k != "losses"}  # type: ignore[method-assign]


def _reset_keeps_losses(model: SelfRateModel) -> None:
    reset = model.reset

    def kept(values: Blocks) -> None:
        mixture = model._mixture
        reset(values)
        model._mixture = mixture

    model.reset = kept  # type: ignore[method-assign]


def _takes_losses_of_others(model: SelfRateModel) -> None:
    rebase = model.rebase

    def taken(values: Blocks) -> None:
        model._mixture._judged = False
        rebase(values)

    model.rebase = taken  # type: ignore[method-assign]


def _sums_losses(model: SelfRateModel) -> None:
    cut = model.cut

    def summed() -> Blocks:
        blocks = cut()
        if (block := blocks.get("losses")) is not None:
            blocks["losses"] = Block("dense", block.data)
        return blocks

    model.cut = summed  # type: ignore[method-assign]


def _trusts_notes(model: SelfRateModel) -> None:
    def learn_noted(example: Example, weight: float) -> None:
        notes = (example.notes or b"").ljust(8, b"\0")[:8]
        SelfRateModel.learn_noted(model, replace(example, notes=notes), weight)

    model.learn_noted = learn_noted  # type: ignore[method-assign]


@pytest.mark.parametrize(
    ("breaks", "check"),
    [
        (_forgets_losses, "delta composes"),
        (_reset_keeps_losses, "reset is exact"),
        (_takes_losses_of_others, "rebase keeps the open delta"),
        (_sums_losses, "delta composes"),
        (_trusts_notes, "notes are optional"),
    ],
)
def test_broken_mixtures_are_found_out(breaks: Callable[[SelfRateModel], None], check: str) -> None:
    def make() -> SelfRateModel:
        model = SelfRate().model_for("binary")
        breaks(model)
        return model

    failed = []
    for each in yield_checks():
        try:
            each(make, _rows("phishing"))
        except CheckFailed as error:
            failed.append(error.check)
        except (AttributeError, pickle.PicklingError):  # a mutant with a function in it
            continue
    assert any(name.startswith(check) for name in failed), failed


def test_a_weight_refused_too_late_is_found_out() -> None:
    build, rows = MERGEABLE["softmax"]
    with pytest.raises(CheckFailed, match="refused weight"):
        check_model(lambda: WeightLeavesTraces(build()), rows())
