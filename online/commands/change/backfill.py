"""`online backfill`: teaches a model from historical tables, before or while it is served."""

from __future__ import annotations

import contextlib
import json
import secrets
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec
import typer

from online.client.simple_client import SimpleClient
from online.commands.base import (
    Context,
    checked,
    common,
    counting,
    in_private,
    need_table_packages,
    pick,
    pick_model,
)
from online.errors import StartRefused
from online.settings.config import Settings
from online.settings.model import ModelSettings

if TYPE_CHECKING:
    from online.rebuild.backfill import Learned, Tables
    from paramserver.core.blocks import Blocks
    from paramserver.core.state import SnapshotState
    from paramserver.process.bases import Lesson
    from replay.journal.base import Journal

_HISTORY: Final = 1  # pushes kept for compensation: nobody pushes here
_ASIDE: Final = "aside-"


@common()
def backfill(
    context: Context,
    files: Annotated[
        list[str],
        typer.Option(
            "--input",
            help="Parquet, CSV, JSON lines, dsjson; a folder; repeatable; needs the extra rescore",
        ),
    ],
    label: Annotated[str, typer.Option(help="column of the labels")],
    event_id: Annotated[
        str | None,
        typer.Option(
            "--event-id", help="column of the events' ids: those the service has are skipped"
        ),
    ] = None,
    source: Annotated[str, typer.Option(help="source of these events, with --event-id")] = "",
    time_column: Annotated[
        str | None, typer.Option("--time", help="column of the event times: checks the order")
    ] = None,
    action: Annotated[str | None, typer.Option(help="task choose: column of the action")] = None,
    ignore: Annotated[list[str] | None, typer.Option(help="a column to leave out")] = None,
    missing_ok: Annotated[
        bool, typer.Option("--missing-ok", help="columns that the model knows may be missing")
    ] = False,
    again: Annotated[bool, typer.Option("--again", help="learn the same file twice")] = False,
    relearn: Annotated[
        bool, typer.Option("--relearn", help="new state: these tables first, then the journal")
    ] = False,
) -> None:
    """Teach a model from tables, row by row in their order.

    Rows are not stored: the journal records files, SHA-256 and row counts, and a pinned snapshot
    has the result.  Rows that can't be learned go to STATE_DIR/backfills.  An interrupted command
    has changed nothing.  A running service answers meanwhile and switches to the result in one
    step; what it has learned by then is learned on top.

    Example: online backfill --input history.parquet --label price_up --ignore id

    Example: online backfill --input 2025.csv --label y --event-id id --time at

    Example: online backfill --input choices.csv --label clicked --action offer --ignore propensity
    """
    from online.challenger.promotion import as_stored

    settings = as_stored(in_private(context.settings()))
    chosen = pick_model(settings, context.model)
    need_table_packages()
    from online.rebuild.backfill import Tables
    from online.rows.schema import declared_columns
    from online.service.processes import Owner
    from online.settings.places import open_journal

    limits = settings.limits
    tables = Tables(
        tuple(files), label, event_id, time_column, frozenset(ignore or ()), missing_ok,
        limits.text_bytes_max, limits.features_max, declared_columns(chosen),
        _action(chosen, action),
    )  # fmt: skip
    with contextlib.ExitStack() as stack:
        client = _running(context, settings)
        if client is None:
            owner = Owner(settings.state_dir)
            stack.callback(owner.release)
        journal = stack.enter_context(contextlib.closing(open_journal(settings)))
        progress = stack.enter_context(counting("learning", hidden=context.as_json))
        work = _Work(settings, chosen, journal, tables, source, progress, again=again)
        facts = work.done(client, relearn=relearn)
    print(json.dumps(facts)) if context.as_json else _tell(chosen.name, facts)


def _action(model: ModelSettings, named: str | None) -> str | None:
    """Column of the actions; None: the model does not choose."""
    from online.models.choices.interactions import ACTION

    if model.choose is not None:
        return named or ACTION
    if named is not None:
        raise StartRefused(f"{model.name} does not choose", "Leave --action out")
    return None


