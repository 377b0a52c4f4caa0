"""Messages between a replica and the parameter server, as msgpack.

Everything that crosses is one of the structs below, encoded by :func:`encode` and checked field
by field when decoded.  ``FORMAT`` is in every message; another format is refused.
"""

from __future__ import annotations

from typing import Any

import msgspec

FORMAT = 4

Version = tuple[int, int]
"""``(epoch, count)``: the server's epoch and the number of pushes it has applied in all."""


Place = tuple[str, int]
"""Where a part of the values begins: a block's name, and how many of its keys come before."""


Curved = dict[str, dict[str, tuple[float, float]]]
"""By block and key: the value that the delta started from, and Σ rate · squared gradient of its
rows."""


class Mark(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A row with a text about it, for whoever gets the row's values (a trace that it is part of).

    ``at_ns`` is when it was learned, by the clock of the replica that did.
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
    """A delta: rows ``first … last`` of one partition, ``n`` of them learned.

    ``base`` is the version that the delta's first row was learned on; the difference between the
    server's count and it is the staleness.  Bounds and content stay as first sent.  ``curved`` is
    read under the rule ``compensated`` only; what is not in it is averaged.
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
    """The state that a model has after a prefix of its rows in commit order, of all partitions.

    Attributes:
        base, position: The values of ``blocks`` are all that rows with ``base < seq <= position``
            have changed; base 0: all values.
        clock: Last offset of each partition within the prefix.
        blocks: Values, not deltas.
    """

    epoch: int
    spec: str
    base: int
    position: int
    clock: dict[int, int]
    blocks: dict[str, WireBlock]


class SyncRequest(msgspec.Struct, frozen=True, array_like=True):
    """Pushes (applied in order) and the wish for what has changed since ``since``.

    Attributes:
        since: Version of the values that the replica holds; None asks for all.
        values: False leaves the blocks out of the answer (clocks only).
        report: Counters of the replica (disposable), shown by every replica's ``/metrics``.
        adopting: Partitions that the replica is learning again: they are given to nobody else.
        control: The newest control row that the replica acts on, of those that replies have told
            it: all that it wrote before is committed and pushed.
        adopts: Whether it may be asked to adopt partitions.  One that learns nothing itself may
            not.
        role: ``ordered``: it learns the model's rows in commit order, and needs the whole clock
            beside all values.  ``host``: it can run a process that does.  Of the replicas of a role
            one is told that it is the ``keeper``.
        state: What such a replica has learned; None: nothing to say.
        marks: Of rows in the pushes that somebody looks after.
        waits: Partitions of which the server has to have rows first: their clocks are told though
            they may be finished, and orphans among them are adopted beside others.
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


class Ack(msgspec.Struct, frozen=True, array_like=True):
    """Answer to one push: ``applied``, ``repeat``, ``gap``, ``epoch`` or ``spec``.

    ``clock`` is the partition's clock after it (``clock + 1`` is the offset expected next);
    ``scale`` the factor that the merge rule gave the additive blocks.
    """

    status: str
    partition: int
    clock: int
    scale: float


class SyncReply(msgspec.Struct, frozen=True, array_like=True):
    """State of the server after the pushes; every field is of the one same version.

    Attributes:
        kind: ``changes`` (only blocks and keys changed since ``since``), ``all``, ``part`` (of
            values that are too many for one message), or ``none`` (values were not asked for).
        clock: Last offset applied by open partition.  ``closed`` lists those among the replica's
            named partitions that are closed: all of their rows are in every snapshot kept.
        durable: Clock of the newest published snapshot.
        orphans: Partitions that this replica is asked to adopt.
        confirmed_ms: How long ago the server saw its own epoch to be the newest in the store, in
            ms.
        rewrite: Number of the control row that rewrote the values last (0: none).  A replica that
            sees another one drops its deltas and learns its rows from the clock on.
        control: The newest control row that the values contain.
        frozen: New rows are written as ``frozen``, and nothing is pushed.
        since: Version that the changes are counted from; of a part, the version of the first one.
        pieces, start, after: Of a part: its values as of this reply's version, each piece to be
            read by :func:`decode_piece`; where it begins (None: it is the first), and where the
            next one does (None: it is the last).  No part holds a key as it was before ``since``,
            so all parts and then the changes since ``since`` are the values of one version.
        reached: Of a part: with its ``blocks`` on top of it and of those before it, all of them are
            as of this version, and ``since`` is counted from it.  None: they are as they were.
        position, learned: Of a model that is learned in order: the last ``seq`` that the values
            contain, and how many rows they have learned.
        keeper: This replica is asked to do what its role is.
        peer: The replica that answers in the server's place: it tells what it pulled last, takes no
            push, and makes nothing durable.  Empty: the server.
        marks: Those of others' rows that are in the values and were not in those of ``since``.
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


def encode(message: msgspec.Struct) -> bytes:
    """Message as msgpack bytes."""
    return msgspec.msgpack.encode(message)


_REQUEST = msgspec.msgpack.Decoder(SyncRequest)
_REPLY = msgspec.msgpack.Decoder(SyncReply)
_PIECE = msgspec.msgpack.Decoder(dict[str, WireBlock])


def decode_request(data: bytes) -> SyncRequest:
    """Checked request; ``msgspec.ValidationError`` names the wrong field."""
    return _REQUEST.decode(data)


def decode_reply(data: bytes) -> SyncReply:
    """Checked reply; ``msgspec.ValidationError`` names the wrong field."""
    return _REPLY.decode(data)


def encode_piece(blocks: dict[str, WireBlock]) -> bytes:
    """Some of the values, as msgpack bytes."""
    return msgspec.msgpack.encode(blocks)


def decode_piece(data: bytes) -> dict[str, WireBlock]:
    """Checked piece; ``msgspec.ValidationError`` names the wrong field."""
    return _PIECE.decode(data)
