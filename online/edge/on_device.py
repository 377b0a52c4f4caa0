"""Learns from an edgepack as a device does, in NumPy: the reference implementation of ``learn.js``.

Each row is one gradient step at the manifest's rate on the weights (linear models) or the last
layer (networks): the gradient of the log loss is (prediction − target) · input.  The resulting
delta is then clipped to a norm.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from online.edge.errors import ExportRefused
from online.edge.lowering.evaluate import link, scaled
from online.edge.lowering.ir import EdgeModel, Floats, Linear, Link, Mlp, within
from online.edge.lowering.rows import Encoder
from online.edge.targets.pack import decode
from replay.example import Features, Label


@dataclass(frozen=True)
class Learned:
    """A delta, in the pack's order of numbers, and the number of rows that made it."""

    weights: Floats
    bias: Floats
    n: int

    def clipped(self, most: float) -> Learned:
        """The delta clipped to a Euclidean norm."""
        length = float(np.sqrt((self.weights**2).sum() + (self.bias**2).sum()))
        share = min(1.0, most / length) if length else 1.0
        return Learned(self.weights * share, self.bias * share, self.n)

    def body(self, device: str, event: int, sequence: int) -> dict[str, Any]:
        """The body of a push request, quantized to int8."""
        return {
            "device": device, "event": event, "sequence": sequence, "n": self.n,
            "weights": as_int8(self.weights), "bias": as_int8(self.bias),
        }  # fmt: skip


def as_int8(values: Floats) -> dict[str, Any]:
    """Quantize numbers to int8 with a scale; they are cut towards zero so that no norm grows."""
    scale = float(np.abs(values).max()) / 127.0 or 1.0
    whole = np.trunc(values / scale).clip(-127, 127).astype(np.int8)
    return {"scale": scale, "int8": base64.b64encode(whole.tobytes()).decode()}


def learn(pack: bytes, rows: Sequence[tuple[Features, Label]], rate: float) -> Learned:
    """Return the change of the pack's numbers after one step per row.

    Raises ExportRefused for a pack without a single layer of weights to learn.
    """
    model = decode(pack)
    weights, bias, kind, steps_bias = _table(model)
    start = weights.copy(), bias.copy()
    encoder = Encoder(model)
    for features, label in rows:
        x = _input(model, within(model.columns, encoder.row(features).x))
        with np.errstate(over="ignore"):
            error = link(kind, x @ weights + bias) - _target(model, label, len(bias))
        weights -= rate * np.outer(x, error)
        if steps_bias:
            bias -= rate * error
    moved = weights - start[0]
    if isinstance(model.body, Mlp):
        moved = moved.T
    return Learned(np.ascontiguousarray(moved).reshape(-1), bias - start[1], len(rows))


def _table(model: EdgeModel) -> tuple[Floats, Floats, Link, bool]:
    """The weights (inputs, outputs) and bias to learn, the link, and whether the bias learns."""
    body = model.body
    if model.tokens is not None or model.task == "regression":
        raise ExportRefused(model.task, "devices learn classifiers only")
    if isinstance(body, Linear) and len(body.votes) == 1:  # softmax of river has no intercept
        return body.weights.copy(), body.bias.copy(), body.link, body.link == "sigmoid"
    ids = isinstance(body, Mlp) and body.embeddings
    if isinstance(body, Mlp) and not ids and body.layers[-1].activation == "none":
        last = body.layers[-1]
        return last.weights.T.copy(), last.bias.copy(), body.link, True
    raise ExportRefused(type(body).__name__, "devices learn linear models and last layers")


def _input(model: EdgeModel, x: Floats) -> Floats:
    """Return the inputs of the learned layer."""
    z: Floats = np.nan_to_num(scaled(model, x), nan=0.0)
    if not isinstance(model.body, Mlp):
        return z
    for layer in model.body.layers[:-1]:
        z = layer.weights @ z + layer.bias
        if layer.activation == "relu":
            z = np.maximum(z, 0.0)
        elif layer.activation == "tanh":
            z = np.tanh(z)
        elif layer.activation == "sigmoid":
            z = link("sigmoid", z)
    return z


def _target(model: EdgeModel, label: Label, outputs: int) -> Floats:
    """Targets 0 and 1 by output.  Raises ValueError for a label that the release does not have."""
    place = model.classes.index(label)
    return np.array([float(place)]) if outputs == 1 else np.eye(outputs)[place]
