"""`learner: mlflow:FOLDER`: a frozen model that MLflow has saved in a local folder.

Its files are unpickled, which can run code.  So the folder must be sealed first, by `online models
seal FOLDER`, and a verified copy of its files is read.  A scikit-learn model is read without
MLflow; any other flavour by MLflow's ``pyfunc`` (package ``mlflow-skinny``).
"""

from __future__ import annotations

import json
import math
import pickle
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import yaml

from evaluation.metrics import Task
from online.models.artifacts.frozen import Answers, Ask, Frozen
from online.models.artifacts.sealed import unseal_folder
from online.models.base import Prediction
from online.models.errors import AnswerUnusable, BlobUntrusted, LearnerUnusable
from refusals import installing
from replay.example import Features

PLACE: Final = "mlflow"
_INTEGERS: Final = ("integer", "long")
_TEXTS: Final = ("string", "datetime", "binary")
_PICKLES: Final = ("pickle", "cloudpickle")
_INSTALL: Final = f"Install it: {installing('mlflow')}"


def factory(learner: str, folder: Path) -> Callable[..., MlflowFolder]:
    """Return the factory of the folder's model, which takes the setting ``params``."""

    def make(
        inputs: Sequence[str] = (),
        labels: Sequence[Any] | None = None,
        output: str = "probability",
        classes: Mapping[str, object] | None = None,
        keys: Sequence[bytes] = (),
    ) -> MlflowFolder:
        return MlflowFolder(learner, folder, inputs, (labels, classes, output), keys)

    return make


