"""The record of a choice: what travels in its token, stands in its row, and is never chosen again.

It says among which actions was chosen, how likely each was, and which one it was.  The draw itself
follows from a nonce (:func:`online.decide.policy.uniform`), so nothing random is left when the
reward comes.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from typing import Final

import msgspec

from online.errors import OnlineError
from replay.example import Features, Value

_DEFLATED: Final = 1
_COLUMNS: Final = 2
_FLOATS: Final[set[type]] = {float}
_LEVEL: Final = 1  # names repeat from action to action: most of them go with the cheapest level
_BYTES_MAX: Final = 16 << 20  # of a record, unpacked: more than any body may bring


class RecordInvalid(OnlineError):
    """No record of a choice that this version can read."""

    reason: str
    text = "a choice can't be read: {reason}"


class Given(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One reward of a choice that takes several.

    Attributes:
        named: Its own id, by which a repeat is known; None: it has none.
        source: Who sent it.
        values: By name; a plain number has an empty one.
        event_time: POSIX seconds; None if unknown.
        nonce: Tells two that are alike in all else from one that was written twice.
    """

    named: str | None
    source: str
    values: dict[str, float]
    event_time: float | None = None
    nonce: str = ""


class Choice(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One choice, as it was made.

    Attributes:
        context: Features of the moment; empty if there were none.
        actions: Id and features of each action, in the caller's order.
        excluded: Places of the actions that the caller did not allow.
        chosen: Place of the action that was answered.
        probabilities: Of each action, by the policy that answered; 0 for those not allowed.
        estimates: Reward that the model expected of each action.
        policy: Kind of the policy and a hash of its settings.
        baseline: Place of the action that the caller would have taken by itself; None: it did not
            say.
        drawn: Place of the action that the policy would have answered, where it only learns from
            the caller's; None: it is the one that was answered.
        deferred: Nobody has said yet that the answer was used: without a reward it is worth
            nothing.
        defaulted: The row's reward is the default: none came in time.
        rewards: What came so far, where several are learned as one.
    """

    context: Features
    actions: tuple[tuple[str, Features], ...]
    excluded: tuple[int, ...]
    chosen: int
    probabilities: tuple[float, ...]
    estimates: tuple[float, ...]
    policy: str
    baseline: int | None = None
    drawn: int | None = None
    deferred: bool = False
    defaulted: bool = False
    rewards: tuple[Given, ...] = ()

    @property
    def action(self) -> str:
        """Id of the action that was answered."""
        return self.actions[self.chosen][0]

    @property
    def propensity(self) -> float:
        """How likely the answered action was, above 0."""
        return self.probabilities[self.chosen]

    def asks_as(self, other: Choice) -> bool:
        """Whether both were asked the same question."""
        mine = self.context, self.actions, self.excluded, self.baseline
        return mine == (other.context, other.actions, other.excluded, other.baseline)

    def ranking(self) -> Sequence[int]:
        """Places of all actions: the answered one, then the likelier and the better first."""
        chosen, p, means = self.chosen, self.probabilities, self.estimates
        return sorted(range(len(p)), key=lambda i: (i != chosen, -p[i], -means[i], i))


class _Columns(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A choice whose actions have the same names and only floats: little is left to deflate.

    ``numbers`` are doubles, the lowest byte first, one action after the other.
    """

    choice: Choice
    ids: tuple[str, ...]
    names: tuple[str, ...]
    numbers: bytes


_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder(Choice).decode
_decode_columns: Final = msgspec.msgpack.Decoder(_Columns).decode


def pack(choice: Choice, columns: tuple[tuple[str, ...], bytes] | None = None) -> bytes:
    """The record as bytes: a format byte, then msgpack, deflated unless it is mostly floats.

    ``columns`` are the actions' names and numbers, where somebody has them as they are kept.
    """
    columns = columns or _columns_of(choice)
    if columns is None:
        return bytes([_DEFLATED]) + zlib.compress(_encode(choice), _LEVEL)
    ids = tuple([action for action, _ in choice.actions])
    encoded = _encode(_Columns(msgspec.structs.replace(choice, actions=()), ids, *columns))
    return bytes([_COLUMNS]) + zlib.crc32(encoded).to_bytes(4, "little") + encoded


def _columns_of(choice: Choice) -> tuple[tuple[str, ...], bytes] | None:
    """Names and numbers of the actions; None: they differ, or not all are floats."""
    names, flat = tuple(choice.actions[0][1]), list[Value]()
    for _, features in choice.actions:
        if tuple(features) == names:
            flat += features.values()
    whole = names and len(flat) == len(names) * len(choice.actions)
    if not whole or set(map(type, flat)) != _FLOATS:
        return None
    return names, struct.pack(f"<{len(flat)}d", *flat)


def unpack(data: bytes, *, described: bool = True) -> Choice:
    """The choice that :func:`pack` was given; its actions need not be ``described``.

    Raises RecordInvalid.
    """
    try:
        if data[:1] == bytes([_DEFLATED]):
            choice = _inflated(data)
        elif data[:1] == bytes([_COLUMNS]):
            choice = _of_columns(data, described=described)
        else:
            raise RecordInvalid(f"its format is {data[0] if data else None}, not 1 or 2")
    except (zlib.error, struct.error, msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise RecordInvalid(str(error)) from None
    n = len(choice.actions)
    if not (n == len(choice.probabilities) == len(choice.estimates) and 0 <= choice.chosen < n):
        raise RecordInvalid("its parts do not fit each other")
    return choice


def _inflated(data: bytes) -> Choice:
    inflate = zlib.decompressobj()
    plain = inflate.decompress(memoryview(data)[1:], _BYTES_MAX)
    if not inflate.eof:
        raise RecordInvalid("it is cut off, or too long")
    return _decode(plain)


def _of_columns(data: bytes, *, described: bool) -> Choice:
    encoded = memoryview(data)[5:]
    if zlib.crc32(encoded).to_bytes(4, "little") != data[1:5]:
        raise RecordInvalid("its checksum does not fit")
    columns = _decode_columns(encoded)
    names, ids = columns.names, columns.ids
    if not described:
        return msgspec.structs.replace(columns.choice, actions=tuple([(id, {}) for id in ids]))
    flat = struct.unpack(f"<{len(ids) * len(names)}d", columns.numbers)
    rows = (flat[i : i + len(names)] for i in range(0, len(flat), len(names)))
    features: list[Features] = [dict(zip(names, row, strict=True)) for row in rows]
    actions = tuple(zip(ids, features, strict=False))
    return msgspec.structs.replace(columns.choice, actions=actions)
