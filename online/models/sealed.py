"""A model that was trained elsewhere and pickled, under the service's seal.

Unpickling runs code.  So a pickle is served only from a file that somebody who has the service's
key has sealed: HMAC-SHA256 over its bytes, verified before a byte of them is read.
"""

from __future__ import annotations

import hmac
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from online.models.errors import BlobUntrusted, LearnerUnusable

_MAGIC: Final = b"\x89OLSEAL\n"
_MAC_BYTES: Final = 32
_CONTEXT: Final = b"online sealed artifact 1\0"
_HINT: Final = "Seal the pickle with this service's key: online models seal FILE OUT"


def seal(data: bytes, key: bytes) -> bytes:
    """The bytes of a pickle as a sealed file.  They are not read."""
    return _MAGIC + _mac(data, key) + data


def unseal(sealed: bytes, keys: Sequence[bytes]) -> bytes:
    """The bytes of the pickle.  Raises BlobUntrusted unless one of the keys has sealed them."""
    begin = len(_MAGIC) + _MAC_BYTES
    mac, data = sealed[len(_MAGIC) : begin], sealed[begin:]
    if not sealed.startswith(_MAGIC):
        raise BlobUntrusted("it is no sealed file", len(sealed))
    if not any(hmac.compare_digest(mac, _mac(data, key)) for key in keys):
        raise BlobUntrusted("its seal is not by this service's key", len(sealed))
    return data


def sealed(artifact: str | None = None, *, keys: Sequence[bytes] = ()) -> Any:
    """The model that a sealed file holds, as it was when it was pickled."""
    if artifact is None:
        raise LearnerUnusable("sealed", "it has no artifact", "Name the sealed file: artifact")
    try:
        data = unseal(Path(artifact).read_bytes(), keys)
    except BlobUntrusted as error:
        raise LearnerUnusable("sealed", f"artifact {artifact}: {error}", _HINT) from error
    try:
        return pickle.loads(data)
    except Exception as error:  # whatever a class that has changed since raises
        problem = f"{artifact} can't be unpickled: {type(error).__name__}: {error}"
        raise LearnerUnusable(
            "sealed", problem, "Pickle it with the library served here"
        ) from error


def _mac(data: bytes, key: bytes) -> bytes:
    return hmac.digest(key, _CONTEXT + data, "sha256")
