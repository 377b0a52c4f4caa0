"""The record of a choice: what travels in its token, stands in its row, and is never chosen again.

It says among which actions was chosen, how likely each was, and which one it was.  The draw itself
follows from a nonce (:func:`online.decide.policy.uniform`), so nothing random is left when the
reward comes.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Final

import msgspec

from online.errors import OnlineError
from replay.example import Features

_FORMAT: Final = 1
_LEVEL: Final = 1  # names repeat from action to action: most of them go with the cheapest level
_BYTES_MAX: Final = 16 << 20  # of a record, unpacked: more than any body may bring


class RecordInvalid(OnlineError):
    """No record of a choice that this version can read."""

    reason: str
    text = "a choice can't be read: {reason}"


class Choice(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One choice, as it was made.

    Attributes
    ----------
    context
        Features of the moment; empty if there were none.
    actions
        Id and features of each action, in the caller's order.
    excluded
        Places of the actions that the caller did not allow.
    chosen
        Place of the action that was answered.
    probabilities
        Of each action, by the policy that answered; 0 for those not allowed.
    estimates
        Reward that the model expected of each action.
    policy
        Kind of the policy and a hash of its settings.
    baseline
        Place of the action that the caller would have taken by itself; None: it did not say.
    drawn
        Place of the action that the policy would have answered, where it only learns from the
        caller's; None: it is the one that was answered.
    deferred
        Nobody has said yet that the answer was used: without a reward it is worth nothing.
    defaulted
        The row's reward is the default: none came in time.
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


_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder(Choice).decode


def pack(choice: Choice) -> bytes:
    """The record as bytes: a format byte, then msgpack, deflated."""
    return bytes([_FORMAT]) + zlib.compress(_encode(choice), _LEVEL)


def unpack(data: bytes) -> Choice:
    """The choice that :func:`pack` was given.  Raises RecordInvalid."""
    if data[:1] != bytes([_FORMAT]):
        raise RecordInvalid(f"its format is {data[0] if data else None}, not {_FORMAT}")
    try:
        inflate = zlib.decompressobj()
        plain = inflate.decompress(memoryview(data)[1:], _BYTES_MAX)
        if not inflate.eof:
            raise RecordInvalid("it is cut off, or too long")
        choice = _decode(plain)
    except (zlib.error, msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise RecordInvalid(str(error)) from None
    n = len(choice.actions)
    if not (n == len(choice.probabilities) == len(choice.estimates) and 0 <= choice.chosen < n):
        raise RecordInvalid("its parts do not fit each other")
    return choice
