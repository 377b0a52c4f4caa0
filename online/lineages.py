"""Does the state on disk belong to the models of the settings?  Checked before anything starts.

A changed model is another lineage over the same journal: it learns the journal again, or begins
without it, as the operator says.  Old state is never loaded for it.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from typing import Any

import httpx
import msgspec

from online.config import Settings, environment, own_token
from online.cost import SHARE_MAX
from online.errors import StartRefused
from online.http import bearer
from online.memories import memory_for
from online.model_settings import ModelSettings
from online.models.load import Loaded
from online.names import load_model, merge_rule, open_journal, snapshots_path
from online.promotion import spec_of_challenger
from online.rootset import root_rows
from online.tokens import Keys
from paramserver import rewrites
from paramserver.lineage import Lineage, begin_epoch, publish
from paramserver.snapshots.history import SnapshotHistory
from paramserver.snapshots.places import lineage_place, open_snapshots
from paramserver.snapshots.store import Retention
from paramserver.state import SnapshotState
from replay.journal.base import Journal

_FOLLOW_S = 2.0


class Models:
    """The models of the settings against the journal and snapshots of the state folder."""

    def __init__(self, settings: Settings, progress: Callable[[str], None]) -> None:
        self._settings, self._progress = settings, progress
        self._last_partition = 0
        self._again: dict[str, int] = {}  # events to learn again, by model

    def load(self) -> dict[str, Loaded]:
        """Every model, untrained."""
        keys = Keys.from_file(self._settings.key_path)
        out = {}
        for model in self._settings.models:
            loaded = load_model(model, self._settings, keys.secret, keys.old_secrets)
            memory_for(model, loaded.model, merge_rule(model, loaded.model))  # refused here
            if spec_of_challenger(self._settings, model) == loaded.spec_hash:
                raise StartRefused(
                    f"model {model.name}: its challenger is the same model",
                    "Name another learner or other params in `challenger`, or leave it out",
                )
            root_rows(model, self._settings, numeric_only=loaded.model.numeric_only)  # and this
            out[model.name] = loaded
        return out

    def check(self, *, fresh: bool, relearn: bool) -> dict[str, Loaded]:
        """Load every model; StartRefused if one can't be served on the state that is there."""
        out = self.load()
        with contextlib.closing(open_journal(self._settings)) as journal:
            for model in self._settings.models:
                loaded = out[model.name]
                self._check_lineage(journal, model.name, loaded, fresh=fresh, relearn=relearn)
                self._progress(f"model {model.name}: {model.task}, {model.learner}")
        return out

    def chosen(self, loaded: Mapping[str, Loaded]) -> Settings:
        """The settings, with `auto` decided where all replicas would learn too much.

        What learning took is in the newest snapshot: above ``SHARE_MAX`` of a core, one process
        learns for all.
        """
        models = tuple(self._chosen(model, loaded[model.name]) for model in self._settings.models)
        return self._settings.model_copy(update={"models": models})

    def _chosen(self, model: ModelSettings, loaded: Loaded) -> ModelSettings:
        if model.sync.merge != "auto" or merge_rule(model, loaded.model) != "ordered":
            return model
        place = lineage_place(snapshots_path(self._settings), model.name, loaded.spec_hash)
        history = SnapshotHistory(open_snapshots(place), Retention())
        history.index()
        listed = history.listed()
        share = listed[0].metrics.get("learn_share", 0.0) if listed else 0.0
        if share <= SHARE_MAX:
            return model
        self._progress(
            f"model {model.name}: learning took {share:.0%} of a core in each replica; "
            "now one process learns for all (merge: overlay)"
        )
        sync = model.sync.model_copy(update={"merge": "overlay"})
        return model.model_copy(update={"sync": sync})

    def _check_lineage(
        self, journal: Journal, name: str, loaded: Loaded, *, fresh: bool, relearn: bool
    ) -> None:
        known = journal.lineages(name)
        partitions = journal.partitions(name)
        self._last_partition = max((p.id for p in partitions), default=self._last_partition)
        rows = sum(p.end for p in partitions)
        if rows and (fresh or (relearn and loaded.spec_hash in known)):
            self._begin_again(journal, name, loaded, without=fresh)
        elif rows and known and loaded.spec_hash not in known and not relearn:
            raise StartRefused(
                f"model {name}: its code or settings have changed since the state in "
                f"{self._settings.state_dir} was learned",
                f"Start with --relearn to learn the {rows:,} events of the journal again, with "
                "--fresh to begin without them, or put the old model back",
            )
        if rows and relearn and not fresh:
            self._progress(f"model {name}: learning {rows:,} events of the journal again")
            self._again[name] = rows

    def _begin_again(self, journal: Journal, name: str, loaded: Loaded, *, without: bool) -> None:
        """Publish a snapshot that holds nothing.

        Its clock stands before every row that the journal has, or (``without``) after them.
        """
        ends = {p.id: journal.seal(p.id) for p in journal.partitions(name)}
        begin_anew(journal, self._settings, name, loaded, without=ends if without else None)
        if without:
            before = sum(ends.values())
            self._progress(f"model {name}: begins without the {before:,} events before")

    def follow(self, url: str) -> None:
        """Say how far learning again has come, until it is done; the service answers meanwhile."""
        token = own_token(self._settings, environment())
        with httpx.Client(base_url=url, timeout=10, headers=bearer(token)) as client:
            for name, rows in self._again.items():
                self._follow(client, name, rows)

    def _follow(self, client: httpx.Client, name: str, rows: int) -> None:
        shown = 0.0
        while True:
            answer = client.get(f"/v1/models/{name}")
            if answer.status_code in (401, 403):
                self._progress(f"model {name}: learns again; ONLINE_TOKEN would show how far")
                return
            status = answer.json()
            learned, behind = status["learned"], self._behind(name, status["server"] or {})
            if behind == 0:
                self._progress(f"model {name}: learned {learned:,} events again")
                return
            if time.monotonic() - shown >= _FOLLOW_S:
                shown = time.monotonic()
                done = rows - behind
                self._progress(f"model {name}: {done:,} of {rows:,} rows ({done / rows:.0%})")
            time.sleep(0.05)

    def _behind(self, name: str, server: dict[str, Any]) -> int:
        """Rows of earlier partitions that the server has not got yet."""
        clock = {int(p): c for p, c in server.get("clock", {}).items()}
        with contextlib.closing(open_journal(self._settings)) as journal:
            old = [p for p in journal.partitions(name) if p.id <= self._last_partition]
        closed = server.get("closed", ())
        return sum(max(p.end - clock.get(p.id, 0), 0) for p in old if p.id not in closed)


