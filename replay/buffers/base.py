"""The interface of a buffer, and the format of its state.

A buffer is derived from the journal: inserting the same items in the same order into a buffer with
the same settings and seed gives the same buffer, bit for bit.  It is rebuilt that way, or faster
from its last state and the rows after it.  ``tests/conformance`` runs
:func:`buffer_checks.check_buffer` against every policy.
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
"""Greatest number of items in one compartment; about 1 GB with nine features each."""

NONE = Slots()
"""Stands for a compartment that a policy does not have; always empty."""

Settings = dict[str, int | float]


class _Kept(msgspec.Struct, array_like=True):
    policy: str
    settings: Settings
    body: msgspec.Raw


_encoder = msgspec.msgpack.Encoder()
_kept = msgspec.msgpack.Decoder(_Kept)
_Body = TypeVar("_Body")


class Buffer(ABC):
    """A bounded buffer of items.

    Insert takes O(1), sample O(k) and purge O(items of the source), at any length of the stream.
    Not thread-safe.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    @property
    @abstractmethod
    def parts(self) -> tuple[Slots, Slots]:
        """The long-term and the recent compartment, for reading only."""

    @property
    @abstractmethod
    def capacity(self) -> int:
        """The greatest number of items in the buffer."""

    @abstractmethod
    def insert(self, item: Item) -> Item | None:
        """Offer ``item``; return the item that is not in the buffer as a result.

        That is ``item`` itself if it was not taken, the item that it replaced, or None if there was
        a free slot.  A purge frees slots, which the next items fill.
        """

    @abstractmethod
    def purge(self, source: str) -> int:
        """Remove every item of the source; return how many."""

    def sample(self, k: int, rng: Random, retrieval: Retrieval = uniform) -> list[Item]:
        """Return ``k`` distinct items drawn by ``retrieval``, or all items if there are fewer.

        Changes nothing but the caller's ``rng``.
        """
        return retrieval(*self.parts, k, rng)

    def state(self) -> bytes:
        """Return the whole buffer as bytes, with its random generator.  O(n)."""
        body = msgspec.Raw(_encoder.encode(self._body()))
        kept = _Kept(type(self).__name__, self.settings, body)
        return bytes([FORMAT]) + _encoder.encode(kept)

    def restore(self, state: bytes) -> None:
        """Replace the content by ``state``, so that the buffer continues exactly from there.  O(n).

        Raises:
            StateMismatch: The state is of another policy or other settings.
            StateInvalid: The state has another format or cannot be decoded.
        """
        if state[:1] != bytes([FORMAT]):
            raise StateInvalid(f"its first byte is {state[:1]!r}, format {FORMAT} is known")
        kept = unpacked(_kept, memoryview(state)[1:])
        here = {"policy": type(self).__name__, **self.settings}
        stored = {"policy": kept.policy, **kept.settings}
        for setting in sorted({*here, *stored}, key=lambda name: (name != "policy", name)):
            value, expected = stored.get(setting), here.get(setting)
            if value != expected:
                raise StateMismatch(setting, repr(value), repr(expected))
        self._restore(kept.body)

    @abstractmethod
    def _body(self) -> object:
        """Return the policy's state for msgpack."""

    @abstractmethod
    def _restore(self, body: msgspec.Raw) -> None:
        """Restore the policy's state, or raise StateInvalid and change nothing."""

    def __len__(self) -> int:
        long, recent = self.parts
        return len(long) + len(recent)

    def __iter__(self) -> Iterator[Item]:
        """Iterate over all items in arbitrary order."""
        long, recent = self.parts
        return chain(long.items, recent.items)


def unpacked(
    decoder: msgspec.msgpack.Decoder[_Body], data: bytes | memoryview | msgspec.Raw
) -> _Body:
    """Decode ``data``; raise StateInvalid if it cannot be decoded."""
    try:
        return decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise StateInvalid(str(error)) from error


def rng_state(rng: Random) -> list[int]:
    """Return a generator's state as 625 integers of 32 bits (Mersenne Twister and position)."""
    return list(rng.getstate()[1])


def rng_of(state: list[int]) -> Random:
    """Return a generator with the state that :func:`rng_state` returned."""
    rng = Random(0)
    try:
        rng.setstate((rng.VERSION, tuple(state), None))
    except (ValueError, OverflowError, TypeError) as error:
        raise StateInvalid(f"no state of a random generator: {error}") from error
    return rng


def checked_capacity(capacity: int) -> int:
    """Return ``capacity``; raise SettingInvalid unless it is in 1 … ``CAPACITY_MAX``."""
    if not 1 <= capacity <= CAPACITY_MAX:
        raise SettingInvalid("capacity", str(capacity), f"give 1 to {CAPACITY_MAX} items")
    return capacity


def items_of_share(setting: str, share: float, capacity: int) -> int:
    """Return ``share · capacity`` rounded down; raise SettingInvalid outside of [0, 1]."""
    if not 0 <= share <= 1:
        raise SettingInvalid(setting, repr(share), "give a share of the capacity from 0 to 1")
    return int(share * capacity + 1e-9)  # .29 * 100 is 28.999…
