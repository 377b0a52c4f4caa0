"""Label tokens: prediction ids that carry everything that learning from the label needs.

A token is ``base64url(key id · nonce · AES-GCM(prediction))``; the model's name is the associated
data.  It can be neither read nor forged, it expires, and it has exactly one spelling: the decoder
re-encodes and compares, because ordinary base64 decoders accept several texts for the same bytes,
and each would be a different event.  The nonce is unique, so it also identifies the event.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
import hmac
import os
import struct
from collections.abc import Callable
from pathlib import Path
from zlib import crc32

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from online.errors import ConfigError, OnlineError
from refusals import reason
from replay.durable import sync
from replay.example import Features, Label

_KEY_ID_BYTES = 4
_NONCE_BYTES = 12
_KEY_BYTES = 32
_FORMAT = 1


class TokenInvalid(OnlineError):
    """Not a token that one of our keys made for this model."""

    reason: str
    text = "{reason}"


class Predicted(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The content of a token.  Features are as parsed, before any transform.

    ``asker``: the source of the request; None: its access token names none, or the token is from an
    earlier version of the service.
    """

    format: int
    features: Features
    score: dict[str, float] | None
    version: tuple[int, int, int]
    at: float
    no_change: Label | None
    spec: str
    notes: bytes | None = None
    asker: str | None = None
    known: dict[int, int] | None = None
    choice: bytes | None = None
    sure: bytes | None = None


class Keys:
    """AES-256 keys: the first one seals, and all of them open.

    The file holds one key a line, in hexadecimal, mode 600.  To change keys, add the new one as
    the last line on every node, then move it to the top, then drop the old one after the tokens'
    lifetime.
    """

    def __init__(self, keys: list[bytes]) -> None:
        self.secret, self.old_secrets = keys[0], tuple(keys[1:])
        self._sealer_id = _key_id(keys[0])
        self._ciphers = {_key_id(key): AESGCM(key) for key in keys}
        self._sealer = self._ciphers[self._sealer_id]

    @classmethod
    def from_file(cls, path: Path) -> Keys:
        """Read the key file; create it if it is missing."""
        if not path.exists():
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with contextlib.suppress(FileExistsError):  # another process has just created it
                _create(path, os.urandom(_KEY_BYTES).hex() + "\n")
        try:
            keys = [bytes.fromhex(line) for line in path.read_text().split()]
        except OSError as error:
            raise ConfigError(
                "key_file", f"{path}: {reason(error)}", "Name a file that this user can read"
            ) from None
        except ValueError as error:
            raise ConfigError(
                "key_file", f"{path}: {error}", "One hexadecimal key a line"
            ) from None
        if not keys or any(len(key) != _KEY_BYTES for key in keys):
            raise ConfigError(
                "key_file", f"{path} is not 32-byte keys", "One key a line, 64 digits"
            )
        return cls(keys)

    @classmethod
    def stored(cls, path: Path) -> tuple[bytes, tuple[bytes, ...]]:
        """Return the present key and the old ones.

        Without a file, which is not created, a key that nobody knows: what an outsider has sealed
        must not open with it.
        """
        if not path.exists():
            return os.urandom(_KEY_BYTES), ()
        keys = cls.from_file(path)
        return keys.secret, keys.old_secrets

    def seal(self, nonce: bytes, data: bytes, model: bytes) -> str:
        """Encrypt ``data`` and return the token text."""
        sealed = self._sealer.encrypt(nonce, data, model)
        return base64.urlsafe_b64encode(self._sealer_id + nonce + sealed).rstrip(b"=").decode()

    def open(self, token: str, model: bytes) -> tuple[bytes, bytes]:
        """Decrypt a token into its nonce and data.  Raises TokenInvalid."""
        try:
            raw = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))
        except (binascii.Error, ValueError):
            raise TokenInvalid("not base64url") from None
        if base64.urlsafe_b64encode(raw).rstrip(b"=").decode() != token:
            raise TokenInvalid("not the spelling that was given out")
        head = _KEY_ID_BYTES + _NONCE_BYTES
        cipher = self._ciphers.get(raw[:_KEY_ID_BYTES])
        if cipher is None:
            raise TokenInvalid("sealed with a key that is not in the key file")
        nonce = raw[_KEY_ID_BYTES:head]
        try:
            return nonce, cipher.decrypt(nonce, raw[head:], model)
        except (InvalidTag, ValueError):
            raise TokenInvalid("forged, damaged, or given out for another model") from None


