"""Model state as named blocks, each of a kind that defines how two of them merge.

The rest of the system handles blocks only and knows no model types.  Values (a state) and deltas
(the effect of some learned rows on it) have the same shape.

========== ============================== ========================= =======================
kind       data                           delta                     merge(value, delta)
========== ============================== ========================= =======================
additive   {key: float}                   new − base, touched keys  value + scale · delta
moments    {key: (n, mean, M2)}           of the rows since the cut Chan et al. 1979, exact
extrema    {key: (min, max)}              of the rows since the cut min and max
count      {key: int or float}            increase                  value + delta, unscaled
digest     {"count": int, "sum": int}     of the rows since the cut count + ; sum + mod 2**64
dense      float64 little-endian, bytes   new − base, all elements  value + scale · delta
local      float64 little-endian, bytes   the whole new state       value + scale · (delta − value)
rows       id → row of k float32          new − base, touched rows  value + scale · delta
opaque     bytes                          the whole new state       replaced
========== ============================== ========================= =======================

All but ``local`` and ``opaque`` are commutative and associative, up to rounding for floats and
exactly for ``extrema``, integer ``count`` and ``digest``.  ``additive``, ``dense``, ``rows`` and
``local`` are scaled by a merge rule.  ``rows`` are for tables of millions of ids: see
:mod:`.tables.rows`.  ``local`` is state that each replica keeps for itself, such as an
optimizer's momentum: the server holds a running mean, which only a starting replica loads.
``opaque`` is right with one writer at a time, which the server's clock enforces, or if the last is.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from paramserver.core.array_maps import as_dict, expect, total_chars
from paramserver.core.entries import (
    DIGEST_MODULUS,
    INT64_MAX,
    INT64_MIN,
    Moments,
    all_counts,
    all_floats,
    all_pairs,
    check_count,
    check_digest,
    check_extrema,
    check_float,
    check_moments,
)
from paramserver.core.names import Names
from paramserver.core.tables.ids import IdArray, distinct
from paramserver.core.tables.rows import Rows, read_rows, select_rows
from paramserver.core.wire import WireBlock
from paramserver.errors import BlockError


@dataclass(slots=True)
class Block:
    """One named part of a state or delta: its kind and its data (see the table above)."""

    kind: str
    data: Any


Blocks = dict[str, Block]

Touched = dict[str, "dict[str, None] | list[IdArray] | None"]
"""Block name → the keys (or arrays of ids) that a delta changed; None: the whole block.

