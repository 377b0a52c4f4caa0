"""Weights as whole steps of a power of two, so that an update is a few small whole numbers.

A model's own weights move in all their digits with every row; the difference between two of its
files is nearly as long as a file.  On a grid, what has moved by less than half a step has not
moved, and the difference between any two files is whole steps: exact, whichever file a client has,
so that errors can't add up.  The step of each tensor is the widest that the answers allow.

Means and deviations of the scaler stay those of the file before, while they are near; else they
have few digits.  The first layer takes up what they are off, which is the same function of a row
that lacks nothing.  What a missing number, or one that is cut off, then differs by is part of what
is compared.
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
"""Largest difference from the model's own answer; of a number above 1, its share."""

AGREE_LEAST: Final = 0.999
"""Share of rows with the model's own label, without ties (:data:`online.edge.targets.gate.TIE`)."""

_CROSSED: Final = 7
"""Rows that are made for each one given, of two of them: more is looked at than what came."""

_SCALER: Final = 0.5
"""Share of what is allowed that an old scaler may cost; else the new one is sent."""

_AFFORDED: Final = 0.04
"""Share of the file that a difference may take on the grid that clients have: then it stays."""

_WORTH: Final = 1.25
"""How much larger the difference may be than on the coarsest grid, to keep the one there is."""

_FIRST: Final = 8.0
"""How much finer the grid of a first file is: where few weights move, it stays."""

_DIGITS: Final = (6, 9, 12, 16)
"""Binary digits of a scaler, tried in this order."""

_BITS: Final = 23
"""Below the largest weight of a tensor: float32 has no more."""

_Off = Callable[[EdgeModel], float]
_Allowed = Callable[[EdgeModel], bool]
_Steps = Mapping[str, float]


def on_grid(
    model: EdgeModel,
    held: bytes | None,
    rows: Sequence[Mapping[str, Any]],
    rng: np.random.Generator,
) -> bytes:
    """An edgepack of the model with its weights on a grid.

    It is as coarse as :data:`OFF_MAX` allows, or that of ``held`` if the difference is small on it,
    too: where few weights move, as in tables of ids, a fine one costs nothing.

    Parameters:
        held: The pack that clients have; None, or one of another structure: nothing that counts.
        rows: Features to compare answers by; rows crossed of two of them, drawn by ``rng``, are
            added.

    Raises StepsUnfit for trees, and if no grid is fine enough.
    """
    if isinstance(model.body, Forest):
        raise StepsUnfit("trees have no weights that move a little")
    if isinstance(model.body, Linear) and model.body.bent is not None:
        raise StepsUnfit("tents stand where the exact scaler has them")
    encoder = Encoder(model)
    asked = [encoder.row(row) for row in (*rows, *_crossed(rows, rng))]
    expected = outputs(model, asked)

    def off(candidate: EdgeModel) -> float:
        return _off(outputs(candidate, asked), expected)

    def allowed(candidate: EdgeModel, most: float = 1.0) -> bool:
        found = outputs(candidate, asked)
        given = slice(len(rows))  # in these alone, too: a gate counts them
        agree = not model.classes or (
            agreement(found, expected) >= AGREE_LEAST
            and agreement(found[given], expected[given]) >= AGREE_LEAST
        )
        return agree and _off(found, expected) <= most

    def near(candidate: EdgeModel) -> bool:
        return allowed(candidate, _SCALER)

    before = None if held is None else pack.decode(held)
    if held is None or before is None or _shape(before) != _shape(model):
        model = _scaled(model, None, near)
        coarse = _fine(model, _searched(model, off), allowed)
        return pack.encode(_on(model, {name: step / _FIRST for name, step in coarse.items()}))
    model = _scaled(model, before.columns, near)

    theirs = {name: deltas.step_of(table) for name, table in _weights(before).items()}
    kept = pack.encode(_on(model, _fine(model, theirs, allowed)))
    steps = _wider(model, _fine(model, _searched(model, off), allowed), allowed)
    other = pack.encode(_on(model, steps))
    # What a release after the next would take on the other grid: to change to it costs once.
    after = len(deltas.smallest(pack.encode(_on(before, steps)), other))
    most = max(_AFFORDED * len(kept), _WORTH * after)
    return kept if len(deltas.smallest(held, kept)) <= most else other


def _scaled(model: EdgeModel, held: Columns | None, near: _Allowed) -> EdgeModel:
    """The model behind the scaler that clients have, or one of few digits, or its own.

    Labels count here, too: no step of the weights, however small, gives back one that the scaler
    has changed.
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
    """Means to 2^-digits of a deviation, factors to so many binary digits."""
    factor = columns.factor
    mantissa, exponent = np.frexp(factor)
    short = np.ldexp(np.rint(mantissa * 2.0**digits), exponent - digits)
    step = np.ldexp(1.0, 1 - exponent - digits)
    center = np.where(factor == 0, 0.0, np.rint(columns.center / step) * step)
    return replace(columns, center=center, factor=short)


def behind(model: EdgeModel, other: Columns) -> EdgeModel:
    """The same function, of rows that lack nothing, behind another scaler of the same columns.

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
    """The widest step of each tensor alone that costs no more than its share of what is allowed."""
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
    """These steps, halved as often as it takes."""
    found = dict(steps)
    for _ in range(_BITS):
        if allowed(_on(model, found)):
            return found
        found = {name: step / 2.0 for name, step in found.items()}
    raise StepsUnfit("no step is small enough for the answers that are allowed")


def _wider(model: EdgeModel, steps: _Steps, allowed: _Allowed) -> dict[str, float]:
    """These steps, those of the largest tensors first doubled while it may be."""
    tables, found = _weights(model), dict(steps)
    for name in sorted(tables, key=lambda n: -tables[n].size):
        while found[name] <= np.abs(tables[name]).max():
            if not allowed(_on(model, wider := {**found, name: 2.0 * found[name]})):
                break
            found = wider
    return found


def _on(model: EdgeModel, steps: _Steps) -> EdgeModel:
    return with_tables(model, {n: _rounded(t, steps[n]) for n, t in _weights(model).items()})


def _off(found: Floats, expected: Floats) -> float:
    """Return the largest difference as a share of what is allowed."""
    off = np.abs(found - expected) / np.maximum(1.0, np.abs(expected))
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
    """Tensors that stand on the grid."""
    _, tables = take_apart(model)
    kinds = ("weights", "bias", "table", "rows")
    return {n: t for n, t in tables.items() if n.rstrip("0123456789") in kinds and t.size}


def _shape(model: EdgeModel) -> object:
    structure, tables = take_apart(model)
    keys = tables["keys"].tobytes() if "keys" in tables else b""
    return structure, keys, {name: table.shape for name, table in tables.items()}
