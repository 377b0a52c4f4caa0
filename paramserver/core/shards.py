"""Sharding: several parameter servers for one model, each with a part of the keys.

Keys of additive blocks and of tables are assigned to shards by hash.  All other blocks, which are
small, are on shard 0.  The digest is on every shard, because every shard applies the deltas of all
rows, even if its part of them is empty.

A shard has its own epoch, clock, head and snapshots, under its own name.  The rows, partitions and
decisions are the model's and common to all shards.  Only shard 0 decides; the others read its
control rows through :class:`ShardStore` and apply them themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final
from zlib import crc32

import msgspec
import numpy as np
import numpy.typing as npt

from paramserver.core.admission import KEPT, joined_ranks
from paramserver.core.blocks import ADDITIVE, DIGEST, OPAQUE, ROWS, Block, Blocks
from paramserver.core.rewrites import REWRITES
from paramserver.core.tables.ids import IdArray, distinct
from paramserver.core.tables.rows import Rows
from paramserver.core.wire import Push, WireBlock
from paramserver.store import ControlInfo, HeadInfo, LineInfo, PartitionInfo, Store

SHARDS_MAX: Final = 64
_LOOKED_AT: Final = 256  # keys of a block that are checked; enough to rule out a coincidence
_FACTOR: Final = np.uint64(0x9E3779B97F4A7C15)  # mixes the bits, because ids may be small numbers
_HIGH: Final = np.uint64(33)
_ID: Final = np.dtype("<u8")

Ask = Callable[..., Any]
"""Calls a method of another shard's server: its name, then its arguments.  May raise anything."""


def shard_name(model: str, shard: int) -> str:
    """Return the name for a shard's head and folder; no model can have such a name."""
    return f"{model}+{shard}" if shard else model


def shard_place(place: str, shard: int) -> str:
    """Return the place of a shard's snapshots, under that of shard 0's."""
    if not shard:
        return place
    before, mark, query = place.partition("?")
    return f"{before.rstrip('/')}/+{shard}{mark}{query}"


@dataclass(frozen=True, slots=True)
class Cut:
    """Assignment of keys to ``of`` shards."""

    of: int

    def of_name(self, key: str) -> int:
        """Return the shard of a key that is a name."""
        return crc32(key.encode()) % self.of

    def of_ids(self, ids: IdArray) -> npt.NDArray[np.int64]:
        """Return the shard of each id."""
        mixed = (ids.astype(np.uint64, copy=False) * _FACTOR) >> _HIGH
        return (mixed % np.uint64(self.of)).astype(np.int64)

    def blocks(self, blocks: Blocks) -> list[Blocks]:
        """Split blocks by shard; the data of blocks that are not split is shared, not copied."""
        out: list[Blocks] = [{} for _ in range(self.of)]
        for name, block in blocks.items():
            # the admission state of bounded tables goes to every shard
            to_each = name.startswith(KEPT) and block.kind == OPAQUE
            kind = DIGEST if to_each else block.kind
            for shard, data in self._parts(kind, block.data):
                out[shard][name] = Block(block.kind, data)
        return out

    def wire(self, blocks: Mapping[str, WireBlock]) -> list[dict[str, WireBlock]]:
        """Split the blocks of a message by shard."""
        out: list[dict[str, WireBlock]] = [{} for _ in range(self.of)]
        for name, block in blocks.items():
            for shard, data in self._parts(block.kind, block.data):
                out[shard][name] = WireBlock(block.kind, data)
        return out

    def foreign(self, blocks: Blocks, shard: int) -> str | None:
        """Return why a sample of the keys shows that these are not that shard's values, or None."""
        for name, block in blocks.items():
            of: Sequence[int] = ()
            if block.kind == ADDITIVE:
                of = [self.of_name(key) for key in islice(block.data, _LOOKED_AT)]
            elif block.kind == ROWS:
                of = self.of_ids(block.data.ids[:_LOOKED_AT]).tolist()
            if other := set(of) - {shard}:
                return f"{name!r} in it has keys of shard {min(other)}, and this is shard {shard}"
        return None

    def push(self, push: Push) -> list[Push]:
        """Split a push by shard, with the same row bounds; a shard's part may be empty."""
        parts = self.wire(push.blocks)
        return [
            msgspec.structs.replace(
                push,
                blocks=parts[shard],
                curved={
                    name: mine
                    for name, keys in push.curved.items()
                    if (mine := {k: x for k, x in keys.items() if self.of_name(k) == shard})
                },
            )
            for shard in range(self.of)
        ]

    def _parts(self, kind: str, data: Any) -> list[tuple[int, Any]]:
        if kind == DIGEST:
            return [(shard, data) for shard in range(self.of)]
        if kind == ADDITIVE:
            names: dict[int, dict[str, float]] = {}
            for key, x in data.items():
                names.setdefault(self.of_name(key), {})[key] = x
            return list(names.items())
        if kind != ROWS:
            return [(0, data)]
        if isinstance(data, Rows):
            return self._tables(data)
        ids = np.frombuffer(data["ids"], dtype=_ID)
        rows = {key: _by_row(data[key], len(ids)) for key in ("numbers", "halves") if key in data}
        gone = np.frombuffer(data.get("gone", b""), dtype=_ID)
        out = []
        at, left = self.of_ids(ids), self.of_ids(gone)
        for shard in range(self.of):
            (mine,), (away,) = (at == shard).nonzero(), (left == shard).nonzero()
            if len(mine) or len(away):
                part = {"width": data["width"], "ids": ids.take(mine).tobytes()}
                part |= {key: each.take(mine, axis=0).tobytes() for key, each in rows.items()}
                if len(away):
                    part["gone"] = gone.take(away).tobytes()
                out.append((shard, part))
        return out

    def _tables(self, rows: Rows) -> list[tuple[int, Any]]:
        ids, numbers = rows.ids, rows.numbers
        at = self.of_ids(ids)
        return [(s, Rows(ids[at == s], numbers[at == s])) for s in distinct(at).tolist()]


