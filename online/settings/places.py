"""Names, paths and stores that follow from the settings, identically in every process."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from online.audit.log import open_audited
from online.errors import StartRefused
from online.settings.addresses import hidden
from online.settings.config import Settings
from online.settings.glimpse import RUN
from online.settings.model import ModelSettings
from paramserver.core.shards import shard_name, shard_place
from paramserver.snapshots.history import SnapshotHistory
from paramserver.snapshots.places import Snapshots, lineage_place, open_snapshots
from paramserver.snapshots.store import Disk, Retention
from refusals import installing
from replay.errors import JournalDamaged, JournalFormat, JournalHeld, JournalNotDurable, ReplayError
from replay.journal.base import Journal
from replay.journal.batch import Bounds
from replay.journal.sqlite.journal import SqliteJournal


def server_name(model: str, spec: str) -> str:
    """Actor name of a lineage's parameter server; during a promotion two lineages have one."""
    return f"ParameterServer:{model}:{spec[:16]}"


def server_names(model: str, spec: str, shards: int) -> tuple[str, ...]:
    """Actor names of all parameter servers of a lineage."""
    return tuple(server_name(shard_name(model, shard), spec) for shard in range(shards))


def challenger_name(model: str) -> str:
    """Actor name of the model's challenger."""
    return f"Challenger:{model}"


def journal_opener(
    settings: Settings, *, lock_wait_s: float | None = None
) -> Callable[[], Journal]:
    """Return a callable that opens the journal of all models, in any process.

    The journal records decisions in the audit log beside it (:mod:`online.audit`).  The callable
    can be pickled and refers only to ``replay`` and ``online.audit``, so a restarted parameter
    server imports neither the settings nor a model library for it.  It raises ReplayError.

    Parameters:
        lock_wait_s: How long a write to the SQLite file waits for another process; by default a
            third of ``limits.feedback_wait_s``, so waiting feedback is answered in time.

    Raises:
        StartRefused: The package for Redis is missing, or the journal's file is a link.
    """
    bare = _plain_opener(settings, lock_wait_s)
    return partial(open_audited, bare, settings.key_path, settings.limits.audit_lines_max)


def _plain_opener(settings: Settings, lock_wait_s: float | None) -> Callable[[], Journal]:
    limits = settings.limits
    bounds = Bounds(max(limits.rows_max, 1024), limits.halves_max)
    if settings.journal == "sqlite":
        path = settings.state_dir / "journal.db"
        if path.is_symlink():  # SQLite's log would be beside its target, and the locks beside it
            raise StartRefused(
                f"{path} is a link: the journal's log and its locks would be in two folders",
                "Put the file itself there, with its -wal and -shm, or link the whole state folder",
            )
        return partial(
            SqliteJournal,
            path,
            disk_low_mb=limits.disk_low_mb,
            bounds=bounds,
            size_mb_max=limits.journal_mb_max,
            lock_wait_s=limits.feedback_wait_s / 3 if lock_wait_s is None else lock_wait_s,
            busy_ms=int(limits.feedback_wait_s * 150),
        )
    try:
        from replay.journal.redis.journal import RedisJournal
    except ImportError as error:
        raise StartRefused(
            f"the journal is in Redis, and a package is missing: {error}", installing("redis")
        ) from None
    return partial(
        RedisJournal,
        settings.journal,
        prefix=settings.journal_prefix,
        bounds=bounds,
        memory_mb_max=limits.journal_mb_max,
        durability=settings.journal_durability,
        accept_loss=settings.journal_accept_loss,
    )


def cut_log(settings: Settings) -> str | None:
    """Truncate a damaged write-ahead log where the damage begins; return a description of it.

    Returns None if there was no damage.  Raises StartRefused if the remaining file is inconsistent.
    """
    path = settings.state_dir / "journal.db"
    if settings.journal != "sqlite" or not path.exists():
        return None
    from replay.journal.sqlite.file import cut_log as cut

    try:
        return cut(path, settings.limits.feedback_wait_s)
    except ReplayError as error:
        raise StartRefused(str(error), "Put a copy from before the damage in its place") from None


def open_journal(settings: Settings) -> Journal:
    """Open the journal of all models for a command.  Raises StartRefused with the remedy."""
    try:
        return journal_opener(settings)()
    except JournalNotDurable as error:
        remedy = (
            "journal_durability: assumed believes a server whose settings can't be read, "
            "journal_accept_loss: true accepts one that fails over; nothing else is allowed"
        )
        raise StartRefused(str(error), remedy) from None
    except JournalDamaged as error:
        raise StartRefused(str(error), "Look at the disk and the memory of the machine") from None
    except ReplayError as error:
        where = hidden(settings.journal)
        what = getattr(error, "reason", error)
        held = "it is held by " if isinstance(error, JournalHeld) else ""
        message = f"the journal ({where}) can't be opened: {held}{what}"
        raise StartRefused(message, _remedy(settings, error)) from None


def _remedy(settings: Settings, error: ReplayError) -> str:
    if isinstance(error, JournalFormat):  # its text says what to start
        return "Nothing was changed"
    if isinstance(error, JournalHeld):
        return "Wait until that process has ended, or end it"
    if settings.journal == "sqlite":
        return f"Look at {settings.state_dir}: its disk needs room and has to be writable"
    return "Start that server, or name another one in `journal`"


def snapshots_path(settings: Settings) -> str:
    """Folder or URI of the snapshots of all lineages of all models."""
    return settings.snapshot_dir or str(settings.state_dir / "snapshots")


def snapshots_of(
    settings: Settings, model: str, spec: str, shard: int = 0, disk: Disk | None = None
) -> Snapshots:
    """Open the snapshots of a lineage's parameter server; nothing is changed there."""
    place = shard_place(snapshots_path(settings), shard)
    return open_snapshots(lineage_place(place, model, spec), disk)


def history_of(
    settings: Settings, model: str, spec: str, shard: int = 0, disk: Disk | None = None
) -> SnapshotHistory:
    """Return the history of a lineage's snapshots, see :func:`snapshots_of`."""
    return SnapshotHistory(snapshots_of(settings, model, spec, shard, disk), Retention())


def retention_of(model: ModelSettings) -> Retention:
    """Retention policy of a model's snapshots, and how often they are full."""
    rules = model.snapshots
    return Retention(rules.keep, rules.hourly, rules.daily, rules.weekly, rules.full_every)


def run_path(settings: Settings) -> Path:
    """Return the path of the run file.

    It contains the URL and the processes of the running service, for commands and for clean-up.
    """
    return settings.state_dir / RUN
