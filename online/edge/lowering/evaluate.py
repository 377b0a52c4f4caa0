"""The reference evaluator: what the tables mean, in NumPy and float64."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from online.edge.lowering.ir import (
    EQUAL,
    MISSING_LEFT,
    SQUASH,
    TENTS,
    EdgeModel,
    Floats,
    Forest,
    Linear,
    Link,
    Mlp,
    within,
)  # fmt: skip
from online.edge.lowering.rows import Encoder, Row


def evaluate(model: EdgeModel, rows: Sequence[Mapping[str, Any]]) -> Floats:
    """Outputs for rows of features, shape (rows, outputs)."""
    encoder = Encoder(model)
    return outputs(model, [encoder.row(row) for row in rows])


def outputs(model: EdgeModel, rows: Sequence[Row]) -> Floats:
    """Outputs for encoded rows."""
    x = np.array([row.x for row in rows]).reshape(len(rows), len(model.columns.names))
    x = within(model.columns, x)
    z = scaled(model, x)
    body = model.body
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        if isinstance(body, Linear):
            return _linear(body, z, rows)
        if isinstance(body, Mlp):
            return _mlp(body, x, z)
        return _forest(body, x, z, normalise=model.task != "regression")


def scaled(model: EdgeModel, x: Floats) -> Floats:
    """The scaled numbers z; NaN where x is missing."""
    columns = model.columns
    z: Floats = (x - columns.center) * columns.factor
    return np.clip(z, -columns.limit, columns.limit)


def _linear(body: Linear, z: Floats, rows: Sequence[Row]) -> Floats:
    raw = np.nan_to_num(z, nan=0.0) @ body.weights + body.bias
    if body.bent is not None:
        raw += tents(z).reshape(len(z), -1) @ body.bent
    for i, row in enumerate(rows):
        for at, number in row.tokens:
            raw[i] += number * body.table[at]
    experts = raw.reshape(len(raw), len(body.votes), -1)
    answers: Floats = np.einsum("k,nko->no", body.votes, link(body.link, experts))
    return answers


def tents(z: Floats) -> Floats:
    """Heights of each column's tents at z, shape (rows, columns, TENTS); 0 where z is missing."""
    p = (TENTS - 1) / (1.0 + np.exp(-SQUASH * z))
    high: Floats = np.maximum(1.0 - np.abs(p[:, :, None] - np.arange(TENTS)), 0.0)
    return np.nan_to_num(high, nan=0.0)


def link(kind: Link, raw: Floats) -> Floats:
    """The link function over the last axis."""
    if kind == "identity":
        return raw
    if kind == "sigmoid":
        p: Floats = 1.0 / (1.0 + np.exp(-raw))
        return p
    powers: Floats = np.exp(raw - raw.max(axis=-1, keepdims=True))
    shares: Floats = powers / powers.sum(axis=-1, keepdims=True)
    return shares


def _mlp(body: Mlp, x: Floats, z: Floats) -> Floats:
    numbers = z.shape[1] - len(body.embeddings)
    h = np.nan_to_num(z[:, :numbers], nan=0.0)
    for table, own in zip(body.embeddings, x.T[numbers:], strict=True):
        rows = np.mod(np.floor(np.nan_to_num(own, nan=0.0)), len(table)).astype(np.int64)
        h = np.concatenate([h, table[rows]], axis=1)
    for layer in body.layers:
        h = h @ layer.weights.T + layer.bias
        if layer.activation == "relu":
            h = np.maximum(h, 0.0)
        elif layer.activation == "tanh":
            h = np.tanh(h)
        elif layer.activation == "sigmoid":
            h = link("sigmoid", h)
    return link(body.link, h)


def leaves(body: Forest, x: Floats) -> Any:
    """The leaf of each row in each tree, shape (rows, trees)."""
    n = len(x)
    numbers = np.empty((n, len(body.roots)), dtype=np.int64)
    rows = np.arange(n)
    for t, root in enumerate(body.roots.tolist()):
        at = np.full(n, root)
        while (inner := at >= 0).any():
            here = at[inner]
            value = x[rows[inner], body.feature[here]]
            left = np.where(
                np.isnan(value),
                (body.flags[here] & MISSING_LEFT) != 0,
                np.where(
                    (body.flags[here] & EQUAL) != 0,
                    value == body.threshold[here],
                    value <= body.threshold[here],
                ),
            )
            at[inner] = np.where(left, body.left[here], body.right[here])
        numbers[:, t] = ~at
    return numbers


def _forest(body: Forest, x: Floats, z: Floats, *, normalise: bool) -> Floats:
    reached = leaves(body, x)
    each = body.base[reached]
    if body.kind != "table":
        for tree, own in enumerate(reached.T):
            for leaf in np.unique(own).tolist():
                here = own == leaf
                each[here, tree] = _leaf(body, tree, leaf, z[here])
    if body.median:
        middle: Floats = np.median(each, axis=1)
        return middle
    out: Floats = each.sum(axis=1)
    if normalise:
        total = out.sum(axis=1, keepdims=True)
        out = np.where(total > 0, out / np.where(total > 0, total, 1.0), out)
    return out


def _leaf(body: Forest, tree: int, leaf: int, z: Floats) -> Floats:
    """Return a leaf's contribution for the rows that reach it."""
    terms = slice(int(body.term_start[leaf]), int(body.term_start[leaf + 1]))
    value = z[:, body.term_feature[terms], None]
    slope, base = body.slope[terms], body.base[leaf]
    if body.kind == "linear":
        linear: Floats = base + np.where(np.isnan(value), 0.0, slope * value).sum(axis=1)
        return linear
    if np.isneginf(base).all():
        return np.zeros((len(z), len(base)))
    constant = np.where(slope > 0, 0.5 * np.log(np.where(slope > 0, slope, 1.0) / math.pi), 0.0)
    parts = constant - slope * (value - body.mean[terms]) ** 2
    votes = base + np.where(np.isnan(value), 0.0, parts).sum(axis=1)
    return float(body.weights[tree]) * link("softmax", votes)
