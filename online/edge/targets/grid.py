"""Quantizes weights to multiples of a power of two, so that updates are small integers.

Every row changes all digits of a model's weights, so the delta between two exact files is nearly as
large as a file.  On a grid, a weight that has moved by less than half a step has not changed, and
the difference between any two files is in whole steps: exact from any file that a client has, so
errors do not accumulate.  The step of each tensor is the widest that the predictions allow.

Means and deviations of the scaler stay those of the previous file while they are close; else they
are stored with few digits.  The first layer compensates the difference, which gives the same
function for rows without missing numbers.  The remaining difference for missing or clipped numbers
is part of the comparison.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np

from online.edge.errors import StepsUnfit
from online.edge.lowering.evaluate import outputs
from online.edge.lowering.ir import (
    Array,
    Columns,
    EdgeModel,
    Floats,
    Forest,
    Layer,
    Linear,
    Mlp,
    take_apart,
    with_tables,
)
from online.edge.lowering.rows import Encoder
from online.edge.targets import deltas, pack
from online.edge.targets.gate import agreement

OFF_MAX: Final = 5e-3
"""Largest difference from the model's prediction; relative for numbers above 1."""

AGREE_LEAST: Final = 0.999
"""Least share of rows with the model's label, apart from ties (``TIE`` of the gate)."""

_CROSSED: Final = 7
"""Rows that are generated per given row by crossing two rows, to test more than those given."""

_SCALER: Final = 0.5
"""Share of the allowed difference that an old scaler may cause; else the new one is sent."""

_AFFORDED: Final = 0.04
"""Share of the file's size that a delta on the clients' present grid may have to keep that grid."""

_WORTH: Final = 1.25
"""Factor by which a delta may exceed that on the coarsest grid, to keep the present grid."""

_FIRST: Final = 8.0
"""Factor by which the first file's grid is finer: it stays if few weights change."""

_DIGITS: Final = (6, 9, 12, 16)
"""Binary digits of a scaler, tried in this order."""

_BITS: Final = 23
"""Most binary digits below the largest weight of a tensor, as many as float32 has."""

_Off = Callable[[EdgeModel], float]
_Allowed = Callable[[EdgeModel], bool]
_Steps = Mapping[str, float]


def on_grid(
    model: EdgeModel,
    held: bytes | None,
    rows: Sequence[Mapping[str, Any]],
    rng: np.random.Generator,
) -> bytes:
    """Make an edgepack of the model with its weights on a grid.

    The grid is as coarse as :data:`OFF_MAX` allows, or that of ``held`` if the delta is small on it
    as well: where few weights change, as in embedding tables, a fine grid costs nothing.

    Parameters:
        held: The clients' present pack; None, or one of another structure, has no influence.
        rows: Features for comparing predictions; rows crossed from two of them, drawn by ``rng``,
            are added.

    Raises StepsUnfit for trees, and if no grid is fine enough.
    """
    if isinstance(model.body, Forest):
        raise StepsUnfit("trees have no weights")
    if isinstance(model.body, Linear) and model.body.bent is not None:
        raise StepsUnfit("the bins of `auto` depend on its exact scaler")
    encoder = Encoder(model)
    encoded = [encoder.row(row) for row in (*rows, *_crossed(rows, rng))]
    expected = outputs(model, encoded)

    def off(candidate: EdgeModel) -> float:
        return _off(outputs(candidate, encoded), expected)

    def allowed(candidate: EdgeModel, most: float = 1.0) -> bool:
        answers = outputs(candidate, encoded)
        given = slice(len(rows))  # in these alone, too: a gate counts them
        agree = not model.classes or (
            agreement(answers, expected) >= AGREE_LEAST
            and agreement(answers[given], expected[given]) >= AGREE_LEAST
        )
        return agree and _off(answers, expected) <= most

    def near(candidate: EdgeModel) -> bool:
        return allowed(candidate, _SCALER)

    before = None if held is None else pack.decode(held)
    if held is None or before is None or _shape(before) != _shape(model):
        model = _scaled(model, None, near)
        coarse = _fine(model, _searched(model, off), allowed)
        return pack.encode(_on(model, {name: step / _FIRST for name, step in coarse.items()}))
    model = _scaled(model, before.columns, near)

    theirs = {name: deltas.step_of(table) for name, table in _weights(before).items()}
    packed = pack.encode(_on(model, _fine(model, theirs, allowed)))
    steps = _wider(model, _fine(model, _searched(model, off), allowed), allowed)
    other = pack.encode(_on(model, steps))
    # What a release after the next would take on the other grid: to change to it costs once.
    after = len(deltas.smallest(pack.encode(_on(before, steps)), other))
    most = max(_AFFORDED * len(packed), _WORTH * after)
    return packed if len(deltas.smallest(held, packed)) <= most else other


