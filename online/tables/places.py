"""Atomic access to files of a folder, local or on any filesystem of pyarrow."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow
from pyarrow import fs

from online.tables.errors import LocationFailed
from replay.durable import sync

_TEMPORARY = ".tmp"


@contextlib.contextmanager
def failures(place: str) -> Iterator[None]:
    """Convert errors of pyarrow and the system to LocationFailed, but not FileNotFoundError."""
    try:
        yield
    except FileNotFoundError:
        raise
    except (OSError, pyarrow.ArrowException) as error:
        raise LocationFailed(without_keys(place), f"{type(error).__name__}: {error}") from error


def without_keys(place: str) -> str:
    """A path or URI without credentials."""
    return re.sub(r"//[^/]*@", "//", place.partition("?")[0])


@dataclass(frozen=True)
class Location:
    """A file or folder.

    Attributes:
        uri: A path, or a URI of pyarrow such as ``s3://bucket/prefix?region=…``.
    """

    uri: str

    def open(self) -> tuple[Any, str]:
        """Open the pyarrow filesystem; returns it and the path on it.  Raises LocationFailed."""
        if "://" not in self.uri:
            return fs.LocalFileSystem(), str(Path(self.uri).absolute())
        try:
            opened: tuple[Any, str] = fs.FileSystem.from_uri(self.uri)
        except (pyarrow.ArrowException, ValueError, OSError) as error:
            text = str(error).replace(self.uri, without_keys(self.uri))
            raise LocationFailed(without_keys(self.uri), f"can't be opened ({text})") from None
        return opened


class Folder:
    """A folder whose files are complete or absent, even after an interruption."""

    def __init__(self, place: Location) -> None:
        self._fs, self._path = place.open()
        self._local = isinstance(self._fs, fs.LocalFileSystem)

    def path(self, name: str) -> str:
        """Path of a file, for messages and for pyarrow."""
        return f"{self._path}/{name}"

    def read(self, name: str) -> bytes:
        """Read a file.  Raises FileNotFoundError, LocationFailed."""
        path = self.path(name)
        with failures(path), self._fs.open_input_file(path) as file:
            data: bytes = file.read()
            return data

    def write(self, name: str, data: bytes) -> None:
        """Create a file or replace it atomically; it is durable when this returns."""
        path = self.path(name)
        with failures(path):
            if self._local:
                _write_local(Path(path), data)
                return
            with self._fs.open_output_stream(path, compression=None) as stream:
                stream.write(data)

    def names(self, below: str = "") -> dict[str, int]:
        """Names and sizes in bytes of complete files directly in a subfolder."""
        return {
            info.base_name: info.size
            for info in self._infos(below)
            if info.type == fs.FileType.File and not info.base_name.endswith(_TEMPORARY)
        }

    def folders(self, below: str = "") -> list[str]:
        """Names of folders directly in a subfolder."""
        infos = self._infos(below)
        return sorted(i.base_name for i in infos if i.type == fs.FileType.Directory)

    def _infos(self, below: str) -> list[Any]:
        path = self.path(below).rstrip("/")
        with failures(path):
            selector = fs.FileSelector(path, allow_not_found=True)
            infos: list[Any] = self._fs.get_file_info(selector)
            return infos

    def remove(self, below: str) -> None:
        """Remove a subfolder with its content, if it exists."""
        path = self.path(below)
        with failures(path), contextlib.suppress(FileNotFoundError):
            self._fs.delete_dir(path)


def _write_local(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}{_TEMPORARY}")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:  # such as a full disk: remove the partial file
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    sync(path.parent)
