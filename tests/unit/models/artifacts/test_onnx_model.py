"""Models in ONNX files: served as they were exported, judged, and never changed."""

from __future__ import annotations

import itertools
import json
import math
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import online
from evaluation.streams import open_stream
from online.models.artifacts.frozen import Frozen
from online.models.errors import AnswerUnusable, LearnerUnusable
from online.models.loaded import Loaded
from online.models.loading.load import load

FLOAT, INT, TEXT = TensorProto.FLOAT, TensorProto.INT64, TensorProto.STRING


def saved(
    path: Path, nodes: list[Any], inputs: list[Any], outputs: list[Any], constants: Any = ()
) -> Path:
    graph = helper.make_graph(nodes, "g", inputs, outputs, list(constants))
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 18), helper.make_opsetid("ai.onnx.ml", 3)]
    )
    model.ir_version = 8
    onnx.save(model, str(path))
    return path


def tensor(name: str, kind: int, *shape: int | str | None) -> Any:
    return helper.make_tensor_value_info(name, kind, list(shape))


def linear(path: Path, last: str = "Sigmoid", wide: int = 1) -> Path:
    """``last(x W + b)`` of three columns."""
    weights = np.arange(3 * wide, dtype=np.float32).reshape(3, wide) / 4
    constants = [
        helper.make_tensor("w", FLOAT, weights.shape, weights.ravel()),
        helper.make_tensor("b", FLOAT, [wide], [-0.5] * wide),
    ]
    nodes = [helper.make_node("Gemm", ["x", "w", "b"], ["z"]), helper.make_node(last, ["z"], ["y"])]
    inputs, outputs = [tensor("x", FLOAT, None, 3)], [tensor("y", FLOAT, None, wide)]
    return saved(path, nodes, inputs, outputs, constants)


def by_column(path: Path, *, zipped: bool) -> Path:
    """Two numbers and a text as inputs of their own; probabilities of "no" and "yes"."""
    encoder = helper.make_node(
        "LabelEncoder", ["city"], ["c"], domain="ai.onnx.ml",
        keys_strings=["Bonn", "Rom"], values_floats=[1.0, 2.0], default_float=0.0,
    )  # fmt: skip
    nodes = [
        encoder,
        helper.make_node("Concat", ["a", "b", "c"], ["x"], axis=1),
        helper.make_node("ReduceSum", ["x", "one"], ["s"], keepdims=1),
        helper.make_node("Sigmoid", ["s"], ["p"]),
        helper.make_node("Sub", ["o", "p"], ["q"]),
        helper.make_node("Concat", ["q", "p"], ["probabilities"], axis=1),
    ]
    last = tensor("probabilities", FLOAT, None, 2)
    if zipped:
        nodes.append(
            helper.make_node(
                "ZipMap", ["probabilities"], ["output_probability"], domain="ai.onnx.ml",
                classlabels_strings=["no", "yes"],
            )
        )  # fmt: skip
        last = helper.make_value_info(
            "output_probability",
            helper.make_sequence_type_proto(
                helper.make_map_type_proto(TEXT, helper.make_tensor_type_proto(FLOAT, []))
            ),
        )
    constants = [helper.make_tensor("one", INT, [1], [1]), helper.make_tensor("o", FLOAT, [1], [1])]
    inputs = [
        tensor("a", FLOAT, None, 1),
        tensor("b", FLOAT, None, 1),
        tensor("city", TEXT, None, 1),
    ]
    return saved(path, nodes, inputs, [last], constants)


def loaded(path: Path, task: Any = "binary", classes: Any = None, **params: Any) -> Loaded:
    return load(
        f"onnx:{path.name}", params, task=task, classes=classes, key=bytes(32), base_dir=path.parent
    )


ROW = {"a": 1.0, "b": 2.0, "c": 4.0}
LOGIT = 2 * 0.25 + 4 * 0.5 - 0.5
NAMES = ["a", "b", "c"]


def test_one_number_is_the_probability_of_true(tmp_path: Path) -> None:
    model = loaded(linear(tmp_path / "m.onnx"), inputs=NAMES).model
    assert isinstance(model, Frozen)
    assert (model.learns, model.mergeable, model.numeric_only) == (False, True, True)
    answer = model.predict({**ROW, "other": "x"})
    p = 1 / (1 + math.exp(-LOGIT))
    assert answer.label is True
    assert answer.probabilities == pytest.approx({False: 1 - p, True: p}, abs=1e-6)
    assert model.predict_many([ROW, {"a": 0.0}])[0] == answer
    model.learn(ROW, False, 2.0)
    assert model.predict(ROW) == answer
    assert model.cut() == {}