class MlflowFolder:
    """The model in a folder, for a task that is given later.

    Parameters:
        inputs: Names of the columns, in their order; empty: those of the model's signature.
        answer_settings: ``labels``, ``classes`` and ``output`` for
            :class:`~online.models.artifacts.frozen.Answers`.
        keys: Keys of which one must have sealed the folder.
    """

    def __init__(
        self,
        learner: str,
        folder: Path,
        inputs: Sequence[str],
        answer_settings: tuple[Sequence[Any] | None, Mapping[str, object] | None, str],
        keys: Sequence[bytes],
    ) -> None:
        self._learner, self._answer_settings = learner, answer_settings
        self._copy = tempfile.TemporaryDirectory(prefix="online-mlflow-")  # pyfunc reads it later
        copied = Path(self._copy.name)
        try:
            self._hash = unseal_folder(folder, keys, copied)
        except BlobUntrusted as error:
            remedy = f"Seal it with this service's key: online models seal {folder}"
            raise LearnerUnusable(learner, f"{folder}: {error.reason}", remedy) from error
        except OSError as error:
            remedy = "Name a folder that MLflow has saved, relative to the settings file"
            raise LearnerUnusable(learner, f"{folder}: {error.strerror}", remedy) from error
        about = self._about(copied)
        self._flavours: dict[str, Any] = about.get("flavors") or {}
        self._columns = _signature(about)
        if inputs:
            self._columns = {name: self._columns.get(name, "double") for name in inputs}
        self._given = list(inputs)

    def _about(self, copied: Path) -> dict[str, Any]:
        try:
            about = yaml.safe_load((copied / "MLmodel").read_text(encoding="utf-8"))
        except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
            remedy = "Name the folder that mlflow's save_model has made"
            raise LearnerUnusable(self._learner, f"no MLmodel in it ({error})", remedy) from error
        return about if isinstance(about, dict) else {}

    def model_for(self, task: Task) -> Frozen:
        """Make the model for a task.  Raises LearnerUnusable."""
        learner = self._learner
        sklearn = self._flavours.get("sklearn")
        if sklearn is not None and sklearn.get("serialization_format", "pickle") in _PICKLES:
            ask = self._of_sklearn(self._unpickled(str(sklearn["pickled_model"])), task)
            self._copy.cleanup()
        elif "python_function" in self._flavours:
            ask = self._of_pyfunc(task)
        else:
            problem = f"its flavours are {', '.join(self._flavours) or 'none'}"
            raise LearnerUnusable(learner, problem, "Save it with the flavour sklearn or pyfunc")
        names = list(self._columns)
        if not names:
            problem = "it does not say the names of its columns"
            raise LearnerUnusable(
                learner, problem, "Save it with a signature, or name: params: {inputs: […]}"
            )
        try:
            ask({name: "" if kind in _TEXTS else 0.0 for name, kind in self._columns.items()})
        except AnswerUnusable as error:
            raise LearnerUnusable(learner, str(error), error.remedy) from error
        except LearnerUnusable:
            raise
        except Exception as error:  # a user's model may raise anything
            problem = f"asked about a row of zeros it raises {type(error).__name__}: {error}"[:300]
            raise LearnerUnusable(learner, problem, "Check inputs and their types") from error
        labels, _, output = self._answer_settings
        given = {
            "mlflow": self._hash, "inputs": self._given, "output": output,
            "labels": labels and list(labels),
        }  # fmt: skip
        structure = json.dumps(given, sort_keys=True, default=repr)
        return Frozen(ask, structure, names, numeric_only=self._is_numeric)

    def _unpickled(self, name: str) -> Any:
        path = (Path(self._copy.name) / name).resolve()
        if not path.is_relative_to(Path(self._copy.name).resolve()):
            raise LearnerUnusable(self._learner, f"its model is at {name}", "Save it again")
        try:
            return pickle.loads(path.read_bytes())
        except Exception as error:  # unpickling may raise anything, such as a missing class
            problem = f"{name} can't be unpickled: {type(error).__name__}: {error}"
            remedy = "Install what it was made with: see requirements.txt in the folder"
            raise LearnerUnusable(self._learner, problem, remedy) from error

    def _of_sklearn(self, estimator: Any, task: Task) -> Ask:
        known = getattr(estimator, "feature_names_in_", None)
        if not self._columns and known is not None:
            self._columns = dict.fromkeys(map(str, known), "double")
        table = self._table if known is not None else self._array
        labels, classes, output = self._answer_settings
        if task == "regression":
            answers = Answers(self._learner, task)
            return lambda x: answers.number(np.ravel(estimator.predict(table(x)))[0])
        own = getattr(estimator, "classes_", labels) if labels is None else labels
        answers = Answers(self._learner, task, own, classes, output)
        if not hasattr(estimator, "predict_proba"):
            return lambda x: answers.label(np.ravel(estimator.predict(table(x)))[0])
        return lambda x: answers.shares(np.ravel(estimator.predict_proba(table(x))).tolist())

    def _of_pyfunc(self, task: Task) -> Ask:
        try:
            import pandas  # noqa: F401  # pyfunc needs it
            from mlflow import pyfunc
        except ImportError as error:
            problem = f"this flavour needs mlflow and pandas: {error}"
            raise LearnerUnusable(self._learner, problem, _INSTALL) from None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about packages in other versions
            try:
                model = pyfunc.load_model(self._copy.name)
            except Exception as error:  # a user's code may raise anything
                problem = f"MLflow can't load it: {type(error).__name__}: {error}"[:300]
                remedy = "Install what it was made with: see requirements.txt in the folder"
                raise LearnerUnusable(self._learner, problem, remedy) from error
        labels, classes, output = self._answer_settings
        answers = Answers(self._learner, task, labels, classes, output)

        def ask(features: Features) -> Prediction:
            output = np.asarray(model.predict(self._table(features)))
            if task == "regression":
                return answers.number(output.ravel()[0])
            row = output.reshape(1, -1)[0]
            if len(row) > 1 or (task == "binary" and row.dtype.kind == "f"):
                return answers.shares(row.tolist())
            return answers.label(row[0])

        return ask

    def _row(self, features: Features) -> dict[str, Any]:
        return {n: _value(features.get(n), kind) for n, kind in self._columns.items()}

    def _array(self, features: Features) -> Any:
        """Return one row as an array, without column names."""
        values = list(self._row(features).values())
        return np.array([values], dtype=np.float64 if self._is_numeric else np.object_)

    def _table(self, features: Features) -> Any:
        """Return one row as a data frame, or as an array if pandas is not installed."""
        try:
            import pandas as pd
        except ImportError:
            return self._array(features)
        row = self._row(features)
        return pd.DataFrame([row], columns=list(row))

    @property
    def _is_numeric(self) -> bool:
        return not any(kind in _TEXTS for kind in self._columns.values())


def _value(value: Any, kind: str) -> Any:
    """Convert a value to the column's type; a value of another type counts as missing."""
    if kind in _TEXTS:
        return value if isinstance(value, str) else None
    number = float(value) if isinstance(value, int | float) else math.nan
    if kind == "boolean":
        return bool(number == 1.0)
    return int(number) if kind in _INTEGERS and math.isfinite(number) else number


def _signature(about: Mapping[str, Any]) -> dict[str, str]:
    """Return column names and types of the model's signature; empty if there is none."""
    text = (about.get("signature") or {}).get("inputs")
    try:
        columns = json.loads(text) if isinstance(text, str) else []
        return {str(one["name"]): str(one["type"]) for one in columns if "name" in one}
    except (ValueError, KeyError, TypeError):
        return {}
