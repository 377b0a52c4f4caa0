"""`online quarantine`: events that were set aside, seen, released or discarded; bans."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import typer

from online.client.asking import Asking
from online.commands.base import AsJson, FileOption, Model, StateDir, bar, checked, connect, pick
from online.commands.rewrites import After, Limit, list_events, patiently
from replay.plain import plain

_PAGE = 200

app = typer.Typer(help="Events that were set aside.", no_args_is_help=True)

Rows = Annotated[list[str] | None, typer.Argument(help="rows, as `list` names them: 3:120")]
Source = Annotated[str | None, typer.Option("--source", help="all events of this source")]


@app.command("list")
def list_(
    source: Source = None,
    after: After = None,
    limit: Limit = 100,
    model: Model = None,
    path: FileOption = None,
    state_dir: StateDir = None,
    as_json: AsJson = False,
) -> None:
    """List events that were set aside, with what was decided about them.

    Example: online quarantine list --source bot-7
    """
    client = connect(path, state_dir)
    name = pick(client, model)
    query = {} if source is None else {"source": source}
    list_events(client, name, "quarantined", after, limit, query, as_json=as_json)


@app.command()
def show(
    event: Annotated[str, typer.Argument(help="its row, or its id")],
    source: Annotated[str | None, typer.Option("--source", help="who sent the id")] = None,
    model: Model = None,
    path: FileOption = None,
    state_dir: StateDir = None,
    as_json: AsJson = False,
) -> None:
    """Show one event: what was sent, what the model had answered, why it was set aside.

    Example: online quarantine show 3:120
    """
    client = connect(path, state_dir)
    url = f"/v1/models/{pick(client, model)}/quarantine/events/{quote(event, safe='')}"
    query = {} if source is None else {"source": source}
    found = checked(client.get(url, params=query))
    if as_json:
        print(json.dumps(found))
        return
    for key, value in found.items():
        print(f"{key:>10}  {plain(value) if isinstance(value, str) else json.dumps(value)}")


@app.command()
def release(
    rows: Rows = None,
    source: Source = None,
    after: After = None,
    model: Model = None,
    path: FileOption = None,
    state_dir: StateDir = None,
    as_json: AsJson = False,
) -> None:
    """Learn events after all, each once.  Whoever decides first is heard.

    Example: online quarantine release 3:120 3:121
    """
    client = connect(path, state_dir)
    _decide(client, pick(client, model), "release", rows, source, after, as_json=as_json)


@app.command()
def discard(
    rows: Rows = None,
    source: Source = None,
    after: After = None,
    model: Model = None,
    path: FileOption = None,
    state_dir: StateDir = None,
    as_json: AsJson = False,
) -> None:
    """Never learn events.  Whoever decides first is heard.

    Example: online quarantine discard --source bot-7
    """
    client = connect(path, state_dir)
    _decide(client, pick(client, model), "discard", rows, source, after, as_json=as_json)


@app.command()
def ban(
    source: Annotated[str, typer.Option("--source", help="who")],
    model: Model = None,
    path: FileOption = None,
    state_dir: StateDir = None,
    as_json: AsJson = False,
) -> None:
    """Set aside whatever a source sends from now on; what it has taught stays.

    Exit code 1 if a replica has not seen it in time: it is banned, and that one will.

    Example: online quarantine ban --source bot-7
    """
    _ban(source, model, path, state_dir, banned=True, as_json=as_json)


@app.command()
def unban(
    source: Annotated[str, typer.Option("--source", help="who")],
    model: Model = None,
    path: FileOption = None,
    state_dir: StateDir = None,
    as_json: AsJson = False,
) -> None:
    """Learn from a source again; what was set aside stays so, unless it is released.

    Example: online quarantine unban --source bot-7
    """
    _ban(source, model, path, state_dir, banned=False, as_json=as_json)


def _ban(
    source: str,
    model: str | None,
    path: Path | None,
    state_dir: Path | None,
    *,
    banned: bool,
    as_json: bool,
) -> None:
    client = connect(path, state_dir)
    name = pick(client, model)
    body = {"source": source, "banned": banned}
    done = checked(client.post(f"/v1/models/{name}/sources", json=body))
    if as_json:
        print(json.dumps(done))
    else:
        print(f"{name}: {source} is {'banned' if banned else 'heard again'}")
        for replica in done["missing"]:
            print(f"  {replica} has not seen it yet")
    raise typer.Exit(0 if done["complete"] else 1)


def _decide(
    client: Asking,
    model: str,
    verb: str,
    rows: list[str] | None,
    source: str | None,
    after: str | None,
    *,
    as_json: bool,
) -> None:
    """Page by page; Ctrl-C between two pages leaves nothing half, and the next run goes on."""
    if (not rows) == (source is None):
        raise typer.BadParameter("give rows, or --source NAME")
    url = f"/v1/models/{model}/quarantine/{verb}"
    total, cursor, code = dict[str, int](), after, 0
    pages: list[dict[str, Any]] = [
        {"rows": rows[i : i + _PAGE]} for i in range(0, len(rows or ()), _PAGE) if rows
    ]
    shown = bar(verb, hidden=as_json)
    try:
        with shown:
            task, done = shown.add_task("", total=None), 0
            body = pages.pop(0) if pages else {"source": source, "after": after, "limit": _PAGE}
            while True:
                page = patiently(client, url, body)
                cursor, left = page.pop("cursor", None), page.pop("left", 0)
                for key, count in page.items():
                    total[key] = total.get(key, 0) + count
                done += page["released"] + page["discarded"]
                shown.update(task, completed=done, total=done + left)
                if pages:
                    body = pages.pop(0)
                elif cursor is not None:
                    body = {"source": source, "after": cursor, "limit": _PAGE}
                else:
                    break
    except KeyboardInterrupt:
        code = 130
    if as_json:
        print(json.dumps({**total, "cursor": cursor, "interrupted": code != 0}))
    else:
        print(
            f"{model}: {total.get('released', 0):,} released, {total.get('discarded', 0):,} "
            f"discarded; {total.get('duplicate', 0):,} of them had been decided before"
        )
        if total.get("failed"):
            print(f"{total['failed']:,} could not be learned")
        if code and cursor is not None:
            print(f"interrupted; the same command goes on, or faster with --after {cursor}")
    raise typer.Exit(code)
