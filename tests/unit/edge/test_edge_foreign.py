"""LiteRT and Core ML files, made and asked in environments of their own.

They run where ``ONLINE_LITERT_PYTHON`` or ``ONLINE_COREML_PYTHON`` names an interpreter with
``ai-edge-litert`` or ``coremltools`` (docs/edge.md).
"""

from __future__ import annotations

import io
import re
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from online.edge.errors import ExportRefused, ParityFailed, TargetUnavailable
from online.edge.lowering.evaluate import evaluate
from online.edge.lowering.ir import Columns, EdgeModel, Forest, Layer, Linear, Link, Mlp
from online.edge.targets import foreign
from online.edge.targets.gate import BOUNDS, gate
from online.edge.targets.golden import Golden

LINKS: dict[str, Link] = {"binary": "sigmoid", "multiclass": "softmax", "regression": "identity"}


def network(task: Any, *activations: Any) -> EdgeModel:
    rng = np.random.default_rng(7)
    columns = Columns(tuple("abcde"), rng.normal(3, 9, 5), rng.uniform(0.1, 2, 5))
    outputs = 3 if task == "multiclass" else 1
    if not activations:
        body: Any = Linear(
            rng.normal(size=(5, outputs)), np.zeros((0, outputs)), rng.normal(size=outputs),
            np.ones(1), LINKS[task],
        )  # fmt: skip
    else:
        sizes = [5, *(8 for _ in activations[1:]), outputs]
        body = Mlp(
            tuple(
                Layer(rng.normal(0, 0.4, (m, n)), rng.normal(size=m), activation)
                for n, m, activation in zip(sizes, sizes[1:], activations, strict=False)
            ),
            LINKS[task],
        )
    classes = {"binary": (False, True), "multiclass": (0, 1, 2), "regression": ()}[task]
    return EdgeModel(task, classes, columns, None, body)


def golden(model: EdgeModel) -> Golden:
    rng = np.random.default_rng(1)
    numbers = rng.normal(3, 9, (60, 5)).astype(np.float32).tolist()
    rows: list[dict[str, Any]] = [dict(zip("abcde", row, strict=True)) for row in numbers]
    rows += [{"a": float("nan"), "b": 1.0}, {"c": 2.5, "unseen": 1.0}]
    return Golden(tuple(rows), evaluate(model, rows), bool(model.classes))


def whole(data: bytes) -> bytes:
    """What is in a file, unpacked."""
    if data[:2] != b"PK":
        return data
    with zipfile.ZipFile(io.BytesIO(data)) as packed:
        return b"".join(packed.read(name) for name in packed.namelist())


@pytest.mark.parametrize("kind", ["litert", "coreml"])
def test_files_answer_as_the_model(kind: foreign.Kind) -> None:
    """Each task and activation; the same bytes twice; another file fails the gate."""
    if foreign.available(kind) is None:
        pytest.skip(f"ONLINE_{kind.upper()}_PYTHON names no interpreter: see docs/edge.md")
    for model in (
        network("binary"), network("multiclass", "relu", "none"),
        network("regression", "tanh", "sigmoid", "none"),
    ):  # fmt: skip
        proof = golden(model)
        data = foreign.make(kind, model)
        assert not re.search(rb"\.py\b|site-packages|%s" % str(Path.cwd()).encode(), whole(data))
        gate(kind, foreign.ask(kind, data, model, proof.rows), proof, BOUNDS["float32"])
    assert foreign.make(kind, model) == data
    off = replace(model, columns=replace(model.columns, center=model.columns.center + 1e-3))
    wrong = foreign.ask(kind, foreign.make(kind, off), model, proof.rows)
    with pytest.raises(ParityFailed):
        gate(kind, wrong, proof, BOUNDS["float32"])


def test_without_an_interpreter_the_target_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ONLINE_COREML_PYTHON", raising=False)
    monkeypatch.setattr(foreign, "find_spec", lambda name: None)
    with pytest.raises(TargetUnavailable, match="ONLINE_COREML_PYTHON"):
        foreign.make("coreml", network("binary"))
    monkeypatch.setenv("ONLINE_COREML_PYTHON", sys.executable)
    with pytest.raises(TargetUnavailable, match="No module named 'coremltools'"):
        foreign.make("coreml", network("binary"))


def test_what_has_no_layers_is_refused() -> None:
    whole = np.zeros(0, np.int32)
    none = np.zeros((0, 1))
    body = Forest("table", whole, whole, none[:, 0], whole, whole, whole, none, none[:, 0],
                  np.zeros(1, np.int32), whole, none, none)  # fmt: skip
    with pytest.raises(ExportRefused, match="no export of litert: only linear models"):
        foreign.make("litert", replace(network("regression"), body=body))