def begin_anew(
    journal: Journal,
    settings: Settings,
    name: str,
    loaded: Loaded,
    *,
    without: Mapping[int, int] | None = None,
) -> None:
    """Let a lineage begin with a snapshot that holds nothing; undone events stay so.

    ``without``: by partition, the last rows that it is to begin after; None: it learns all that
    the journal has.
    """
    lineage = Lineage(name, loaded.spec_hash, loaded.spec_text, "sum")
    place = lineage_place(snapshots_path(settings), name, loaded.spec_hash)
    history = SnapshotHistory(open_snapshots(place), Retention())
    epoch = begin_epoch(journal, lineage)
    gone = {p.id: p.trimmed for p in journal.partitions(name) if p.trimmed}
    clock = gone if without is None else without
    controls = journal.controls(name, 0)
    empty = SnapshotState(
        model=name,
        spec=loaded.spec_hash,
        spec_text=loaded.spec_text,
        version=(epoch, 0),
        values={},
        clock=clock,
        control=controls[-1].seq if controls else 0,
        rewrite=rewrites.newest_rewrite(controls),
        frozen=rewrites.frozen_by(controls),
        position=0 if without is None else journal.follow(name, 2**62, 1).upto,
        created_at=time.time(),
    )
    note = msgspec.json.encode(rewrites.Begun(loaded.spec_hash, dict(clock)))
    journal.write_control(name, "fresh", f"fresh:{loaded.spec_hash}:{epoch}", note)
    publish(journal, history, empty, None)
