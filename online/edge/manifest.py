"""A manifest tells a client of an export, in canonical JSON that is signed with Ed25519.

The signature is over the exact bytes of the manifest.  A client checks in the order of The Update
Framework (TUF 1.0, section 5): length, signature, expiry, sequence, then each file's hash.  Going
back is publishing old weights under a higher sequence.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from hashlib import sha256
from typing import Any, Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from online.edge.errors import ManifestRefused

SPEC: Final = 1
BYTES_MAX: Final = 65_536
"""A longer manifest is refused before it is read."""


def canonical(value: Mapping[str, Any]) -> bytes:
    """One spelling: keys in order, no spaces, no NaN."""
    text = json.dumps(
        value, sort_keys=True, ensure_ascii=False, allow_nan=False, separators=(",", ":")
    )
    return text.encode()


def sign(manifest: Mapping[str, Any], key: Ed25519PrivateKey) -> tuple[bytes, bytes]:
    """The manifest's bytes, and the signature of 64 bytes."""
    data = canonical(manifest)
    return data, key.sign(data)


def verify(
    data: bytes,
    signature: bytes,
    key: Ed25519PublicKey,
    *,
    now: float,
    model: str,
    sequence: int,
    revision: int = 0,
) -> dict[str, Any]:
    """The manifest, if a client may follow it.

    Parameters:
        now: POSIX seconds.
        model: The one that was asked for.
        sequence, revision: The highest that this client has followed.

    Raises ManifestRefused.
    """
    if len(data) > BYTES_MAX:
        raise ManifestRefused(f"{len(data)} bytes, at most {BYTES_MAX} are read")
    try:
        key.verify(signature, data)
    except InvalidSignature:
        raise ManifestRefused("its signature is not by the key known") from None
    made: dict[str, Any] = json.loads(data)
    if made.get("spec") != SPEC:
        raise ManifestRefused(f"spec {made.get('spec')!r}, this release reads {SPEC}")
    if made["model"] != model:
        raise ManifestRefused(f"it is of model {made['model']!r}, not {model!r}")
    if now >= made["expires"]:
        raise ManifestRefused(f"it expired {now - made['expires']:.0f} s ago")
    if (made["sequence"], made.get("revision", 0)) < (sequence, revision):
        raise ManifestRefused(f"sequence {made['sequence']} is older than {sequence}")
    return made


def check_file(manifest: Mapping[str, Any], target: str, data: bytes) -> None:
    """Raise ManifestRefused unless the bytes are those that the manifest names."""
    named = manifest["targets"].get(target)
    if named is None:
        raise ManifestRefused(f"it has no target {target!r}")
    if len(data) != named["size"]:
        raise ManifestRefused(f"{target} has {len(data)} bytes, {named['size']} are named")
    if sha256(data).hexdigest() != named["sha256"]:
        raise ManifestRefused(f"{target} is another file than the one named")
