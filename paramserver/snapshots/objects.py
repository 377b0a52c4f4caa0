"""Snapshots in an object store, made atomic by writing a manifest object last.

Objects cannot be renamed, so each snapshot is two objects:

=========================== ======================================================
``NAME.DIGEST16.data``      the snapshot's bytes, written first
``NAME.snapshot``           the manifest, written last: SHA-256 and length of the data
``NAME.pin``                empty; there while the snapshot is pinned
=========================== ======================================================

A snapshot exists if its manifest does.  All manifests have the same length, so a manifest torn by a
store without atomic writes is recognised from the listing, and counts as absent.  The data object's
name contains the start of its digest, so publishing a name again does not overwrite the data that
its manifest still points to.  Only this module needs pyarrow.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from typing import Any, Final

import pyarrow
from pyarrow import fs

from paramserver.errors import SnapshotCorrupt, SnapshotMissing, StartRefused
from paramserver.snapshots.pieces import Pieces, pieces_of
from paramserver.snapshots.store import SUFFIX, PlaceUnreachable, check_name

_DATA: Final = ".data"
_PIN: Final = ".pin"
_DATA_NAME: Final = re.compile(r"(.+)\.[0-9a-f]{16}\.data")
_MANIFEST: Final = re.compile(rb"([0-9a-f]{64}) ([0-9]{20})\n")
_MANIFEST_BYTES: Final = 64 + 1 + 20 + 1


@contextmanager
def _failures(place: str) -> Iterator[None]:
    """Convert all errors of pyarrow to PlaceUnreachable, except FileNotFoundError."""
    try:
        yield
    except FileNotFoundError:
        raise
    except (OSError, pyarrow.ArrowException) as error:
        raise PlaceUnreachable(place, f"{type(error).__name__}: {error}") from error


def open_uri(uri: str) -> ObjectSnapshots:
    """Open the snapshots under a URI such as ``s3://bucket/prefix?region=eu-north-1``.

    Raises:
        StartRefused: pyarrow does not support the URI.
        OSError: The store did not answer.
    """
    shown = re.sub(r"//[^/]*@", "//", uri.partition("?")[0])  # a URI may contain credentials
    try:
        filesystem, path = fs.FileSystem.from_uri(uri)
    except OSError as error:
        raise PlaceUnreachable(shown, str(error).replace(uri, shown)) from None
    except (pyarrow.ArrowException, ValueError) as error:
        raise StartRefused(
            f"snapshots can't be kept in {shown!r} ({str(error).replace(uri, shown)})",
            "name a directory or a URI that pyarrow knows, such as s3://bucket/prefix",
        ) from None
    return ObjectSnapshots(filesystem, path)


class ObjectSnapshots:
    """Snapshots of one lineage as objects under a prefix, with pins.

    Parameters:
        filesystem: A ``pyarrow.fs.FileSystem``.  An object must be durable when its stream is
            closed.
        prefix: Bucket and path.

    Notes:
        One server owns the prefix.  Opening it changes nothing, so other processes may read it.
    """

    def __init__(self, filesystem: Any, prefix: str) -> None:
        self._filesystem = filesystem
        self._prefix = prefix.rstrip("/")
        self._place = f"{filesystem.type_name}:{self._prefix}"
        self._pins = frozenset(f.removesuffix(_PIN) for f in self._sizes() if f.endswith(_PIN))

    def remove_leftovers(self) -> None:
        """Remove unfinished objects of an earlier owner; only the owner may call it.

        These are torn manifests, and data that no manifest points to, of this lineage only.
        """
        sizes = self._sizes()
        whole = set(_whole(sizes))
        torn = [f for f in sizes if f.endswith(SUFFIX) and f.removesuffix(SUFFIX) not in whole]
        by_name: dict[str, list[str]] = {}
        for file in sizes:
            match = _DATA_NAME.fullmatch(file)
            if match is not None:
                by_name.setdefault(match[1], []).append(file)
        for name, files in by_name.items():
            used = None
            if name in whole:
                if len(files) == 1:
                    continue
                used = _data_file(name, self._manifest(name)[0])
            torn += [file for file in files if file != used]
        for file in torn:
            self._remove(file)

    def publish(self, name: str, data: bytes | Pieces) -> None:
        """Write a snapshot durably; if this fails, the snapshot is complete or absent."""
        check_name(name)
        whole = sha256()
        for piece in pieces_of(data):
            whole.update(piece)
        digest = whole.hexdigest()
        self._write(_data_file(name, digest), data)
        self._write(name + SUFFIX, f"{digest} {len(data):020d}\n".encode())

    def take(self, name: str) -> bytes:
        """Return the whole snapshot as :meth:`load` does, in memory that cannot be changed."""
        return self.load(name)

    def load(self, name: str, limit: int = -1) -> bytes:
        """Return the snapshot's first ``limit`` bytes, or all after verifying its checksum.

        Raises:
            SnapshotMissing: There is no such snapshot.
            SnapshotCorrupt: Its data are not those that were published.
        """
        check_name(name)
        digest, size = self._manifest(name)
        try:
            length, data = self._read(_data_file(name, digest), limit)
        except FileNotFoundError as error:
            raise SnapshotCorrupt("its file of data is missing") from error
        if length != size:
            raise SnapshotCorrupt(f"its data have {length} bytes, its manifest says {size}")
        if limit < 0 and sha256(data).hexdigest() != digest:
            raise SnapshotCorrupt("the checksum of its data does not match")
        return data

    def largest(self) -> int:
        """Return the size of the largest snapshot in bytes; 0 if there is none."""
        return max((size for f, size in self._sizes().items() if f.endswith(_DATA)), default=0)

    def names(self) -> list[str]:
        """Return the names of all snapshots in arbitrary order."""
        return sorted(_whole(self._sizes()))

    def delete(self, name: str) -> None:
        """Remove a snapshot.  Raises SnapshotMissing."""
        check_name(name)
        try:
            self._remove(name + SUFFIX)
        except FileNotFoundError as error:
            raise SnapshotMissing(name) from error
        for file in self._sizes():
            match = _DATA_NAME.fullmatch(file)
            if match is not None and match[1] == name:
                self._remove(file)

    def pins(self) -> frozenset[str]:
        """Return the names of pinned snapshots, which retention keeps."""
        return self._pins

    def pin(self, name: str, on: bool) -> None:
        """Pin or unpin a snapshot.  Raises SnapshotMissing if there is none to pin."""
        check_name(name)
        if on:
            if name not in self.names():
                raise SnapshotMissing(name)
            self._write(name + _PIN, b"")
            self._pins |= {name}
        elif name in self._pins:
            try:
                self._remove(name + _PIN)
            except FileNotFoundError:
                pass  # an earlier attempt succeeded but its reply was lost
            self._pins -= {name}

    def _manifest(self, name: str) -> tuple[str, int]:
        """Return digest and size of a snapshot's data."""
        try:
            _, raw = self._read(name + SUFFIX, _MANIFEST_BYTES + 1)
        except FileNotFoundError as error:
            raise SnapshotMissing(name) from error
        match = _MANIFEST.fullmatch(raw)
        if match is None:
            raise SnapshotCorrupt("its manifest is damaged")
        return match[1].decode(), int(match[2])

    def _path(self, file: str) -> str:
        return f"{self._prefix}/{file}"

    def _sizes(self) -> dict[str, int]:
        """Return the size of each object in bytes."""
        selector = fs.FileSelector(self._prefix, allow_not_found=True)
        with _failures(self._place):
            files = self._filesystem.get_file_info(selector)
        return {info.base_name: info.size for info in files if info.type == fs.FileType.File}

    def _read(self, file: str, limit: int) -> tuple[int, bytes]:
        """Return an object's size, and its first ``limit`` bytes or all.  FileNotFoundError."""
        path = self._path(file)
        with _failures(path), self._filesystem.open_input_file(path) as stream:
            size: int = stream.size()
            data: bytes = stream.read(size if limit < 0 else min(limit, size))
        return size, data

    def _write(self, file: str, data: bytes | Pieces) -> None:
        path = self._path(file)
        with _failures(path), self._filesystem.open_output_stream(path, compression=None) as stream:
            for piece in pieces_of(data):
                stream.write(piece)

    def _remove(self, file: str) -> None:
        path = self._path(file)
        with _failures(path):
            self._filesystem.delete_file(path)


def _data_file(name: str, digest: str) -> str:
    return f"{name}.{digest[:16]}{_DATA}"


def _whole(sizes: dict[str, int]) -> Iterator[str]:
    for file, size in sizes.items():
        if file.endswith(SUFFIX) and size == _MANIFEST_BYTES:
            yield file.removesuffix(SUFFIX)
