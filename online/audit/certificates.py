"""Certificates of forgetting: signed statements that third parties can verify.

A certificate lists the hashes of the forgotten events and the digest of the model's events before
and after: count and sum of the hashes must equal the difference.  It is signed with Ed25519 by a
key derived from the service's key, so no further key is stored.
"""

from __future__ import annotations

import hmac
import json
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

FORMAT: Final = 1
FORGOTTEN: Final = "forgotten"
ERASED: Final = "forgotten and erased"
OUT_OF_REACH: Final = (
    "models exported before, on devices and in files, among them those under `edge` in the state "
    "folder: they have learned these events",
    "tables scored before, wherever they were published, and answers that were given",
    "copies of the journal, of Redis and of snapshots that were made with other means: backups, "
    "file systems' snapshots, blocks that a disk has set aside",
    "tables that were backfilled and their rows under `backfills`: they name no source",
    "what has left the service: its processes' logs, messages, traces, reports, exported histories "
    "and logs of decisions",
)
"""Copies that neither forgetting nor erasing reaches."""

_CONTEXT: Final = b"online certificates of forgetting 1"
_MASK: Final = 2**64 - 1
_HASH: Final = re.compile("[0-9a-f]{16}")

Digest = tuple[int, int]
Document = dict[str, Any]


def when(at: float) -> str:
    """Format a time (POSIX seconds) as in certificates."""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def digest(pair: Digest) -> dict[str, Any]:
    """Format a digest as in certificates."""
    return {"count": pair[0], "sum": f"{pair[1]:016x}"}


def public_keys(keys: Sequence[bytes]) -> list[str]:
    """Hexadecimal public keys derived from the service's keys, in their order."""
    raw = Encoding.Raw, PublicFormat.Raw
    return [_private(key).public_key().public_bytes(*raw).hex() for key in keys]


def signed(content: Document, key: bytes) -> Document:
    """Make a certificate: the content with the public key, and the signature.

    The signed text is the content's JSON in ASCII, with sorted names and without spaces.
    """
    whole = {"format": FORMAT, **content, "public_key": public_keys([key])[0]}
    return {"certificate": whole, "signature": _private(key).sign(_signed_text(whole)).hex()}


def faults(document: object, keys: Sequence[str]) -> list[str]:
    """Verify a certificate against these public keys; returns its faults, empty if it is valid."""
    whole = document.get("certificate") if isinstance(document, Mapping) else None
    signature = document.get("signature") if isinstance(document, Mapping) else None
    if not isinstance(whole, dict) or not isinstance(signature, str):
        return ["it is no certificate"]
    if whole.get("format") != FORMAT:
        return [f"its format is {whole.get('format')!r}, this version knows {FORMAT}"]
    if whole.get("public_key") not in keys:
        return ["it is signed by a key that is not this service's"]
    try:
        known = Ed25519PublicKey.from_public_bytes(bytes.fromhex(whole["public_key"]))
        known.verify(bytes.fromhex(signature), _signed_text(whole))
    except (InvalidSignature, ValueError):
        return ["its signature is not that of its text"]
    return _miscounted(whole)


def _miscounted(whole: Document) -> list[str]:
    events, before, after = whole["events"], whole["digest_before"], whole["digest_after"]
    if not all(_HASH.fullmatch(event) for event in events) or len(set(events)) != len(events):
        return ["its events are not hashes, or one is there twice"]
    if whole["count"] != len(events):
        return [f"it counts {whole['count']} events and lists {len(events)}"]
    if before is None or after is None:
        return [] if not events else ["it does not say the digests"]
    total = sum(int(event, 16) for event in events) & _MASK
    gone = int(before["sum"], 16) - int(after["sum"], 16) & _MASK
    if (before["count"] - after["count"], gone) != (len(events), total):
        return ["its events are not the difference of the digests"]
    return []


def _private(key: bytes) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(hmac.digest(key, _CONTEXT, "sha256"))


def _signed_text(whole: Document) -> bytes:
    return json.dumps(whole, sort_keys=True, separators=(",", ":")).encode()