def _by_row(numbers: bytes, n: int) -> npt.NDArray[np.uint8]:
    """Return the bytes of ``n`` rows' numbers, one row in each line."""
    return np.frombuffer(numbers, dtype=np.uint8).reshape(n, len(numbers) // max(n, 1))


def joined(parts: Sequence[Mapping[str, WireBlock]]) -> dict[str, WireBlock]:
    """Join the blocks of all shards' messages; the digest is shard 0's."""
    out: dict[str, WireBlock] = {}
    for part in parts:
        for name, block in part.items():
            mine = out.get(name)
            if mine is None:
                out[name] = block
            elif block.kind == ADDITIVE:
                out[name] = WireBlock(ADDITIVE, {**mine.data, **block.data})
            elif block.kind == ROWS:
                out[name] = WireBlock(ROWS, _joined_rows(mine.data, block.data))
    return out


def _joined_rows(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, Any]:
    both = {key: a[key] + b[key] for key in ("ids", "numbers")}
    gone = a.get("gone", b"") + b.get("gone", b"")
    return {"width": a["width"], **both, **({"gone": gone} if gone else {})}


def joined_blocks(parts: Sequence[Blocks]) -> Blocks:
    """Join the blocks of all shards' states, without what bounded tables have sighted."""
    out = joined_ranks(parts)
    for part in parts:
        for name, block in part.items():
            if name.startswith(KEPT):
                continue
            mine = out.get(name)
            if mine is None:
                out[name] = block
            elif block.kind == ADDITIVE:
                out[name] = Block(ADDITIVE, {**mine.data, **block.data})
            elif block.kind == ROWS:
                both = mine.data, block.data
                ids, numbers = ([getattr(one, kind) for one in both] for kind in ("ids", "numbers"))
                out[name] = Block(ROWS, Rows(np.concatenate(ids), np.concatenate(numbers)))
    return out


@dataclass(frozen=True, slots=True)
class _Told:
    """A control row with the payload that a shard sees."""

    seq: int
    kind: str
    key: str
    payload: bytes


class ShardStore:
    """The model's store as a shard other than 0 sees it.

    The head is the shard's own.  Control rows are the model's, but name the shard's own snapshots.
    The shard writes no control row and removes no row; shard 0 removes rows that all shards have.
    """

    def __init__(self, store: Store, shard: int) -> None:
        self._store, self._shard = store, shard

    def head(self, model: str, spec: str) -> HeadInfo:
        """Return the shard's own head."""
        return self._store.head(shard_name(model, self._shard), spec)

    def begin_epoch(self, model: str, spec: str, expected: int) -> int:
        """Take the shard's own next epoch."""
        return self._store.begin_epoch(shard_name(model, self._shard), spec, expected)

    def move_head(self, model: str, spec: str, epoch: int, snapshot: str) -> None:
        """Point the shard's own head at a snapshot."""
        self._store.move_head(shard_name(model, self._shard), spec, epoch, snapshot)

    def partition(self, partition: int) -> PartitionInfo | None:
        """Return the partition, or None if it is unknown."""
        return self._store.partition(partition)

    def partitions(self, model: str) -> Sequence[PartitionInfo]:
        """Return all partitions of the model, by id."""
        return self._store.partitions(model)

    def follow(self, model: str, after: int, n: int) -> Any:
        """Return rows of the model in the store's commit order."""
        return self._store.follow(model, after, n)

    def controls(self, model: str, after: int) -> Sequence[ControlInfo]:
        """Return the model's control rows; the snapshots that they name are the shard's own."""
        return [self._told(control) for control in self._store.controls(model, after)]

    def _told(self, control: ControlInfo) -> ControlInfo:
        if control.kind not in REWRITES:
            return control
        note = msgspec.json.decode(control.payload)
        parts = note.get("parts", ())
        if len(parts) <= self._shard:  # written when there were fewer shards
            return control
        payload = msgspec.json.encode({**note, "snapshot": parts[self._shard]})
        return _Told(control.seq, control.kind, control.key, payload)

    def write_control(self, *_: object) -> tuple[ControlInfo, bool]:
        """Raise PermissionError: only shard 0 decides."""
        raise PermissionError(f"shard {self._shard} decides nothing: ask shard 0")

    def newest_line(self) -> LineInfo | None:
        """Return the last line of the log of decisions."""
        return self._store.newest_line()

    def run(self, *_: object) -> int:
        """Do nothing: shard 0 counts the running time."""
        return 0

    def trim(self, *_: object, **__: object) -> int:
        """Do nothing: shard 0 removes rows that all shards have."""
        return 0

    def expire(self, *_: object, **__: object) -> int:
        """Do nothing: shard 0 expires rows."""
        return 0
