"""The file format of a snapshot: a msgpack manifest and a safetensors payload with checksums.

======================= ===========================================================
8 bytes                 magic
4 + 8 + 8 bytes         schema version, bytes of manifest, bytes of payload (little)
32 bytes                SHA-256 of the manifest, so that it can be read alone
manifest                msgpack: model, spec, version, clocks, list of blocks
payload                 safetensors: all keys once; places of keys, and numbers, of each block
32 bytes                SHA-256 of everything before
======================= ===========================================================

The frame (everything but manifest and payload) is the same in every schema version, so a file of a
later release can be distinguished from a damaged one.  Numbers are restored bit for bit.

A snapshot may be incremental: it has only the changed rows of some tables since another one, its
base, which is whole.  Schemas 1 (whole) and 2 (incremental), in which each block has keys of its
own, are read, but no longer written.
"""

from __future__ import annotations

import contextlib
import gc
import struct
from collections.abc import Callable, Iterator
from hashlib import sha256
from itertools import chain
from threading import Thread
from typing import Any, Final

import msgspec
import numpy as np

from paramserver.core import blocks as algebra
from paramserver.core.array_maps import (
    ARRAYS_LEAST,
    NAME_BYTES,
    ArrayMap,
    NameIndex,
    as_dict,
    longest,
    read_names,
)
from paramserver.core.blocks import Block, Blocks
from paramserver.core.entries import shared_pairs
from paramserver.core.state import Base, SnapshotState
from paramserver.core.tables.ids import Ids
from paramserver.core.tables.rows import Rows
from paramserver.errors import SnapshotCorrupt, SnapshotFormat
from paramserver.snapshots.mapped import DIGEST_BYTES, MappedFile, Source, source_of
from paramserver.snapshots.names import Names, checked_spans, keys_at
from paramserver.snapshots.pieces import Pieces
from paramserver.snapshots.tensors import Array, Arrays, Stored, write_arrays

SCHEMA: Final = 3
"""The schema version that is written; earlier ones are read."""
_OWN_KEYS: Final = (1, 2)
_NAMES: Final = "names."
MAGIC: Final = b"\x89OLSNAP\n"
_FRAME: Final = struct.Struct("<8sIQQ32s")
_CHECKED: Final = 65_536  # numbers, or rows, checked at a time
FRAME_BYTES: Final = _FRAME.size


class Manifest(msgspec.Struct, frozen=True):
    """The metadata of a snapshot; fields as in :class:`paramserver.core.state.SnapshotState`.

    ``closed`` holds ranges ``(first, last)`` of partition numbers.  ``blocks`` holds name and kind
    of each block, whose arrays are named after its position.  ``changes`` names the blocks that
    hold only the changes since the ``base``.
    """

    schema: int
    model: str
    spec: str
    spec_text: str
    version: tuple[int, int]
    clock: dict[int, int]
    closed: list[tuple[int, int]]
    control: int
    metrics: dict[str, float]
    parent: str | None
    created_at: float
    blocks: list[tuple[str, str]]
    rewrite: int = 0
    frozen: int = 0
    position: int = 0
    banned: list[str] | None = None
    log: tuple[int, str] | None = None
    base: Base | None = None
    changes: list[str] = []

    def closed_partitions(self) -> frozenset[int]:
        """Return the partition numbers in ``closed``."""
        return frozenset(p for first, last in self.closed for p in range(first, last + 1))


def encode(state: SnapshotState) -> bytes:
    """Return the whole file as bytes.  Equal states give equal bytes."""
    return bytes(encoded(state))


