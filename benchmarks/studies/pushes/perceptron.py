"""A network 784-100-10 in numpy whose parameters are one flat vector, as pushes are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from benchmarks.studies.pushes.inputs import Layer

Vector = npt.NDArray[np.float32]
Rows = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]

WIDE: Final = 784
HIDDEN: Final = 100
CLASSES: Final = 10
SIZE: Final = WIDE * HIDDEN + HIDDEN + HIDDEN * CLASSES + CLASSES
"""79,510 numbers."""

FIRST: Final = Layer(WIDE, HIDDEN, weights=0, bias=WIDE * HIDDEN)
"""Where a gradient holds the first layer's."""


@dataclass(frozen=True, slots=True)
class Layers:
    """A flat vector seen as layers; nothing is copied."""

    w1: Rows
    b1: Vector
    w2: Rows
    b2: Vector


def layers(flat: Vector) -> Layers:
    """Return the vector's parts as layers."""
    a, b = WIDE * HIDDEN, WIDE * HIDDEN + HIDDEN
    c = b + HIDDEN * CLASSES
    return Layers(
        flat[:a].reshape(WIDE, HIDDEN), flat[a:b], flat[b:c].reshape(HIDDEN, CLASSES), flat[c:]
    )


def drawn(rng: np.random.Generator) -> Vector:
    """Parameters to start with, uniform within ±1/√(inputs of the layer)."""
    flat = rng.uniform(-1.0, 1.0, SIZE).astype(np.float32)
    flat[: WIDE * HIDDEN + HIDDEN] /= np.float32(WIDE**0.5)
    flat[WIDE * HIDDEN + HIDDEN :] /= np.float32(HIDDEN**0.5)
    return flat


def gradient(flat: Vector, x: Rows, y: Labels) -> Vector:
    """Return the gradient of the mean cross-entropy; NaN for parameters that have overflowed."""
    net = layers(flat)
    with np.errstate(over="ignore", invalid="ignore"):
        return _gradient(net, x, y)


def _gradient(net: Layers, x: Rows, y: Labels) -> Vector:
    hidden = np.maximum(x @ net.w1 + net.b1, 0)
    delta = _softmax(hidden @ net.w2 + net.b2)
    delta[np.arange(len(y)), y] -= 1
    delta /= np.float32(len(y))
    out = np.empty(SIZE, np.float32)
    into = layers(out)
    np.matmul(hidden.T, delta, out=into.w2)
    into.b2[:] = delta.sum(0)
    back = (delta @ net.w2.T) * (hidden > 0)
    np.matmul(x.T, back, out=into.w1)
    into.b1[:] = back.sum(0)
    return out


def _softmax(logits: Rows) -> Rows:
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return np.asarray(powers / powers.sum(1, keepdims=True), dtype=np.float32)


def predicted(flat: Vector, x: Rows) -> Labels:
    """The most likely class of each row."""
    net = layers(flat)
    hidden = np.maximum(x @ net.w1 + net.b1, 0)
    return np.asarray((hidden @ net.w2 + net.b2).argmax(1))


def accuracy(flat: Vector, x: Rows, y: Labels) -> float:
    """In percent; 0 for parameters that are no numbers any more."""
    if not np.isfinite(flat).all():
        return 0.0
    return float(100.0 * (predicted(flat, x) == y).mean())
