"""Verifies the journal's checksums and the audit log, for all models together."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from online.audit.checking import Checked, SeenHead, check
from online.audit.log import keys_of
from online.errors import StartRefused
from online.settings.config import Settings
from online.settings.places import history_of, open_journal
from paramserver.errors import ParamServerError
from paramserver.snapshots.store import ReadingDisk
from replay.errors import JournalUnavailable, ReplayError
from replay.journal.base import Journal


@dataclass(frozen=True, slots=True)
class Soundness:
    """Result of verifying the whole store.

    Attributes:
        damage: Descriptions of entries that differ from what was written.
        good: Number of rows, halves, decisions, partitions, heads and counts with valid checksums.
        unchecked: Number of rows from a version that wrote no checksums.
    """

    damage: tuple[str, ...]
    good: int
    unchecked: int

    @property
    def sound(self) -> bool:
        """Whether nothing is damaged."""
        return not self.damage

    def as_dict(self) -> dict[str, Any]:
        """Return the result as plain data, ``sound`` included."""
        return {**asdict(self), "damage": list(self.damage), "sound": self.sound}

    def __str__(self) -> str:
        lines = [f"journal: {'sound' if self.sound else 'DAMAGED'}"]
        lines.append(f"  {self.good:,} entries match their checksums")
        if self.unchecked:
            lines[-1] += f"; {self.unchecked:,} rows unchecked: an older version wrote them"
        lines += [f"  {what}" for what in self.damage]
        if not self.sound:
            lines.append("  keep a copy of all of it, then: docs/runbook.md, A damaged journal")
        return "\n".join(lines)


def examine(settings: Settings, progress: Callable[[int, int], None]) -> Soundness:
    """Verify everything that the journal stores; changes nothing.

    A journal that can't be opened because of its contents counts as damaged, with the reason.

    Raises:
        StartRefused: There is no journal, or its disk, its server or another process prevents
            opening it, which says nothing about its contents.
    """
    path = settings.state_dir / "journal.db"
    if settings.journal == "sqlite" and not path.exists():  # opening it would make one
        raise StartRefused(f"there is no journal {path}", "Name its folder with --state-dir")
    try:
        with contextlib.closing(open_journal(settings)) as journal:
            examined = journal.examine(progress)
    except (ReplayError, StartRefused) as error:
        if isinstance(error.__context__, JournalUnavailable):
            raise
        return Soundness((f"it can't be read: {' '.join(str(error).split())}",), 0, 0)
    return Soundness(examined.damage, examined.good, examined.unchecked)


def check_log(settings: Settings) -> Checked:
    """Verify the whole audit log; changes nothing.

    Raises StartRefused if the journal can't be opened.
    """
    models = [model.name for model in settings.models]
    with contextlib.closing(open_journal(settings)) as journal:
        try:
            seen = list(_heads(settings, journal, models))  # first: the log may grow meanwhile
            return check(journal, keys_of(settings.key_path), models, seen)
        except ReplayError as error:
            return Checked(0, 0, 0, (f"it can't be read: {' '.join(str(error).split())}",))


def _heads(settings: Settings, journal: Journal, models: list[str]) -> Iterator[SeenHead]:
    """Yield the audit log's state as each lineage's snapshots recorded it; skip damaged ones."""
    for model in models:
        for spec in journal.lineages(model):
            history = history_of(settings, model, spec, disk=ReadingDisk())
            with contextlib.suppress(OSError, ParamServerError):
                for manifest in history.manifests().values():
                    if manifest.log is not None:
                        name = f"{manifest.version[0]}-{manifest.version[1]} of {model}"
                        yield SeenHead(name, *manifest.log, manifest.created_at)
