"""This module says what a buffer promises, and in which form its state is kept.

A buffer is a view of the journal: the same items inserted in the same order into a buffer with
the same settings and seed give the same buffer, bit for bit.  It is made again by doing so, or
faster from its last state and the rows after it.  ``tests/conformance`` walks every policy over
:func:`buffer_checks.check_buffer`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from itertools import chain
from random import Random
from typing import TypeVar

import msgspec

from replay.buffers.item import Item
from replay.buffers.slots import Slots
from replay.errors import SettingInvalid, StateInvalid, StateMismatch
from replay.retrieval import Retrieval, uniform

FORMAT = 1
"""First byte of a state."""

CAPACITY_MAX = 10_000_000
"""Most items of one compartment; about 1 GB with nine features each."""

NONE = Slots()
"""The compartment that a policy does not have.  Never filled."""

Settings = dict[str, int | float]


class _Kept(msgspec.Struct, array_like=True):
    policy: str
    settings: Settings
    body: msgspec.Raw


_encoder = msgspec.msgpack.Encoder()
_kept = msgspec.msgpack.Decoder(_Kept)
_Body = TypeVar("_Body")


class Buffer(ABC):
    """A bounded memory of items.

    Insert is O(1), sample O(k) and purge O(items of the source), at any length of the stream.
    Not safe to call from several threads.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    @property
    @abstractmethod
    def parts(self) -> tuple[Slots, Slots]:
        """Long-term and recent compartment, to be read."""

    @property
    @abstractmethod
    def capacity(self) -> int:
        """Return how many items the buffer holds at most."""

    @abstractmethod
    def insert(self, item: Item) -> Item | None:
        """Offer ``item``; what is not kept any more.

        That is ``item`` itself if it was not taken, the one that made room for it, or None if
        there was room.  A purge makes room, which the next items fill.
        """

    @abstractmethod
    def purge(self, source: str) -> int:
        """Remove every item of the source; how many there were."""

    def sample(self, k: int, rng: Random, retrieval: Retrieval = uniform) -> list[Item]:
        """``k`` different items as ``retrieval`` draws them; all items if there are fewer.

        Changes nothing but ``rng``, which is the caller's.
        """
        return retrieval(*self.parts, k, rng)

    def state(self) -> bytes:
        """The whole buffer, its random generator too.  O(n)."""
        body = msgspec.Raw(_encoder.encode(self._body()))
        kept = _Kept(type(self).__name__, self.settings, body)
        return bytes([FORMAT]) + _encoder.encode(kept)

    def restore(self, state: bytes) -> None:
        """Go on exactly where the buffer was that gave ``state``.  O(n).

        Raises:
            StateMismatch: Another policy or other settings.
            StateInvalid: Another format, or bytes that are no state.
        """
        if state[:1] != bytes([FORMAT]):
            raise StateInvalid(f"its first byte is {state[:1]!r}, format {FORMAT} is known")
        kept = unpacked(_kept, memoryview(state)[1:])
        here = {"policy": type(self).__name__, **self.settings}
        there = {"policy": kept.policy, **kept.settings}
        for setting in sorted({*here, *there}, key=lambda name: (name != "policy", name)):
            found, expected = there.get(setting), here.get(setting)
            if found != expected:
                raise StateMismatch(setting, repr(found), repr(expected))
        self._restore(kept.body)

    @abstractmethod
    def _body(self) -> object:
        """Return what msgpack writes of this policy."""

    @abstractmethod
    def _restore(self, body: msgspec.Raw) -> None:
        """Take over a body, or raise StateInvalid and change nothing."""

    def __len__(self) -> int:
        long, recent = self.parts
        return len(long) + len(recent)

    def __iter__(self) -> Iterator[Item]:
        """Every item once, in no order that means anything."""
        long, recent = self.parts
        return chain(long.items, recent.items)


def unpacked(
    decoder: msgspec.msgpack.Decoder[_Body], data: bytes | memoryview | msgspec.Raw
) -> _Body:
    """Return what ``data`` holds; raise StateInvalid if it is something else."""
    try:
        return decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise StateInvalid(str(error)) from error


def rng_state(rng: Random) -> list[int]:
    """A generator as plain numbers (625 of 32 bits: a Mersenne Twister and its position)."""
    return list(rng.getstate()[1])


def rng_of(state: list[int]) -> Random:
    """The generator that :func:`rng_state` was given."""
    rng = Random(0)
    try:
        rng.setstate((rng.VERSION, tuple(state), None))
    except (ValueError, OverflowError, TypeError) as error:
        raise StateInvalid(f"no state of a random generator: {error}") from error
    return rng


def checked_capacity(capacity: int) -> int:
    """Return ``capacity``, or raise SettingInvalid if it is not from 1 to ``CAPACITY_MAX``."""
    if not 1 <= capacity <= CAPACITY_MAX:
        raise SettingInvalid("capacity", str(capacity), f"give 1 to {CAPACITY_MAX} items")
    return capacity


def items_of_share(setting: str, share: float, capacity: int) -> int:
    """``share`` of the capacity in whole items, rounded down; SettingInvalid outside of [0, 1]."""
    if not 0 <= share <= 1:
        raise SettingInvalid(setting, repr(share), "give a share of the capacity from 0 to 1")
    return int(share * capacity + 1e-9)  # .29 * 100 is 28.999…
