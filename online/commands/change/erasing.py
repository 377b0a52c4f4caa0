"""`online forget --erase`: erases a source's events after the model has forgotten them."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from typing import Any, Final

from online.client.simple_client import SimpleClient
from online.commands.base import checked
from online.errors import StartRefused
from online.rebuild import erase
from online.rebuild.erase import Done, Erasure
from online.settings.config import Settings
from online.settings.places import history_of, snapshots_of, snapshots_path
from paramserver.core.shards import SHARDS_MAX, shard_name, shard_place
from paramserver.snapshots.places import lineage_place
from replay.errors import ReplayError
from replay.journal.base import Journal

_SETTLE_S: Final = 600.0
"""Most time to rewrite the store's files; after that the command must be run again."""
_PAUSE_S: Final = 0.01
_LINEAGES_S: Final = 20.0  # for a challenger to restart without the source
_LOOK_S: Final = 0.2
_SHOWN: Final = 3

Progress = Callable[[str], Any]


def check_no_shards(journal: Journal, settings: Settings, model: str) -> None:
    """Raise StartRefused if snapshots remain from a time with several parameter servers."""
    for shard in range(1, SHARDS_MAX):
        for spec in journal.lineages(shard_name(model, shard)):
            if snapshots_of(settings, model, spec, shard).names():
                place = lineage_place(shard_place(snapshots_path(settings), shard), model, spec)
                raise StartRefused(
                    f"snapshots in {place} are of a time when {model} had several parameter "
                    "servers, and may hold what is to be erased",
                    "Remove that folder, and run the same command again",
                )


@dataclass(frozen=True, slots=True)
class Erasing:
    """Erases one source from one model of a running service.

    Attributes:
        progress: Makes a progress bar with a title, as a context manager.
    """

    client: SimpleClient
    settings: Settings
    model: str
    spec: str
    progress: Progress

    def erase(self, journal: Journal, source: str, since: float | None) -> tuple[Erasure, Done]:
        """Erase the source's events, or continue an unfinished erasure."""
        forget = erase.newest_forget(journal, self.model, self.spec, source)
        begun = erase.decide(journal, self.model, source, since, forget, time.time())
        erasure = Erasure(journal, self.model, *begun)
        with self.progress("looking") as progress:
            erasure.look(progress)
        checked(self.client.post(f"/v1/models/{self.model}/snapshots"))  # one without the source
        try:
            snapshots = self._withdraw(journal, erasure)
            halves = erasure.halves()
            with self.progress("erasing") as progress:
                rows = erasure.rows(progress)
            texts = erasure.texts()
            erase.scrub_time_series(self.settings.state_dir, self.model)
            snapshots += self._withdraw(journal, erasure)  # by processes that had not seen the ban
            with self.progress("settling") as progress:
                self._settle(journal, progress)
        except ReplayError as error:
            raise StartRefused(f"not erased yet: {error}", "Run the same command again") from error
        done = Done(erasure.seq, time.time(), rows, halves, texts, snapshots)
        return erasure, done

    def _withdraw(self, journal: Journal, erasure: Erasure) -> int:
        """Remove snapshots that contain the source's influence; returns how many."""
        removed, until_s = 0, time.monotonic() + _LINEAGES_S
        while True:
            names = erasure.tainted(self.settings, self.spec)
            others = {
                spec: snapshots
                for spec in erase.other_lineages(journal, self.model, self.spec)
                if (snapshots := erasure.tainted(self.settings, spec))
            }
            if not names and not others:
                return removed
            if time.monotonic() > until_s:
                raise StartRefused(
                    f"snapshots that hold events of {erasure.decision.source!r} come again: "
                    f"{', '.join([*names, *chain(*others.values())][:_SHOWN])}",
                    "Run the same command again; `online status` says what serves",
                )
            if names:
                body = {"names": names}
                path = f"/v1/models/{self.model}/snapshots/withdraw"
                removed += len(checked(self.client.post(path, json=body))["withdrawn"])
            for spec, snapshots in others.items():
                history = history_of(self.settings, self.model, spec)
                for name in snapshots:
                    history.withdraw_for_good(name)
                history.remove_leftovers()
                removed += len(snapshots)
            time.sleep(_LOOK_S)

    def _settle(self, journal: Journal, progress: Callable[[int, int], None]) -> None:
        begun_s, most = time.monotonic(), 0
        for remaining in journal.erasing().settle():
            most = max(most, remaining)
            progress(most - remaining, max(most, 1))
            if time.monotonic() > begun_s + _SETTLE_S:
                raise StartRefused(
                    f"the journal's files were not rewritten within {_SETTLE_S:.0f} s",
                    "Run the same command again, when nothing reads them for long",
                )
            time.sleep(_PAUSE_S if remaining else _LOOK_S)
