"""Settings of a parameter server's process, its interface to the machine, and its identity."""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from paramserver.core.admission import TableBounds
from paramserver.core.holdings import HELD_MAX
from paramserver.core.parts import PART_KEYS
from paramserver.core.server import HISTORY_MAX
from paramserver.filters.sources import SOURCES_MAX
from paramserver.process.lineage import Lineage
from paramserver.snapshots.mapped import STALL_S
from paramserver.snapshots.store import DAY_S, Disk, Retention
from paramserver.store import PartitionInfo

FindGone = Callable[[Sequence[PartitionInfo]], Collection[int]]
"""Returns partitions whose owner is known to be dead (an empty result is always correct)."""


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """Settings of a parameter server.

    Attributes:
        interval_s: Seconds between periodic snapshots (an unchanged state is not published again).
        retention: Which snapshots are kept.
        lease_s, adopt_max: See :class:`paramserver.process.leases.Leases`.
        history_max: Number of pushes whose touched keys are remembered.
        part_keys: Number of keys in one part, when the values are too many for one message.
        confirm_s: Seconds between two checks of the store: is the epoch still ours, which
            partitions are sealed.
        report_keep_s: Seconds without contact after which a replica is removed from ``reports`` and
            ``status``.
        retry_s: Seconds between two attempts to restore.
        stall_s: Seconds without a byte of a large snapshot after which an attempt is given up.
        keep_rows_s: Seconds for which rows of the journal are kept at least, so that repeated
            events are recognised.
        halves_keep_s: Seconds for which a prediction or label waits for the other half of its row.
        running_s: Seconds between two additions to the running time in the store, by which the age
            of rows and halves is judged.
        banned_max: Number of sources that may be banned at once.
        sources_max: Number of sources whose evidence is kept.
        held_max: Number of row ids that are recorded as held by replicas that do not hold all rows.
        tables: Bounds of each table of rows; None: no bounds.
        shared: Folder in a memory file system through which replicas of this host read tables of
            rows; None: each replica has its own.
        umask: Umask of the server's process; None: unchanged.
    """

    interval_s: float = 10.0
    retention: Retention = field(default_factory=Retention)
    lease_s: float = 5.0
    adopt_max: int = 2
    history_max: int = HISTORY_MAX
    part_keys: int = PART_KEYS
    sources_max: int = SOURCES_MAX
    confirm_s: float = 1.0
    report_keep_s: float = 60.0
    retry_s: float = 0.5
    stall_s: float = STALL_S
    keep_rows_s: float = 8 * DAY_S
    halves_keep_s: float = 8 * DAY_S
    running_s: float = 15.0
    banned_max: int = 1_000
    held_max: int = HELD_MAX
    tables: TableBounds | None = None
    shared: str | None = None
    umask: int | None = None


def _die() -> None:
    """End this process at once; Ray restarts it, and it takes a new epoch."""
    logging.shutdown()
    os._exit(1)


@dataclass(frozen=True, slots=True)
class Host:
    """The server's interface to the machine: two clocks (seconds), the disk, and the exit."""

    monotonic: Callable[[], float] = time.monotonic
    wall: Callable[[], float] = time.time
    die: Callable[[], None] = _die
    disk: Disk = field(default_factory=Disk)


_REFUSED_S: Final = 10.0
"""Seconds between two attempts of a server whose start was refused."""


def again_s(settings: ServerSettings, state: str) -> float:
    """Return the seconds until a server in this state tries again to restore.

    The cause of a refusal may be removed while the service runs, usually by a person.
    """
    return max(settings.retry_s, _REFUSED_S) if state == "refused" else settings.retry_s


def code_on_disk() -> str:
    """Return a hash of the package's sources, which may be newer than what this process runs."""
    code = hashlib.sha256()
    for file in sorted(Path(__file__).parents[1].rglob("*.py")):
        code.update(file.read_bytes())
    return code.hexdigest()


def identity(
    lineage: Lineage, directory: str, settings: ServerSettings, code: str | None = None
) -> str:
    """Return a hash of everything in which servers of one name may differ: spec, settings, code.

    How long a disk is waited for is not among it: it is not worth replacing a server.

    ``code``: from :func:`code_on_disk`; None: as it is now.
    """
    code = code_on_disk() if code is None else code
    settings = replace(settings, stall_s=STALL_S)
    parts = (lineage.spec, lineage.rule, directory, repr(settings), code)
    return hashlib.sha256(repr(parts).encode()).hexdigest()