def encoded(state: SnapshotState) -> Pieces:
    """Return the file in pieces generated while it is written; do not change the state then."""
    arrays: dict[str, Stored] = {}
    changes = [] if state.base is None else [n for n, b in state.values.items() if _tracked(b)]
    names = Names(_index_of(state.values))
    for i, (name, block) in enumerate(state.values.items()):
        parts = _changes(block.data) if name in changes else _stored(block, names)
        arrays.update((f"{i}.{part}", stored) for part, stored in parts.items())
    arrays.update((_NAMES + part, Stored.of(array)) for part, array in names.arrays().items())
    manifest = msgspec.msgpack.encode(
        Manifest(
            schema=SCHEMA,
            model=state.model,
            spec=state.spec,
            spec_text=state.spec_text,
            version=state.version,
            clock=dict(sorted(state.clock.items())),
            closed=_runs(state.closed),
            control=state.control,
            metrics=dict(state.metrics),
            parent=state.parent,
            created_at=state.created_at,
            blocks=[(name, block.kind) for name, block in state.values.items()],
            rewrite=state.rewrite,
            frozen=state.frozen,
            position=state.position,
            banned=None if state.banned is None else sorted(state.banned),
            log=state.log,
            base=state.base if changes else None,
            changes=changes,
        )
    )
    size, payload = write_arrays(arrays, FRAME_BYTES + len(manifest))
    return Pieces(_begin(SCHEMA, manifest, size), size, payload)


def _index_of(values: Blocks) -> NameIndex | None:
    """Return the names of the first block whose numbers are in an array; None: there is none."""
    found = (block.data.index for block in values.values() if isinstance(block.data, ArrayMap))
    return next(found, None)


def frame(schema: int, manifest: bytes, payload: bytes) -> bytes:
    """Return a file with this manifest and payload: header, both, and checksum."""
    begin = _begin(schema, manifest, len(payload))
    return bytes(Pieces(begin, len(payload), lambda: (payload,)))


def _begin(schema: int, manifest: bytes, size: int) -> bytes:
    return _FRAME.pack(MAGIC, schema, len(manifest), size, sha256(manifest).digest()) + manifest


def decode(
    data: bytes | memoryview | MappedFile,
    base: Callable[[Base], SnapshotState] | None = None,
    *,
    in_arrays: bool = False,
) -> SnapshotState:
    """Return the state in a file.

    If ``data`` is writeable memory, tables use it without a copy, so decode it only once.  The
    checksum of a mapped file is computed meanwhile, and its tables are copied afterwards.

    Parameters:
        base: Reads the base of an incremental snapshot; its state is changed in place.  It raises
            the same errors.
        in_arrays: Whether blocks with very many names are returned as
            :class:`~paramserver.core.array_maps.ArrayMap`, instead of dicts.

    Raises:
        SnapshotCorrupt: The bytes are not exactly those that :func:`encode` returned.
        SnapshotFormat: The file is undamaged, but of a schema version unknown to this release.
        OSError: The disk failed while a mapped file was read.
    """
    source = source_of(data)
    source.until(FRAME_BYTES)
    view, size = source.view, whole_size(source.view)
    if len(view) != size:
        raise SnapshotCorrupt(f"it has {len(view)} bytes, its head says {size}")
    if not source.mapped:
        _verify(source)
        return _decoded(source, base, in_arrays)[0]
    try:
        state, tables, keys = _decoded(source, base, in_arrays)
    except Exception:
        _verify(source)  # what is damaged is not called something else
        raise
    _verify(source)
    for table in tables:
        table.detach()
    keys.detach()
    return state


def _verify(source: Source) -> None:
    if source.digest() != source.tail():
        raise SnapshotCorrupt("the checksum of the whole does not match")


