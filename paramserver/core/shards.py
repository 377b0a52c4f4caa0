"""Several parameter servers of one model, each a whole one that holds a part of the keys.

Keys of additive blocks and of tables are cut by their hash.  Everything else stands on shard 0:
what is small, what counts, and what judges.  The digest stands on each, for each has applied the
deltas of all rows, be it empty ones.

A shard has an epoch, a clock, a head and snapshots of its own, under a name of its own; the rows,
partitions and decisions of the model are those of all.  Only shard 0 decides.  The others read what
it has decided, as :class:`ShardStore` tells it, and take it in by themselves.
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

from paramserver.core.admission import KEPT
from paramserver.core.blocks import ADDITIVE, DIGEST, OPAQUE, ROWS, Block, Blocks
from paramserver.core.ids import IdArray, distinct
from paramserver.core.rewrites import REWRITES
from paramserver.core.rows import Rows
from paramserver.core.wire import Push, WireBlock
from paramserver.store import ControlInfo, HeadInfo, LineInfo, PartitionInfo, Store

SHARDS_MAX: Final = 64
_LOOKED_AT: Final = 256  # keys of a block: that all of another shard's are one's own is no chance
_FACTOR: Final = np.uint64(0x9E3779B97F4A7C15)  # ids may be small numbers
_HIGH: Final = np.uint64(33)
_ID: Final = np.dtype("<u8")
_NUMBER: Final = np.dtype("<f4")

Ask = Callable[..., Any]
"""Asks another shard's server: name of a method, then its arguments.  May raise anything."""


def shard_name(model: str, shard: int) -> str:
    """Under which name a shard has its head and its place: no model is called so."""
    return f"{model}+{shard}" if shard else model


def shard_place(place: str, shard: int) -> str:
    """Place of a shard's snapshots of all models, under that of shard 0's."""
    if not shard:
        return place
    before, mark, query = place.partition("?")
    return f"{before.rstrip('/')}/+{shard}{mark}{query}"


@dataclass(frozen=True, slots=True)
class Cut:
    """Which keys are whose: shard ``number`` has its part of keys that are cut among ``of``."""

    of: int

    def of_name(self, key: str) -> int:
        """The shard of a key that is a name."""
        return crc32(key.encode()) % self.of

    def of_ids(self, ids: IdArray) -> npt.NDArray[np.int64]:
        """The shard of each id."""
        mixed = (ids.astype(np.uint64, copy=False) * _FACTOR) >> _HIGH
        return (mixed % np.uint64(self.of)).astype(np.int64)

    def blocks(self, blocks: Blocks) -> list[Blocks]:
        """The part of each shard; those that nothing is cut of are shared."""
        out: list[Blocks] = [{} for _ in range(self.of)]
        for name, block in blocks.items():
            to_each = name.startswith(KEPT) and block.kind == OPAQUE  # of a bounded table: to each
            kind = DIGEST if to_each else block.kind
            for shard, data in self._parts(kind, block.data):
                out[shard][name] = Block(block.kind, data)
        return out

    def wire(self, blocks: Mapping[str, WireBlock]) -> list[dict[str, WireBlock]]:
        """The same of blocks as a message holds them."""
        out: list[dict[str, WireBlock]] = [{} for _ in range(self.of)]
        for name, block in blocks.items():
            for shard, data in self._parts(block.kind, block.data):
                out[shard][name] = WireBlock(block.kind, data)
        return out

    def foreign(self, blocks: Blocks, shard: int) -> str | None:
        """Why these can't be the values of that shard, as some of the keys tell; None: they can."""
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
        """A push to each shard, with the same bounds; one that has no part of it gets it empty."""
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
        rows = np.frombuffer(data["numbers"], dtype=_NUMBER).reshape(len(ids), data["width"])
        gone = np.frombuffer(data.get("gone", b""), dtype=_ID)
        out = []
        at, left = self.of_ids(ids), self.of_ids(gone)
        for shard in range(self.of):
            mine, away = at == shard, left == shard
            if mine.any() or away.any():
                part = {"width": data["width"], "ids": ids[mine].tobytes()}
                part["numbers"] = rows[mine].tobytes()
                out.append((shard, part | ({"gone": gone[away].tobytes()} if away.any() else {})))
        return out

    def _tables(self, rows: Rows) -> list[tuple[int, Any]]:
        ids, numbers = rows.ids, rows.numbers
        at = self.of_ids(ids)
        return [(s, Rows(ids[at == s], numbers[at == s])) for s in distinct(at).tolist()]


def joined(parts: Sequence[Mapping[str, WireBlock]]) -> dict[str, WireBlock]:
    """The blocks of a message from those of all shards; of a digest, shard 0's."""
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
    """The same of blocks that a state holds, without what servers alone keep of tables."""
    out: Blocks = {}
    for part in parts:
        for name, block in part.items():
            if name.startswith(KEPT) and block.kind == OPAQUE:
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
    """A control row as a shard is told it."""

    seq: int
    kind: str
    key: str
    payload: bytes


class ShardStore:
    """The model's store as a shard other than 0 sees it.

    Its head is its own.  The decisions are the model's, and name the shard's own snapshots.  It
    writes no decision, and removes no row: shard 0 does, when all have them.
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
        """The partition, or None if it is unknown."""
        return self._store.partition(partition)

    def partitions(self, model: str) -> Sequence[PartitionInfo]:
        """All partitions of the model, by id."""
        return self._store.partitions(model)

    def follow(self, model: str, after: int, n: int) -> Any:
        """Rows of the model in the store's commit order."""
        return self._store.follow(model, after, n)

    def controls(self, model: str, after: int) -> Sequence[ControlInfo]:
        """The model's decisions; a snapshot that one names is the shard's own."""
        return [self._told(control) for control in self._store.controls(model, after)]

    def _told(self, control: ControlInfo) -> ControlInfo:
        if control.kind not in REWRITES:
            return control
        note = msgspec.json.decode(control.payload)
        parts = note.get("parts", ())
        if len(parts) <= self._shard:  # of one server, or of a time when there were fewer
            return control
        payload = msgspec.json.encode({**note, "snapshot": parts[self._shard]})
        return _Told(control.seq, control.kind, control.key, payload)

    def write_control(self, *_: object) -> tuple[ControlInfo, bool]:
        """Raises PermissionError: shard 0 alone decides."""
        raise PermissionError(f"shard {self._shard} decides nothing: ask shard 0")

    def newest_line(self) -> LineInfo | None:
        """The last line of the log of decisions."""
        return self._store.newest_line()

    def run(self, *_: object) -> int:
        """Nothing: shard 0 counts the time."""
        return 0

    def trim(self, *_: object, **__: object) -> int:
        """Nothing: shard 0 removes what all have."""
        return 0

    def expire(self, *_: object, **__: object) -> int:
        """Nothing: shard 0 does."""
        return 0
