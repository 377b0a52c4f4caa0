"""`online quarantine`: lists, shows, releases and discards quarantined events; bans sources."""

from __future__ import annotations

import json
from typing import Annotated, Any
from urllib.parse import quote

import typer

from online.commands.base import Context, bar, checked, common, pick
from online.commands.change.rewrites import After, Limit, list_events, patiently
from replay.plain import plain

_PAGE = 200

app = typer.Typer(help="Quarantined events, and bans of sources.", no_args_is_help=True)

Rows = Annotated[list[str] | None, typer.Argument(help="rows as in `list`: 3:120")]
Source = Annotated[str | None, typer.Option("--source", help="all events of this source")]


@app.command("list")
@common()
def list_(context: Context, source: Source = None, after: After = None, limit: Limit = 100) -> None:
    """List quarantined events, with the decisions about them.

    Example: online quarantine list --source bot-7
    """
    client, name = context.asked()
    query = {} if source is None else {"source": source}
    list_events(client, name, "quarantined", after, limit, query, as_json=context.as_json)


@app.command()
@common()
def show(
    context: Context,
    event: Annotated[str, typer.Argument(help="its row, or its id")],
    source: Annotated[str | None, typer.Option("--source", help="source of the id")] = None,
) -> None:
    """Show one event: what was sent, what the model predicted, and why it was quarantined.

    Example: online quarantine show 3:120
    """
    client = context.connect()
    url = f"/v1/models/{pick(client, context.model)}/quarantine/events/{quote(event, safe='')}"
    query = {} if source is None else {"source": source}
    shown_event = checked(client.get(url, params=query))
    if context.as_json:
        print(json.dumps(shown_event))
        return
    for key, value in shown_event.items():
        print(f"{key:>10}  {plain(value) if isinstance(value, str) else json.dumps(value)}")


@app.command()
@common()
def release(
    context: Context, rows: Rows = None, source: Source = None, after: After = None
) -> None:
    """Learn quarantined events after all, each once.  The first decision about an event stands.

    Example: online quarantine release 3:120 3:121
    """
    _decide(context, "release", rows, source, after)


@app.command()
@common()
def discard(
    context: Context, rows: Rows = None, source: Source = None, after: After = None
) -> None:
    """Decide that events are never learned.  The first decision about an event stands.

    Example: online quarantine discard --source bot-7
    """
    _decide(context, "discard", rows, source, after)


@app.command()
@common()
def ban(
    context: Context, source: Annotated[str, typer.Option("--source", help="source to ban")]
) -> None:
    """Quarantine whatever a source sends from now on; what was learned from it stays.

    Exit code 1 if a replica has not confirmed in time: the source is banned, and that replica will
    follow.

    Example: online quarantine ban --source bot-7
    """
    _ban(context, source, banned=True)


@app.command()
@common()
def unban(
    context: Context, source: Annotated[str, typer.Option("--source", help="source to unban")]
) -> None:
    """Learn from a source again; its quarantined events stay so unless they are released.

    Example: online quarantine unban --source bot-7
    """
    _ban(context, source, banned=False)


def _ban(context: Context, source: str, *, banned: bool) -> None:
    client, name = context.asked()
    body = {"source": source, "banned": banned}
    done = checked(client.post(f"/v1/models/{name}/sources", json=body))
    if context.as_json:
        print(json.dumps(done))
    else:
        print(f"{name}: {source} is {'banned' if banned else 'heard again'}")
        for replica in done["missing"]:
            print(f"  {replica} has not seen it yet")
    raise typer.Exit(0 if done["complete"] else 1)


def _decide(
    context: Context, verb: str, rows: list[str] | None, source: str | None, after: str | None
) -> None:
    """Decide by pages; after Ctrl-C between pages, the same command continues."""
    if (not rows) == (source is None):
        raise typer.BadParameter("give rows, or --source NAME")
    client, model = context.asked()
    url = f"/v1/models/{model}/quarantine/{verb}"
    total, cursor, code = dict[str, int](), after, 0
    pages: list[dict[str, Any]] = [
        {"rows": rows[i : i + _PAGE]} for i in range(0, len(rows or ()), _PAGE) if rows
    ]
    progress = bar(verb, hidden=context.as_json)
    try:
        with progress:
            task, done = progress.add_task("", total=None), 0
            body = pages.pop(0) if pages else {"source": source, "after": after, "limit": _PAGE}
            while True:
                page = patiently(client, url, body)
                cursor, remaining = page.pop("cursor", None), page.pop("left", 0)
                for key, count in page.items():
                    total[key] = total.get(key, 0) + count
                done += page["released"] + page["discarded"]
                progress.update(task, completed=done, total=done + remaining)
                if pages:
                    body = pages.pop(0)
                elif cursor is not None:
                    body = {"source": source, "after": cursor, "limit": _PAGE}
                else:
                    break
    except KeyboardInterrupt:
        code = 130
    if context.as_json:
        print(json.dumps({**total, "cursor": cursor, "interrupted": code != 0}))
    else:
        print(
            f"{model}: {total.get('released', 0):,} released, {total.get('discarded', 0):,} "
            f"discarded; {total.get('duplicate', 0):,} had been decided before"
        )
        if total.get("failed"):
            print(f"{total['failed']:,} could not be learned")
        if code and cursor is not None:
            print(f"interrupted; run the same command again, or faster with --after {cursor}")
    raise typer.Exit(code)
