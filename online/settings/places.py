"""Names, places and models that follow from the settings: every process derives the same ones."""

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
from paramserver.core.shards import shard_name
from paramserver.snapshots.store import Retention
from refusals import installing
from replay.errors import JournalDamaged, JournalNotDurable, ReplayError
from replay.journal.base import Journal
from replay.journal.batch import Bounds
from replay.journal.sqlite import SqliteJournal


def server_name(model: str, spec: str) -> str:
    """Name of the parameter server actor of one lineage: two may live while one is promoted."""
    return f"ParameterServer:{model}:{spec[:16]}"


def server_names(model: str, spec: str, shards: int) -> tuple[str, ...]:
    """Names of the parameter servers of a lineage, one or several."""
    return tuple(server_name(shard_name(model, shard), spec) for shard in range(shards))


def challenger_name(model: str) -> str:
    """Name of the actor that learns the model's challenger."""
    return f"Challenger:{model}"


def journal_opener(
    settings: Settings, *, lock_wait_s: float | None = None
) -> Callable[[], Journal]:
    """Return a callable that opens the journal of all models, in any process.

    Decisions are logged beside it (:mod:`online.audit`).

    ``lock_wait_s``: how long a write to the SQLite file waits for another process's; by default
    a third of ``limits.feedback_wait_s``, so that feedback behind another one hears of it in time.

    It pickles as plain values beside names of ``replay`` and ``online.audit``: a parameter server
    that is restarted imports neither the settings nor a model library for it.  Called, it raises
    ReplayError.

    Raises StartRefused if the package for Redis is missing.
    """
    bare = _bare_opener(settings, lock_wait_s)
    return partial(open_audited, bare, settings.key_path, settings.limits.audit_lines_max)


def _bare_opener(settings: Settings, lock_wait_s: float | None) -> Callable[[], Journal]:
    limits = settings.limits
    bounds = Bounds(max(limits.rows_max, 1024), limits.halves_max)
    if settings.journal == "sqlite":
        return partial(
            SqliteJournal,
            settings.state_dir / "journal.db",
            disk_low_mb=limits.disk_low_mb,
            bounds=bounds,
            size_mb_max=limits.journal_mb_max,
            lock_wait_s=limits.feedback_wait_s / 3 if lock_wait_s is None else lock_wait_s,
            busy_ms=int(limits.feedback_wait_s * 150),
        )
    try:
        from replay.journal.redis import RedisJournal
    except ImportError as error:
        raise StartRefused(
            f"the journal is in Redis, and a package is missing: {error}",
            installing("redis"),
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
    """Cut a damaged write-ahead log where the damage begins; what was wrong, None if nothing was.

    Raises StartRefused if what is left does not fit together.
    """
    path = settings.state_dir / "journal.db"
    if settings.journal != "sqlite" or not path.exists():
        return None
    from replay.journal.sqlitefile import cut_log as cut

    try:
        return cut(path, settings.limits.feedback_wait_s)
    except ReplayError as error:
        raise StartRefused(str(error), "Put a copy from before the damage in its place") from None


def open_journal(settings: Settings) -> Journal:
    """The journal of all models, for a command.  Raises StartRefused with the remedy."""
    try:
        return journal_opener(settings)()
    except JournalNotDurable as error:
        remedy = (
            "journal_durability: assumed believes a server whose settings can't be read, "
            "journal_accept_loss: true takes one that fails over; nothing else is let pass"
        )
        raise StartRefused(str(error), remedy) from None
    except JournalDamaged as error:
        raise StartRefused(str(error), "Look at the disk and the memory of the machine") from None
    except ReplayError as error:
        where = hidden(settings.journal)
        what = getattr(error, "reason", error)
        remedy = (
            f"Look at {settings.state_dir}: its disk needs room and has to be writable"
            if settings.journal == "sqlite"
            else "Start that server, or name another one in `journal`"
        )
        raise StartRefused(f"the journal ({where}) can't be opened: {what}", remedy) from None


def snapshots_path(settings: Settings) -> str:
    """Folder or URI of the snapshots of all lineages of all models."""
    return settings.snapshot_dir or str(settings.state_dir / "snapshots")


def retention_of(model: ModelSettings) -> Retention:
    """Which snapshots of a model are kept, and which of them are whole."""
    kept = model.snapshots
    return Retention(kept.keep, kept.hourly, kept.daily, kept.weekly, kept.full_every)


def run_path(settings: Settings) -> Path:
    """Return the path of the file about what runs now.

    It has the URL and the processes, for the other commands and for cleaning up.
    """
    return settings.state_dir / RUN
