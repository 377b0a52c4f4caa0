"""Exports take numbers beyond their ends as the service does, in every runtime that has a form."""

from __future__ import annotations

import math
import random
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from river import forest, tree

pytest.importorskip("onnx", reason="onnx is not installed: pip install '.[edge]'")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: pip install '.[edge]'")

from online.edge.export import Exported, Steps, export
from online.edge.lowering.evaluate import evaluate
from online.edge.lowering.ir import Linear, bounded
from online.edge.lowering.lower import lower
from online.edge.on_device import learn as learn_there
from online.edge.targets import pack, runners
from online.learning.bounds import Bounds
from online.models.loading.load import _wrap, load
from replay.example import Example, Features

ABOUT = {"model": "m", "sequence": 7, "created": 1.0, "expires": 100.0, "freshness": {}}
TARGETS = ("edgepack", "edgepack64", "onnx", "onnx64", "c99", "tfjs")


def taught(learner: str, rows: int = 400) -> tuple[Any, list[Features], Bounds]:
    draw, bounds = random.Random(3), Bounds()
    if learner in ("tree", "forest"):
        made: Any = tree.HoeffdingTreeClassifier(grace_period=50)
        if learner == "forest":
            made = forest.ARFClassifier(3, seed=1)
        model = _wrap("t", made, "binary", b"k" * 32, ())
    else:
        params = {"inputs": ["a", "b", "kelvin"]} if learner == "mlp" else {}
        model = load(
            learner, params, task="binary", classes=None, key=b"k", base_dir=Path()
        ).model  # fmt: skip
    asked: list[Features] = []
    for _ in range(rows):
        x: Features = {"a": draw.random(), "b": draw.gauss(0, 3), "kelvin": draw.gauss(300, 5)}
        model.learn(x, float(x["a"] or 0) * 6 > float(x["b"] or 0) + 3, 1.0)
        bounds.add(Example(x, label=True))
        asked.append(x)
    return model, asked[-60:], bounds


@pytest.fixture(scope="module", params=["logreg", "linear", "mlp", "ftrl", "tree", "forest"])
def made(request: Any) -> tuple[str, Any, list[Features], Bounds, Exported]:
    model, rows, bounds = taught(request.param)
    ends = bounds.ends(bounds.names)
    found = export(model, "binary", rows, about=ABOUT, targets=TARGETS, ends=ends)
    return request.param, model, rows, bounds, found


def test_every_file_is_proved_on_numbers_beyond_the_ends(made: Any) -> None:
    learner, _, _, bounds, found = made
    wanted = set(TARGETS) - {"tfjs"}
    if learner == "mlp":
        wanted -= {"edgepack64", "onnx64"}  # it computes in float32 itself
    assert found.manifest["targets"].keys() == wanted, found.left_out
    assert "tfjs" in found.left_out
    ends = bounds.ends(["a"])["a"]
    golden = [name for name in found.files if name.startswith("golden-")]
    rows = [row["x"] for name in golden for row in _rows(found.files[name])]
    assert any(row.get("a", 0.0) > ends[1] for row in rows)
    assert any(row.get("a", 0.0) < ends[0] for row in rows)


def _rows(data: bytes) -> Any:
    import json

    return json.loads(data)["rows"]


def test_a_pack_answers_as_the_service(made: Any) -> None:
    _, model, rows, bounds, found = made
    read = pack.decode(found.files["m.edgepack"])
    asked: list[Features] = [
        {**rows[0], "a": 1e100}, {**rows[1], "b": -1e9}, {**rows[2], "kelvin": 1e4},
        dict.fromkeys(rows[0], 1e6), {"a": 1e5}, dict(rows[3]),
    ]  # fmt: skip
    for x, (p,) in zip(asked, evaluate(read, asked)[:, -1:], strict=True):
        shares = model.predict(bounds.answered(x)).probabilities
        assert p == pytest.approx(shares[True], abs=2e-6)


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
def test_javascript_answers_as_the_service(made: Any) -> None:
    _, model, rows, bounds, found = made
    asked: list[Features] = [
        {**rows[0], "a": 1e100}, {**rows[1], "b": -1e9}, {"kelvin": 1e4}, dict(rows[3]),
        {**rows[2], "a": math.nan},
    ]  # fmt: skip
    answers = runners.run_node(found.files["m.edgepack"], asked)["outputs"]
    for x, answer in zip(asked, answers, strict=True):
        present = {name: value for name, value in x.items() if value == value}
        shares = model.predict(bounds.answered(present)).probabilities
        assert answer[-1] == pytest.approx(shares[True], abs=2e-6)


def test_without_ends_the_file_is_what_it_was(made: Any) -> None:
    model = made[1]
    plain = lower(model, "binary")
    assert bounded(plain, {}) is plain
    assert bounded(plain, {"another": (0.0, 1.0, 0.0, 1.0)}) is plain
    assert pack.encode(bounded(plain, {})) == pack.encode(plain)
    assert pack.decode(pack.encode(plain)).columns.ends is None


def test_the_control_a_file_without_ends_answers_otherwise() -> None:
    model, rows, bounds = taught("logreg")
    plain = lower(model, "binary")
    assert isinstance(plain.body, Linear)
    flat = replace(plain, body=replace(plain.body, weights=plain.body.weights * 1e-3))
    asked: list[Features] = [{**rows[0], "a": 400.0}, dict(rows[1])]
    one = evaluate(flat, asked)
    other = evaluate(bounded(flat, bounds.ends(bounds.names)), asked)
    assert abs(one[0] - other[0]).max() > 1e-3
    assert abs(one[1] - other[1]).max() == 0.0


def test_a_device_learns_from_what_is_bounded() -> None:
    model, rows, bounds = taught("logreg")
    edge = bounded(lower(model, "binary"), bounds.ends(bounds.names))
    data = pack.encode(edge)
    sent: Features = {**rows[0], "a": 1e6}
    near = bounds.answered(sent)
    one, other = (learn_there(data, [(x, True)], 0.1) for x in (sent, near))
    assert np.allclose(one.weights, other.weights)
    assert math.hypot(*one.weights) < 50.0


def test_weights_in_steps_keep_the_ends_of_now() -> None:
    model, rows, bounds = taught("logreg")
    first = export(
        model, "binary", rows, about=ABOUT, targets=["edgepack"], steps=Steps(),
        ends=bounds.ends(bounds.names),
    )  # fmt: skip
    held = first.files["m.edgepack"]
    bounds.add(Example({"a": 2.5}, label=True))
    again = export(
        model, "binary", rows, about=ABOUT, targets=["edgepack"], steps=Steps(held),
        ends=bounds.ends(bounds.names),
    )  # fmt: skip
    ends = pack.decode(again.files["m.edgepack"]).columns.ends
    assert ends is not None
    names = pack.decode(held).columns.names
    assert tuple(ends[:, names.index("a")]) == bounds.ends(["a"])["a"]