def _create(path: Path, text: str) -> None:
    """Create a file for its owner only, durably; on an error, such as a full disk, there is none.

    Ids that are sealed with a key can't be read without it, so it must outlive a power cut as the
    events do.
    """
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(handle, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(handle)
    except BaseException:
        path.unlink()
        raise
    sync(path.parent)


def _key_id(key: bytes) -> bytes:
    return hashlib.sha256(b"key id" + key).digest()[:_KEY_ID_BYTES]


class Nonces:
    """Nonces that no other process generates: a random prefix and a counter."""

    def __init__(self, prefix: bytes) -> None:
        assert len(prefix) == 6
        self._prefix = prefix
        self._count = 0

    def __call__(self) -> bytes:
        """Return the next nonce, 12 bytes."""
        self._count += 1
        return self._prefix + struct.pack(">Q", self._count)[2:]


class Tokens:
    """Issues and reads the tokens of one model.

    Attributes:
        drawing_key: Key that derives pseudorandom draws from nonces, unpredictable for others.
    """

    def __init__(self, keys: Keys, model: str, nonces: Nonces) -> None:
        self._keys = keys
        self._model = f"label token of {model}".encode()
        self._nonces = nonces
        self.drawing_key = hmac.digest(keys.secret, b"draws, " + self._model, "sha256")
        self._encode = msgspec.msgpack.Encoder().encode
        self._decode = msgspec.msgpack.Decoder(Predicted).decode

    def nonce(self) -> bytes:
        """Return a unique nonce, for one token."""
        return self._nonces()

    def issue(self, predicted: Predicted, nonce: bytes | None = None) -> str:
        """Make the token of a prediction; each nonce may be used once."""
        nonce = self._nonces() if nonce is None else nonce
        return self._keys.seal(nonce, self._encode(predicted), self._model)

    def read(self, token: str) -> tuple[str, Predicted]:
        """Return event id and prediction.  Raises TokenInvalid; the caller checks expiry."""
        nonce, data = self._keys.open(token, self._model)
        try:
            predicted = self._decode(data)
        except msgspec.DecodeError:
            raise TokenInvalid(
                "written by a version of the service that this one can't read"
            ) from None
        if predicted.format != _FORMAT:
            raise TokenInvalid(f"format {predicted.format}, this version reads {_FORMAT}")
        return nonce.hex(), predicted


def event_key(kind: str, *parts: str) -> bytes:
    """Make a 16-byte key: a hash over (kind, parts), length-prefixed."""
    digest = hashlib.blake2b(digest_size=16, person=kind.encode())
    for part in parts:
        data = part.encode()
        digest.update(struct.pack(">I", len(data)) + data)
    return digest.digest()


class EventKeys:
    """Makes the keys by which a journal recognises repeated events.

    Ids mostly count up or begin with the time.  A store that sorts its keys touches few pages of
    its index if such ids get neighbouring keys.  So the first four bytes of the hash are replaced
    by two checksums of what neighbours share: the first eight characters, and all but the last two.

    Parameters:
        near: The form of the journal (:class:`replay.journal.base.Journal`).  A journal
            has one form for good, because a repeat must get the key of the first time.
    """

    def __init__(self, near: bool) -> None:
        self._near = near

    def event(self, source: str, own: str) -> bytes:
        """Key of feedback with an id of its own, of a source."""
        return self.placed(event_key("event", source, own), own.encode())

    def token(self, nonce: str) -> bytes:
        """Key of the label of a token, by its nonce in hexadecimal."""
        return self.placed(event_key("token", nonce), nonce.encode())

    def join(self, asker: str | None, own: str) -> bytes:
        """Key of the prediction with the id ``own``; ``asker`` None: its token names no source."""
        parts = (own,) if asker is None else (asker, own)
        return self.placed(event_key("join", *parts), own.encode())

    def placed(self, key: bytes, event_id: bytes) -> bytes:
        """Return the key, a hash, in the journal's form; ``event_id`` in UTF-8."""
        if not self._near:
            return key
        shared = event_id[:-2]
        place = crc32(shared[:8]) & 0xFFFF0000 | crc32(shared) & 0xFFFF
        return place.to_bytes(4) + key[4:]


def made_id(now_s: float) -> str:
    """Make an id for an event that came without one: an eighth of a second, and 96 random bits."""
    return f"{int(8 * now_s) & 0xFFFFFFFF:08x}{os.urandom(12).hex()}"


def forward_clock(
    wall_s: Callable[[], float], monotonic_s: Callable[[], float]
) -> Callable[[], float]:
    """Return a wall clock that does not follow the wall clock back behind the time since its start.

    It is the later of the wall clock and its value at the start plus the monotonic time since.
    After a restart it follows the wall clock, so ids may then come from the future, up to
    ``limits.clock_skew_s``.
    """
    start_s = wall_s() - monotonic_s()
    return lambda: max(wall_s(), start_s + monotonic_s())
