"""`learner: onnx:PATH`: a frozen model in an ONNX file, run by ONNX Runtime.

Exported files have one of two forms: one input of shape [n, d], whose columns have no names (torch,
scikit-learn from arrays), or one input for each feature (scikit-learn from data frames).  The
output is a number, a label, probabilities or logits, by column or by label.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final
from weakref import WeakValueDictionary

import numpy as np

from evaluation.metrics import Task
from online.models.artifacts.frozen import Answers, Frozen, value_of
from online.models.base import Prediction
from online.models.errors import AnswerUnusable, LearnerUnusable
from refusals import installing
from replay.example import Features

PLACE: Final = "onnx"
_TYPES: Final[Mapping[str, Any]] = {
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(bool)": np.bool_,
    "tensor(string)": np.object_,
}
_FLOATS: Final = ("tensor(float)", "tensor(double)")
_LABELS: Final = ("tensor(int64)", "tensor(int32)", "tensor(bool)", "tensor(string)")

Feed = Callable[[Features], dict[str, Any]]


def factory(learner: str, path: Path) -> Callable[..., OnnxFile]:
    """Return the factory of the file's model, which takes the setting ``params``."""

    def make(
        inputs: Sequence[str] = (),
        labels: Sequence[Any] | None = None,
        output: str = "probability",
        missing: float = math.nan,
        classes: Mapping[str, object] | None = None,
        keys: Sequence[bytes] = (),
    ) -> OnnxFile:
        return OnnxFile(learner, path, inputs, labels, output, missing, classes)

    return make


