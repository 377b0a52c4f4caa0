"""Which model is served of a file, an object or a factory, and for which task."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from river import linear_model, optim, tree
from sklearn.base import BaseEstimator
from sklearn.linear_model import LogisticRegression, SGDClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import online
from online.errors import ConfigError
from online.models.errors import LearnerUnusable
from online.models.loading.model_file import settings_of as settings_of_file
from online.service.one_process import settings_for


def make() -> linear_model.LogisticRegression:
    """A factory as a program has it."""
    return linear_model.LogisticRegression()


def test_which_model_of_a_file_is_meant(tmp_path: Path) -> None:
    file = tmp_path / "m.py"

    def found(text: str) -> tuple[str, str, str]:
        file.write_text(text)
        (one,) = settings_of_file(file)["models"]
        return one["name"], one["task"], one["learner"]

    river = "from river import linear_model as lm, tree\n"
    assert found(f"{river}def make():\n    return lm.LogisticRegression()") == (
        "m",
        "binary",
        "m.py:make",
    )
    assert found(f"{river}model = lm.LinearRegression()") == ("m", "regression", "m.py:model")
    assert found(f"{river}other = lm.SoftmaxRegression()") == ("m", "multiclass", "m.py:other")
    with pytest.raises(ConfigError, match="defines a, b"):
        found(f"{river}a = lm.LinearRegression()\nb = lm.LinearRegression()")
    with pytest.raises(ConfigError, match="defines no model"):
        found(river)
    tree = f"{river}model = tree.HoeffdingTreeClassifier()\n"
    with pytest.raises(ConfigError, match=r'several tasks.*task = "binary" or "multiclass"$'):
        found(tree)
    assert found(f'{tree}task = "binary"')[1] == "binary"
    with pytest.raises(LearnerUnusable, match=r"raises ZeroDivisionError.* \(.*m\.py, line 2\)"):
        found("def build():\n    return 1 / 0")
    with pytest.raises(LearnerUnusable, match=r"Wrap it: online\.models\.network"):
        found("import torch\nmodel = torch.nn.Linear(3, 1)")  # callable, and no factory
    for text in ("model = s.SGDClassifier()", "def build():\n    return s.SGDClassifier()"):
        with pytest.raises(LearnerUnusable, match=r"Wrap it: online\.models\.estimator"):
            found(f"import sklearn.linear_model as s\n{text}")


@pytest.mark.parametrize("made_by", [make, linear_model.LogisticRegression])
def test_what_makes_a_model_needs_no_task(made_by: Any, tmp_path: Path) -> None:
    with online.serve(made_by, name="clicks", state_dir=tmp_path, say=lambda _: None) as service:
        assert service.client.predict("clicks", {"x": 1.0}).prediction is False
    with pytest.raises(LearnerUnusable, match="raises ZeroDivisionError"):
        online.serve(lambda: 1 / 0, state_dir=tmp_path)
    with pytest.raises(ConfigError, match=r"Give task: binary or multiclass \("):
        online.serve(tree.HoeffdingTreeClassifier, state_dir=tmp_path)


def test_an_object_that_has_to_be_wrapped_is_refused_before_its_task_is_asked_for() -> None:
    for bare in (torch.nn.Linear(3, 1), SGDClassifier()):
        with pytest.raises(LearnerUnusable, match=r"Wrap it: online\.models"):
            online.serve(bare)


@pytest.mark.parametrize(
    "made", [LogisticRegression(), make_pipeline(StandardScaler(), SGDClassifier())]
)
def test_an_estimator_that_learns_only_all_rows_at_once_is_refused(made: Any) -> None:
    with pytest.raises(LearnerUnusable, match=r"has no partial_fit.*such as SGDClassifier"):
        settings_for(made, "binary", "m", None, {}, {})


def test_a_class_of_ones_own_may_be_an_estimator_too(tmp_path: Path) -> None:
    class Own(BaseEstimator):
        def fit(self, x: Any, y: Any) -> Own:
            return self

        def predict_one(self, x: Any) -> bool:
            return True

    assert settings_for(Own(), "binary", "m", tmp_path, {}, {}).models[0].task == "binary"


def test_params_are_given_to_what_tells_the_task() -> None:
    def make(rate: float) -> linear_model.LogisticRegression:
        return linear_model.LogisticRegression(optim.SGD(rate))

    given = settings_for(make, None, "m", None, {}, {"params": {"rate": 0.1}})
    assert given.models[0].task == "binary"
