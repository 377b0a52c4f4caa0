"""Writes a model as a TensorFlow.js layers model: ``model.json`` and its weights.

Scaling is a BatchNormalization layer, all others are Dense layers; columns are in the manifest's
order.  No layer handles missing numbers: the caller substitutes the column's center, which the file
has as ``moving_mean``.  tfjs computes in float32.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from hashlib import sha256
from typing import Any, Final

import numpy as np

from online.edge.errors import ExportRefused
from online.edge.lowering.ir import Array, EdgeModel, Floats, Linear, Mlp
from online.edge.lowering.rows import Encoder

_ACTIVATIONS: Final = {"none": "linear", "identity": "linear"}


def convert(model: EdgeModel) -> bytes:
    """Make ``model.json``, which names the weights' file by its hash.  Raises ExportRefused."""
    names = len(model.columns.names)
    layers: list[dict[str, Any]] = [
        {
            "class_name": "BatchNormalization",
            "config": {"name": "scale", "batch_input_shape": [None, names], "epsilon": 0},
        }
    ]
    for i, (weights, _, activation) in enumerate(dense(model)):
        layers.append(
            {
                "class_name": "Dense",
                "config": {
                    "name": f"dense{i}", "units": weights.shape[1], "use_bias": True,
                    "activation": _ACTIVATIONS.get(activation, activation),
                },
            }
        )  # fmt: skip
    specs = [
        {"name": name, "shape": list(table.shape), "dtype": "float32"}
        for name, table in _tensors(model).items()
    ]
    made = {
        "format": "layers-model",
        "modelTopology": {"class_name": "Sequential", "config": {"name": "m", "layers": layers}},
        "weightsManifest": [{"paths": [weights_file(model)[0]], "weights": specs}],
    }
    return json.dumps(made, separators=(",", ":")).encode()


def weights_file(model: EdgeModel) -> tuple[str, bytes]:
    """The file of weights: a name derived from its content, and its bytes."""
    data = b"".join(table.tobytes() for table in _tensors(model).values())
    return f"weights-{sha256(data).hexdigest()[:32]}.bin", data


def evaluate(
    data: bytes, weights: bytes, model: EdgeModel, rows: Sequence[Mapping[str, Any]]
) -> Floats:
    """Evaluate the two files on rows; their layers are computed in NumPy, in float32."""
    written = json.loads(data)
    tables: dict[str, Array] = {}
    at = 0
    for spec in written["weightsManifest"][0]["weights"]:
        count = int(np.prod(spec["shape"]))
        tables[spec["name"]] = np.frombuffer(weights, "<f4", count, at).reshape(spec["shape"])
        at += 4 * count
    h = inputs(model, rows)
    for layer in written["modelTopology"]["config"]["layers"]:
        config = layer["config"]
        own = {n.split("/")[1]: t for n, t in tables.items() if n.startswith(config["name"] + "/")}
        if layer["class_name"] == "BatchNormalization":
            spread = np.sqrt(own["moving_variance"] + np.float32(config["epsilon"]))
            h = (h - own["moving_mean"]) / spread * own["gamma"] + own["beta"]
        else:
            h = _activated(config["activation"], h @ own["kernel"] + own["bias"])
    answers: Floats = h.astype(np.float64)
    return answers


def inputs(model: EdgeModel, rows: Sequence[Mapping[str, Any]]) -> Array:
    """Encode rows as the model's inputs, float32, shape (rows, columns)."""
    encoder = Encoder(model)
    x = np.array([encoder.row(row).x for row in rows]).reshape(len(rows), -1)
    filled: Array = np.where(np.isnan(x), model.columns.center, x).astype(np.float32)
    return filled


def dense(model: EdgeModel, target: str = "tfjs") -> Iterator[tuple[Floats, Floats, str]]:
    """Kernel (inputs, outputs), bias and activation of each layer.  Raises ExportRefused."""
    body = model.body
    if model.tokens is not None or model.columns.vocabularies:
        raise ExportRefused(target, "no layer hashes or encodes texts")
    if model.columns.limit != float("inf") or model.columns.ends is not None:
        raise ExportRefused(target, "no layer limits numbers: learn with scale: plain")
    if not model.columns.names:
        raise ExportRefused(target, "it has learned no feature yet, so it has no input")
    if isinstance(body, Linear) and len(body.votes) == 1:
        yield body.weights, body.bias, body.link
    elif isinstance(body, Mlp):
        if body.embeddings:
            raise ExportRefused(target, "no layer takes ids among numbers")
        last = len(body.layers) - 1
        for i, layer in enumerate(body.layers):
            both = i == last and body.link != "identity"
            if both and layer.activation != "none":
                raise ExportRefused(target, "its last layer has two activations")
            yield layer.weights.T, layer.bias, body.link if both else layer.activation
    else:
        raise ExportRefused(target, "only linear models and networks become layers")


def _tensors(model: EdgeModel) -> dict[str, Array]:
    columns = model.columns
    center = columns.center.astype(np.float32)
    tensors: dict[str, Any] = {
        "scale/gamma": columns.factor,
        "scale/beta": (center - columns.center) * columns.factor,  # what rounding the center left
        "scale/moving_mean": center,
        "scale/moving_variance": np.ones(len(center)),
    }
    for i, (weights, bias, _) in enumerate(dense(model)):
        tensors |= {f"dense{i}/kernel": weights, f"dense{i}/bias": bias}
    return {name: np.ascontiguousarray(table, "<f4") for name, table in tensors.items()}


def _activated(kind: str, raw: Array) -> Array:
    with np.errstate(over="ignore"):
        if kind == "relu":
            return np.maximum(raw, 0)
        if kind == "tanh":
            return np.tanh(raw)
        if kind == "sigmoid":
            return 1 / (1 + np.exp(-raw))
        if kind == "softmax":
            powers = np.exp(raw - raw.max(axis=1, keepdims=True))
            shares: Array = powers / powers.sum(axis=1, keepdims=True)
            return shares
    return raw
