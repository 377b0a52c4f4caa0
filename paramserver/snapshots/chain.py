"""Snapshots are read as a whole, whatever they lean on.

Some hold of large tables only what changed since an earlier one, their base.  That one is whole
itself, so two files are all that is ever read.  It is known by its SHA-256, not by its name alone.
"""

from __future__ import annotations

from pathlib import Path

from paramserver.core.state import Base, SnapshotState
from paramserver.errors import SnapshotCorrupt, SnapshotFormat, SnapshotMissing, SnapshotName
from paramserver.snapshots import format as snapshot_format
from paramserver.snapshots.places import Snapshots
from paramserver.snapshots.store import DirectorySnapshots, ReadingDisk


class Reader:
    """Reads snapshots of one place; of a base that can't be used it says so without a second look.

    Raises what :func:`paramserver.snapshots.format.decode` and the place raise.
    """

    def __init__(self, snapshots: Snapshots) -> None:
        self._snapshots = snapshots
        self._refused: dict[Base, str] = {}

    def read(self, name: str) -> tuple[SnapshotState, bytes | memoryview]:
        """The state of a snapshot, and its own file."""
        data = self._snapshots.take(name)
        return snapshot_format.decode(data, self.base), data

    def base(self, base: Base) -> SnapshotState:
        """The state that others lean on."""
        if base not in self._refused:
            try:
                data = self._snapshots.take(base.name)
                if data[-len(base.digest) // 2 :] != bytes.fromhex(base.digest):
                    raise SnapshotCorrupt("it is another one, or damaged")
                return snapshot_format.decode(data)
            except (SnapshotCorrupt, SnapshotFormat, SnapshotMissing, SnapshotName) as error:
                self._refused[base] = f"it leans on {base.name}, which can't be used: {error}"
        raise SnapshotCorrupt(self._refused[base])


def read(snapshots: Snapshots, name: str) -> SnapshotState:
    """The state of a snapshot."""
    return Reader(snapshots).read(name)[0]


def read_file(path: Path) -> SnapshotState:
    """The state in a snapshot's file; what it leans on lies beside it."""
    return snapshot_format.decode(
        path.read_bytes(), Reader(DirectorySnapshots(path.parent, ReadingDisk())).base
    )


def read_whole(snapshots: Snapshots, name: str) -> bytes:
    """The bytes of a snapshot, such that it leans on nothing."""
    data = snapshots.load(name)
    return (
        data
        if snapshot_format.read_manifest(data).base is None
        else snapshot_format.encode(read(snapshots, name))
    )
