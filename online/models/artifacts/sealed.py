"""Sealed artifacts: pickled models and folders, authenticated by the service's key.

Unpickling runs code.  So a pickle is served only from a file that was sealed with the service's
key: HMAC-SHA256 over its bytes, verified before any of them is unpickled.  The seal of a folder is
a separate file with the hash of each file.
"""

from __future__ import annotations

import hashlib
import hmac
import json
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
    """Seal the bytes of a pickle; they are not unpickled."""
    return _MAGIC + _mac(data, key) + data


def unseal(sealed: bytes, keys: Sequence[bytes]) -> bytes:
    """Return the bytes of the pickle.  Raises BlobUntrusted unless one of the keys sealed them."""
    begin = len(_MAGIC) + _MAC_BYTES
    mac, data = sealed[len(_MAGIC) : begin], sealed[begin:]
    if not sealed.startswith(_MAGIC):
        raise BlobUntrusted("it is no sealed file", len(sealed))
    if not any(hmac.compare_digest(mac, _mac(data, key)) for key in keys):
        raise BlobUntrusted("its seal is not by this service's key", len(sealed))
    return data


def sealed(artifact: str | None = None, *, keys: Sequence[bytes] = ()) -> Any:
    """Load the model in a sealed file.  Raises LearnerUnusable."""
    if artifact is None:
        raise LearnerUnusable("sealed", "it has no artifact", "Name the sealed file: artifact")
    try:
        data = unseal(Path(artifact).read_bytes(), keys)
    except BlobUntrusted as error:
        raise LearnerUnusable("sealed", f"artifact {artifact}: {error}", _HINT) from error
    try:
        return pickle.loads(data)
    except Exception as error:  # unpickling may raise anything, such as a changed class
        problem = f"{artifact} can't be unpickled: {type(error).__name__}: {error}"
        raise LearnerUnusable(
            "sealed", problem, "Pickle it with the library served here"
        ) from error


SEAL: Final = "online.seal"
"""Name of the file in a sealed folder that has the files' names and hashes, and the seal."""
_FOLDER: Final = b"online sealed folder 1\0"


def seal_folder(folder: Path, key: bytes) -> int:
    """Seal all files of a folder in place; return their number.

    Raises OSError, and BlobUntrusted for a symbolic link, whose target may change.
    """
    files = {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in _files(folder)}
    text = json.dumps(files, sort_keys=True)
    mac = hmac.digest(key, _FOLDER + text.encode(), "sha256").hex()
    part = folder / (SEAL + ".part")
    part.write_text(json.dumps({"files": files, "seal": mac}), encoding="utf-8")
    part.replace(folder / SEAL)
    return len(files)


def unseal_folder(folder: Path, keys: Sequence[bytes], into: Path) -> str:
    """Copy a sealed folder's files, verify each hash, and return the hash of all.

    The copy is what is used, so that no file can change between verification and use.  Raises
    OSError, and BlobUntrusted if the folder is not sealed, was sealed with another key, or its
    files differ from the sealed ones.
    """
    try:
        document = json.loads((folder / SEAL).read_text(encoding="utf-8"))
        files, seal_ = dict(document["files"]), bytes.fromhex(document["seal"])
    except FileNotFoundError:
        raise BlobUntrusted("the folder is not sealed", 0) from None
    except (ValueError, KeyError, TypeError):
        raise BlobUntrusted(f"its {SEAL} can't be read", 0) from None
    text = json.dumps(files, sort_keys=True)
    macs = [hmac.digest(key, _FOLDER + text.encode(), "sha256") for key in keys]
    if not any(hmac.compare_digest(seal_, mac) for mac in macs):
        raise BlobUntrusted("its seal is not by this service's key", len(text))
    present = dict(_files(folder))
    if odd := sorted(files.keys() ^ present.keys()):
        what = "is missing" if odd[0] in files else "was added"
        raise BlobUntrusted(f"{odd[0]} {what} since it was sealed", len(text))
    for name, path in present.items():
        data = path.read_bytes()
        if hashlib.sha256(data).hexdigest() != files[name]:
            raise BlobUntrusted(f"{name} was changed since it was sealed", len(data))
        target = into / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
    return hashlib.sha256(text.encode()).hexdigest()


def _files(folder: Path) -> list[tuple[str, Path]]:
    """Return the files below a folder with their relative paths, without the seal."""
    out = []
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            raise BlobUntrusted(f"{name} is a link: put the file itself there", 0)
        if path.is_file() and name not in (SEAL, SEAL + ".part"):
            out.append((name, path))
    return out


def _mac(data: bytes, key: bytes) -> bytes:
    return hmac.digest(key, _CONTEXT + data, "sha256")
