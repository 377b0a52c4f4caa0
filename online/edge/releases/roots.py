"""The keys that may sign manifests: a chain of lists, each signed by the previous root key.

A device has the first root key, or the first list that it saw, and follows the chain; keys that are
not in the newest list are revoked.  A single root key signs: there is no threshold.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from online.edge.errors import ManifestRefused
from online.edge.manifest import canonical

SPEC: Final = 1
BYTES_MAX: Final = 65_536
"""Largest chain in bytes: some 120 lists."""


@dataclass(frozen=True, slots=True)
class Root:
    """The newest list of a chain.

    Attributes:
        version: 1, 2, 3 …
        root: The public key that signs the next list, as 64 hexadecimal digits.
        keys: Public keys that may sign manifests, in the same form.
    """

    version: int
    root: str
    keys: tuple[str, ...]


def spelled(key: Ed25519PrivateKey | Ed25519PublicKey) -> str:
    """The public key, or that of a private key, as 64 hexadecimal digits."""
    public = key.public_key() if isinstance(key, Ed25519PrivateKey) else key
    return public.public_bytes_raw().hex()


def extended(chain: bytes | None, by: Ed25519PrivateKey, root: str, keys: Sequence[str],
             root_key: Ed25519PrivateKey | None = None) -> bytes:  # fmt: skip
    """Append a list to the chain.

    Parameters:
        chain: None begins a chain.
        by: The root key of the newest list; at the beginning that of the first one.
        root, keys: Content of the new list.
        root_key: The private key of ``root``, if it is not ``by``.

    Raises ManifestRefused if ``by`` is not the root key of the newest list.
    """
    entries: list[Any] = []
    version = 1
    if chain is not None:
        newest = followed(chain)
        if spelled(by) != newest.root:
            raise ManifestRefused(f"the root key is {newest.root[:16]}…, not {spelled(by)[:16]}…")
        entries, version = json.loads(chain), newest.version + 1
    made = canonical({"spec": SPEC, "version": version, "root": root, "keys": list(keys)})
    signatures = [by.sign(made).hex(), (root_key or by).sign(made).hex()]
    entries.append({"signed": made.decode(), "signatures": signatures})
    data = json.dumps(entries, separators=(",", ":")).encode()
    if len(data) > BYTES_MAX:
        raise ManifestRefused(f"the chain of key lists has {len(data)} bytes of {BYTES_MAX}")
    return data


def followed(chain: bytes) -> Root:
    """Verify a chain and return its newest list.  Raises ManifestRefused."""
    if len(chain) > BYTES_MAX:
        raise ManifestRefused(f"the chain of key lists has {len(chain)} bytes of {BYTES_MAX}")
    newest: Root | None = None
    for entry in json.loads(chain):
        data = entry["signed"].encode()
        made = json.loads(data)
        one = Root(made["version"], made["root"], tuple(made["keys"]))
        if one.version != (1 if newest is None else newest.version + 1):
            raise ManifestRefused(f"list {one.version} of keys is out of its order")
        for key, signature in zip((newest or one, one), entry["signatures"], strict=True):
            public = Ed25519PublicKey.from_public_bytes(bytes.fromhex(key.root))
            try:
                public.verify(bytes.fromhex(signature), data)
            except InvalidSignature:
                raise ManifestRefused(
                    f"list {one.version} of keys is not signed by {key}"
                ) from None
        newest = one
    if newest is None:
        raise ManifestRefused("the chain of key lists is empty")
    return newest
