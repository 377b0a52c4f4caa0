"""Reads snapshots, incremental ones together with their base.

An incremental snapshot holds only the changes of large tables since an earlier one, its base.  The
base is always whole, so at most two files are read.  It is verified by its SHA-256.
"""

from __future__ import annotations

from pathlib import Path

from paramserver.core.state import Base, SnapshotState
from paramserver.errors import SnapshotCorrupt, SnapshotFormat, SnapshotMissing, SnapshotName
from paramserver.snapshots import format as snapshot_format
from paramserver.snapshots.mapped import source_of
from paramserver.snapshots.places import Snapshots
from paramserver.snapshots.store import DirectorySnapshots, ReadingDisk


class Reader:
    """Reads the snapshots of one place, and remembers bases that cannot be used.

    Its methods raise the errors of :func:`paramserver.snapshots.format.decode` and of the place.
    ``in_arrays``: as there.
    """

    def __init__(self, snapshots: Snapshots, *, in_arrays: bool = False) -> None:
        self._snapshots, self._in_arrays = snapshots, in_arrays
        self._refused: dict[Base, str] = {}

    def read(self, name: str) -> tuple[SnapshotState, memoryview]:
        """Return the state of a snapshot, and the bytes of its own file."""
        data = self._snapshots.take(name)
        state = snapshot_format.decode(data, self.base, in_arrays=self._in_arrays)
        return state, source_of(data).view

    def base(self, base: Base) -> SnapshotState:
        """Return the state of a base snapshot."""
        if base not in self._refused:
            try:
                data = self._snapshots.take(base.name)
                state = snapshot_format.decode(data)
                if source_of(data).tail() != bytes.fromhex(base.digest):
                    raise SnapshotCorrupt("its file holds another snapshot")
                return state
            except (SnapshotCorrupt, SnapshotFormat, SnapshotMissing, SnapshotName) as error:
                self._refused[base] = f"it leans on {base.name}, which can't be used: {error}"
        raise SnapshotCorrupt(self._refused[base])


def read(snapshots: Snapshots, name: str) -> SnapshotState:
    """Return the state of a snapshot."""
    return Reader(snapshots).read(name)[0]


def read_file(path: Path) -> SnapshotState:
    """Return the state in a snapshot's file; a base is looked for in the same directory."""
    return snapshot_format.decode(
        path.read_bytes(), Reader(DirectorySnapshots(path.parent, ReadingDisk())).base
    )


def read_whole(snapshots: Snapshots, name: str) -> bytes:
    """Return the bytes of a snapshot; an incremental one is converted to a whole one."""
    data = snapshots.load(name)
    return (
        data
        if snapshot_format.read_manifest(data).base is None
        else snapshot_format.encode(read(snapshots, name))
    )
