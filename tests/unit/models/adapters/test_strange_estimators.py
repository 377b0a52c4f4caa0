"""Estimators that raise, that change when they are asked, or that sort their classes."""

from __future__ import annotations

import pickle
import random
from collections.abc import Callable
from typing import Any

import pytest
from river import (
    active,
    compose,
    ensemble,
    feature_extraction,
    feature_selection,
    forest,
    imblearn,
    linear_model,
    multiclass,
    preprocessing,
    stats,
    tree,
)

from online.models.adapters.opaque import Opaque, Text
from online.models.errors import AnswerRaised, LearnerUnusable
from online.models.loading.load import _wrap
from replay.example import Features, Label

KEY = b"k" * 32


def served(estimator: Any, task: Any = "binary") -> Opaque:
    return Opaque(estimator, task=task, key=KEY, why_not_mergeable="x")


def rows(n: int, seed: int = 5) -> list[tuple[Features, bool]]:
    draw = random.Random(seed)
    made: list[tuple[Features, bool]] = []
    for _ in range(n):
        x: Features = {
            "a": draw.gauss(3.0, 1.0), "b": draw.gauss(0.0, 1.0), "city": draw.choice("xyz"),
        }  # fmt: skip
        made.append((x, float(x["a"]) > 3.0))  # type: ignore[arg-type]
    return made


# -- asked without a trace -------------------------------------------------------------------------


def behind(*transformers: Any) -> Callable[[], Any]:
    def make() -> Any:
        out: Any = compose.SelectType(float)
        for one in transformers:
            out = out | one.clone()
        return out | linear_model.LogisticRegression()

    return make


def scaled() -> Any:
    return preprocessing.StandardScaler()


CHANGING: dict[str, Callable[[], Any]] = {
    "kernel": behind(feature_extraction.RBFSampler(n_components=5, seed=1)),
    "trees": behind(feature_extraction.RandomTreesEmbedding(n_trees=3, height=2, seed=1)),
    "projection": behind(preprocessing.GaussianRandomProjector(3, seed=1)),
    "sparse projection": behind(preprocessing.SparseRandomProjector(3, density=0.5, seed=1)),
    "inclusion": behind(feature_selection.PoissonInclusion(p=0.3, seed=1)),
    "product": behind(scaled() * scaled()),
    "topics": behind(preprocessing.LDA(n_components=2, seed=1)),
    "codes": lambda: preprocessing.OrdinalEncoder() | tree.HoeffdingTreeClassifier(),
    "groups": lambda: (
        compose.Grouper(compose.SelectType(float) | scaled(), by="city")
        | linear_model.LogisticRegression()
    ),
    "groups in an ensemble": lambda: ensemble.BaggingClassifier(
        feature_extraction.Agg("a", "city", stats.Mean()) | linear_model.LogisticRegression(),
        n_models=2,
        seed=1,
    ),
    "kernel in an ensemble": lambda: ensemble.BaggingClassifier(
        behind(feature_extraction.RBFSampler(n_components=5, seed=1))(), n_models=2, seed=1
    ),
}
STRANGE: list[Features] = [
    {"a": 1.0, "b": 0.5, "city": "x", "new": 2.0},
    {"newer": 1.0, "a": 0.5, "city": "Kyiv"},
]


@pytest.mark.parametrize("name", CHANGING)
def test_asking_leaves_every_byte_as_it_was(name: str) -> None:
    model = served(CHANGING[name]())
    for taught in (False, True):
        before = pickle.dumps(model)
        for x in (*STRANGE, rows(1)[0][0]):
            assert model.predict(x) == model.predict(x)
        assert pickle.dumps(model) == before, taught
        for x, y in rows(30):
            model.learn(x, y, 1.0)


@pytest.mark.parametrize("name", CHANGING)
def test_by_itself_it_would_change(name: str) -> None:
    """The control: river's own way of asking leaves a trace."""
    estimator = CHANGING[name]()
    for x, y in rows(30):
        estimator.learn_one(dict(x), y)
    before = pickle.dumps(estimator)
    estimator.predict_proba_one(dict(STRANGE[1]))
    assert pickle.dumps(estimator) != before