def _tell(model: str, facts: dict[str, Any]) -> None:
    print(
        f"{model}: {facts['learned']:,} rows learned in {facts['seconds']:.1f} s "
        f"({facts['rows_per_s']:,.0f} rows/s), {facts['quarantined']:,} in quarantine, "
        f"{facts['known']:,} left out because the service has learned them, "
        f"{facts['clipped']:,} with numbers far beyond all before, which were bounded\n"
        f"base snapshot {facts['snapshot']} is pinned, control row {facts['control']}; "
        f"{facts['next']}"
    )
    for replica in facts["missing"]:
        print(f"  {replica} has not seen it yet")
    if facts["quarantined"]:
        print(f"why rows were not learned: {facts['quarantine']}")


def _running(context: Context, settings: Settings) -> SimpleClient | None:
    """Make a client of the service that runs on the state folder; None: no service runs."""
    from online.service.state.run_file import running

    try:
        running(settings.state_dir)
    except StartRefused:  # a dead service does not hold the folder's lock
        return None
    return context.connect()


class _Work:
    """The tables for one model: inspected, and taught on top of the model's state."""

    def __init__(
        self,
        settings: Settings,
        model: ModelSettings,
        journal: Journal,
        tables: Tables,
        source: str,
        progress: Callable[[int, int], None],
        *,
        again: bool,
    ) -> None:
        from online.models.loading.from_settings import merge_rule
        from online.rebuild.backfill import look
        from online.service.state.check_state import Models
        from online.settings.places import history_of
        from online.settings.sharded import check_whole
        from online.tables.places import Folder, Location
        from paramserver.core import rewrites
        from paramserver.process.lineage import Lineage

        check_whole(model, "a backfill")
        self._settings, self._model, self._journal = settings, model, journal
        self._tables, self._source, self._progress, self._again = tables, source, progress, again
        alone = settings.model_copy(update={"models": (model,)})
        self._models = Models(alone, lambda line: print(f"  {line}", file=sys.stderr, flush=True))
        self._loaded = loaded = self._models.load()[model.name]
        self._controls = journal.controls(model.name, 0)
        if not loaded.model.learns:
            raise StartRefused(f"{model.name} does not learn", "Give its class a learn_one")
        if rewrites.frozen_by(self._controls):
            remedy = "Start it, and let it learn: online unfreeze"
            raise StartRefused(f"{model.name} is frozen", remedy)
        self._cut = look(tables, loaded.model)
        self._history = history_of(settings, model.name, loaded.spec_hash)
        rule = merge_rule(model, loaded.model)
        self._lineage = Lineage(model.name, loaded.spec_hash, loaded.spec_text, rule)
        self._aside = Folder(Location(str(settings.state_dir / "backfills")))

    def done(self, client: SimpleClient | None, *, relearn: bool) -> dict[str, Any]:
        """Teach, and return the facts; ``client``: of the running service, if there is one."""
        if client is None:
            return self.alone(relearn=relearn)
        if relearn:
            raise StartRefused(
                "a service is running, and --relearn would replace its model",
                "Stop it for --relearn; without --relearn the tables are learned in addition",
            )
        return self.beside(client)

    def alone(self, *, relearn: bool) -> dict[str, Any]:
        """Teach on the state folder of a service that does not run."""
        from paramserver.process.backfill import make_base
        from paramserver.process.lineage import recover

        models, name, loaded = self._models, self._model.name, self._loaded
        recovered = None
        if not relearn:
            models.check_for_backfill(self._journal, name, loaded)
            self._refuse_repeats()
            recovered = recover(self._journal, self._history, self._lineage, _HISTORY)
        values, done, took_s = self._taught({} if recovered is None else recovered.server.values)
        if recovered is None:  # only here, so that an interruption before changes nothing
            models.begin_again(self._journal, name, loaded)
            recovered = recover(self._journal, self._history, self._lineage, _HISTORY)
        base = make_base(
            self._journal, self._history, recovered, values, self._lesson(done), time.time()
        )
        facts = {"snapshot": base.note.snapshot, "control": base.seq}
        return self._facts(done, took_s, facts, "the next start continues from it")

    def beside(self, client: SimpleClient) -> dict[str, Any]:
        """Teach beside a running service, which then continues with the result."""
        url = f"/v1/models/{pick(client, self._model.name)}"
        status = checked(client.get(url))
        if not self._loaded.spec_hash.startswith(status["spec"]):
            raise StartRefused(
                f"model {self._model.name} of these settings is not the one served",
                "Name the settings file that the service was started with: --config",
            )
        self._refuse_repeats()
        start = self._history.load(checked(client.post(f"{url}/snapshots"))["name"])
        values, done, took_s = self._taught(start.values)
        aside = f"{_ASIDE}backfill-{secrets.token_hex(4)}"
        may_stand = False
        try:
            self._history.publish(aside, self._on_top(start, values))
            may_stand = True
            request = {"snapshot": aside, **msgspec.to_builtins(self._lesson(done))}
            answer = client.post(f"{url}/backfill", json=request)
            may_stand = answer.status_code < 400 or answer.status_code >= 500
        finally:
            if not may_stand:  # no control row refers to it
                self._history.withdraw(aside)
        return self._facts(done, took_s, checked(answer), "the service continues from it")

    def _refuse_repeats(self) -> None:
        from online.rebuild.backfill import refuse_repeats
        from paramserver.process import bases

        if not self._again:
            taught = bases.backfills(self._controls, self._loaded.spec_hash)
            known = [(f.sha256, b.note.snapshot) for b in taught for f in b.note.files]
            refuse_repeats(self._cut, known)

    def _taught(self, values: Blocks) -> tuple[Blocks, Learned, float]:
        """These values with the tables on top, the counts of rows, and seconds."""
        from online.rebuild.backfill import Teacher, teach
        from online.rows.prediction_ids import EventKeys
        from online.rows.validator import Validator

        bounded, name = self._model.filters != "none", self._model.name
        targets = self._model.purpose.bounded
        teacher = Teacher(self._loaded.model, values, bounded=bounded, targets=targets)
        numeric_only = self._loaded.model.numeric_only
        validator = Validator(self._model, self._settings.limits, numeric_only=numeric_only)

        keys = EventKeys(self._journal.near_keys)

        def known(key: str) -> bool:
            return self._journal.find(name, keys.event(self._source, key)) is not None

        began = time.monotonic()
        done = teach(
            self._cut, self._tables, teacher, validator,
            aside=self._aside, progress=self._progress, known=known,
        )  # fmt: skip
        return teacher.values(), done, time.monotonic() - began

    def _on_top(self, start: SnapshotState, values: Blocks) -> SnapshotState:
        """The state with rows on top that the service has learned since ``start``."""
        from online.rebuild.rebuild import NOBODY, Rebuild, method_of
        from online.rows.history import Decisions

        decisions = Decisions(start.spec)
        decisions.read(self._journal, start.model)
        rebuild = Rebuild(
            self._journal, decisions, NOBODY, replace(start, values=values),
            method_of(self._model, self._loaded, self._settings),
        )  # fmt: skip
        rebuild.run()
        rebuild.run()
        return rebuild.built(start.version, start.rewrite, time.time()).state

    def _lesson(self, done: Learned) -> Lesson:
        from paramserver.process.bases import Lesson

        counts = done.learned, done.quarantined, done.known
        return Lesson(self._cut.taught(), *counts, self._tables.label)

    def _facts(
        self, done: Learned, took_s: float, base: Mapping[str, Any], then: str
    ) -> dict[str, Any]:
        rows = self._cut.rows
        return {
            "files": msgspec.to_builtins(self._cut.taught()),
            "rows": rows,
            **asdict(done),
            "quarantine": self._aside.path(self._cut.id),
            "snapshot": base["snapshot"],
            "control": base["control"],
            "missing": base.get("missing", []),
            "next": then,
            "seconds": took_s,
            "rows_per_s": rows / max(took_s, 1e-9),
        }
