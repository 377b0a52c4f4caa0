"""Lines of the audit log: a hash chain, with each line signed by the service's key.

A line has the entry, the hash of the chain up to it, the id of the signing key, and the HMAC of the
hash.  A line that can be verified therefore vouches for all lines before it, also for those whose
key is gone.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final, NamedTuple

import msgspec

from replay.journal.base import Line

ANCHOR: Final = "anchor"
"""The act of a line that replaces trimmed lines."""

_CONTEXT: Final = b"online log of decisions 1"
_KEY_ID_BYTES: Final = 4
_NOTHING: Final = bytes(32)


class Entry(msgspec.Struct, frozen=True, omit_defaults=True):
    """One decision in the audit log.

    Attributes:
        at: POSIX seconds.
        act: The kind of a control row (``freeze``, ``rollback``, ``decide`` …), or ``start``,
            ``settings``, ``pin``, ``relearn``, ``anchor``.
        who: The name of a token, a user of the machine, or ``the service``.
        model: None: the whole service.
        origin: Address of the request; empty: from within the service.
        key: Key of the control row that was written in the same step; empty: none.
        about: Summary of the decision.
    """

    at: float
    act: str
    who: str
    model: str | None = None
    origin: str = ""
    key: str = ""
    about: dict[str, Any] = {}


class _Signed(msgspec.Struct, frozen=True, array_like=True):
    entry: bytes
    chain: bytes
    key_id: bytes
    mac: bytes


class Read(NamedTuple):
    """A line after verification.

    Attributes:
        sha256: Hash of its text.
        sure: Whether a known key has signed it.
        fault: What is wrong with it; None: nothing.
    """

    number: int
    entry: Entry | None
    sha256: str
    sure: bool
    fault: str | None


class Signer:
    """Writes and verifies lines with the service's keys, of which the first one signs.

    Parameters:
        keys: At least one secret of at least 16 bytes.
    """

    def __init__(self, keys: Sequence[bytes]) -> None:
        derived = [hmac.digest(key, _CONTEXT, "sha256") for key in keys]
        self._keys = {_key_id(key): key for key in derived}
        self._id = _key_id(derived[0])

    def line(self, entry: Entry, before: Line | None) -> Line:
        """Make the line after ``before`` (None: the first line)."""
        number = 1 if before is None else before.number + 1
        encoded = msgspec.msgpack.encode(entry)
        last = _NOTHING if before is None else _signed(before).chain
        return Line(number, self._sealed(encoded, _next(last, number, encoded)))

    def anchor(self, entry: Entry, last: Line) -> Line:
        """Make the line that replaces all lines up to and including ``last``."""
        encoded = msgspec.msgpack.encode(entry)
        return Line(last.number, self._sealed(encoded, _signed(last).chain))

    def _sealed(self, entry: bytes, chain: bytes) -> bytes:
        mac = _mac(self._keys[self._id], entry, chain)
        return msgspec.msgpack.encode(_Signed(entry, chain, self._id, mac))

    def read(self, lines: Iterable[Line]) -> Iterator[Read]:
        """Verify lines, beginning with the oldest one that exists."""
        before: bytes | None = None
        wanted = 1
        for line in lines:
            seen = hashlib.sha256(line.text).hexdigest()
            try:
                signed = _signed(line)
                entry = msgspec.msgpack.decode(signed.entry, type=Entry)
            except (msgspec.MsgspecError, UnicodeDecodeError):
                yield Read(line.number, None, seen, False, "it can't be read")
                before, wanted = None, line.number + 1
                continue
            anchored = entry.act == ANCHOR and wanted == 1
            fault = None
            if line.number != wanted and not anchored:
                fault = f"line {wanted} is missing before it"
            elif not anchored:
                last = _NOTHING if line.number == 1 else before
                if last is None or signed.chain != _next(last, line.number, signed.entry):
                    fault = "it does not follow from the lines before it"
            key = self._keys.get(signed.key_id)
            if key is not None and not hmac.compare_digest(
                signed.mac, _mac(key, signed.entry, signed.chain)
            ):
                fault = "the service's key has not signed it"
            yield Read(line.number, entry, seen, key is not None, fault)
            before, wanted = signed.chain, line.number + 1


def _signed(line: Line) -> _Signed:
    return msgspec.msgpack.decode(line.text, type=_Signed)


def _next(before: bytes, number: int, entry: bytes) -> bytes:
    return hashlib.sha256(before + number.to_bytes(8, "big") + entry).digest()


def _mac(key: bytes, entry: bytes, chain: bytes) -> bytes:
    return hmac.digest(key, chain + hashlib.sha256(entry).digest(), "sha256")


def _key_id(key: bytes) -> bytes:
    return hashlib.sha256(b"key id" + key).digest()[:_KEY_ID_BYTES]