@pytest.mark.parametrize("name", ["kernel", "projection", "product", "codes", "groups"])
def test_a_row_of_known_names_is_answered_as_by_river(name: str) -> None:
    plain, model = CHANGING[name](), served(CHANGING[name]())
    for x, y in rows(40):
        plain.learn_one(dict(x), y)
        model.learn(x, y, 1.0)
    for x, _ in rows(10, seed=6):
        assert model.predict(x).probabilities == pytest.approx(plain.predict_proba_one(dict(x)))


# -- raising ---------------------------------------------------------------------------------------


def selecting() -> Any:
    model = compose.Select("a", "b") | preprocessing.StandardScaler()
    return model | linear_model.LogisticRegression()


@pytest.mark.parametrize(
    "make",
    [
        lambda: ensemble.BaggingClassifier(selecting(), n_models=2, seed=1),
        lambda: ensemble.ADWINBoostingClassifier(selecting(), n_models=2, seed=1),
        lambda: imblearn.RandomOverSampler(selecting(), desired_dist={False: 0.5, True: 0.5}),
    ],
)
def test_a_selection_inside_of_an_ensemble_is_answered_before_anything_is_learned(
    make: Callable[[], Any],
) -> None:
    model = served(make())
    before = pickle.dumps(model)
    answer = model.predict(rows(1)[0][0])
    assert answer.probabilities == pytest.approx({False: 0.5, True: 0.5})
    assert pickle.dumps(model) == before


def test_what_it_raises_is_told_and_whether_it_had_learned() -> None:
    model = served(selecting())
    with pytest.raises(AnswerRaised, match="KeyError: 'b'") as early:
        model.predict({"a": 1.0})
    model.learn({"a": 1.0, "b": 1.0}, True, 1.0)
    with pytest.raises(AnswerRaised, match="KeyError: 'b'") as late:
        model.predict({"a": 1.0})
    assert (early.value.taught, late.value.taught) == (False, True)
    model.reset({})
    with pytest.raises(AnswerRaised) as again:
        model.predict({"a": 1.0})
    assert not again.value.taught


def test_answers_in_pairs_are_refused_at_the_start() -> None:
    sampler = active.EntropySampler(selecting(), seed=1)
    with pytest.raises(LearnerUnusable, match="answers pairs"):
        _wrap("x", sampler, "binary", KEY, ())


# -- classes of both kinds -------------------------------------------------------------------------


def mixed(n: int) -> list[tuple[Features, Label]]:
    labels: tuple[Label, ...] = ("a", "b", 7)
    return [({"n": float(i % 3), "m": float(i % 5)}, labels[i % 3]) for i in range(n)]


SORTING: dict[str, Callable[[], Any]] = {
    "tree": lambda: tree.HoeffdingTreeClassifier(grace_period=10),
    "forest": lambda: forest.ARFClassifier(n_models=2, grace_period=10, seed=1),
    "pairs": lambda: multiclass.OneVsOneClassifier(linear_model.LogisticRegression()),
}


@pytest.mark.parametrize("name", SORTING)
def test_numbers_and_texts_are_classes_of_one_model(name: str) -> None:
    model = served(SORTING[name](), "multiclass")
    for x, y in mixed(200):
        model.learn(x, y, 1.0)
    answers = [model.predict(x) for x, _ in mixed(30)]
    labels = {label for answer in answers for label in answer.probabilities or {answer.label: 1}}
    assert labels == {"a", "b", 7}
    assert {type(label) for label in labels} == {int, str}, "the service's own labels"
    twin = served(SORTING[name](), "multiclass")
    twin.reset(model.cut())
    assert [twin.predict(x) for x, _ in mixed(30)] == answers


@pytest.mark.parametrize("name", SORTING)
def test_without_that_river_refuses_them(name: str) -> None:
    """The control: the estimator itself, taught the same labels."""
    estimator = SORTING[name]()

    def play() -> None:
        for x, y in mixed(200):
            estimator.learn_one(dict(x), y)
            estimator.predict_one(dict(x))

    with pytest.raises(TypeError, match="not supported between"):
        play()


def test_texts_sort_after_numbers_and_are_texts() -> None:
    classes: list[Any] = [Text("b"), 3, Text("a"), 12, 7.5]
    assert sorted(classes) == sorted(classes[::-1]) == [3, 7.5, 12, "a", "b"]
    assert hash(Text("a")) == hash("a")
