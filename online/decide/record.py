"""The record of a choice, which travels in its token and is stored in its row.

It has the actions, their probabilities, and the chosen one.  The draw follows from a nonce
(:func:`online.decide.policy.uniform`), and a replay reads the choice from the record, so that no
choice is ever drawn again.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from operator import neg
from typing import Final

import msgspec

from online.errors import OnlineError
from replay.example import Features, Value

_DEFLATED: Final = 1
_COLUMNS: Final = 2
_FLOATS: Final[set[type]] = {float}
_LEVEL: Final = 1  # the fastest level removes most of the repeated names
_BYTES_MAX: Final = 16 << 20  # of an unpacked record: above the limit of request bodies


class RecordInvalid(OnlineError):
    """A record of a choice that this version can't read."""

    reason: str
    text = "a choice can't be read: {reason}"


class Given(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One reward of a choice that takes several.

    Attributes:
        named: Its own id, by which repeats are detected; None: it has none.
        source: The source that sent it.
        values: Rewards by name; a plain number has the empty name.
        event_time: POSIX seconds; None if unknown.
        nonce: Distinguishes two equal rewards from one that was written twice.
    """

    named: str | None
    source: str
    values: dict[str, float]
    event_time: float | None = None
    nonce: str = ""


class Choice(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One choice, as it was made.

    Attributes:
        context: Features of the context; empty if there were none.
        actions: Id and features of each action, in the caller's order.
        excluded: Indices of the actions that the caller did not allow.
        chosen: Index of the action that was answered.
        probabilities: Probability of each action under the serving policy; 0 if not allowed.
        estimates: Expected reward of each action.
        policy: Kind of the policy and a hash of its settings.
        baseline: Index of the action that the caller would have taken itself; None: not given.
        drawn: For an apprentice, which answers the caller's action: index of the action that the
            policy would have answered; None: it is the one that was answered.
        deferred: Whether the choice was not activated yet: without a reward it is not learned.
        defaulted: Whether the reward is the default, because none came in time.
        rewards: The rewards so far, if several are combined to one.
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
        """Return the id of the action that was answered."""
        return self.actions[self.chosen][0]

    @property
    def propensity(self) -> float:
        """Return the probability of the answered action, above 0."""
        return self.probabilities[self.chosen]

    def asks_as(self, other: Choice) -> bool:
        """Return whether both choices come from the same request."""
        mine = self.context, self.actions, self.excluded, self.baseline
        return mine == (other.context, other.actions, other.excluded, other.baseline)

    def ranking(self) -> Sequence[int]:
        """Return the indices of all actions: the answered one, then by probability and estimate."""
        p, means = map(neg, self.probabilities), map(neg, self.estimates)
        order = [i for _, _, i in sorted(zip(p, means, range(len(self.actions)), strict=True))]
        order.remove(self.chosen)
        return [self.chosen, *order]


class _Columns(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A choice whose actions have the same feature names and only floats, stored without deflate.

    ``numbers`` are little-endian doubles, one action after the other.
    """

    choice: Choice
    ids: tuple[str, ...]
    names: tuple[str, ...]
    numbers: bytes


_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder(Choice).decode
_decode_columns: Final = msgspec.msgpack.Decoder(_Columns).decode


def pack(choice: Choice, columns: tuple[tuple[str, ...], bytes] | None = None) -> bytes:
    """Encode a record: a format byte, then msgpack, deflated unless it is mostly floats.

    ``columns`` are the names and packed numbers of the actions' features, if already known.
    """
    columns = columns or _columns_of(choice)
    if columns is None:
        return bytes([_DEFLATED]) + zlib.compress(_encode(choice), _LEVEL)
    ids = tuple([action for action, _ in choice.actions])
    encoded = _encode(_Columns(msgspec.structs.replace(choice, actions=()), ids, *columns))
    return bytes([_COLUMNS]) + zlib.crc32(encoded).to_bytes(4, "little") + encoded


def _columns_of(choice: Choice) -> tuple[tuple[str, ...], bytes] | None:
    """Return names and packed numbers of the actions; None unless they are alike and all floats."""
    names, flat = tuple(choice.actions[0][1]), list[Value]()
    for _, features in choice.actions:
        if tuple(features) == names:
            flat += features.values()
    whole = names and len(flat) == len(names) * len(choice.actions)
    if not whole or set(map(type, flat)) != _FLOATS:
        return None
    return names, struct.pack(f"<{len(flat)}d", *flat)


def unpack(data: bytes, *, described: bool = True) -> Choice:
    """Decode a record of :func:`pack`; without ``described``, actions may have no features.

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
