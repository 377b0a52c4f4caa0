"""Models that MLflow has saved: served only as they were sealed, judged, and never changed."""

from __future__ import annotations

import itertools
import json
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC
from typer.testing import CliRunner

import online
from evaluation.streams import open_stream
from online.commands.cli import app
from online.models.artifacts.sealed import SEAL, seal_folder, unseal_folder
from online.models.errors import BlobUntrusted, LearnerUnusable
from online.models.loaded import Loaded
from online.models.loading.load import load

KEY = bytes(range(32))


def phishing(n: int) -> tuple[pd.DataFrame, list[bool]]:
    rows = list(itertools.islice(open_stream("phishing").rows, n))
    return pd.DataFrame([x for x, _ in rows]), [bool(y) for _, y in rows]


def saved(folder: Path, estimator: Any, columns: Any = None, **flavour: Any) -> Path:
    """The folder as MLflow writes it for a scikit-learn model."""
    folder.mkdir()
    (folder / "model.pkl").write_bytes(pickle.dumps(estimator))
    (folder / "requirements.txt").write_text("scikit-learn\n")
    about: dict[str, Any] = {
        "flavors": {
            "sklearn": {"pickled_model": "model.pkl", "serialization_format": "pickle", **flavour}
        }
    }
    if columns is not None:
        inputs = [{"name": name, "type": kind} for name, kind in columns.items()]
        about["signature"] = {"inputs": json.dumps(inputs)}
    (folder / "MLmodel").write_text(yaml.safe_dump(about))
    return folder


def loaded(folder: Path, task: Any = "binary", classes: Any = None, **params: Any) -> Loaded:
    return load(
        f"mlflow:{folder.name}", params, task=task, classes=classes, key=KEY,
        base_dir=folder.parent,
    )  # fmt: skip


@pytest.fixture
def logistic(tmp_path: Path) -> Path:
    x, y = phishing(300)
    folder = saved(tmp_path / "m", make_pipeline(StandardScaler(), LogisticRegression()).fit(x, y))
    seal_folder(folder, KEY)
    return folder


def test_a_model_of_scikit_learn_answers_as_it_does_alone(logistic: Path) -> None:
    x, y = phishing(300)
    alone = make_pipeline(StandardScaler(), LogisticRegression()).fit(x, y)
    model = loaded(logistic).model
    assert (model.learns, model.mergeable, model.numeric_only) == (False, True, True)
    assert list(model.inputs) == list(x.columns)  # type: ignore[attr-defined]
    for row, shares in zip(x.to_dict("records")[:50], alone.predict_proba(x[:50]), strict=True):
        answer = model.predict({**row, "other": 1.0})
        assert answer.probabilities == pytest.approx({False: shares[0], True: shares[1]})
    assert "mlflow" not in sys.modules, "this flavour does not need it"


def test_labels_are_those_that_it_was_fitted_on(tmp_path: Path) -> None:
    x = pd.DataFrame({"a": [0.0, 1.0, 2.0, 3.0] * 5, "b": [1.0] * 20})
    texts = ["no" if a < 1.5 else "yes" for a in x["a"]]
    folder = saved(tmp_path / "two", LogisticRegression().fit(x, texts))
    seal_folder(folder, KEY)
    names = {"negative": "no", "positive": "yes"}
    assert loaded(folder, classes=names).model.predict({"a": 3.0, "b": 1.0}).label is True
    swapped = {"negative": "yes", "positive": "no"}
    assert loaded(folder, classes=swapped).model.predict({"a": 3.0, "b": 1.0}).label is False
    several = saved(tmp_path / "svc", LinearSVC().fit(x, [int(a) for a in x["a"]]))
    seal_folder(several, KEY)
    answer = loaded(several, "multiclass").model.predict({"a": 3.0, "b": 1.0})
    assert (answer.label, answer.probabilities) == (3, None)


def test_a_number_and_columns_by_the_signature(tmp_path: Path) -> None:
    fitted = LinearRegression().fit(np.array([[0.0, 1.0], [1.0, 0.0], [2.0, 5.0]]), [1.0, 2.0, 4.0])
    folder = saved(tmp_path / "m", fitted, {"a": "double", "b": "long"})
    seal_folder(folder, KEY)
    wanted = fitted.predict([[2.0, 5.0]])[0]
    model = loaded(folder, "regression").model
    assert model.predict({"a": 2.0, "b": 5}).label == pytest.approx(wanted)
    other = loaded(folder, "regression", inputs=["b", "a"])
    assert other.model.predict({"b": 2.0, "a": 5.0}).label == pytest.approx(wanted)
    assert other.spec_hash != loaded(folder, "regression").spec_hash


# -- the seal --------------------------------------------------------------------------------------


def change(folder: Path) -> None:
    (folder / "model.pkl").write_bytes(BOMB)


def add(folder: Path) -> None:
    (folder / "more.py").write_text("")


def remove(folder: Path) -> None:
    (folder / "requirements.txt").unlink()


def link(folder: Path) -> None:
    (folder / "requirements.txt").unlink()
    (folder / "requirements.txt").symlink_to("MLmodel")


def unseal(folder: Path) -> None:
    (folder / SEAL).unlink()


def garble(folder: Path) -> None:
    (folder / SEAL).write_text("[]")


def forge(folder: Path) -> None:
    change(folder)
    said = json.loads((folder / SEAL).read_text())
    seal_folder(folder, bytes(32))  # by another key
    again = json.loads((folder / SEAL).read_text())
    (folder / SEAL).write_text(json.dumps({"files": again["files"], "seal": said["seal"]}))


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return (pytest.fail, ("it was unpickled",))


