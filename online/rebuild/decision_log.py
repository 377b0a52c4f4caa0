"""The log of decisions of a state folder, compared with what snapshots and journal know of it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from online.audit.checking import Checked, SeenHead, check
from online.audit.log import keys_of
from online.settings.config import Settings
from online.settings.places import open_journal, snapshots_path
from paramserver.errors import ParamServerError
from paramserver.snapshots.history import SnapshotHistory
from paramserver.snapshots.places import lineage_place, open_snapshots
from paramserver.snapshots.store import ReadingDisk, Retention
from replay.errors import ReplayError
from replay.journal.base import Journal


def check_log(settings: Settings) -> Checked:
    """Verify the whole log; changes nothing.

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
    """Look up what the snapshots of all lineages know of the log; a damaged one knows nothing."""
    for model in models:
        for spec in journal.lineages(model):
            place = lineage_place(snapshots_path(settings), model, spec)
            history = SnapshotHistory(open_snapshots(place, ReadingDisk()), Retention())
            with contextlib.suppress(OSError, ParamServerError):
                for found in history.manifests().values():
                    if found.log is not None:
                        name = f"{found.version[0]}-{found.version[1]} of {model}"
                        yield SeenHead(name, *found.log, found.created_at)