def _decoded(
    source: Source, base: Callable[[Base], SnapshotState] | None, in_arrays: bool
) -> tuple[SnapshotState, list[Rows], _Keys]:
    """Return the state, and the tables and names of it that are where the source has them."""
    source.until(manifest_end(source.view))
    manifest, begin = read_manifest(source.view), manifest_end(source.view)
    schema = _read_frame(source.view)[0]
    if manifest.base is not None and base is None:
        raise SnapshotCorrupt(f"it is incremental, and its base {manifest.base.name} was not given")
    below = {} if manifest.base is None or base is None else base(manifest.base).values
    try:
        arrays = Arrays(source, begin, len(source.view) - DIGEST_BYTES)
        with _uncollected():
            keys = _Keys(arrays, shared=schema not in _OWN_KEYS, in_arrays=in_arrays)
            values = {
                name: _changed(below[name], arrays, f"{i}.")
                if name in manifest.changes
                else Block(kind, _from_arrays(kind, arrays, f"{i}.", keys))
                for i, (name, kind) in enumerate(manifest.blocks)
            }
    except (msgspec.DecodeError, struct.error, KeyError, ValueError) as error:
        raise SnapshotCorrupt(f"its payload can't be read: {error!r}") from error
    state = SnapshotState(
        model=manifest.model,
        spec=manifest.spec,
        spec_text=manifest.spec_text,
        version=manifest.version,
        values=values,
        clock=manifest.clock,
        closed=manifest.closed_partitions(),
        control=manifest.control,
        rewrite=manifest.rewrite,
        frozen=manifest.frozen,
        position=manifest.position,
        metrics=manifest.metrics,
        parent=manifest.parent,
        created_at=manifest.created_at,
        banned=None if manifest.banned is None else frozenset(manifest.banned),
        log=manifest.log,
    )
    whole = [n for n, kind in manifest.blocks if kind == algebra.ROWS and n not in manifest.changes]
    return state, [values[name].data for name in whole], keys


def manifest_end(head: bytes | memoryview) -> int:
    """Return the size of header and manifest, given the file's first ``FRAME_BYTES`` bytes."""
    return FRAME_BYTES + _read_frame(head)[1]


def whole_size(head: bytes | memoryview) -> int:
    """Return the size of the whole file, given its first ``FRAME_BYTES`` bytes."""
    _, manifest_bytes, payload_bytes, _ = _read_frame(head)
    return FRAME_BYTES + manifest_bytes + payload_bytes + DIGEST_BYTES


def read_manifest(data: bytes | memoryview) -> Manifest:
    """Return the manifest, given at least the first :func:`manifest_end` bytes of a file."""
    schema, manifest_bytes, _, digest = _read_frame(data)
    raw = data[FRAME_BYTES : FRAME_BYTES + manifest_bytes]
    if sha256(raw).digest() != digest:
        raise SnapshotCorrupt("the checksum of its manifest does not match")
    if not 1 <= schema <= SCHEMA:
        raise SnapshotFormat(schema, SCHEMA)
    try:
        return msgspec.msgpack.decode(raw, type=Manifest)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise SnapshotCorrupt(f"its manifest can't be read: {error}") from error


def _read_frame(data: bytes | memoryview) -> tuple[int, int, int, bytes]:
    if len(data) < FRAME_BYTES:
        raise SnapshotCorrupt(f"it ends after {len(data)} bytes, within its head")
    magic, schema, manifest_bytes, payload_bytes, digest = _FRAME.unpack_from(data)
    if magic != MAGIC:
        raise SnapshotCorrupt("it does not begin with the mark of a snapshot")
    return schema, manifest_bytes, payload_bytes, digest


def _runs(partitions: frozenset[int]) -> list[tuple[int, int]]:
    """Return the numbers as ranges: they are assigned in order, so few ranges suffice."""
    runs: list[tuple[int, int]] = []
    for p in sorted(partitions):
        if runs and runs[-1][1] == p - 1:
            runs[-1] = (runs[-1][0], p)
        else:
            runs.append((p, p))
    return runs


def _stored(block: Block, names: Names) -> dict[str, Stored]:
    if block.kind == algebra.ROWS:
        rows: Rows = block.data
        numbers = Stored(np.dtype(np.float32), (len(rows), rows.width), rows.pieces)
        return {"ids": Stored.of(rows.ids), "rows": numbers}
    return {part: Stored.of(array) for part, array in _to_arrays(block, names).items()}