def _scaled(model: EdgeModel, held: Columns | None, near: _Allowed) -> EdgeModel:
    """The model with the clients' scaler, or with a scaler of few digits, or with its own.

    Labels are compared here, too: no grid of the weights, however fine, can restore a label that
    the scaler has changed.
    """
    own = model.columns
    tried = [_short(own, digits) for digits in _DIGITS]
    for columns in tried if held is None else [held, *tried]:
        if not ((columns.factor == 0) & (own.factor != 0)).any():
            moved = behind(model, replace(columns, ends=own.ends))
            if near(moved):
                return moved
    return model


def _short(columns: Columns, digits: int) -> Columns:
    """Round means to 2^-digits of a deviation, and factors to that many binary digits."""
    factor = columns.factor
    mantissa, exponent = np.frexp(factor)
    short = np.ldexp(np.rint(mantissa * 2.0**digits), exponent - digits)
    step = np.ldexp(1.0, 1 - exponent - digits)
    center = np.where(factor == 0, 0.0, np.rint(columns.center / step) * step)
    return replace(columns, center=center, factor=short)


def behind(model: EdgeModel, other: Columns) -> EdgeModel:
    """The same function of rows without missing numbers, with another scaler of the same columns.

    A column that is constant there (its factor is 0) must be constant here.
    """
    own = model.columns
    ratio = own.factor / np.where(other.factor == 0, 1.0, other.factor)
    shift = own.factor * (other.center - own.center)
    body = model.body
    moved: Linear | Mlp
    if isinstance(body, Linear):
        moved = replace(
            body, weights=body.weights * ratio[:, None], bias=body.bias + shift @ body.weights
        )
    else:
        assert isinstance(body, Mlp), "trees have no layer that takes it up"
        first = body.layers[0]
        numbers = len(own.names) - len(body.embeddings)
        vectors = first.weights.shape[1] - numbers  # they are not scaled
        ratio = np.concatenate([ratio[:numbers], np.ones(vectors)])
        shift = np.concatenate([shift[:numbers], np.zeros(vectors)])
        taken = Layer(first.weights * ratio, first.bias + first.weights @ shift, first.activation)
        moved = replace(body, layers=(taken, *body.layers[1:]))
    return replace(model, columns=other, body=moved)


def _searched(model: EdgeModel, off: _Off) -> dict[str, float]:
    """The widest step of each tensor that uses at most its share of the allowed difference."""
    tables = _weights(model)
    numbers = sum(table.size for table in tables.values())
    steps = {}
    for name, table in tables.items():
        top = math.floor(math.log2(np.abs(table).max())) + 1 if table.any() else 0
        low, high = 0, _BITS if table.any() else 0
        while low < high:
            bits = (low + high) // 2
            alone = with_tables(model, {name: _rounded(table, 2.0 ** (top - bits))})
            if off(alone) <= math.sqrt(table.size / numbers):
                high = bits
            else:
                low = bits + 1
        steps[name] = 2.0 ** (top - low)
    return steps


def _fine(model: EdgeModel, steps: _Steps, allowed: _Allowed) -> dict[str, float]:
    """The steps, halved until the result is allowed.  Raises StepsUnfit."""
    finer = dict(steps)
    for _ in range(_BITS):
        if allowed(_on(model, finer)):
            return finer
        finer = {name: step / 2.0 for name, step in finer.items()}
    raise StepsUnfit("no step keeps the answers within their bound")


def _wider(model: EdgeModel, steps: _Steps, allowed: _Allowed) -> dict[str, float]:
    """The steps, doubled while the result is allowed, largest tensors first."""
    tables, widest = _weights(model), dict(steps)
    for name in sorted(tables, key=lambda n: -tables[n].size):
        while widest[name] <= np.abs(tables[name]).max():
            if not allowed(_on(model, wider := {**widest, name: 2.0 * widest[name]})):
                break
            widest = wider
    return widest


def _on(model: EdgeModel, steps: _Steps) -> EdgeModel:
    return with_tables(model, {n: _rounded(t, steps[n]) for n, t in _weights(model).items()})


def _off(answers: Floats, expected: Floats) -> float:
    """Return the largest difference as a share of the allowed one."""
    off = np.abs(answers - expected) / np.maximum(1.0, np.abs(expected))
    return float(off.max(initial=0.0)) / OFF_MAX


def _crossed(
    rows: Sequence[Mapping[str, Any]], rng: np.random.Generator
) -> Iterator[Mapping[str, Any]]:
    for row in rows:
        for at in rng.integers(len(rows), size=_CROSSED).tolist():
            other = rows[at]
            taken = rng.random(len(other)) < 0.5
            yield {**row, **{n: v for (n, v), t in zip(other.items(), taken, strict=True) if t}}


def _rounded(table: Array, step: float) -> Floats:
    rounded: Floats = np.rint(table / step) * step
    return rounded


def _weights(model: EdgeModel) -> dict[str, Array]:
    """The tensors that are quantized."""
    _, tables = take_apart(model)
    kinds = ("weights", "bias", "table", "rows")
    return {n: t for n, t in tables.items() if n.rstrip("0123456789") in kinds and t.size}


def _shape(model: EdgeModel) -> object:
    structure, tables = take_apart(model)
    keys = tables["keys"].tobytes() if "keys" in tables else b""
    return structure, keys, {name: table.shape for name, table in tables.items()}
