"""From the learner setting to a model: what is found, what is refused and how it is said."""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import Any

import pytest

from online.models.adapters.linear import Linear
from online.models.adapters.opaque import Opaque
from online.models.errors import AnswerUnusable, BlobUntrusted, LearnerUnusable, WeightUnsupported
from online.models.loaded import Loaded
from online.models.loading.load import load
from paramserver.core.blocks import Block

KEY = b"k" * 32

SOURCE = '''
from river import anomaly, compose, linear_model, preprocessing, tree

def logistic(lr=0.1):
    return preprocessing.StandardScaler() | linear_model.LogisticRegression()

def alma():
    return preprocessing.StandardScaler() | linear_model.ALMAClassifier()

def forest():
    return tree.HoeffdingTreeClassifier()

def line():
    return linear_model.LinearRegression()

def detector():
    return anomaly.HalfSpaceTrees()

def unpicklable():
    return compose.FuncTransformer(lambda x: x) | linear_model.ALMAClassifier()

def nothing():
    pass

def kind():
    return Mean

def raises():
    raise RuntimeError("no weights here")

def from_text(x):
    return {"n": float(len(x["text"]))}

def with_function():
    scaled = preprocessing.StandardScaler() | linear_model.ALMAClassifier()
    return compose.FuncTransformer(from_text) | scaled

class Mean:
    """Learns the mean of the targets."""

    def __init__(self, start=0.0):
        self.n, self.mean = 0, start

    def learn_one(self, x, y):
        x.clear()
        self.n += 1
        self.mean += (y - self.mean) / self.n

    def predict(self, x):
        return self.mean

class Answers:
    def __init__(self, answer):
        self.answer = answer

    def predict_one(self, x):
        return self.answer

class Mute:
    def learn_one(self, x, y):
        pass
'''


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "model.py").write_text(SOURCE)
    return tmp_path


def _load(directory: Path, learner: str, task: Any = "binary", **params: object) -> Loaded:
    return load(learner, params, task=task, classes=None, key=KEY, base_dir=directory)


def test_a_linear_model_of_a_file_is_mergeable(directory: Path) -> None:
    loaded = _load(directory, "model.py:logistic")
    assert isinstance(loaded.model, Linear)
    assert loaded.model.numeric_only
    assert loaded.build() is not loaded.model


def test_another_estimator_is_opaque_and_says_why(directory: Path) -> None:
    model = _load(directory, "model.py:alma").model
    assert isinstance(model, Opaque)
    assert not model.mergeable
    assert model.learns
    assert model.why_not_mergeable == "ALMAClassifier has no merge"
    assert model.numeric_only  # a scaler comes first
    assert not _load(directory, "model.py:forest").model.numeric_only  # type: ignore[attr-defined]


def test_a_small_class_is_served(directory: Path) -> None:
    loaded = _load(directory, "model.py:Mean", "regression", start=2.0)
    model, row = loaded.model, {"a": 1.0}
    assert model.predict(row).label == 2.0
    model.learn(row, 5.0, 1.0)
    assert row == {"a": 1.0}
    assert model.predict(row).label == 5.0
    with pytest.raises(WeightUnsupported):
        model.learn(row, 5.0, 0.5)


def test_a_class_that_does_not_learn_is_frozen_and_the_same_everywhere(directory: Path) -> None:
    model = _load(directory, "model.py:Answers", answer=1).model
    assert (model.learns, model.mergeable) == (False, True)
    assert model.predict({}).label is True
    assert model.cut() == {}
    model.reset({})


def test_a_function_that_makes_names_inserts_none(directory: Path) -> None:
    model = _load(directory, "model.py:with_function").model
    assert model.predict({"text": "a"}).probabilities == {False: 0.5, True: 0.5}
    model.learn({"text": "abc"}, True, 1.0)
    before = pickle.dumps(model)
    model.predict({"text": "abcd", "other": 3.0})
    assert pickle.dumps(model) == before


def test_pickles_of_a_files_classes_are_read_by_another_directory(
    directory: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    model = _load(directory, "model.py:Mean", "regression").model
    model.learn({}, 4.0, 1.0)
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "model.py").write_text(SOURCE)
    loaded = _load(elsewhere, "model.py:Mean", "regression")
    loaded.model.reset(model.cut())
    assert loaded.model.predict({}).label == 4.0


def test_a_state_from_before_the_key_was_changed_is_opened(directory: Path) -> None:
    model = _load(directory, "model.py:alma").model
    for i in range(30):
        model.learn({"a": float(i % 3)}, i % 3 == 0, 1.0)
    state = model.cut()
    after = load(
        "model.py:alma", {}, task="binary", classes=None, key=b"n" * 32, base_dir=directory,
        old_keys=(KEY,),
    )  # fmt: skip
    assert after.spec_hash == _load(directory, "model.py:alma").spec_hash
    after.model.reset(state)
    assert after.model.predict({"a": 0.0}) == model.predict({"a": 0.0})
    after.model.learn({"a": 1.0}, True, 1.0)
    again = after.model.cut()
    with pytest.raises(BlobUntrusted):  # it is sealed with the new one
        model.reset(again)


