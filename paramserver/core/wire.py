"""Messages between a replica and the parameter server, as msgpack.

Every message is one of the structs below, encoded by :func:`encode` and type-checked field by field
when decoded.  Every message carries ``FORMAT``; another format is refused.
"""

from __future__ import annotations

from typing import Any

import msgspec

FORMAT = 6

Version = tuple[int, int]
"""``(epoch, count)``: the server's epoch, and the number of pushes ever applied."""


Place = tuple[str, int]
"""Where a part of the values begins: a block's name and a position among its keys."""


Passed = tuple[int, int, int]
"""Where changed rows are in memory that is shared: their first byte, size and checksum."""


Curved = dict[str, dict[str, tuple[float, float]]]
"""Block → key → (value that the delta started from, Σ rate · squared gradient over its rows)."""


class Mark(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The trace context of a row, passed on to replicas that pull the row's effect.

    ``at_ns`` is the time at which the row was learned, by the clock of the replica that did.
    """

    partition: int
    offset: int
    context: str
    at_ns: int


class WireBlock(msgspec.Struct, frozen=True, array_like=True):
    """A block as ``(kind, data)``; see :mod:`paramserver.core.blocks` for the kinds."""

    kind: str
    data: Any


class Push(msgspec.Struct, frozen=True, array_like=True):
    """A delta: the effect of rows ``first … last`` of one partition, ``n`` of them learned.

    ``base`` is the version that the delta's first row was learned on; the server's count minus the
    base's is the staleness.  A repeated push has the same bounds and content as the first one.
    ``curved`` is read under the rule ``compensated`` only; keys that are not in it are averaged.
    """

    epoch: int
    spec: str
    partition: int
    first: int
    last: int
    n: int
    base: Version
    blocks: dict[str, WireBlock]
    curved: Curved = {}


class OrderedState(msgspec.Struct, frozen=True, array_like=True):
    """The state of a model that learned its rows in commit order, up to a position.

    Attributes:
        base, position: ``blocks`` holds all values that rows with ``base < seq <= position`` have
            changed; with base 0 all values.
        clock: Last offset of each partition up to that position.
        blocks: Values, not deltas.
    """

    epoch: int
    spec: str
    base: int
    position: int
    clock: dict[int, int]
    blocks: dict[str, WireBlock]


class SyncRequest(msgspec.Struct, frozen=True, array_like=True):
    """A replica's request: pushes, applied in order, and a pull of the changes since ``since``.

    Attributes:
        replica, partition: Name of the replica, and the partition that it writes.
        pushes: Deltas to apply, in this order.
        since: Version of the values that the replica holds; None requests all values.
        values: False leaves the blocks out of the reply (clocks only).
        adopting: Partitions whose rows the replica is learning again; no other replica is asked to
            adopt them.
        report: Counters of the replica (disposable), shown by every replica's ``/metrics``.
        control: The newest control row from replies that the replica acts on: all rows that it
            wrote before acting on it are committed and pushed.
        after: Start of the part of the values requested next; None: no part.
        adopts: Whether it may be asked to adopt partitions.  A replica that learns nothing may not.
        role: ``ordered``: it learns the model's rows in commit order, and needs the whole clock
            beside all values.  ``host``: it can run a process that does.  In each role the server
            chooses one replica as the ``keeper``.
        state: State that a replica with the role ``ordered`` has learned; None: nothing new.
        marks: Trace contexts of rows in the pushes.
        waits: Partitions whose rows this replica waits for: the reply includes their clocks even if
            they are finished, and orphans among them are adopted in addition to others.
        rows: By table, ids (eight bytes each, little-endian) of rows that are requested; the reply
            then has no other rows of tables but changed ones.  None: the replica holds all rows.
        serial: With ``rows``: number of the request, which rises; 0: the replica does not report
            what it drops, and so receives all changed rows.
        left: By table, ids of rows that were requested before, and are not held any more.
        host: Name of the folder in which the replica reads a server's shared tables.  If it is the
            answering server's, changed rows may be passed in shared memory.
    """

    format: int
    replica: str
    partition: int
    pushes: list[Push]
    since: Version | None
    values: bool
    adopting: list[int]
    report: dict[str, float] | None = None
    control: int = 0
    after: Place | None = None
    adopts: bool = True
    role: str = ""
    state: OrderedState | None = None
    marks: list[Mark] = []
    waits: list[int] = []
    rows: dict[str, bytes] | None = None
    serial: int = 0
    left: dict[str, bytes] = {}
    host: str = ""


class Ack(msgspec.Struct, frozen=True, array_like=True):
    """Outcome of one push: ``applied``, ``repeat``, ``gap``, ``epoch`` or ``spec``.

    ``clock`` is the partition's clock after it (``clock + 1`` is the offset expected next), and
    ``scale`` is the factor by which the merge rule scaled the additive blocks.
    """

    status: str
    partition: int
    clock: int
    scale: float


class SyncReply(msgspec.Struct, frozen=True, array_like=True):
    """State of the server after the pushes; all fields are of one version.

    Attributes:
        epoch, count: The version.
        acks: Outcomes of the pushes, in their order.
        kind: ``changes`` (only blocks and keys changed since ``since``), ``all``, ``part`` (of
            values that are too large for one message), or ``none`` (no values were requested).
        blocks: The values, or the changed ones.
        clock: Last offset applied, by open partition.
        closed: Partitions that the request named and that are closed: every kept snapshot contains
            all of their rows.
        durable: Clock of the newest published snapshot.
        orphans: Partitions that this replica is asked to adopt.
        confirmed_ms: Time since the server last confirmed in the store that its epoch is the
            newest, in ms.
        rewrite: Number of the control row that last rewrote the values (0: none).  A replica that
            sees it change drops its deltas and learns its rows again from the clock on.
        control: The newest control row that the values contain.
        frozen: Whether new rows are to be written as ``frozen`` and nothing is pushed.
        since: Version that the changes are relative to; in a part, the version of the first part.
        pieces, start, after: In a part: its values as of this reply's version, each piece encoded
            for :func:`decode_piece`; where the part begins (None: the first part), and where the
            next one does (None: this is the last).  No part holds a key as it was before ``since``,
            so all parts followed by the changes since ``since`` are the values of one version.
        reached: In a part: its ``blocks``, on top of this and all earlier parts, bring them to this
            version, which replaces ``since``.  None: earlier parts stay as they are.
        position, learned: With a model learned in commit order: the last ``seq`` that the values
            contain.  With any model: the number of events that the values have learned.
        keeper: Whether this replica is the one chosen for its role.
        peer: Name of the replica that answers in the server's place, with the values of its last
            pull; it applies no push and makes nothing durable.  Empty: the server answers.
        marks: Trace contexts of other replicas' rows that were applied since ``since``.
        rows: If rows were requested by id: those, and the rows changed since ``since`` that the
            replica may hold; blocks has none.  Requested ids without a row are in ``gone``.
        passed: With changes: where the changed rows are in the host's memory, oldest first; blocks
            has none (:mod:`paramserver.snapshots.passed_rows`).  None: blocks has the changed rows.
    """

    format: int
    spec: str
    epoch: int
    count: int
    acks: list[Ack]
    kind: str
    blocks: dict[str, WireBlock]
    clock: dict[int, int]
    closed: list[int]
    durable: dict[int, int]
    orphans: list[int]
    confirmed_ms: float
    rewrite: int = 0
    control: int = 0
    frozen: bool = False
    since: Version | None = None
    pieces: list[bytes] = []
    start: Place | None = None
    after: Place | None = None
    position: int = 0
    learned: int = 0
    keeper: bool = False
    peer: str = ""
    marks: list[Mark] = []
    reached: Version | None = None
    rows: dict[str, WireBlock] = {}
    passed: list[Passed] | None = None


def encode(message: msgspec.Struct) -> bytes:
    """Return the message as msgpack bytes."""
    return msgspec.msgpack.encode(message)


_REQUEST = msgspec.msgpack.Decoder(SyncRequest)
_REPLY = msgspec.msgpack.Decoder(SyncReply)
_PIECE = msgspec.msgpack.Decoder(dict[str, WireBlock])


def decode_request(data: bytes) -> SyncRequest:
    """Return the checked request; a ``msgspec.ValidationError`` names an invalid field."""
    return _REQUEST.decode(data)


def decode_reply(data: bytes) -> SyncReply:
    """Return the checked reply; a ``msgspec.ValidationError`` names an invalid field."""
    return _REPLY.decode(data)


def encode_piece(blocks: dict[str, WireBlock]) -> bytes:
    """Return some of the values as msgpack bytes."""
    return msgspec.msgpack.encode(blocks)


def decode_piece(data: bytes) -> dict[str, WireBlock]:
    """Return the checked piece; a ``msgspec.ValidationError`` names an invalid field."""
    return _PIECE.decode(data)
