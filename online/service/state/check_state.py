"""Checks before a start whether the state on disk belongs to the models of the settings.

A changed model is a new lineage over the same journal: it relearns the journal or begins without
it, as the operator chooses.  State of another spec is never loaded into it.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

from online.audit.log import note_start, started_with
from online.challenger.promotion import spec_of_challenger
from online.client.simple_client import SimpleClient
from online.errors import StartRefused
from online.models.loaded import Loaded
from online.models.loading.from_settings import load_model, merge_rule
from online.rebuild import acceptance
from online.replica.learning_cost import SHARE_MAX
from online.replica.memory_settings import memory_for
from online.rows.prediction_ids import Keys
from online.service.state.beginning import begin_anew
from online.service.state.deadline import StartDeadline
from online.service.state.server_count import at_start
from online.settings.config import Settings, environment, own_token
from online.settings.model import ModelSettings
from online.settings.places import history_of, open_journal
from online.settings.sharded import check_whole
from online.trust.root_set import root_rows
from paramserver.core import rewrites
from paramserver.process import bases, shortfall
from paramserver.snapshots.history import SnapshotHistory
from replay.journal.base import Control, Journal

_FOLLOW_S = 2.0  # between two lines about progress
_LOOK_S = 0.01  # between two polls of what is still to be learned


def counted(events: int) -> str:
    """A number of events in words, such as ``1 event`` or ``1,234 events``."""
    return f"{events:,} event{'' if events == 1 else 's'}"


def _backfilled_rows(controls: Sequence[Control]) -> int:
    """Number of table rows that the lineage of the newest backfill has learned."""
    specs = [
        bases.backfill_of(control).spec for control in controls if control.kind == rewrites.BACKFILL
    ]
    taught = bases.backfills(controls, specs[-1]) if specs else ()
    return sum(based.note.learned for based in taught)


def histories_of(
    settings: Settings, model: str, specs: Collection[str]
) -> dict[str, SnapshotHistory]:
    """Snapshot histories of these lineages of a model, by spec hash."""
    return {spec: history_of(settings, model, spec) for spec in sorted(specs)}


def restore_ids(settings: Settings, journal: Journal) -> list[str]:
    """Restore the ids that a journal has lost; whose, and how many, as lines."""
    names = sorted(model.name for model in settings.models)
    return [
        f"model {name}: {restored:,} ids were gone from the journal, and are taken from its rows "
        "again; repeats that came meanwhile were learned twice"
        for name in names
        if (restored := journal.restore_ids(name))
    ]


def _unreachable_state(settings: Settings, journal: Journal, *, keyless: bool) -> Iterator[str]:
    """Report state that neither the settings nor the key file lead to any more."""
    names = {model.name for model in settings.models}
    for name in sorted(started_with(journal) - names):
        if events := sum(p.end for p in journal.partitions(name)):
            yield (
                f"model {name} was served from this state before, which has {counted(events)} of "
                "it, and these settings have no model of that name; if it was renamed, give it "
                "its old name: what a model has learned goes by its name"
            )
    if keyless and any(p.end for name in names for p in journal.partitions(name)):
        yield (
            f"{settings.key_path} was missing, so a new one was created: ids of earlier "
            "predictions are unknown to it; if you have a copy of the old one, stop the service "
            "and restore it"
        )


def _accepted(missing: str, *, accept: bool) -> str:
    """Return the line that reports an accepted loss.  Raises StartRefused if it is not accepted."""
    if not accept:
        raise StartRefused(
            missing,
            "Restore the journal's newest copy, with its log; or continue without what no snapshot "
            "has of them, for all models: online serve --accept-loss",
        )
    return f"{missing}; what no snapshot has of them is gone"


def load_checked(model: ModelSettings, settings: Settings) -> Loaded:
    """Load a model without learned state, and check that its settings fit it.

    Raises StartRefused, LearnerUnusable.
    """
    loaded = load_model(model, settings, *Keys.stored(settings.key_path))
    memory_for(model, loaded.model, merge_rule(model, loaded.model))  # may refuse
    if spec_of_challenger(settings, model) == loaded.spec_hash:
        raise StartRefused(
            f"model {model.name}: its challenger is the same model",
            "Name another learner or other params in `challenger`, or leave it out",
        )
    root_rows(model, settings, numeric_only=loaded.model.numeric_only)  # may refuse
    return loaded


class Models:
    """Loads and checks the models of the settings against the journal and the snapshots."""

    def __init__(self, settings: Settings, progress: Callable[[str], None]) -> None:
        self._settings, self._progress = settings, progress
        self._last_partition = 0
        self._again: dict[str, int] = {}  # number of events to relearn, by model

    def load(self) -> dict[str, Loaded]:
        """Load every model of the settings, without learned state."""
        Keys.from_file(self._settings.key_path)  # makes the file of a first start
        models = self._settings.models
        return {model.name: load_checked(model, self._settings) for model in models}

    def check(self, *, fresh: bool, relearn: bool, accept_loss: bool = False) -> dict[str, Loaded]:
        """Load every model and check that it can be served on the stored state.

        Parameters:
            fresh, relearn: Begin without the stored events; learn all of them again.
            accept_loss: Go on without events that the journal has lost and snapshots still contain.

        Raises StartRefused, with the remedy, if a model can't be served on this state.
        """
        keyless = not self._settings.key_path.exists()
        out = self.load()
        with contextlib.closing(open_journal(self._settings)) as journal:
            missing = acceptance.without_a_trace(journal)
            for model in self._settings.models:
                self._check_loss(journal, model, out[model.name], accept=accept_loss)
            if missing is not None:
                self._progress(_accepted(missing, accept=accept_loss))
            for model in self._settings.models:
                loaded = out[model.name]
                if relearn and not accept_loss:
                    self._check_gap(journal, model.name, loaded.spec_hash)
                at_start(journal, self._settings, model, loaded, self._progress, fresh or relearn)
                self._check_lineage(journal, model.name, loaded, fresh=fresh, relearn=relearn)
                self._progress(f"model {model.name}: {model.purpose.name}, {model.learner}")
            restored = restore_ids(self._settings, journal)
            for line in [*restored, *_unreachable_state(self._settings, journal, keyless=keyless)]:
                self._progress(line)
            note_start(journal, [model.name for model in self._settings.models])
        return out

    def check_added(self, names: Collection[str], loaded: Mapping[str, Loaded]) -> None:
        """Check that models which are new to a running service can be served on the stored state.

        Raises StartRefused, with the remedy, if one can't.
        """
        if not names:
            return
        with contextlib.closing(open_journal(self._settings)) as journal:
            for model in [model for model in self._settings.models if model.name in names]:
                one = loaded[model.name]
                self._check_loss(journal, model, one, accept=False)
                at_start(journal, self._settings, model, one, self._progress, again=False)
                self._check_lineage(journal, model.name, one, fresh=False, relearn=False)
            note_start(journal, [model.name for model in self._settings.models])

    def _check_loss(
        self, journal: Journal, model: ModelSettings, loaded: Loaded, *, accept: bool
    ) -> None:
        """Refuse a journal that is older than any lineage's snapshots, unless loss is accepted."""
        specs = {*journal.lineages(model.name), loaded.spec_hash}
        if (rival := spec_of_challenger(self._settings, model)) is not None:
            specs.add(rival)
        histories = histories_of(self._settings, model.name, specs)
        if not accept:
            for spec, history in histories.items():
                shortfall.check(journal, history, model.name, spec)
            return
        check_whole(model, "going on without lost events")
        for note in acceptance.accept(journal, model.name, histories, time.time()):
            self._progress(
                f"model {model.name}: continues from {note.snapshot} (of {note.base}), without "
                f"{note.events:,} events that the journal has lost; a repeat of one of them is "
                "learned again"
            )

    @staticmethod
    def _check_gap(journal: Journal, name: str, spec: str) -> None:
        """Refuse to relearn a journal that has lost events of the model."""
        loss = shortfall.accepted(journal.controls(name, 0), spec)
        if loss is not None:
            raise StartRefused(
                f"model {name}: {loss.note.events:,} events that it has learned are no more in the "
                f"journal (control row {loss.seq}), so learning it again would lose them",
                "Start without --relearn; or begin without them: --relearn --accept-loss",
            )

    def chosen(self, loaded: Mapping[str, Loaded]) -> Settings:
        """Return the settings with ``merge: auto`` resolved from the cost of learning.

        If learning took more than ``SHARE_MAX`` of a core, as the newest snapshot says, one process
        learns for all replicas.
        """
        models = tuple(self._chosen(model, loaded[model.name]) for model in self._settings.models)
        return self._settings.model_copy(update={"models": models})

    def _chosen(self, model: ModelSettings, loaded: Loaded) -> ModelSettings:
        if model.sync.merge != "auto" or merge_rule(model, loaded.model) != "ordered":
            return model
        history = history_of(self._settings, model.name, loaded.spec_hash)
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
        controls = journal.controls(name, 0)
        taught = bases.backfills(controls, loaded.spec_hash)
        if (rows or (fresh and taught)) and (fresh or (relearn and loaded.spec_hash in known)):
            base = taught[-1].note if taught and not fresh else None
            self._begin_anew(journal, name, loaded, base, without=fresh)
        elif not fresh and loaded.spec_hash not in known and (n := _backfilled_rows(controls)):
            message = f"model {name}: its code or settings have changed since tables were learned"
            remedy = (
                f"Teach it the {n:,} rows again: online backfill --relearn; or begin without them: "
                "online serve --fresh; or put the old model back"
            )
            if not relearn:
                raise StartRefused(message, remedy)
            self._progress(f"{message}: it begins without their {n:,} rows (online backfill)")
        elif rows and loaded.alike in known and loaded.spec_hash not in known and not relearn:
            raise StartRefused(
                f"model {name}: the state in {self._settings.state_dir} was learned by a model "
                "that is built alike, from other code (as an object that a program served)",
                "Take it up with `state_of: structure` in the model's settings, or learn the "
                f"{counted(rows)} of the journal again: --relearn",
            )
        elif rows and known and loaded.spec_hash not in known and not relearn:
            raise StartRefused(
                f"model {name}: its code or settings have changed since the state in "
                f"{self._settings.state_dir} was learned",
                f"Start with --relearn (in Python: relearn=True) to learn the {counted(rows)} of "
                "the journal again, with --fresh (fresh=True) to begin without them, or put the "
                "old model back",
            )
        if rows and relearn and not fresh:
            self._progress(f"model {name}: learning {counted(rows)} of the journal again")
            self._again[name] = rows

    def check_for_backfill(self, journal: Journal, model: str, loaded: Loaded) -> None:
        """Raise StartRefused if another model learned the journal's events, or some are lost."""
        chosen = next(one for one in self._settings.models if one.name == model)
        self._check_loss(journal, chosen, loaded, accept=False)
        self._check_lineage(journal, model, loaded, fresh=False, relearn=False)

    def begin_again(self, journal: Journal, model: str, loaded: Loaded) -> None:
        """Begin the lineage empty; a start relearns all.  Raises StartRefused after a loss."""
        chosen = next(one for one in self._settings.models if one.name == model)
        self._check_loss(journal, chosen, loaded, accept=False)
        self._begin_anew(journal, model, loaded, None, without=False)

    def _begin_anew(
        self, journal: Journal, name: str, loaded: Loaded, base: bases.Backfill | None, *,
        without: bool,
    ) -> None:  # fmt: skip
        begun = begin_anew(self._settings, journal, name, loaded, base, without=without)
        if begun is not None:
            self._progress(f"model {name}: {begun}")

    def follow(self, url: str) -> None:
        """Report the progress of relearning until it is complete; the service answers meanwhile."""
        if not self._again:
            return
        token = own_token(self._settings, environment())
        asking = SimpleClient(url, token, 10.0)

        def ask(name: str) -> dict[str, Any] | None:
            answer = asking.get(f"/v1/models/{name}")
            return None if answer.status_code in (401, 403) else answer.json()

        self.follow_by(ask)

    def follow_by(self, ask: Callable[[str], dict[str, Any] | None]) -> None:
        """Report the progress of relearning; ``ask`` returns a model's status, None if denied."""
        for name, rows in self._again.items():
            self._follow(ask, name, rows)

    def _follow(self, ask: Callable[[str], dict[str, Any] | None], name: str, rows: int) -> None:
        printed_s = 0.0
        while True:
            if (status := ask(name)) is None:
                self._progress(f"model {name}: learns again; ONLINE_TOKEN would show how far")
                return
            learned, behind = status["learned"], self._behind(name, status["server"] or {})
            if behind == 0:
                self._progress(f"model {name}: learned {counted(learned)} again{_failures(status)}")
                return
            if time.monotonic() - printed_s >= _FOLLOW_S:
                printed_s = time.monotonic()
                done = rows - behind
                self._progress(f"model {name}: {done:,} of {rows:,} rows ({done / rows:.0%})")
            time.sleep(0.05)

    def catch_up(self, ask: Callable[[str], dict[str, Any]], wait_s: float | None) -> None:
        """Wait until the models have learned what earlier services left in the journal.

        A frozen model does not learn and is not waited for.

        Parameters:
            ask: Returns a model's status.
            wait_s: After so many seconds the remaining rows are reported, and the wait ends.

        Raises:
            StartRefused: Learning made no progress for ``start_wait_s``.
        """
        until_s = None if wait_s is None else time.monotonic() + wait_s
        for model in self._settings.models:
            if model.name in self._again:  # :meth:`follow` reports its progress
                continue
            deadline, least = StartDeadline(self._settings.start_wait_s), None
            while (status := ask(model.name))["server"] is None or not status["server"]["frozen"]:
                behind = self._to_learn(status)
                if behind == 0:
                    break
                if until_s is not None and time.monotonic() > until_s:
                    self._progress(f"model {model.name}: learns the last {behind:,} rows meanwhile")
                    break
                if least is None or behind < least:
                    deadline, least = StartDeadline(self._settings.start_wait_s), behind
                deadline.check(f"model {model.name} lacks {behind:,} rows of the journal")
                time.sleep(_LOOK_S)

    def _to_learn(self, status: dict[str, Any]) -> int:
        """Rows of earlier services that the answering model lacks; 1 or more if unknown."""
        if status["merge"] == "ordered":  # each replica reads the journal to its end by itself
            behind = status["updates_behind"]
            return 1 if behind is None else int(behind)
        return 1 if status["server"] is None else self._behind(status["model"], status["server"])

    def _behind(self, name: str, server: dict[str, Any]) -> int:
        """Rows of earlier partitions that the server has not applied yet."""
        clock = {int(p): c for p, c in server.get("clock", {}).items()}
        with contextlib.closing(open_journal(self._settings)) as journal:
            old = [p for p in journal.partitions(name) if p.id <= self._last_partition]
        closed = server.get("closed", ())
        return sum(max(p.end - clock.get(p.id, 0), 0) for p in old if p.id not in closed)


def _failures(status: Mapping[str, Any]) -> str:
    """Text about the events that the model failed to learn; empty if there are none."""
    decided = status["rewrites"] or {}
    if not (failed := decided.get("failed")):
        return ""
    return f", {failed:,} failed: {decided['failed_reason']}"