BOMB = pickle.dumps(Bomb())


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (change, r"model\.pkl was changed since it was sealed"),
        (add, r"more\.py was added"),
        (remove, r"requirements\.txt is missing"),
        (link, r"requirements\.txt is a link"),
        (unseal, "the folder is not sealed"),
        (garble, f"its {SEAL} can't be read"),
        (forge, "not by this service's key"),
    ],
)
def test_what_is_not_as_it_was_sealed_is_not_unpickled(
    logistic: Path, damage: Callable[[Path], None], says: str
) -> None:
    damage(logistic)
    with pytest.raises(LearnerUnusable, match=rf"{says}.*online models seal"):
        loaded(logistic)


def test_a_model_from_outside_is_checked_without_unpickling_it(logistic: Path) -> None:
    change(logistic)
    seal_folder(logistic, bytes(32))  # by a key that everybody can guess
    done = CliRunner().invoke(app, ["models", "check", f"mlflow:{logistic}"])
    assert isinstance(done.exception, LearnerUnusable)
    assert "not by this service's key" in str(done.exception)


def test_a_key_from_before_opens_it(logistic: Path, tmp_path: Path) -> None:
    again = load(
        "mlflow:m", {}, task="binary", classes=None, key=bytes(32), base_dir=tmp_path,
        old_keys=(KEY,),
    )  # fmt: skip
    assert again.spec_hash == loaded(logistic).spec_hash
    with pytest.raises(BlobUntrusted):
        unseal_folder(logistic, [bytes(32)], tmp_path / "out")


def test_the_command_seals_a_folder_which_is_then_served(tmp_path: Path) -> None:
    x, y = phishing(200)
    folder = saved(tmp_path / "m", LogisticRegression().fit(x, y))
    settings = tmp_path / "online.yaml"
    settings.write_text(
        f"cluster: embedded\nstate_dir: {tmp_path / 'state'}\n"
        "models: [{name: m, task: binary, learner: 'mlflow:m'}]\n"
    )
    words = ["models", "seal", str(folder), "--settings", str(settings)]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert "3 files under the seal" in done.output
    with online.Learner(f"mlflow:{folder}", tmp_path / "state", task="binary", name="m") as served:
        row = x.to_dict("records")[0]
        first = served.predict_proba_one(row)
        assert served.learn_one(row, True, event_id="a").status == "learned"
        assert served.predict_proba_one(row) == first
        assert served.report()["quality"]["n"] == 1
    done = CliRunner().invoke(app, ["fsck", "--config", str(settings)])
    assert done.exit_code == 0, "it opens what the service's key has sealed"
    done = CliRunner().invoke(app, [*words, "elsewhere"])
    assert "sealed in its place" in str(done.exception)


def broken(folder: Path) -> None:
    (folder / "MLmodel").write_text("flavors: {keras: {}}")


@pytest.mark.parametrize(
    ("damage", "params", "says"),
    [
        (lambda f: (f / "MLmodel").unlink(), {}, "no MLmodel in it"),
        (broken, {}, "its flavours are keras"),
        (lambda f: (f / "model.pkl").write_bytes(b"x"), {}, "can't be unpickled"),
        (lambda f: None, {"inputs": ["a"]}, "asked about a row of zeros it raises"),
        (lambda f: None, {"columns": ["a"]}, "It takes: inputs"),
    ],
)
def test_what_can_not_be_served_says_why(
    logistic: Path, damage: Callable[[Path], Any], params: dict[str, Any], says: str
) -> None:
    damage(logistic)
    seal_folder(logistic, KEY)
    with pytest.raises(LearnerUnusable, match=says):
        loaded(logistic, **params)


# -- with MLflow -----------------------------------------------------------------------------------


def test_pyfunc_without_mlflow_says_what_to_install(
    logistic: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    about = {"flavors": {"python_function": {"loader_module": "mlflow.sklearn"}}}
    (logistic / "MLmodel").write_text(yaml.safe_dump(about))
    seal_folder(logistic, KEY)
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(LearnerUnusable, match=r"needs mlflow and pandas.*'\.\[mlflow\]'"):
        loaded(logistic, inputs=["a"])


def test_what_mlflow_saves(tmp_path: Path) -> None:
    """A class of somebody's by ``pyfunc``, and a model of scikit-learn by its own flavour."""
    mlflow = pytest.importorskip("mlflow", reason="needs mlflow-skinny")
    x, y = phishing(200)
    fitted = LogisticRegression().fit(x, y)

    base: Any = mlflow.pyfunc.PythonModel

    class Twice(base):
        def predict(self, context: Any, model_input: Any, params: Any = None) -> Any:
            return 2.0 * model_input["a"]

    example = pd.DataFrame({"a": [1.0]})
    signature = mlflow.models.infer_signature(example, np.array([2.0]))
    mlflow.pyfunc.save_model(str(tmp_path / "twice"), python_model=Twice(), signature=signature)
    signature = mlflow.models.infer_signature(x, fitted.predict(x))
    mlflow.sklearn.save_model(
        fitted, str(tmp_path / "fitted"), signature=signature, serialization_format="cloudpickle"
    )
    for name in ("twice", "fitted"):
        seal_folder(tmp_path / name, KEY)
    assert loaded(tmp_path / "twice", "regression").model.predict({"a": 4.0}).label == 8.0
    model = loaded(tmp_path / "fitted").model
    for row, shares in zip(x.to_dict("records")[:20], fitted.predict_proba(x[:20]), strict=True):
        answer = model.predict(row).probabilities
        assert answer is not None
        assert answer[True] == pytest.approx(shares[1])
