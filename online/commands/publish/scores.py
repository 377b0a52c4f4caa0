"""`online scores`: lists published runs of scores, returns to an earlier one, and removes runs."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from online.commands.base import Context, common, console, in_private, pick_model, span, table
from online.commands.publish.rescore import Store
from online.errors import ConfigError

if TYPE_CHECKING:
    from online.rescore.published import Current
    from online.rescore.stores import Scores

app = typer.Typer(help="List, roll back and remove runs of scores.", no_args_is_help=True)

Output = Annotated[str | None, typer.Option("--output", help="folder of the runs; s3://…")]


@app.command("list")
@common()
def scores_list(context: Context, output: Output = None, store: Store = None) -> None:
    """List published runs, newest first; * marks the one that is read.

    Example: online scores list --output ./scores
    """
    current = _current(output, _opened(store, context))
    runs = list(reversed(current.history))
    if context.as_json:
        here = None if current.run is None else current.run.name
        data: list[Any] = [msgspec.to_builtins(run) | {"current": run.name == here} for run in runs]
        print(json.dumps(data))
        return
    rows = table("", "run", "model", "version", "rows", "scored", "features")
    for run in runs:
        mark = "*" if run == current.run else ""
        ages = (f"{span(time.time() - at)} ago" for at in (run.scored_at, run.as_of))
        rows.add_row(mark, run.name, run.model, run.version, f"{run.rows:,}", *ages)
    console().print(rows)


@app.command("rollback")
@common(as_json=False)
def scores_rollback(
    context: Context,
    to: Annotated[str | None, typer.Option(help="a run; default: the previous one")] = None,
    output: Output = None,
    store: Store = None,
) -> None:
    """Let readers use an earlier run from now on.

    Example: online scores rollback --output ./scores --store sqlite:./state/scores
    """
    from online.rescore import published
    from online.rescore.run import POINTER, pointer
    from online.tables.places import Folder, Location

    opened = _opened(store, context)
    _one_of(output, opened)
    if opened is not None:
        made = opened.point(lambda current: current.back(to))
        print(f"{opened.url}: run {made.run.name if made.run else None} is read now")
    if output is not None:
        folder = Folder(Location(output))
        made = pointer(folder).back(to)
        folder.write(POINTER, published.encode(made))
        print(f"{output}: run {made.run.name if made.run else None} is read now")


@app.command("gc")
@common(as_json=False)
def scores_gc(
    context: Context,
    keep: Annotated[int, typer.Option(help="newest runs to keep", min=1, max=10_000)] = 3,
    unfinished: Annotated[
        bool, typer.Option("--unfinished", help="also remove runs that were never published")
    ] = False,
    output: Output = None,
    store: Store = None,
) -> None:
    """Remove old runs, but never the one that is read.

    Example: online scores gc --output ./scores --keep 3
    """
    opened = _opened(store, context)
    _one_of(output, opened)
    if opened is not None:
        names = opened.current().removable(keep)
        opened.point(lambda current: current.without(frozenset(names)))
        opened.remove(names)
        print(f"{opened.url}: removed {', '.join(names) or 'nothing'}")
    if output is not None:
        print(f"{output}: removed {', '.join(_gc_folder(output, keep, unfinished)) or 'nothing'}")


def _gc_folder(output: str, keep: int, unfinished: bool) -> list[str]:
    from online.rescore import published
    from online.rescore.run import POINTER, pointer
    from online.tables.places import Folder, Location

    folder = Folder(Location(output))
    current = pointer(folder)
    names = current.removable(keep)
    if names:  # first, so that nobody can return to them
        folder.write(POINTER, published.encode(current.without(frozenset(names))))
    if unfinished:
        known = {run.name for run in current.history}
        names += [name for name in folder.folders("runs") if name not in known]
    for name in names:
        folder.remove(f"runs/{name}")
    return names


def _opened(store: str | None, context: Context) -> Scores | None:
    if store is None:
        return None
    from online.rescore.stores import open_store

    settings = in_private(context.settings())
    return open_store(store, pick_model(settings, context.model).name)


def _current(output: str | None, opened: Scores | None) -> Current:
    from online.rescore.run import pointer
    from online.tables.places import Folder, Location

    _one_of(output, opened)
    return opened.current() if opened is not None else pointer(Folder(Location(str(output))))


def _one_of(output: str | None, opened: Scores | None) -> None:
    if output is None and opened is None:
        raise ConfigError("--output", "neither --output nor --store is given", "Give one of them")
