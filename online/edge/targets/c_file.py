"""A model as a C99 header: a const pack of 32-bit words for the interpreter ``edge_model.h``.

Numbers are float32, rows too; thresholds are rounded down and centers split in two, as in
:mod:`online.edge.targets.onnx_file`.  ``EDGE_COLUMNS`` and ``EDGE_OUTPUTS`` are what ``x``
and ``y`` need.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from importlib.resources import files
from typing import Any, Final

import numpy as np

from online.edge.errors import ExportRefused
from online.edge.lowering.ir import (
    EQUAL,
    MISSING_LEFT,
    Columns,
    EdgeModel,
    Floats,
    Forest,
    Linear,
    Mlp,
    floor32,
    leaf_weights,
    term_constants,
)

_LINKS: Final = {"identity": 0, "sigmoid": 1, "softmax": 2}
_ACTIVATIONS: Final = {"none": 0, "relu": 1, "tanh": 2, "sigmoid": 3}
_LEAVES: Final = {"table": 0, "bayes": 1, "linear": 2}
_CHILDREN_MAX: Final = 2**15

Words = list[int | np.float32]


def interpreter() -> str:
    """The text of ``edge_model.h``."""
    return (files("online.edge") / "edge_model.h").read_text()


def convert(model: EdgeModel) -> str:
    """The header.  Deterministic.  Raises ExportRefused for what the interpreter has no words."""
    made, call, arguments = _bounded(model)
    body = ",\n".join(", ".join(row) for row in _rows([_literal(word) for word in made]))
    names = ", ".join(json.dumps(name) for name in model.columns.names).replace("*/", "*\\/")
    classes = ", ".join(json.dumps(label) for label in model.classes).replace("*/", "*\\/")
    return (
        f"/* columns: {names}\n * outputs: {classes or 'the number'} */\n"
        '#include "edge_model.h"\n'
        f"enum {{ EDGE_COLUMNS = {len(model.columns.names)}, EDGE_OUTPUTS = {model.outputs} }};\n"
        f"static const edge_word edge_pack[] = {{\n{body}\n}};\n"
        f"static inline void edge_predict({arguments}) {{ {call} }}\n"
    )


def words(model: EdgeModel) -> bytes:
    """The pack as bytes, little-endian: an update of data alone."""
    made = _bounded(model)[0]
    ints = [int(np.float32(w).view(np.int32)) if isinstance(w, np.float32) else w for w in made]
    return np.array(ints, dtype="<i4").tobytes()


def _bounded(model: EdgeModel) -> tuple[Words, str, str]:
    """Return what :func:`_words` does, with the columns' ends behind the words if there are any.

    Ends are looked at first.
    """
    made, call, arguments = _words(model)
    columns = model.columns
    if columns.ends is None:
        return made, call, arguments
    ends = _floats(columns.ends.T)
    n = len(columns.names)
    first = f"float b[{n}]; edge_within(edge_pack + {len(made)}, {n}, x, b); "
    return [*made, *ends], first + call.replace("edge_pack, x,", "edge_pack, b,"), arguments


def _words(model: EdgeModel) -> tuple[Words, str, str]:
    """The words, and body and parameters of ``edge_predict``."""
    plain = "const float *x, float *y"
    body = model.body
    if isinstance(body, Mlp):
        if not body.embeddings:
            made, widest = _mlp(model.columns, body)
            return made, f"float h[{2 * widest}]; edge_mlp(edge_pack, x, h, y);", plain
        tables, columns = _embedded(model.columns, body)
        made, widest = _mlp(columns, body)
        call = f"float v[{len(columns.names)}], h[{2 * widest}]; edge_ids(edge_pack, x, v); "
        return [*tables, *made], f"{call}edge_mlp(edge_pack + {len(tables)}, v, h, y);", plain
    if isinstance(body, Forest):
        call = f"double leaf[{model.outputs}]; edge_forest(edge_pack, x, leaf, y);"
        return _forest(model, body), call, plain
    if model.tokens is None and len(body.votes) == 1 and math.isinf(model.columns.limit):
        return _linear(model.columns, body), "edge_linear(edge_pack, x, y);", plain
    if body.bent is not None:
        raise ExportRefused("c99", "the bins of `auto` have no form in C")
    wide = len(body.bias)
    if model.tokens is None:
        return (
            _hashed(model, body),
            f"float raw[{wide}]; edge_hashed(edge_pack, x, 0, 0, raw, y);",
            plain,
        )
    call = f"float raw[{wide}]; edge_hashed(edge_pack, x, tokens, n, raw, y);"
    return _hashed(model, body), call, "const float *x, const edge_token *tokens, int n, float *y"


def _floats(numbers: Iterable[float] | Floats) -> list[np.float32]:
    return list(np.asarray(numbers, dtype=np.float64).astype(np.float32).ravel())


def _centers(columns: Columns) -> list[list[np.float32]]:
    """High and low part of each column's center."""
    high = columns.center.astype(np.float32)
    low = (columns.center - high).astype(np.float32)
    return [[h, l] for h, l in zip(high, low, strict=True)]  # noqa: E741


