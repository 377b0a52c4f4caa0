"""Targets whose packages have an interpreter of their own: LiteRT and Core ML.

A script of ours runs there (``litert_job.py``, ``coreml_job.py``), with layers in and a file or
answers out.  Which interpreter that is the environment says; without it, this one, if it has the
package.  Rows have no missing numbers: the caller puts in the column's center.
"""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Mapping
from importlib import resources
from importlib.util import find_spec
from typing import Any, Final, Literal

import numpy as np

from online.edge.errors import TargetUnavailable
from online.edge.lowering.ir import EdgeModel, Floats
from online.edge.targets import tfjs_file
from online.edge.targets.runners import Rows
from online.settings.config import edge_python

Kind = Literal["litert", "coreml"]

_PACKAGES: Final[Mapping[Kind, str]] = {"litert": "ai_edge_litert", "coreml": "coremltools"}
_TIMEOUT_S: Final = 180.0


def make(kind: Kind, model: EdgeModel) -> bytes:
    """The file.  Deterministic.  Raises ExportRefused, TargetUnavailable."""
    columns = model.columns
    layers = list(tfjs_file.dense(model, kind))
    high = columns.center.astype(np.float32)
    job: dict[str, Any] = {
        "center": high, "rest": columns.center - high, "factor": columns.factor,
    }  # fmt: skip
    for i, (weights, bias, _) in enumerate(layers):
        job |= {f"w{i}": weights, f"b{i}": bias}
    job = {name: np.asarray(table, np.float32) for name, table in job.items()}
    job["activations"] = np.array([activation for *_, activation in layers])
    return bytes(_run(kind, job)["data"])


def ask(kind: Kind, data: bytes, model: EdgeModel, rows: Rows) -> Floats:
    """Its answers: by LiteRT's interpreter; of Core ML, the saved program computed in NumPy."""
    x = tfjs_file.inputs(model, rows)
    outputs: Floats = _run(kind, {"data": np.frombuffer(data, np.uint8), "x": x})["y"]
    return outputs.astype(np.float64)


def available(kind: Kind) -> str | None:
    """The interpreter; None: there is none."""
    if (named := edge_python(kind)) is not None:
        return named
    return sys.executable if find_spec(_PACKAGES[kind]) is not None else None


def _remedy(kind: Kind) -> str:
    return (
        f"Make an environment of its own with {_PACKAGES[kind].replace('_', '-')}, and name its "
        f"python in ONLINE_{kind.upper()}_PYTHON"
    )


def _run(kind: Kind, job: dict[str, Any]) -> Any:
    python = available(kind)
    if python is None:
        raise TargetUnavailable(kind, f"no interpreter has {_PACKAGES[kind]}", _remedy(kind))
    given = io.BytesIO()
    np.savez(given, **job)
    with resources.as_file(resources.files("online.edge.targets") / f"{kind}_job.py") as script:
        done = subprocess.run(
            [python, "-I", str(script)], input=given.getvalue(), capture_output=True,
            timeout=_TIMEOUT_S, check=False,
        )  # fmt: skip
    if done.returncode:
        last = done.stderr.decode().strip()[-500:]
        raise TargetUnavailable(kind, f"{python} fails: {last}", _remedy(kind))
    return np.load(io.BytesIO(done.stdout), allow_pickle=False)
