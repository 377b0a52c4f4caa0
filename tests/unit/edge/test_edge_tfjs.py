"""TensorFlow.js layers models: what the files answer in NumPy, and in tfjs itself."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest

from online.edge.errors import ExportRefused
from online.edge.lowering.evaluate import evaluate
from online.edge.lowering.ir import Columns, EdgeModel, Layer, Linear, Mlp, Tokens
from online.edge.targets import tfjs_file

BROWSER: Final = Path(__file__).parents[2] / "browser"
ASK: Final = """
import { readFileSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
const tf = createRequire(process.argv[2])("@tensorflow/tfjs");
const { model, rows } = JSON.parse(readFileSync("asked.json"));
const told = JSON.parse(readFileSync(model));
const [{ paths, weights }] = told.weightsManifest;
const { buffer, byteOffset, length } = readFileSync(paths[0]);
const weightData = buffer.slice(byteOffset, byteOffset + length);
const loaded = await tf.loadLayersModel(
  tf.io.fromMemory({ modelTopology: told.modelTopology, weightSpecs: weights, weightData }));
const out = loaded.predict(tf.tensor2d(rows));
writeFileSync("out.json", JSON.stringify(await out.array()));
"""

COLUMNS: Final = Columns(
    ("a", "b", "c"), np.array([10.1, -3.0, 0.0]), np.array([0.7, 2.0, 0.0])
)  # the last one never varied


def models() -> dict[str, EdgeModel]:
    rng = np.random.default_rng(3)
    one, three = np.ones(1), rng.normal(size=(3, 3))
    none = np.zeros((0, 3))
    layers = (
        Layer(rng.normal(size=(9, 3)), rng.normal(size=9), "tanh"),
        Layer(rng.normal(size=(5, 9)), rng.normal(size=5), "relu"),
        Layer(rng.normal(size=(3, 5)), rng.normal(size=3), "none"),
    )
    labels = ("x", "y", "z")
    return {
        "logistic": EdgeModel("binary", (False, True), COLUMNS, None,
                              Linear(three[:, :1], none[:, :1], one, one, "sigmoid")),
        "softmax": EdgeModel("multiclass", labels, COLUMNS, None,
                             Linear(three, none, rng.normal(size=3), one, "softmax")),
        "linear": EdgeModel("regression", (), COLUMNS, None,
                            Linear(three[:, :1], none[:, :1], one, one, "identity")),
        "network": EdgeModel("multiclass", labels, COLUMNS, None, Mlp(layers, "softmax")),
    }  # fmt: skip


def rows() -> list[dict[str, Any]]:
    drawn = np.random.default_rng(4).normal([10, -3, 5], [2, 1, 3], (50, 3)).astype("f4")
    made: list[dict[str, Any]] = [dict(zip("abc", row, strict=True)) for row in drawn.tolist()]
    return [*made, {"a": 10.0}, {"a": float("nan"), "b": 1.0}, {}]


def off(found: Any, expected: Any) -> float:
    return float((np.abs(found - expected) / np.maximum(1, np.abs(expected))).max())


@pytest.mark.parametrize("what", models())
def test_the_files_answer_as_the_tables(what: str) -> None:
    model = models()[what]
    name, weights = tfjs_file.weights_file(model)
    data = tfjs_file.convert(model)
    assert json.loads(data)["weightsManifest"][0]["paths"] == [name]
    expected = evaluate(model, rows())
    assert off(tfjs_file.evaluate(data, weights, model, rows()), expected) <= 1e-6
    changed = bytearray(weights)
    changed[-1] ^= 1  # the last bias
    assert off(tfjs_file.evaluate(data, bytes(changed), model, rows()), expected) > 1e-6


def _tfjs() -> Path | None:
    places = (os.environ.get("PLAYWRIGHT"), BROWSER / "story")
    for place in (Path(p) for p in places if p):
        if (place.parent / "node_modules" / "@tensorflow" / "tfjs").exists():
            return place
    return None


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
@pytest.mark.skipif(
    _tfjs() is None, reason="@tensorflow/tfjs is missing: npm install --prefix tests/browser"
)
@pytest.mark.parametrize("what", models())
def test_tensorflow_js_answers_as_the_tables(what: str, tmp_path: Path) -> None:
    model = models()[what]
    name, weights = tfjs_file.weights_file(model)
    (tmp_path / name).write_bytes(weights)
    (tmp_path / "m.tfjs.json").write_bytes(tfjs_file.convert(model))
    asked = {"model": "m.tfjs.json", "rows": tfjs_file.inputs(model, rows()).tolist()}
    (tmp_path / "asked.json").write_text(json.dumps(asked))
    (tmp_path / "ask.mjs").write_text(ASK)
    node = shutil.which("node")
    assert node is not None
    done = subprocess.run(
        [node, "ask.mjs", str(_tfjs())], cwd=tmp_path, capture_output=True, text=True, timeout=240,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = np.array(json.loads((tmp_path / "out.json").read_text()))
    assert off(found, evaluate(model, rows())) <= 1e-6


def test_what_layers_cannot_say_is_refused() -> None:
    model = models()["logistic"]
    body: Any = model.body
    experts = replace(body, votes=np.array([0.5, 0.5]))
    for other, why in (
        (replace(model, tokens=Tokens("service")), "hashes"),
        (replace(model, columns=replace(COLUMNS, limit=3.0)), "no layer limits numbers"),
        (replace(model, body=experts), "only linear models and networks"),
        (replace(model, columns=Columns((), np.zeros(0), np.zeros(0))), "no feature"),
    ):
        with pytest.raises(ExportRefused, match=why):
            tfjs_file.convert(other)
