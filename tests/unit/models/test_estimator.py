"""The adapter of scikit-learn's estimators beside scikit-learn itself."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from river import preprocessing
from sklearn.cluster import Birch, MiniBatchKMeans
from sklearn.linear_model import Perceptron, SGDClassifier, SGDOneClassSVM, SGDRegressor
from sklearn.naive_bayes import GaussianNB, MultinomialNB
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.preprocessing import StandardScaler

from evaluation.streams import open_stream
from online.models.adapters.opaque import Opaque
from online.models.errors import LabelUnknown, LearnerUnusable
from online.models.estimator import Estimator, LinearEstimator, RowByRow
from online.models.loading.checks import check_model
from online.models.loading.load import load
from replay.example import Features, Label

INPUTS = ["1", "2"]


def rows(n: int) -> list[tuple[Features, Label]]:
    return list(itertools.islice(open_stream("bananas").rows, n))


def targets() -> list[tuple[Features, Label]]:
    return [(x, 3.0 * float(x["1"]) - float(x["2"])) for x, _ in rows(42)]  # type: ignore[arg-type]


def sgd(**options: Any) -> SGDClassifier:
    return SGDClassifier(
        **{"loss": "log_loss", "learning_rate": "constant", "eta0": 0.05, **options}
    )


MERGEABLE: dict[str, tuple[Callable[[], Estimator], Any, Callable[[], Any]]] = {
    "logistic": (lambda: Estimator(sgd(), INPUTS), "binary", lambda: rows(42)),
    "hinge, elastic net": (
        lambda: Estimator(sgd(loss="hinge", penalty="elasticnet"), INPUTS), "binary",
        lambda: rows(42),
    ),
    "perceptron": (
        lambda: Estimator(Perceptron(), INPUTS, scale=False), "binary", lambda: rows(42),
    ),
    "three classes": (
        lambda: Estimator(sgd(), INPUTS, labels=["a", "b", 3]), "multiclass",
        lambda: [(x, ("a", "b", 3)[i % 3]) for i, (x, _) in enumerate(rows(42))],
    ),
    "regression": (
        lambda: Estimator(SGDRegressor(learning_rate="constant"), INPUTS), "regression", targets,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MERGEABLE)
def test_linear_models_keep_the_promises(name: str) -> None:
    build, task, given = MERGEABLE[name]
    assert isinstance(build().model_for(task), LinearEstimator)
    check_model(lambda: build().model_for(task), given())


@pytest.mark.parametrize(
    "build",
    [
        lambda: Estimator(GaussianNB(), INPUTS),
        lambda: Estimator(sgd(learning_rate="optimal"), INPUTS),
        lambda: Estimator(MLPClassifier((4,), random_state=1), INPUTS),
    ],
)
def test_others_travel_whole(build: Callable[[], Estimator]) -> None:
    learner = build().model_for("binary")
    assert isinstance(learner, RowByRow)
    assert learner.why_not_mergeable is not None
    key = {"key": b"k" * 32, "why_not_mergeable": learner.why_not_mergeable}
    check_model(lambda: Opaque(build().model_for("binary"), task="binary", **key), rows(42))  # type: ignore[arg-type]


def test_scikit_learn_itself_gives_the_very_same_probabilities() -> None:
    served: Any = Estimator(sgd(), INPUTS).model_for("binary")
    plain, scaler = sgd(), preprocessing.StandardScaler()
    for i, (features, label) in enumerate(rows(200)):
        if i:
            z = scaler.transform_one(features)
            expected = plain.predict_proba(np.array([[z["1"], z["2"]]]))[0].tolist()
            assert list(served.predict(features).probabilities.values()) == expected
        served.learn(features, label, 1.0)
        scaler.learn_one(features)
        z = scaler.transform_one(features)
        plain.partial_fit(np.array([[z["1"], z["2"]]]), np.array([label]), classes=[False, True])


def test_an_estimator_that_was_fitted_before_is_the_base() -> None:
    def fitted() -> Estimator:
        x = np.array([[float(v) for v in features.values()] for features, _ in rows(50)])  # type: ignore[arg-type]
        estimator = sgd(random_state=1).fit(x, np.array([int(label) for _, label in rows(50)]))
        return Estimator(estimator, INPUTS, scale=False)

    served = fitted().model_for("binary")
    answer = served.predict({"1": 1.0, "2": 0.5})
    assert answer.probabilities[True] != 0.5
    assert served.cut() == {}
    check_model(lambda: fitted().model_for("binary"), rows(42))


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(LearnerUnusable, match="no partial_fit"):
        Estimator(preprocessing.StandardScaler(), INPUTS).model_for("binary")
    with pytest.raises(LearnerUnusable, match="classes are not known"):
        Estimator(sgd(), INPUTS).model_for("multiclass")
    served = Estimator(sgd(), INPUTS, labels=["a", "b"]).model_for("multiclass")
    with pytest.raises(LabelUnknown, match="'c' is none of 'a', 'b'"):
        served.learn({"1": 1.0}, "c", 1.0)


@pytest.mark.parametrize(
    ("estimator", "task", "why"),
    [
        (sgd(early_stopping=True), "binary", "early_stopping"),
        (sgd(class_weight="balanced"), "binary", "class_weight"),
        (MLPRegressor((8,)), "regression", "'loss' parameter"),
        (MLPRegressor(), "binary", "unexpected keyword argument 'classes'"),
        (GaussianNB(), "regression", "classes must be passed"),
    ],
)
def test_an_estimator_that_would_fail_on_every_row_is_refused(
    estimator: Any, task: Any, why: str
) -> None:
    with pytest.raises(LearnerUnusable, match=rf"a row raises .*{why}"):
        Estimator(estimator, INPUTS).model_for(task)


@pytest.mark.parametrize("task", ["binary", "regression"])
@pytest.mark.parametrize(
    ("estimator", "what"),
    [
        (MiniBatchKMeans(1), "clusterer"),
        (Birch(n_clusters=None), "clusterer"),
        (SGDOneClassSVM(), "outlier detector"),
        (StandardScaler(), "transformer"),
    ],
)
def test_what_answers_no_labels_is_refused(estimator: Any, what: str, task: Any) -> None:
    """Each of them takes rows with numbers as labels, which it does not look at."""
    with pytest.raises(LearnerUnusable, match=f"it is a {what}, and answers no labels"):
        Estimator(estimator, INPUTS).model_for(task)


def test_the_spec_knows_parameters_inputs_and_labels(tmp_path: Path) -> None:
    def spec(code: str) -> str:
        (tmp_path / "learner.py").write_text(
            "from sklearn.linear_model import SGDClassifier\n"
            "from online.models.estimator import Estimator\n\n\n"
            f"def build():\n    return {code}\n"
        )
        options: Any = {"task": "binary", "classes": None, "key": b"k", "base_dir": tmp_path}
        return load("learner.py:build", {}, **options).model.structure

    made = [
        spec(f"Estimator(SGDClassifier(learning_rate='constant', {more})")
        for more in ("eta0=.1), ['a']", "eta0=.1), ['a']", "eta0=.2), ['a']", "eta0=.1), ['b']")
    ]
    assert made[0] == made[1]
    assert len(set(made)) == 3


@pytest.mark.parametrize("classes", [[1, 2, 3], ["apple", "pear", "quince"]])
@pytest.mark.parametrize(
    "estimator", [lambda: sgd(loss="hinge", random_state=1), GaussianNB], ids=["sgd", "bayes"]
)
def test_labels_of_an_estimator_that_was_fitted_are_its_own(
    classes: list[Any], estimator: Callable[[], Any]
) -> None:
    x = np.array([[i % 3 * 4.0, i % 2 * 0.1] for i in range(60)])
    fitted = estimator().fit(x, np.array([classes[i % 3] for i in range(60)]))
    served: Any = Estimator(fitted, INPUTS, scale=False).model_for("multiclass")
    ask = served.predict if isinstance(served, LinearEstimator) else None
    for place, label in ((0.0, classes[0]), (8.0, classes[2])):
        row: Features = {"1": place, "2": 0.0}
        assert (ask(row).label if ask else served.predict_one(row)) == label
    learn = served.learn_one if ask is None else lambda x, y: served.learn(x, y, 1.0)
    learn({"1": 4.0, "2": 0.0}, classes[1])
    with pytest.raises(LearnerUnusable, match="it was fitted on"):
        Estimator(fitted, INPUTS, labels=classes[::-1]).model_for("multiclass")
    with pytest.raises(LearnerUnusable, match="fitted with 2 features, 1 inputs"):
        Estimator(fitted, ["1"]).model_for("multiclass")


def test_an_estimator_made_once_is_copied() -> None:
    recipe = Estimator(sgd(), INPUTS)
    one, two = recipe.model_for("binary"), recipe.model_for("binary")
    before = two.predict({"1": 1.0, "2": 2.0})
    for features, label in rows(10):
        one.learn(features, label, 1.0)
    assert two.predict({"1": 1.0, "2": 2.0}) == before


def test_parameters_that_scikit_learn_refuses_are_said(tmp_path: Path) -> None:
    (tmp_path / "learner.py").write_text(
        "from sklearn.linear_model import SGDClassifier\n"
        "from online.models.estimator import Estimator\n\n\ndef build():\n"
        "    return Estimator(SGDClassifier(learning_rate='constant', eta0=0.0), ['a'])\n"
    )
    options: Any = {"task": "binary", "classes": None, "key": b"k", "base_dir": tmp_path}
    with pytest.raises(LearnerUnusable, match="eta0"):
        load("learner.py:build", {}, **options)


def test_the_structure_has_no_addresses() -> None:
    random = np.random.RandomState(1)
    served = Estimator(sgd(random_state=random), INPUTS).model_for("binary")
    assert " at 0x" not in served.structure


def test_an_estimator_of_counts_is_refused_behind_standardisation() -> None:
    """Else each row below the mean is answered `failed`."""
    with pytest.raises(LearnerUnusable, match=r"Negative values in data.*Say scale=False"):
        Estimator(MultinomialNB(), INPUTS).model_for("binary")
    counted = Estimator(MultinomialNB(), INPUTS, scale=False).model_for("binary")
    counted.learn_one({"1": 3.0, "2": 0.0}, True)
    assert counted.predict_one({"1": 3.0, "2": 0.0}) is True
