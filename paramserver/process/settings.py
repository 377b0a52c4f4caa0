"""A parameter server's process is given settings and a machine, and is known by an identity."""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from paramserver.core.admission import TableBounds
from paramserver.core.parts import PART_KEYS
from paramserver.core.server import HISTORY_MAX
from paramserver.filters.sources import SOURCES_MAX
from paramserver.process.lineage import Lineage
from paramserver.snapshots.store import DAY_S, Disk, Retention
from paramserver.store import PartitionInfo

FindGone = Callable[[Sequence[PartitionInfo]], Collection[int]]
"""Partitions whose owner is known not to live (an empty answer is always right)."""


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """How a parameter server works.

    Attributes:
        interval_s: Seconds between periodic snapshots (none is made of an unchanged state).
        retention: Which snapshots are kept.
        lease_s, adopt_max: See :class:`paramserver.process.leases.Leases`.
        history_max: Pushes of which the touched keys are remembered.
        part_keys: Values that are many are sent in parts of so many keys.
        confirm_s: Seconds between two looks at the store: is the epoch still ours, what is sealed.
        report_keep_s: Replicas not heard of for so long leave ``reports`` and ``status``.
        retry_s: Seconds between two attempts to restore.
        keep_rows_s: The journal's rows are kept for so many seconds at least, so that a repeat is
            known.
        halves_keep_s: Halves of rows whose other half does not come are kept for so many seconds.
        running_s: Seconds between two additions to the running time in the store, by which both are
            counted.
        banned_max: Sources that may be banned at once.
        sources_max: Sources of which evidence is kept.
        tables: Bounds of each table; None: there are none.
        umask: Permissions that files of the server's process do not get; None: as it was started.
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
    keep_rows_s: float = 8 * DAY_S
    halves_keep_s: float = 8 * DAY_S
    running_s: float = 15.0
    banned_max: int = 1_000
    tables: TableBounds | None = None
    umask: int | None = None


def _die() -> None:
    """End this process at once; Ray starts it again, and it takes a new epoch."""
    logging.shutdown()
    os._exit(1)


@dataclass(frozen=True, slots=True)
class Host:
    """The machine as the server sees it: two clocks (seconds), the disk, and how to end."""

    monotonic: Callable[[], float] = time.monotonic
    wall: Callable[[], float] = time.time
    die: Callable[[], None] = _die
    disk: Disk = field(default_factory=Disk)


_REFUSED_S: Final = 10.0
"""Seconds between two looks of a server that was refused."""


def again_s(settings: ServerSettings, state: str) -> float:
    """Seconds until a server in this state tries again to restore.

    What refused it may be put right under a running service, mostly by a person.
    """
    return max(settings.retry_s, _REFUSED_S) if state == "refused" else settings.retry_s


def identity(lineage: Lineage, directory: str, settings: ServerSettings) -> str:
    """Hash of all that makes two servers of one name different: spec, rule, settings, code."""
    code = hashlib.sha256()
    for file in sorted(Path(__file__).parents[1].rglob("*.py")):
        code.update(file.read_bytes())
    parts = (lineage.spec, lineage.rule, directory, repr(settings), code.hexdigest())
    return hashlib.sha256(repr(parts).encode()).hexdigest()