def _tracked(block: Block) -> bool:
    return block.kind == algebra.ROWS and block.data.changes is not None


def _changes(rows: Rows) -> dict[str, Stored]:
    ids, gone, numbers = rows.changed()
    return {
        "ids": Stored.of(ids),
        "rows": Stored(np.dtype(np.float32), (len(ids), rows.width), numbers),
        "gone": Stored.of(gone),
    }


def _changed(block: Block, arrays: Arrays, prefix: str) -> Block:
    """Apply the changes to the base's table in place; return its block."""
    table: Rows = block.data
    new = Rows(arrays[prefix + "ids"], _finite(arrays[prefix + "rows"]))
    new.gone = arrays[prefix + "gone"]
    if block.kind != algebra.ROWS or table.width != new.width:
        raise ValueError(f"its base has no table of width {new.width} there")
    table.update(new)
    return block


def _to_arrays(block: Block, names: Names) -> dict[str, Array]:
    data = block.data
    if isinstance(data, ArrayMap) and (numbers := data.numbers()) is not None:
        part = "ints" if block.kind == algebra.COUNT else "values"
        return {"spans": names.spans(data), part: numbers}
    if block.kind == algebra.OPAQUE:
        return {"bytes": np.frombuffer(data, dtype=np.uint8)}
    if block.kind in algebra.ARRAYS:
        return {"numbers": algebra.array_of(data)}
    if block.kind == algebra.DIGEST:
        return {"digest": np.array([data["count"], data["sum"]], dtype=np.uint64)}
    arrays, data = {"spans": names.spans(data)}, as_dict(data)
    if block.kind == algebra.COUNT:  # integers above 2**53 do not fit a float; 1 is not 1.0
        if set(map(type, data.values())) <= {int}:
            arrays["ints"] = np.fromiter(data.values(), dtype=np.int64, count=len(data))
            return arrays
        real = [type(x) is float for x in data.values()]
        pairs = [*zip(data.values(), real, strict=True)]
        arrays["real"] = np.array(real, dtype=np.uint8)
        arrays["floats"] = np.array([x if r else 0.0 for x, r in pairs], dtype=np.float64)
        arrays["ints"] = np.array([0 if r else x for x, r in pairs], dtype=np.int64)
        return arrays
    values = data.values()
    if block.kind == algebra.ADDITIVE:
        arrays["values"] = np.fromiter(values, dtype=np.float64, count=len(data))
        return arrays
    width = {algebra.MOMENTS: 3, algebra.EXTREMA: 2}[block.kind]
    flat = chain.from_iterable(values)
    numbers = np.fromiter(flat, dtype=np.float64, count=len(data) * width)
    arrays["values"] = numbers.reshape((len(data), width))
    return arrays


