"""Makes and asks Core ML packages, where ``coremltools`` is; imports nothing of ours.

A package (``.mlpackage``, zipped) has the program, its weights, and a list of the two; the list's
identifiers are fixed, so the same model gives the same bytes.  Nothing but Apple's systems runs it:
elsewhere the saved bytes are read back as a program and computed in NumPy.
"""

from __future__ import annotations

import io
import json
import sys
import zipfile
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

INSIDE = "Data/com.apple.CoreML"
FILES = ("model.mlmodel", "weights/weight.bin")
ROOT, WEIGHTS = "00000000-0000-4000-8000-000000000001", "00000000-0000-4000-8000-000000000002"


def listed(files: dict[str, bytes]) -> bytes:
    """The package's own list; few numbers are in the program itself, and there is no other file."""
    entries = {
        ROOT: {
            "author": "com.apple.CoreML",
            "description": "CoreML Model Specification",
            "name": FILES[0],
            "path": f"com.apple.CoreML/{FILES[0]}",
        }
    }
    if FILES[1] in files:
        entries[WEIGHTS] = {
            "author": "com.apple.CoreML",
            "description": "CoreML Model Weights",
            "name": "weights",
            "path": "com.apple.CoreML/weights",
        }
    made = {"fileFormatVersion": "1.0.0", "itemInfoEntries": entries, "rootModelIdentifier": ROOT}
    return json.dumps(made, sort_keys=True).encode()


def make(job: Any) -> bytes:
    """The zipped package of a scaler and layers."""
    ct = import_module("coremltools")
    mb = import_module("coremltools.converters.mil").Builder
    ops = {"relu": mb.relu, "tanh": mb.tanh, "sigmoid": mb.sigmoid, "softmax": mb.softmax}
    width = len(job["center"])

    def program(x: Any) -> Any:
        h = mb.sub(x=x, y=job["center"][None])
        h = mb.mul(x=mb.sub(x=h, y=job["rest"][None]), y=job["factor"][None])
        for i, activation in enumerate(job["activations"].tolist()):
            h = mb.linear(x=h, weight=np.ascontiguousarray(job[f"w{i}"].T), bias=job[f"b{i}"])
            if activation in ops:
                more = {"axis": -1} if activation == "softmax" else {}
                h = ops[activation](x=h, **more)
        return mb.identity(x=h, name="y")

    made = mb.program(input_specs=[mb.TensorSpec(shape=(1, width))], opset_version=ct.target.iOS16)(
        program
    )
    model = ct.convert(
        made, convert_to="mlprogram", compute_precision=ct.precision.FLOAT32,
        minimum_deployment_target=ct.target.iOS16, skip_model_load=True,
    )  # fmt: skip
    out = io.BytesIO()
    with TemporaryDirectory() as place, zipfile.ZipFile(out, "w") as packed:
        path = Path(place) / "m.mlpackage"
        model.save(str(path))
        files = {name: (path / INSIDE / name).read_bytes() for name in FILES
                 if (path / INSIDE / name).exists()}  # fmt: skip
        # Maps are written in any order, unless asked for.
        spec = import_module("coremltools.proto.Model_pb2").Model.FromString(files[FILES[0]])
        files[FILES[0]] = spec.SerializeToString(deterministic=True)
        for name, data in (("Manifest.json", listed(files)),
                           *((f"{INSIDE}/{n}", d) for n, d in files.items())):  # fmt: skip
            entry = zipfile.ZipInfo(f"model.mlpackage/{name}", (1980, 1, 1, 0, 0, 0))
            packed.writestr(entry, data, zipfile.ZIP_DEFLATED)
    return out.getvalue()


def ask(file: bytes, x: Any) -> Any:
    """Return what the program in the package gives, computed in NumPy and float32."""
    ct = import_module("coremltools")
    loader = import_module("coremltools.converters.mil.frontend.milproto.load")
    with TemporaryDirectory() as place:
        zipfile.ZipFile(io.BytesIO(file)).extractall(place)
        path = Path(place) / "model.mlpackage"
        model = ct.models.MLModel(str(path), skip_model_load=True)
        spec = model.get_spec()
        program = loader.load(
            spec, specification_version=spec.specificationVersion,
            file_weights_dir=str(path / INSIDE / "weights"),
        )  # fmt: skip
    (main,) = program.functions.values()
    values: dict[str, Any] = {name: x for name in main.inputs}
    for op in main.operations:
        values |= {out.name: computed(op, values) for out in op.outputs}
    return values[main.outputs[0].name]


def computed(op: Any, values: dict[str, Any]) -> Any:
    """Return the result of one operation of the program."""

    def of(name: str) -> Any:
        given = op.inputs[name]
        return values[given.name] if given.val is None else np.asarray(given.val)

    kind = op.op_type
    if kind == "const":
        return op.outputs[0].val
    if kind in ("sub", "mul"):
        return of("x") - of("y") if kind == "sub" else of("x") * of("y")
    if kind == "linear":
        return of("x") @ of("weight").T + of("bias")
    if kind == "softmax":
        powers = np.exp(of("x") - of("x").max(axis=-1, keepdims=True))
        return powers / powers.sum(axis=-1, keepdims=True)
    simple: dict[str, Callable[[Any], Any]] = {
        "identity": lambda v: v,
        "relu": lambda v: np.maximum(v, 0),
        "tanh": np.tanh,
        "sigmoid": lambda v: 1 / (1 + np.exp(-v)),
    }
    return simple[kind](of("x"))


if __name__ == "__main__":
    given_ = np.load(io.BytesIO(sys.stdin.buffer.read()))
    real, sys.stdout = sys.stdout, sys.stderr  # the package prints
    result = io.BytesIO()
    if "data" in given_:
        np.savez(result, y=ask(given_["data"].tobytes(), given_["x"]))
    else:
        np.savez(result, data=np.frombuffer(make(given_), np.uint8))
    real.buffer.write(result.getvalue())