def test_logits_are_told_apart(tmp_path: Path) -> None:
    path = linear(tmp_path / "m.onnx", "Identity", 3)
    with pytest.raises(LearnerUnusable, match=r"no probabilities.*output: logits"):
        loaded(path, "multiclass", inputs=NAMES)
    model = loaded(path, "multiclass", inputs=NAMES, output="logits", labels=["x", "y", 7]).model
    answer = model.predict(ROW)
    assert answer.label == 7
    assert answer.probabilities is not None
    assert sum(answer.probabilities.values()) == pytest.approx(1.0)
    one = loaded(linear(tmp_path / "o.onnx", "Identity"), inputs=NAMES, output="logits").model
    shares = one.predict(ROW).probabilities
    assert shares is not None
    assert shares[True] == pytest.approx(1 / (1 + math.exp(-LOGIT)), abs=1e-6)


def test_a_number_of_regression(tmp_path: Path) -> None:
    model = loaded(linear(tmp_path / "m.onnx", "Identity"), "regression", inputs=NAMES).model
    assert model.predict(ROW).label == pytest.approx(LOGIT, abs=1e-6)
    assert model.predict({"a": 1.0, "b": 2.0}).label != model.predict(ROW).label
    zero = loaded(tmp_path / "m.onnx", "regression", inputs=NAMES, missing=4).model
    assert zero.predict({"a": 1.0, "b": 2.0}) == model.predict(ROW)


@pytest.mark.parametrize("zipped", [False, True])
def test_an_input_a_feature(tmp_path: Path, zipped: bool) -> None:
    path = by_column(tmp_path / "m.onnx", zipped=zipped)
    classes = {"negative": "no", "positive": "yes"}
    params = {} if zipped else {"labels": ["no", "yes"]}
    model = loaded(path, classes=classes, **params).model
    assert (model.inputs, model.numeric_only) == (("a", "b", "city"), False)  # type: ignore[attr-defined]
    answer = model.predict({"a": 0.5, "b": 0.25, "city": "Rom"})
    p = 1 / (1 + math.exp(-2.75))
    assert answer.label is True
    assert answer.probabilities == pytest.approx({False: 1 - p, True: p}, abs=1e-6)
    other = loaded(path, classes={"negative": "yes", "positive": "no"}, **params).model
    assert other.predict({"a": 0.5, "b": 0.25, "city": "Rom"}).label is False
    number = model.predict({"a": 0.5, "b": 0.25, "city": 3.0})
    assert number == model.predict({"a": 0.5, "b": 0.25}), "of another type: missing"


def test_a_label_without_probabilities(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("ReduceSum", ["x", "one"], ["s"], keepdims=0),
        helper.make_node("Cast", ["s"], ["label"], to=INT),
    ]
    path = saved(
        tmp_path / "m.onnx", nodes, [tensor("x", FLOAT, None, 2)], [tensor("label", INT, None)],
        [helper.make_tensor("one", INT, [1], [1])],
    )  # fmt: skip
    model = loaded(path, "multiclass", inputs=["a", "b"], missing=0).model
    assert model.predict({"a": 2.0, "b": 1.0}) == model.predict({"a": 1.0, "b": 2.0})
    assert model.predict({"a": 2.0, "b": 1.0}).label == 3
    two = loaded(path, inputs=["a", "b"], missing=0).model
    assert two.predict({"a": 1.0}).label is True
    with pytest.raises(AnswerUnusable, match="classes"):
        two.predict({"a": 2.0, "b": 1.0})


@pytest.mark.parametrize("task", ["binary", "regression"])
def test_what_the_service_exports_answers_as_it_did(tmp_path: Path, task: Any) -> None:
    """On rows of a real stream, some of which lack values."""
    from online.edge.lowering.lower import lower
    from online.edge.targets.onnx_file import convert

    learner = "logreg" if task == "binary" else "linreg"
    trained = load(learner, {}, task=task, classes=None, key=bytes(32), base_dir=tmp_path).model
    rows = [x for x, _ in itertools.islice(open_stream("phishing").rows, 300)]
    for i, (x, y) in enumerate(itertools.islice(open_stream("phishing").rows, 200)):
        trained.learn(x, y if task == "binary" else float(i % 7), 1.0)
    edge = lower(trained, task)
    (tmp_path / "m.onnx").write_bytes(convert(edge, "float32"))
    model = loaded(tmp_path / "m.onnx", task, inputs=list(edge.columns.names)).model
    for i, row in enumerate(rows):
        x = {name: value for k, (name, value) in enumerate(row.items()) if (i + k) % 5}
        wanted, found = trained.predict(x), model.predict(x)
        if task == "regression":
            assert found.label == pytest.approx(wanted.label, abs=1e-4)
        else:
            assert found.probabilities == pytest.approx(wanted.probabilities, abs=1e-5)