class _Keys:
    """The keys of blocks: places among the names of the file or, in older ones, of their own."""

    def __init__(self, arrays: Arrays, *, shared: bool, in_arrays: bool) -> None:
        self._arrays, self._index = arrays, None
        ends = arrays[_NAMES + "ends"] if shared and in_arrays else np.empty(0)
        self._maps: list[ArrayMap] = []
        if len(ends) >= ARRAYS_LEAST and longest(ends) <= NAME_BYTES:
            self._index = NameIndex(self._kept(arrays[_NAMES + "keys"]), self._kept(ends))
        self._names = self._read(_NAMES) if shared and self._index is None else None

    def _read(self, prefix: str) -> list[str]:
        return read_names(self._arrays[prefix + "keys"], self._arrays[prefix + "ends"])

    def map(self, prefix: str, numbers: Array) -> ArrayMap | None:
        """Return a block with these numbers as a mapping in arrays; None: make it a dict."""
        if self._index is None or len(numbers) < ARRAYS_LEAST:
            return None
        spans = checked_spans(self._arrays[prefix + "spans"].copy(), len(self._index))
        if len(numbers) != (spans[:, 1] - spans[:, 0]).sum():
            raise ValueError("a block has not one number for each key")
        self._maps.append(ArrayMap(self._index, spans, self._kept(numbers)))
        return self._maps[-1]

    def _kept(self, array: Array) -> Array:
        """Return the array where it is mapped, until :meth:`detach`, else in memory of its own."""
        return array if self._arrays.mapped else array.copy()

    def detach(self) -> None:
        """Copy names and numbers that are in a mapped file into memory, in a thread."""
        if self._index is not None:
            Thread(target=self._copy, name="rows", daemon=True).start()

    def _copy(self) -> None:
        for one in (self._index, *self._maps):
            if one is not None:
                one.detach()

    def of(self, prefix: str) -> list[str]:
        """Return the keys of a block in order."""
        if self._index is not None:
            spans = self._arrays[prefix + "spans"]
            return self._index.at(checked_spans(spans, len(self._index)))
        if self._names is None:
            return self._read(prefix)
        return keys_at(self._names, self._arrays[prefix + "spans"])


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """Pause the collection of garbage: what is being read has none, and scanning it takes long."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def _from_arrays(kind: str, arrays: Arrays, prefix: str, of: _Keys) -> Any:
    if kind == algebra.OPAQUE:
        return arrays[prefix + "bytes"].tobytes()
    if kind == algebra.DIGEST:
        count, total = arrays[prefix + "digest"].tolist()
        return {"count": count, "sum": total}
    if kind not in algebra.KINDS:
        raise ValueError(f"unknown kind {kind!r}")
    if kind in algebra.ARRAYS:
        return _finite(arrays[prefix + "numbers"]).tobytes()
    if kind == algebra.ROWS:
        ids = Ids(arrays[prefix + "ids"])
        if arrays.mapped:  # the rows are still being read
            ids.lay_out()
        return Rows.in_place(ids, _finite(arrays[prefix + "rows"]))
    if kind == algebra.COUNT:
        ints = arrays[prefix + "ints"]
        if prefix + "real" not in arrays:
            made = of.map(prefix, ints)
            return dict(zip(of.of(prefix), ints.tolist(), strict=True)) if made is None else made
        keys = of.of(prefix)
        real, floats, ints = (arrays[prefix + part] for part in ("real", "floats", "ints"))
        parts = zip(keys, real.tolist(), floats.tolist(), ints.tolist(), strict=True)
        return {key: x if r else i for key, r, x, i in parts}
    numbers = _finite(arrays[prefix + "values"])
    if (made := of.map(prefix, numbers)) is not None:
        return made
    keys = of.of(prefix)
    if kind == algebra.ADDITIVE:
        return dict(zip(keys, numbers.tolist(), strict=True))
    if kind == algebra.EXTREMA:
        return dict(zip(keys, shared_pairs(numbers), strict=True))
    columns = (column.tolist() for column in numbers.T)
    return dict(zip(keys, zip(*columns, strict=True), strict=True))


def _finite(numbers: Array) -> Array:
    for i in range(0, len(numbers), _CHECKED):
        if not np.isfinite(numbers[i : i + _CHECKED]).all():
            raise ValueError("a value is not finite")
    return numbers


def equal(a: Blocks, b: Blocks) -> bool:
    """Return whether two states are equal, bit for bit (0.0 is not -0.0, 1 is not 1.0)."""
    return repr(sorted((n, x.kind, _ordered(x)) for n, x in a.items())) == repr(
        sorted((n, x.kind, _ordered(x)) for n, x in b.items())
    )


def _ordered(block: Block) -> Any:
    if block.kind == algebra.ROWS:
        ids, numbers = block.data.ids, block.data.numbers
        order = np.argsort(ids)
        return ids[order].tolist(), numbers[order].tobytes()
    return block.data if block.kind in algebra.BYTES else sorted(block.data.items())
