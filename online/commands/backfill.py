"""`online backfill`: teach a model from tables of the past, before it is served."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec
import typer

from online.commands.base import AsJson, FileOption, Model, StateDir, load_settings
from online.commands.rescore import need_packages, pick_model, shown_progress
from online.config import Settings
from online.errors import StartRefused
from online.model_settings import ModelSettings

if TYPE_CHECKING:
    from online.backfill import Cut, Learned, Tables
    from paramserver.bases import Based
    from replay.journal.base import Journal

_HISTORY: Final = 1  # pushes: nobody pushes to it


def backfill(
    files: Annotated[
        list[str],
        typer.Option("--input", help="Parquet, CSV or JSON lines; a folder; may be repeated"),
    ],
    label: Annotated[str, typer.Option(help="column of the labels")],
    event_id: Annotated[
        str | None,
        typer.Option(
            "--event-id", help="column of the events' ids: what the service has learned is left out"
        ),
    ] = None,
    source: Annotated[str, typer.Option(help="whose events these are, with --event-id")] = "",
    time_column: Annotated[
        str | None, typer.Option("--time", help="column of their times: checks the order")
    ] = None,
    ignore: Annotated[list[str] | None, typer.Option(help="a column to leave out")] = None,
    missing_ok: Annotated[
        bool, typer.Option("--missing-ok", help="columns that the model knows may be missing")
    ] = False,
    again: Annotated[bool, typer.Option("--again", help="learn the same file twice")] = False,
    relearn: Annotated[
        bool,
        typer.Option("--relearn", help="begin anew: these tables first, then the journal again"),
    ] = False,
    model: Model = None,
    path: FileOption = None,
    state_dir: StateDir = None,
    as_json: AsJson = False,
) -> None:
    """Teach a model from tables, row by row in their order; the service must not run.

    Rows are not kept: the journal notes files, SHA-256 and rows, and a pinned snapshot has what
    was learned.  Rows that can't be learned go to STATE_DIR/backfills.  A command that was stopped
    has changed nothing.

    Example: online backfill --input history.parquet --label price_up --ignore id

    Example: online backfill --input 2025.csv --label y --event-id id --time at
    """
    from online.promotion import as_stored

    settings = as_stored(load_settings(path, state_dir=state_dir))
    chosen = pick_model(settings, model)
    need_packages()
    from online.backfill import Tables
    from online.names import open_journal
    from online.processes import Owner

    limits = settings.limits
    tables = Tables(
        tuple(files), label, event_id, time_column, frozenset(ignore or ()), missing_ok,
        limits.text_bytes_max, limits.features_max,
    )  # fmt: skip
    with contextlib.ExitStack() as stack:
        owner = Owner(settings.state_dir)
        stack.callback(owner.release)
        journal = stack.enter_context(contextlib.closing(open_journal(settings)))
        progress = stack.enter_context(shown_progress("learning", hidden=as_json))
        facts = _backfill(
            settings, chosen, journal, tables, source, progress, again=again, relearn=relearn
        )
    print(json.dumps(facts)) if as_json else _tell(chosen.name, facts)


def _tell(model: str, facts: dict[str, Any]) -> None:
    print(
        f"{model}: {facts['learned']:,} rows learned in {facts['seconds']:.1f} s "
        f"({facts['rows_per_s']:,.0f} rows/s), {facts['quarantined']:,} in quarantine, "
        f"{facts['known']:,} left out because the service has learned them\n"
        f"base snapshot {facts['snapshot']} is pinned, control row {facts['control']}; "
        "the next start goes on from it"
    )
    if facts["quarantined"]:
        print(f"why rows were not learned: {facts['quarantine']}")


def _backfill(
    settings: Settings,
    model: ModelSettings,
    journal: Journal,
    tables: Tables,
    source: str,
    progress: Callable[[int, int], None],
    *,
    again: bool,
    relearn: bool,
) -> dict[str, Any]:
    from online.backfill import Teacher, look, refuse_repeats, teach
    from online.features import Door
    from online.lineages import Models
    from online.names import merge_rule, snapshots_path
    from online.rescore.places import Folder, Place
    from online.tokens import event_key
    from paramserver import bases, rewrites
    from paramserver.backfill import Lesson, make_base
    from paramserver.lineage import Lineage, recover
    from paramserver.snapshots.history import SnapshotHistory
    from paramserver.snapshots.places import lineage_place, open_snapshots
    from paramserver.snapshots.store import Retention

    alone = settings.model_copy(update={"models": (model,)})
    models = Models(alone, lambda line: print(f"  {line}", file=sys.stderr, flush=True))
    loaded = models.load()[model.name]
    built, controls = loaded.model, journal.controls(model.name, 0)
    if not built.learns:
        raise StartRefused(f"{model.name} does not learn", "Give its class a learn_one")
    if rewrites.frozen_by(controls):
        raise StartRefused(f"{model.name} is frozen", "Start it, and let it learn: online unfreeze")
    cut = look(tables, built)
    place = lineage_place(snapshots_path(settings), model.name, loaded.spec_hash)
    history = SnapshotHistory(open_snapshots(place), Retention())
    lineage = Lineage(model.name, loaded.spec_hash, loaded.spec_text, merge_rule(model, built))
    found = None
    if not relearn:
        models.check_for_backfill(journal, model.name, loaded)
        if not again:
            taught = bases.backfills(controls, loaded.spec_hash)
            refuse_repeats(cut, [(f.sha256, b.note.snapshot) for b in taught for f in b.note.files])
        found = recover(journal, history, lineage, _HISTORY)
    teacher = Teacher(built, {} if found is None else found.server.values)
    began = time.monotonic()
    aside = Folder(Place(str(settings.state_dir / "backfills")))
    done = teach(
        cut, tables, teacher, Door(model, settings.limits, numeric_only=built.numeric_only),
        aside=aside, progress=progress,
        known=lambda key: journal.find(model.name, event_key("event", source, key)) is not None,
    )  # fmt: skip
    took_s = time.monotonic() - began
    if found is None:  # only now: whoever stops before has changed nothing
        models.begin_again(journal, model.name, loaded)
        found = recover(journal, history, lineage, _HISTORY)
    lesson = Lesson(cut.taught(), done.learned, done.quarantined, done.known, tables.label)
    base = make_base(journal, history, found, teacher.values(), lesson, time.time())
    return _facts(cut, done, base, took_s, aside.path(cut.id))


def _facts(cut: Cut, done: Learned, base: Based, took_s: float, aside: str) -> dict[str, Any]:
    return {
        "files": msgspec.to_builtins(base.note.files),
        "rows": cut.rows,
        "learned": done.learned,
        "quarantined": done.quarantined,
        "known": done.known,
        "quarantine": aside,
        "snapshot": base.note.snapshot,
        "control": base.seq,
        "seconds": took_s,
        "rows_per_s": cut.rows / max(took_s, 1e-9),
    }