def test_the_spec_is_the_content_of_the_file(tmp_path: Path) -> None:
    first = loaded(linear(tmp_path / "a.onnx"), inputs=NAMES)
    (tmp_path / "b.onnx").write_bytes((tmp_path / "a.onnx").read_bytes())
    assert loaded(tmp_path / "b.onnx", inputs=NAMES).spec_hash == first.spec_hash
    assert loaded(tmp_path / "b.onnx", inputs=NAMES[::-1]).spec_hash != first.spec_hash
    other = loaded(linear(tmp_path / "b.onnx", wide=2), "multiclass", output="logits", inputs=NAMES)
    assert other.spec_hash != first.spec_hash


def broken(path: Path) -> Path:
    path.write_bytes(b"no model")
    return path


@pytest.mark.parametrize(
    ("make", "given", "says"),
    [
        (lambda p: p, {}, "No such file"),
        (broken, {}, "can't load it"),
        (linear, {}, r"has 3 columns, 0 are named\. Name them in order: params: {inputs"),
        (linear, {"inputs": ["a", "b"]}, "3 columns, 2 are named"),
        (linear, {"inputs": NAMES, "task": "multiclass"}, "gives 1 numbers"),
        (linear, {"inputs": NAMES, "output": "odds"}, "probability or logits"),
        (lambda p: linear(p, "Softmax", 3), {"inputs": NAMES}, "gives 3 numbers.*binary"),
        (linear, {"input": NAMES}, "It takes: inputs"),
    ],
)
def test_what_can_not_be_served_says_why(
    tmp_path: Path, make: Callable[[Path], Path], given: dict[str, Any], says: str
) -> None:
    with pytest.raises(LearnerUnusable, match=says):
        loaded(make(tmp_path / "m.onnx"), **given)


def test_without_the_runtime_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(LearnerUnusable, match=r"needs onnxruntime.*'\.\[onnx\]'"):
        loaded(linear(tmp_path / "m.onnx", wide=1, last="Tanh"), inputs=NAMES)


def test_served_and_judged_and_each_event_once(tmp_path: Path) -> None:
    path = linear(tmp_path / "m.onnx")
    rows = [({"a": 0.0, "b": 0.0, "c": c / 10}, c > 10) for c in range(20)]
    with online.Learner(
        f"onnx:{path}", tmp_path / "state", task="binary", params={"inputs": NAMES}
    ) as served:
        answers = [served.predict_one(x) for x, _ in rows]
        for i, (x, y) in enumerate(rows):
            assert served.learn_one(x, y, event_id=str(i)).status == "learned"
        assert served.learn_one(*rows[0], event_id="0").status == "duplicate"
        assert [served.predict_one(x) for x, _ in rows] == answers
        report = served.report()
    right = sum(a == y for a, (_, y) in zip(answers, rows, strict=True))
    assert report["learned"] == 20
    assert report["quality"]["accuracy"] == pytest.approx(right / 20)
    assert json.dumps(report["quality"])


class FromTorch:
    """A module and the file that `torch.onnx` makes of it."""

    def __init__(self, path: Path, *, dynamo: bool, batch: bool) -> None:
        torch = pytest.importorskip("torch", reason="torch is not installed")
        if dynamo:
            pytest.importorskip("onnxscript", reason="torch.onnx exports with onnxscript")
        torch.manual_seed(1)
        self._torch, self.path = torch, path
        self.module = torch.nn.Sequential(
            torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 3)
        )
        given: dict[str, Any] = {"input_names": ["row"], "output_names": ["logits"]}
        if batch and not dynamo:
            given["dynamic_axes"] = {"row": {0: "n"}, "logits": {0: "n"}}
        elif batch:
            given["dynamic_shapes"] = ({0: torch.export.Dim("n")},)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            example = torch.zeros(2 if batch else 1, 3)
            torch.onnx.export(self.module.eval(), (example,), path, dynamo=dynamo, **given)

    def shares(self, *row: float) -> list[float]:
        """Probabilities as the module says them."""
        out = self.module(self._torch.tensor([row])).softmax(1)
        return [float(share) for share in out.detach().numpy()[0]]


@pytest.mark.parametrize("batch", [True, False])
@pytest.mark.parametrize("dynamo", [True, False])
def test_what_torch_exports_is_served(tmp_path: Path, dynamo: bool, batch: bool) -> None:
    made = FromTorch(tmp_path / "m.onnx", dynamo=dynamo, batch=batch)
    labels = ["low", "middle", "high"]
    found = loaded(made.path, "multiclass", inputs=NAMES, labels=labels, output="logits")
    for row in ((0.0, 0.0, 0.0), (1.5, -2.0, 0.25), (-9.0, 3.0, 7.0)):
        answer = found.model.predict(dict(zip(NAMES, row, strict=True)))
        assert answer.probabilities == pytest.approx(
            dict(zip(labels, made.shares(*row), strict=True)), abs=1e-6
        )
