"""Manifests of exports: canonical JSON, signed with Ed25519.

The signature is over the exact bytes of the manifest.  A client verifies in the order of The Update
Framework (TUF 1.0, section 5): length, signature, expiry, sequence, then each file's hash.  A
rollback publishes old weights under a higher sequence.
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
"""Largest manifest in bytes; a longer one is refused before it is parsed."""


def canonical(value: Mapping[str, Any]) -> bytes:
    """Serialize to canonical JSON: sorted keys, no spaces, no NaN."""
    text = json.dumps(
        value, sort_keys=True, ensure_ascii=False, allow_nan=False, separators=(",", ":")
    )
    return text.encode()


def sign(manifest: Mapping[str, Any], key: Ed25519PrivateKey) -> tuple[bytes, bytes]:
    """Return the manifest's bytes and their signature of 64 bytes."""
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
    """Verify a manifest and return it.

    Parameters:
        now: POSIX seconds.
        model: The requested model.
        sequence, revision: The highest that this client has accepted.

    Raises ManifestRefused.
    """
    if len(data) > BYTES_MAX:
        raise ManifestRefused(f"{len(data)} bytes, at most {BYTES_MAX} are read")
    try:
        key.verify(signature, data)
    except InvalidSignature:
        raise ManifestRefused("its signature is not by the known key") from None
    made: dict[str, Any] = json.loads(data)
    if made.get("spec") != SPEC:
        raise ManifestRefused(f"its format is {made.get('spec')!r}, this release reads {SPEC}")
    if made["model"] != model:
        raise ManifestRefused(f"it is of model {made['model']!r}, not {model!r}")
    if now >= made["expires"]:
        raise ManifestRefused(f"it expired {now - made['expires']:.0f} s ago")
    if (made["sequence"], made.get("revision", 0)) < (sequence, revision):
        raise ManifestRefused(f"sequence {made['sequence']} is older than {sequence}")
    return made


def check_file(manifest: Mapping[str, Any], target: str, data: bytes) -> None:
    """Raise ManifestRefused unless the bytes are the file that the manifest names."""
    named = manifest["targets"].get(target)
    if named is None:
        raise ManifestRefused(f"it names no file for target {target!r}")
    if len(data) != named["size"]:
        raise ManifestRefused(f"{target} has {len(data)} bytes, {named['size']} are named")
    if sha256(data).hexdigest() != named["sha256"]:
        raise ManifestRefused(f"{target} is another file than the one named")