Keys stand in the order in which they were changed, and replicas receive them in that order.  A set
of strings would have another order in each process, and verdicts would depend on it.
"""

ADDITIVE: Final = "additive"
MOMENTS: Final = "moments"
EXTREMA: Final = "extrema"
COUNT: Final = "count"
DIGEST: Final = "digest"
DENSE: Final = "dense"
LOCAL: Final = "local"
ROWS: Final = "rows"
OPAQUE: Final = "opaque"
ARRAYS: Final = frozenset({DENSE, LOCAL})
"""Kinds whose data are the bytes of a float64 array, without keys."""

BYTES: Final = ARRAYS | {OPAQUE}
"""Kinds whose data are immutable bytes."""

WHOLE: Final = BYTES | {DIGEST}
"""Kinds that are sent and replaced whole, never key by key."""

KINDS: Final = WHOLE | {ADDITIVE, MOMENTS, EXTREMA, COUNT, ROWS}
_MANY: Final = 32  # keys from which on numpy's calls pay
_ARRAYS_MAX: Final = 64  # arrays of touched ids collected before they are merged into one
_FLOAT64: Final = np.dtype("<f8")


@dataclass(frozen=True, slots=True)
class Limits:
    """Upper bounds on the content of one message or snapshot.

    Attributes:
        blocks: Number of blocks.
        keys: Total number of keys in all blocks.
        name_chars: Characters of a block's name or of a key.
        opaque_bytes: Size of one ``opaque``, ``dense`` or ``local`` block, in bytes.
    """

    blocks: int = 1024
    keys: int = 4_000_000
    name_chars: int = 1024
    opaque_bytes: int = 256 * 2**20


DEFAULT_LIMITS: Final = Limits()


def merge(
    values: Blocks, delta: Blocks, scale: float = 1.0, *, whole: Collection[str] = ()
) -> Touched:
    """Merge ``delta`` into ``values`` in place, by the rules in the table above.

    All results are computed and checked before the first one is written, so an error leaves
    ``values`` unchanged.  ``delta`` is not changed and shares no container with ``values``.

    Parameters:
        scale: Factor of the merge rule, for the kinds that are scaled.
        whole: Names of blocks that are not scaled.

    Returns:
        The blocks and keys that were changed, for :func:`select`.

    Raises:
        BlockError: Kinds differ, an integer leaves int64, or a float becomes infinite or NaN.
    """
    staged: list[tuple[str, str, Any]] = []
    for name, change in delta.items():
        old = values.get(name)
        kind = change.kind
        if old is not None and old.kind != kind:
            raise BlockError(name, None, f"is {old.kind}, the delta's is {kind}")
        if old is not None:
            expect(old.data, change.data)
        by = 1.0 if name in whole else scale
        staged.append((name, kind, _merged(name, kind, old, change.data, by)))
    touched: Touched = {}
    for name, kind, new in staged:
        old = values.get(name)
        if old is None:
            values[name] = Block(kind, new)
        elif kind in WHOLE:
            old.data = new
        else:
            old.data.update(new)
        touched[name] = keys_of(values[name] if old is None else Block(kind, new))
    return touched


def keys_of(block: Block) -> dict[str, None] | list[IdArray] | None:
    """Return the keys or ids of a block; None if its kind is always touched as a whole."""
    if block.kind in WHOLE:
        return None
    if block.kind != ROWS:
        return dict.fromkeys(block.data)
    rows: Rows = block.data
    return [rows.ids, rows.gone] if len(rows.gone) else [rows.ids]


def _merged(name: str, kind: str, old: Block | None, change: Any, scale: float) -> Any:
    """Return the merged data for the keys in ``change``, in new containers."""
    if kind == ADDITIVE:
        return _merged_additive(name, {} if old is None else old.data, change, scale)
    if kind == COUNT:
        return _merged_count(name, {} if old is None else old.data, change)
    if kind == MOMENTS:
        return _merged_moments(name, {} if old is None else old.data, change)
    if kind == EXTREMA:
        return _merged_extrema({} if old is None else old.data, change)
    if kind == DIGEST:
        before = {"count": 0, "sum": 0} if old is None else old.data
        count = before["count"] + change["count"]
        if count > INT64_MAX:
            raise BlockError(name, "count", f"{count} is beyond int64")
        return {"count": count, "sum": (before["sum"] + change["sum"]) % DIGEST_MODULUS}
    if kind == OPAQUE:
        return change
    if kind == ROWS:
        return _merged_rows(name, None if old is None else old.data, change, scale)
    if kind in ARRAYS:
        return _merged_array(name, kind, None if old is None else old.data, change, scale)
    raise BlockError(name, None, f"unknown kind {kind!r}; known are {', '.join(sorted(KINDS))}")


def _merged_array(name: str, kind: str, old: bytes | None, change: bytes, scale: float) -> bytes:
    if old is None:
        if kind == LOCAL or scale == 1.0:
            return change
        old = bytes(len(change))
    if len(old) != len(change):
        raise BlockError(name, None, f"{len(change) // 8} numbers for a block of {len(old) // 8}")
    value, by = array_of(old), array_of(change)
    with np.errstate(over="ignore", invalid="ignore"):
        if kind == LOCAL:
            new = by if scale == 1.0 else value + scale * (by - value)
        else:
            new = value + (by if scale == 1.0 else scale * by)
    if not np.isfinite(new).all():
        raise BlockError(name, None, "a number would become infinite; values must stay finite")
    return new.tobytes()


def _merged_rows(name: str, old: Rows | None, change: Rows, scale: float) -> Rows:
    """Return the merged rows for the ids in ``change``."""
    added = change.numbers
    if scale != 1.0:
        added *= np.float32(scale)
    if old is not None:
        if old.width != change.width:
            raise BlockError(name, None, f"rows of {change.width} numbers for {old.width}")
        before, _ = old.look_up(change.ids)
        with np.errstate(over="ignore", invalid="ignore"):
            added += before
    if not np.isfinite(added).all():
        raise BlockError(name, None, "a number would become infinite; values must stay finite")
    return Rows(change.ids, added)


def array_of(data: bytes) -> npt.NDArray[np.float64]:
    """Return the data of a ``dense`` or ``local`` block as a read-only array, without a copy."""
    return np.frombuffer(data, dtype=_FLOAT64)


def array_bytes(numbers: npt.NDArray[np.float64]) -> bytes:
    """Return an array (in C order) as the data of a ``dense`` or ``local`` block."""
    return numbers.astype(_FLOAT64, copy=False).tobytes()


def _merged_additive(
    name: str, old: Mapping[str, float], change: Mapping[str, float], scale: float
) -> dict[str, float]:
    get = old.get
    if scale == 1.0:  # the usual case; skipping the product keeps it bit-exact
        new = {key: get(key, 0.0) + x for key, x in change.items()}
    else:
        new = {key: get(key, 0.0) + scale * x for key, x in change.items()}
    if not all(map(isfinite, new.values())):
        key = next(key for key, x in new.items() if not isfinite(x))
        raise BlockError(name, key, f"would become {new[key]}; values must stay finite")
    return new


def _merged_count(
    name: str, old: Mapping[str, float], change: Mapping[str, float]
) -> dict[str, float]:
    get = old.get
    new = {key: get(key, 0) + x for key, x in change.items()}
    for key, x in new.items():
        if type(x) is int:
            if not INT64_MIN <= x <= INT64_MAX:
                raise BlockError(name, key, f"{x} is beyond int64")
        elif not isfinite(x):
            raise BlockError(name, key, f"would become {x}; values must stay finite")
    return new


def _merged_moments(
    name: str, old: Mapping[str, Moments], change: Mapping[str, Moments]
) -> dict[str, Moments]:
    """Chan, Golub and LeVeque 1979, *Updating formulae and a pairwise algorithm*."""
    new: dict[str, Moments] = {}
    for key, b in change.items():
        a = old.get(key)
        if a is None or a[0] == 0:
            new[key] = b
            continue
        if b[0] == 0:
            new[key] = a
            continue
        n = a[0] + b[0]
        gap = b[1] - a[1]
        mean = a[1] + gap * (b[0] / n)
        m2 = a[2] + b[2] + gap * gap * (a[0] * (b[0] / n))
        if not (isfinite(n) and isfinite(mean) and isfinite(m2)):
            raise BlockError(name, key, f"would become {(n, mean, m2)}; values must stay finite")
        new[key] = (n, mean, m2)
    return new


def _merged_extrema(
    old: Mapping[str, tuple[float, float]], change: Mapping[str, tuple[float, float]]
) -> dict[str, tuple[float, float]]:
    new: dict[str, tuple[float, float]] = {}
    for key, b in change.items():
        a = old.get(key)
        new[key] = b if a is None else (min(a[0], b[0]), max(a[1], b[1]))
    return new


def put(values: Blocks, incoming: Blocks) -> Touched:
    """Replace values by ``incoming`` in place; return the replaced blocks and keys.

    In a block whose data is a mapping, only the keys in ``incoming`` are replaced.
    """
    touched: Touched = {}
    for name, block in incoming.items():
        mine = values.get(name)
        if mine is None or block.kind in WHOLE:
            values[name] = block
        else:
            mine.data.update(block.data)
        touched[name] = keys_of(block)
    return touched


def combine(a: Blocks, b: Blocks) -> Blocks:
    """Return one delta for the rows of ``a`` followed by those of ``b``; neither is changed."""
    out = copy(a)
    merge(out, b, 1.0)
    return out


def copy(blocks: Blocks) -> Blocks:
    """Return a copy of the blocks that shares no container with them."""
    return {name: copy_block(block) for name, block in blocks.items()}


def copy_block(block: Block) -> Block:
    """Return a copy of the block with its own container (the elements are immutable)."""
    return Block(block.kind, block.data if block.kind in BYTES else block.data.copy())


def select(values: Blocks, touched: Touched) -> Blocks:
    """Return the touched part of ``values``.  Blocks touched as a whole are shared, not copied."""
    out: Blocks = {}
    for name, keys in touched.items():
        block = values.get(name)
        if block is None:
            continue
        if keys is None:
            out[name] = block
        elif isinstance(keys, list):
            out[name] = Block(block.kind, select_rows(block.data, keys))
        else:
            data = block.data
            expect(data, keys)
            out[name] = Block(block.kind, {key: data[key] for key in keys if key in data})
    return out


def add_touched(into: Touched, more: Touched) -> None:
    """Add the blocks and keys of ``more`` to ``into``, in place."""
    for name, keys in more.items():
        known = into.get(name)
        if keys is None or (known is None and name in into):
            into[name] = None
        elif isinstance(keys, list):
            if not isinstance(known, list):
                known = into[name] = []
            known += keys
            if len(known) > _ARRAYS_MAX:
                known[:] = [distinct(np.concatenate(known))]
        elif isinstance(known, dict):
            known |= keys
        else:
            into[name] = dict(keys)


def size_bytes(blocks: Blocks) -> int:
    """Estimate the encoded size of the blocks in bytes, within a factor of two."""
    width = {ADDITIVE: 9, COUNT: 9, MOMENTS: 28, EXTREMA: 19}
    total = 0
    for name, block in blocks.items():
        total += len(name) + 12
        if block.kind in BYTES:
            total += len(block.data)
        elif block.kind == DIGEST:
            total += 32
        elif block.kind == ROWS:
            total += block.data.size_bytes
        else:
            total += total_chars(block.data) + len(block.data) * (2 + width[block.kind])
    return total


def to_wire(blocks: Blocks) -> dict[str, WireBlock]:
    """Return blocks for a message.  The data is shared, so encode it before it changes."""
    return {
        name: WireBlock(block.kind, as_dict(block.data))
        if block.kind != ROWS
        else WireBlock(ROWS, block.data.as_message())
        for name, block in blocks.items()
    }


def from_wire(
    wire: Mapping[str, WireBlock], limits: Limits = DEFAULT_LIMITS, names: Names | None = None
) -> Blocks:
    """Return the blocks of a message in new containers, after checking every field.

    Equal keys of several blocks become one string, which is hashed and stored once.

    Parameters:
        names: Keys of earlier messages; those of this one are added.

    Raises:
        BlockError: A bound is exceeded, or a kind, shape or number is invalid.  The error names
            the block and the key.
    """
    if len(wire) > limits.blocks:
        raise BlockError("*", None, f"{len(wire)} blocks; at most {limits.blocks} are taken")
    out: Blocks = {}
    keys, names = 0, Names() if names is None else names
    for name, block in wire.items():
        _check_name(name, None, name, limits)
        data = _check_data(name, block.kind, block.data, limits, names)
        keys += 0 if block.kind in BYTES else len(data)
        if keys > limits.keys:
            raise BlockError(name, None, f"more than {limits.keys} keys in one message")
        out[name] = Block(block.kind, data)
    return out


def _check_data(name: str, kind: str, data: Any, limits: Limits, names: Names) -> Any:
    if kind in BYTES:
        if not isinstance(data, bytes):
            raise BlockError(name, None, f"{kind} data is bytes, not {type(data).__name__}")
        if len(data) > limits.opaque_bytes:
            raise BlockError(name, None, f"{len(data)} bytes; at most {limits.opaque_bytes}")
        if kind in ARRAYS:
            _check_array(name, data)
        return data
    if kind not in KINDS:
        raise BlockError(name, None, f"unknown kind {kind!r}; known are {', '.join(sorted(KINDS))}")
    if not isinstance(data, dict):
        raise BlockError(name, None, f"{kind} data is a map, not {type(data).__name__}")
    if kind == DIGEST:
        return check_digest(name, data)
    if kind == ROWS:
        return read_rows(name, data)
    if (at_once := _AT_ONCE.get(kind)) is not None and len(data) >= _MANY:
        numbers = at_once(data.values()) if _all_names(data, limits) else None
        if numbers is not None:
            return dict(zip(names.shared([*data]), numbers, strict=True))
    check = _CHECKS[kind]
    out: dict[str, Any] = {}
    for key, x in data.items():
        _check_name(name, key, key, limits)
        out[key] = check(name, key, x)
    return dict(zip(names.shared([*out]), out.values(), strict=True))


def _check_array(name: str, data: bytes) -> None:
    if len(data) % _FLOAT64.itemsize:
        raise BlockError(name, None, f"{len(data)} bytes are no float64 numbers")
    if not np.isfinite(array_of(data)).all():
        raise BlockError(name, None, "a number is not finite")


def _all_names(data: dict[Any, Any], limits: Limits) -> bool:
    return set(map(type, data)) <= {str} and max(map(len, data)) <= limits.name_chars


def _check_name(name: str, key: Any, text: Any, limits: Limits) -> None:
    if type(text) is not str:
        raise BlockError(name, repr(key), f"keys are text, not {type(text).__name__}")
    if len(text) > limits.name_chars:
        raise BlockError(
            name[:64], None, f"a name has {len(text)} characters; at most {limits.name_chars}"
        )


_AT_ONCE: Final = {ADDITIVE: all_floats, COUNT: all_counts, EXTREMA: all_pairs}
"""Check many values of a kind ten times as fast as one by one; None: check them one by one."""

_CHECKS: Final = {
    ADDITIVE: check_float,
    COUNT: check_count,
    MOMENTS: check_moments,
    EXTREMA: check_extrema,
}