class OnnxFile:
    """The model in a file, for a task that is given later.

    Parameters:
        inputs: Names of the columns, in their order, for a file with one input of several columns.
        labels: Labels of the probabilities, in their order; None: those of the file, or 0, 1, 2 …
        output: Whether numbers for labels are probabilities or logits.
        missing: The value of a number that a row does not have.
    """

    def __init__(
        self,
        learner: str,
        path: Path,
        inputs: Sequence[str],
        labels: Sequence[Any] | None,
        output: str,
        missing: float,
        classes: Mapping[str, object] | None,
    ) -> None:
        self._learner = learner
        self._inputs, self._missing = inputs, float(missing)
        self._answer_settings = (labels, classes, output)
        try:
            data = path.read_bytes()
        except OSError as error:
            remedy = "Name an existing file, relative to the settings file"
            raise LearnerUnusable(learner, f"{path}: {error.strerror}", remedy) from error
        self._hash = hashlib.sha256(data).hexdigest()
        session = _sessions.get(self._hash)
        if session is None:
            session = _sessions[self._hash] = _opened(learner, data)
        self._session = session

    def model_for(self, task: Task) -> Frozen:
        """Make the model for a task.  Raises LearnerUnusable if no output fits it."""
        names, numeric, feed = self._feed()
        labels, classes, output = self._answer_settings
        answers = Answers(self._learner, task, labels, classes, output)
        wanted, read = self._read(task, answers)
        session = self._session

        def ask(features: Features) -> Prediction:
            return read(session.run([wanted], feed(features))[0])

        try:
            ask(dict.fromkeys(names, 0.0))
        except AnswerUnusable as error:
            raise LearnerUnusable(self._learner, str(error), error.remedy) from error
        except LearnerUnusable:
            raise
        except Exception as error:  # whatever the runtime raises
            problem = f"it can't be asked: {type(error).__name__}: {error}"[:300]
            raise LearnerUnusable(
                self._learner, problem, "Export it for any number of rows"
            ) from error
        given = {
            "onnx": self._hash, "inputs": list(self._inputs), "labels": labels and list(labels),
            "output": output, "missing": repr(self._missing),
        }  # fmt: skip
        structure = json.dumps(given, sort_keys=True, default=repr)
        return Frozen(ask, structure, names, numeric_only=numeric)

    def _feed(self) -> tuple[list[str], bool, Feed]:
        """Return feature names, whether all are numbers, and the function that makes inputs."""
        given = self._session.get_inputs()
        if not given:
            raise LearnerUnusable(self._learner, "it has no input", "Export a model of features")
        for one in given:
            if one.type not in _TYPES or not 1 <= len(one.shape) <= 2:
                problem = f"input {one.name} is {one.type} of shape {one.shape}"
                remedy = "Export it with inputs of shape [n, d], or [n, 1] for each feature"
                raise LearnerUnusable(self._learner, problem, remedy)
        (first, *more) = given
        if not more and len(first.shape) == 2 and (self._inputs or first.shape[1] != 1):
            return self._columns(first)
        makers = [(one.name, _TYPES[one.type], (1,) * len(one.shape)) for one in given]

        def feed(features: Features) -> dict[str, Any]:
            return {
                name: np.full(shape, self._value(features, name, kind), dtype=kind)
                for name, kind, shape in makers
            }

        numeric = all(kind is not np.object_ for _, kind, _ in makers)
        return [name for name, _, _ in makers], numeric, feed

    def _columns(self, one: Any) -> tuple[list[str], bool, Feed]:
        names, kind = list(self._inputs), _TYPES[one.type]
        width = one.shape[1] if isinstance(one.shape[1], int) else len(names)
        if not names or len(names) != width or len(set(names)) < width:
            problem = (
                f"its input {one.name} has {width or 'several'} columns, {len(names)} are named"
            )
            raise LearnerUnusable(
                self._learner, problem, "Name them in order: params: {inputs: […]}"
            )

        def feed(features: Features) -> dict[str, Any]:
            row = [self._value(features, name, kind) for name in names]
            return {one.name: np.array([row], dtype=kind)}

        return names, kind is not np.object_, feed

    def _value(self, features: Features, name: str, kind: Any) -> Any:
        """Convert a value to the input's type; a value of another type counts as missing."""
        if kind is np.object_:
            value = features.get(name)
            return value if isinstance(value, str) else ""
        number = value_of(features, name, self._missing)
        if kind in (np.float32, np.float64):
            return number
        return int(number) if math.isfinite(number) else 0

    def _read(self, task: Task, answers: Answers) -> tuple[str, Callable[[Any], Prediction]]:
        """Return the name of the output with the answer, and the function that reads it."""
        types = {one.name: one.type for one in self._session.get_outputs()}
        floats = [name for name, kind in types.items() if kind in _FLOATS]
        if task == "regression":
            if not floats:
                problem = f"task is regression, and it gives {', '.join(types.values())}"
                raise LearnerUnusable(self._learner, problem, "Change one of the two")
            return floats[0], lambda out: answers.number(np.asarray(out).ravel()[0])
        maps = [name for name, kind in types.items() if kind.startswith("seq(map(")]
        if maps:
            return maps[0], lambda out: answers.by_name(out[0])
        if floats:
            named = [name for name in floats if "prob" in name.lower()]
            return (named or floats)[0], lambda out: answers.shares(np.ravel(out).tolist())
        labels = [name for name, kind in types.items() if kind in _LABELS]
        if not labels:
            problem = f"it gives {', '.join(types.values())}"
            raise LearnerUnusable(self._learner, problem, "Export a label or probabilities")
        return labels[0], lambda out: answers.label(np.ravel(out)[0])


_sessions: WeakValueDictionary[str, Any] = WeakValueDictionary()
"""Sessions by the hash of the file, shared by all copies of a model in a process."""


def _opened(learner: str, data: bytes) -> Any:
    try:
        import onnxruntime as ort
    except ImportError as error:
        remedy = f"Install it: {installing('onnx')}"
        raise LearnerUnusable(learner, f"it needs onnxruntime: {error}", remedy) from None
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    try:
        return ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its errors have no common base
        problem = f"ONNX Runtime can't load it: {error}"[:300]
        raise LearnerUnusable(learner, problem, "Export it again, for an older opset") from error
