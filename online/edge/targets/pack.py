"""edgepack: a model as one little-endian file, and its NumPy reader.

=============== ==================================================================
4 bytes         ``EPK1``
4 bytes         bytes of the header (little-endian)
header          JSON: structure, and ``tensors``: name, type, shape, offset in file
tensors         each aligned to its item; first those of the shape, then the values
=============== ==================================================================

Branches and leaves of trees stand in preorder, so two flags a branch (its left, its right is a
leaf) tell the children, which are not stored.  The header depends on the structure only, so two
snapshots of one structure differ in values alone, and an update is small.  Thresholds and scales
are always float64: a client whose numbers are doubles, as JavaScript's are, is routed as the
service is.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final, Literal

import numpy as np

from online.edge.errors import PackCorrupt
from online.edge.lowering.evaluate import evaluate
from online.edge.lowering.ir import VALUES, Array, EdgeModel, Forest, put_together, take_apart

MAGIC: Final = b"EPK1"
Precision = Literal["float32", "float64"]

_EXACT: Final = frozenset({"center", "factor", "threshold", "votes", "ends"})
"""float64 in any precision."""

_TYPES: Final[Mapping[str, str]] = {
    "f8": "<f8", "f4": "<f4", "i4": "<i4", "i2": "<i2", "u4": "<u4", "u2": "<u2", "u1": "|u1"
}  # fmt: skip


def encode(model: EdgeModel, precision: Precision = "float32") -> bytes:
    """The file.  The same model gives the same bytes."""
    structure, tables = _flattened(model)
    made = {name: _stored(name, table, precision) for name, table in tables.items()}
    return contained(structure, made)


def contained(structure: Mapping[str, Any], made: Mapping[str, Array]) -> bytes:
    """A file of this structure and these tables, of types as they are stored."""
    named = sorted(made, key=lambda n: (_is_value(n), -made[n].itemsize, n))
    sizes = [(name, _code(made[name]), list(made[name].shape)) for name in named]
    # Offsets are in the header and depend on its length: a second round settles them.
    header, offsets = b"", [0] * len(sizes)
    for _ in range(8):
        rows = [[*size, at] for size, at in zip(sizes, offsets, strict=True)]
        header = _canonical({**structure, "tensors": rows})
        header += b" " * (-(len(header) + 8) % 8)
        again, end = [], 8 + len(header)
        for name in named:
            end += -end % made[name].itemsize
            again.append(end)
            end += made[name].nbytes
        if again == offsets:
            break
        offsets = again
    out = bytearray(end)
    out[:8] = MAGIC + len(header).to_bytes(4, "little")
    out[8 : 8 + len(header)] = header
    for name, at in zip(named, offsets, strict=True):
        out[at : at + made[name].nbytes] = made[name].tobytes()
    return bytes(out)


def decode(data: bytes) -> EdgeModel:
    """The model in a file.  Raises PackCorrupt unless the bytes are whole and fit together."""
    header, tables = parts_of(data)
    try:
        if header["body"] == "forest":
            tables = _unflattened(tables)
        model = put_together(header, tables)
        _check(model)
        evaluate(model, [{}, dict.fromkeys(model.columns.names, 0.0)])  # its tables fit together
    except (LookupError, ValueError, TypeError, AttributeError) as error:
        raise PackCorrupt(f"its parts do not fit: {error!r:.200}") from error
    return model


LEFT_LEAF: Final = 4
RIGHT_LEAF: Final = 8
"""Flags of a branch in the file, beside those of :mod:`online.edge.lowering.ir`."""


def _flattened(model: EdgeModel) -> tuple[dict[str, Any], dict[str, Array]]:
    """Structure and tables as they are stored: the children of a forest as flags."""
    structure, tables = take_apart(model)
    if isinstance(body := model.body, Forest):
        for name in ("left", "right", "roots"):
            del tables[name]
        flags = body.flags + LEFT_LEAF * (body.left < 0) + RIGHT_LEAF * (body.right < 0)
        tables |= {"flags": flags, "stumps": (body.roots < 0).astype(np.int32)}
        again = _unflattened(tables)
        if not all(np.array_equal(again[n], getattr(body, n)) for n in ("left", "right", "roots")):
            raise ValueError("branches and leaves are not in preorder")
    return structure, tables


def _unflattened(tables: Mapping[str, Array]) -> dict[str, Array]:
    """Children and roots from the flags.  ValueError unless they use up branches and leaves."""
    flags = tables["flags"].tolist()
    branches, leaves = len(flags), len(tables["base"])
    children = [[0, 0] for _ in flags]
    roots, at, leaf = [[0] for _ in tables["stumps"]], 0, 0
    for root, stump in zip(roots, tables["stumps"].tolist(), strict=True):
        todo: list[tuple[list[int], int, int]] = [(root, 0, stump)]
        while todo:
            holder, side, ends = todo.pop()
            if ends:
                holder[side], leaf = ~leaf, leaf + 1
                continue
            if at >= branches:
                raise ValueError("a tree has more branches than there are")
            holder[side], own = at, flags[at]
            todo += [(children[at], 1, own & RIGHT_LEAF), (children[at], 0, own & LEFT_LEAF)]
            at += 1
    if (at, leaf) != (branches, leaves):
        raise ValueError(f"trees use {at} branches and {leaf} leaves of {branches}, {leaves}")
    made = np.array(children, dtype=np.int32).reshape(-1, 2)
    others = {name: table for name, table in tables.items() if name != "stumps"}
    return {
        **others,
        "flags": tables["flags"].astype(np.int32) & (LEFT_LEAF - 1),
        "left": made[:, 0].copy(),
        "right": made[:, 1].copy(),
        "roots": np.array(roots, dtype=np.int32).reshape(-1),
    }


def _is_value(name: str) -> bool:
    """Whether a table holds numbers; keys and the shape of trees are structure."""
    return name in VALUES or name.rstrip("0123456789") in (
        "center", "factor", "weights", "bent", "table", "bias", "votes", "rows", "ends"
    )  # fmt: skip


def _stored(name: str, table: Array, precision: Precision) -> Array:
    if _is_value(name):
        wide = precision == "float64" or name in _EXACT
        return np.ascontiguousarray(table, dtype="<f8" if wide else "<f4")
    if name == "keys":
        return np.ascontiguousarray(table, dtype="<u4")
    least, most = (int(table.min()), int(table.max())) if table.size else (0, 0)
    if least >= 0 and most < 256 and name in ("feature", "term_feature", "flags", "stumps"):
        return np.ascontiguousarray(table, dtype="|u1")
    if least >= -(2**15) and most < 2**15:
        return np.ascontiguousarray(table, dtype="<i2")
    return np.ascontiguousarray(table, dtype="<i4")


def _code(table: Array) -> str:
    return f"{table.dtype.kind}{table.dtype.itemsize}"


def tensors_of(data: bytes) -> list[Any]:
    """Name, type, shape and offset of each tensor.  Raises PackCorrupt."""
    header, _ = parts_of(data)
    tensors: list[Any] = header["tensors"]
    return tensors


def _canonical(value: Any) -> bytes:
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.encode()


def parts_of(data: bytes) -> tuple[dict[str, Any], dict[str, Array]]:
    """The structure and the tables of a file.  Raises PackCorrupt."""
    if len(data) < 8 or data[:4] != MAGIC:
        raise PackCorrupt("it does not begin with the mark of an edgepack")
    begin = 8 + int.from_bytes(data[4:8], "little")
    try:
        header: dict[str, Any] = json.loads(data[8:begin])
        tables, end = {}, begin
        for name, kind, shape, at in header["tensors"]:
            dtype = np.dtype(_TYPES[kind])
            if at % dtype.itemsize or at < end or min(shape, default=0) < 0:
                raise PackCorrupt(f"tensor {name} overlaps or is out of line")
            count = int(np.prod(shape, dtype=np.int64))
            end = at + count * dtype.itemsize
            tables[name] = np.frombuffer(data, dtype, count, at).reshape(shape)
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise PackCorrupt(f"its header can't be read: {error!r:.200}") from error
    if end != len(data):
        raise PackCorrupt(f"it has {len(data)} bytes, its header says {end}")
    return header, tables


def _check(model: EdgeModel) -> None:
    """Indices stay inside, so that reading a table can't leave it."""
    if len(set(model.columns.names)) < len(model.columns.names):
        raise ValueError("two columns have the same name")
    if not isinstance(body := model.body, Forest):
        return
    n, leaves = len(body.feature), len(body.base)
    if n and (body.feature.min() < 0 or body.feature.max() >= len(model.columns.names)):
        raise ValueError("a branch names a column that does not exist")
    starts = body.term_start
    if len(starts) != leaves + 1 or (np.diff(starts) < 0).any() or starts[0] != 0:
        raise ValueError("the terms of leaves are out of order")
    if starts[-1] != len(body.term_feature):
        raise ValueError("terms of leaves are missing")
    wanted = (len(body.term_feature), *body.base.shape[1:])
    tables = {"table": (), "linear": (body.slope,), "bayes": (body.slope, body.mean)}[body.kind]
    if any(table.shape != wanted for table in tables):
        raise ValueError("terms and leaves have different shapes")