def _scales(columns: Columns) -> list[list[np.float32]]:
    return [
        [*center, factor]
        for center, factor in zip(_centers(columns), _floats(columns.factor), strict=True)
    ]


def _linear(columns: Columns, body: Linear) -> Words:
    made: Words = [len(columns.names), len(body.bias), _LINKS[body.link], *_floats(body.bias)]
    weights = body.weights * columns.factor[:, None]
    for center, row in zip(_centers(columns), weights, strict=True):
        made += [*center, *_floats(row)]
    return made


def _hashed(model: EdgeModel, body: Linear) -> Words:
    columns, tokens = model.columns, model.tokens
    if tokens is not None and tokens.spelling == "onehot":
        raise ExportRefused("c99 tokens", "a one-hot vocabulary has no form in C")
    buckets, seed, river, signed, keys = 1, 0, False, False, np.zeros(0, np.uint32)
    if tokens is not None:
        buckets, seed, keys = tokens.buckets, tokens.seed, tokens.keys
        river, signed = tokens.spelling == "river", tokens.signed
    made: Words = [
        len(columns.names), model.outputs, len(body.votes), _LINKS[body.link], len(keys),
        int(np.uint32(buckets).view(np.int32)), int(np.uint32(seed).view(np.int32)), int(river),
        int(signed), np.float32(columns.limit), *_floats(body.bias), *_floats(body.votes),
    ]  # fmt: skip
    for scale, row in zip(_scales(columns), body.weights, strict=True):
        made += [*scale, *_floats(row)]
    made += keys.view(np.int32).tolist()
    made += _floats(body.table)
    return made


def _embedded(columns: Columns, body: Mlp) -> tuple[Words, Columns]:
    """Words of the tables, and the columns behind them: numbers, then the vectors' own."""
    numbers = len(columns.names) - len(body.embeddings)
    made: Words = [numbers, len(body.embeddings)]
    wide = 0
    for table in body.embeddings:
        made += [*table.shape, *_floats(table)]
        wide += table.shape[1]
    names = (*columns.names[:numbers], *(f"vector {i}" for i in range(wide)))
    center = np.concatenate([columns.center[:numbers], np.zeros(wide)])
    factor = np.concatenate([columns.factor[:numbers], np.ones(wide)])
    return made, Columns(names, center, factor)


def _mlp(columns: Columns, body: Mlp) -> tuple[Words, int]:
    widest = max(len(columns.names), *(len(layer.bias) for layer in body.layers))
    made: Words = [
        len(body.layers), len(columns.names), widest, _LINKS[body.link], np.float32(columns.limit)
    ]  # fmt: skip
    for scale in _scales(columns):
        made += scale
    for layer in body.layers:
        outputs, inputs = layer.weights.shape
        made += [inputs, outputs, _ACTIVATIONS[layer.activation]]
        made += [*_floats(layer.weights), *_floats(layer.bias)]
    return made, widest


def _forest(model: EdgeModel, body: Forest) -> Words:
    leaves, outputs = body.base.shape
    branches = len(body.feature)
    if body.median:
        raise ExportRefused("c99 forest", "a median of trees has no form in C")
    if max(branches, leaves) >= _CHILDREN_MAX:
        raise ExportRefused("c99 forest", f"{branches} branches, at most {_CHILDREN_MAX - 1}")
    made: Words = [
        _LEAVES[body.kind], outputs, int(model.task != "regression"), len(body.roots), branches,
        leaves, len(model.columns.names), *body.roots.tolist(),
    ]  # fmt: skip
    for i, threshold in enumerate(floor32(body.threshold)):
        equal, missing = int(body.flags[i]) & EQUAL, int(body.flags[i]) & MISSING_LEFT
        flags = (equal // EQUAL) << 16 | (missing // MISSING_LEFT) << 17
        left, right = int(body.left[i]) & 0xFFFF, int(body.right[i]) & 0xFFFF
        packed = int(np.uint32(left | right << 16).view(np.int32))
        made += [threshold, int(body.feature[i]) | flags, packed]
    if body.kind == "table":
        return made + _floats(body.base)
    for scale in _scales(model.columns):
        made += scale
    weights = leaf_weights(body) if body.kind == "bayes" else np.ones(leaves)
    for base, weight in zip(body.base, weights, strict=True):
        made += [*_floats(base), np.float32(weight)]
    made += body.term_start.tolist()
    constants = term_constants(body) if body.kind == "bayes" else np.zeros_like(body.slope)
    for i, feature in enumerate(body.term_feature.tolist()):
        made.append(feature)
        if body.kind == "linear":
            made += _floats(body.slope[i])
            continue
        made += _floats(np.stack([constants[i], body.slope[i], body.mean[i]], axis=1))
    return made


def _literal(word: int | np.float32) -> str:
    if not isinstance(word, np.float32):
        return f"{{.i = {word}}}" if word != -(2**31) else "{.i = -2147483647 - 1}"
    if np.isinf(word):
        return "{.f = INFINITY}" if word > 0 else "{.f = -INFINITY}"
    return f"{{.f = {float(word).hex()}f}}"


def _rows(items: Sequence[Any], wide: int = 6) -> list[Sequence[Any]]:
    return [items[i : i + wide] for i in range(0, len(items), wide)]