def test_a_state_with_another_seal_is_not_unpickled(directory: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return (pytest.fail, ("it was unpickled",))

    model = _load(directory, "model.py:alma").model
    model.learn({"a": 1.0}, True, 1.0)
    sealed = model.cut()["state"].data
    answer = model.predict({"a": 3.0})
    flipped = bytes([sealed[0] ^ 1]) + sealed[1:]
    other_key = load(
        "model.py:alma", {}, task="binary", classes=None, key=b"o" * 32, base_dir=directory
    ).model
    other_key.learn({"a": 1.0}, True, 1.0)
    other_model = _load(directory, "model.py:forest").model
    other_model.learn({"a": 1.0}, True, 1.0)
    for bad in (
        flipped,
        sealed[:-1],
        b"",
        sealed[:32] + pickle.dumps(Bomb()),
        other_key.cut()["state"].data,
        other_model.cut()["state"].data,
    ):
        for verb in (model.reset, model.rebase):
            with pytest.raises(BlobUntrusted, match="was not read"):
                verb({"state": Block("opaque", bad)})
    assert model.predict({"a": 3.0}) == answer


def test_the_spec_hash_covers_what_decides_the_state(directory: Path) -> None:
    def hash_of(learner: str = "model.py:logistic", **settings: Any) -> str:
        given = {"params": {}, "task": "binary", "classes": None, "key": KEY} | settings
        params = given.pop("params")
        return load(learner, params, base_dir=directory, **given).spec_hash

    first = hash_of()
    assert re.fullmatch("[0-9a-f]{64}", first)
    assert hash_of() == first
    assert hash_of(key=b"x" * 32) == first
    others = [
        hash_of(params={"lr": 0.1}),
        hash_of(classes={"negative": "DOWN", "positive": "UP"}),
        hash_of("model.py:alma"),
        hash_of("logreg"),
        hash_of("logreg", params={"lr": 0.1}),
        hash_of("model.py:Mean", task="multiclass"),
        hash_of("model.py:Mean", task="regression"),
    ]
    (directory / "model.py").write_text(SOURCE + "\n# changed\n")
    others.append(hash_of())
    assert len({first, *others}) == len(others) + 1


def test_only_pickled_state_depends_on_rivers_version(directory: Path) -> None:
    assert '"river"' in _load(directory, "model.py:alma").spec_text
    assert '"river"' not in _load(directory, "model.py:logistic").spec_text


def test_a_factory_of_an_installed_module() -> None:
    loaded = _load(Path(), "river.linear_model:LinearRegression", "regression", l2=0.5)
    assert isinstance(loaded.model, Linear)
    assert "0.5" in loaded.spec_text


@pytest.mark.parametrize(
    ("learner", "task", "params", "message"),
    [
        ("logrge", "binary", {}, "Did you mean `logreg`.*softmax, linreg"),
        ("zzz", "binary", {}, "no built-in learner.*Known: logreg"),
        ("logreg", "binary", {"rate": 1}, "rate.*It takes: lr, l2, scale"),
        ("logreg", "binary", {"lr": 0}, r"lr is a number in \(0, 1000000\), got 0"),
        ("logreg", "binary", {"lr": "fast"}, "got 'fast'"),
        ("logreg", "binary", {"l2": -1}, "l2"),
        ("logreg", "multiclass", {}, "task is multiclass and LogisticRegression.*softmax"),
        ("linreg", "binary", {}, "task is binary and LinearRegression is no classifier"),
        ("softmax", "regression", {}, "task is regression and SoftmaxRegression is no regressor"),
        ("model.py:line", "multiclass", {}, "LinearRegression is no classifier"),
        ("model.py:detector", "multiclass", {}, "HalfSpaceTrees is no classifier"),
        ("gone.py:build", "binary", {}, "No such file"),
        ("model.py:Maen", "regression", {}, "no function or class 'Maen'. It defines: Mean"),
        (
            "model.py:raises",
            "binary",
            {},
            r"RuntimeError: no weights here \(.*model\.py, line \d+\)",
        ),
        ("model.py:nothing", "binary", {}, "returned None"),
        ("model.py:kind", "binary", {}, "returned the class Mean"),
        ("model.py:Mute", "binary", {}, "none of predict, predict_one"),
        ("model.py:unpicklable", "binary", {}, "can't be pickled.*top level"),
        ("model.py:Mean", "regression", {"start": {1, 2}}, "text, numbers, lists and maps"),
        ("no_such_module:build", "binary", {}, "importing 'no_such_module'"),
        ("broken.py:build", "binary", {}, "SyntaxError"),
    ],
)
def test_what_gives_no_model_is_refused_with_the_remedy(
    directory: Path, learner: str, task: Any, params: dict[str, object], message: str
) -> None:
    (directory / "broken.py").write_text("def build(:\n")
    with pytest.raises(LearnerUnusable, match=message) as caught:
        load(learner, params, task=task, classes=None, key=KEY, base_dir=directory)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


@pytest.mark.parametrize(
    ("task", "answer"), [("binary", 0.7), ("multiclass", 2.5), ("regression", "high")]
)
def test_answers_of_another_task_are_refused(directory: Path, task: Any, answer: object) -> None:
    model = _load(directory, "model.py:Answers", task, answer=answer).model
    with pytest.raises(AnswerUnusable, match=re.escape(repr(answer))):
        model.predict({})
