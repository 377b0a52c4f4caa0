"""`online rollback`, `freeze` and `unfreeze`, and the events that these exclude."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import typer

from online.client.simple_client import NoAnswer, SimpleClient
from online.commands.base import (
    Context,
    agreed,
    bar,
    checked,
    common,
    console,
    readable,
    span,
    table,
)
from online.errors import StartRefused

_PAGE = 200
_PATIENCE_S = 30.0  # for a service that is busy or restarting

After = Annotated[str | None, typer.Option("--after", help="continue after this cursor")]
Limit = Annotated[int, typer.Option("--limit", min=1, help="most events that are listed")]


@common()
def rollback(
    context: Context,
    to: Annotated[str | None, typer.Option("--to", help="snapshot to return to")] = None,
    undone: Annotated[bool, typer.Option("--undone", help="list the undone events")] = False,
    relearn: Annotated[bool, typer.Option("--relearn", help="learn undone events again")] = False,
    without: Annotated[
        str | None,
        typer.Option("--without-source", help="relearn the events since, without this source"),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="do not ask")] = False,
    after: After = None,
    limit: Limit = 100,
) -> None:
    """Return to a snapshot; events learned since are undone but stay in the journal.

    Nothing is deleted: --undone lists the events, --relearn learns each of them again once.
    With --without-source the model continues as if that source had sent nothing since the snapshot;
    the service answers meanwhile, and the source is banned first.

    Example: online rollback --to 3-120
    """
    if sum((to is not None, undone, relearn)) != 1:
        raise typer.BadParameter("give one of --to NAME, --undone and --relearn")
    if without is not None:
        if to is None:
            raise typer.BadParameter("--without-source goes with --to NAME")
        # Imported here, because it imports model libraries.
        from online.commands.change.forget import Options, forget_source

        forget_source(context, without, None, to, Options(yes, context.as_json))
        return
    client, name = context.asked()
    if undone:
        list_events(client, name, "undone", after, limit, as_json=context.as_json)
    elif relearn:
        _relearn(client, name, "undone", after, as_json=context.as_json)
    else:
        effect = _to_be_undone(context, client, name, str(to))
        if not yes:
            _ask(effect, name, str(to))
        url = f"/v1/models/{name}/rollback"
        done = checked(client.post(url, json={"to": to}))
        if context.as_json:
            print(json.dumps(done))
        else:
            print(f"{name} is back at {to}: {done['undone']:,} rows undone")
            for replica in done["missing"]:
                print(f"  {replica} has not seen it yet")
            print("  list them: online rollback --undone   learn them: online rollback --relearn")


@common()
def freeze(
    context: Context,
    listed: Annotated[bool, typer.Option("--list", help="list the events not learned")] = False,
    after: After = None,
    limit: Limit = 100,
) -> None:
    """Stop learning: the model goes on answering, and feedback is stored.

    Exit code 1 if a replica has not confirmed in time: the model is frozen, and that replica will
    follow.

    Example: online freeze
    """
    client, name = context.asked()
    if listed:
        list_events(client, name, "frozen", after, limit, as_json=context.as_json)
        return
    _say_acted(name, "frozen", checked(client.post(f"/v1/models/{name}/freeze")), context.as_json)


@common()
def unfreeze(
    context: Context,
    release: Annotated[
        bool, typer.Option("--release", help="also learn the events that came during the freeze")
    ] = False,
    after: After = None,
) -> None:
    """Resume learning.  Events that came during the freeze are learned only with --release.

    Example: online unfreeze --release
    """
    client, name = context.asked()
    done = checked(client.post(f"/v1/models/{name}/unfreeze"))
    if release:
        _relearn(client, name, "frozen", after, as_json=context.as_json)
    else:
        _say_acted(name, "learning", done, context.as_json)


def _say_acted(name: str, what: str, done: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(done))
    else:
        version = ".".join(map(str, done["version"])) if "version" in done else "not known"
        print(f"{name} is {what}, version {version}")
        for replica in done["missing"]:
            print(f"  {replica} has not seen it yet")
    raise typer.Exit(0 if done["complete"] else 1)


# -- going back ------------------------------------------------------------------------------


def _to_be_undone(context: Context, client: SimpleClient, model: str, name: str) -> dict[str, Any]:
    """Rows that a rollback would undo, and their age, from the snapshot's manifest."""
    from online.settings.places import open_journal, snapshots_of
    from paramserver.errors import SnapshotMissing
    from paramserver.snapshots.format import read_manifest

    settings = context.settings()
    status = checked(client.get(f"/v1/models/{model}"))
    if status["server"] is None:
        raise StartRefused("the parameter server does not answer", "See `online status`")
    try:
        target = read_manifest(snapshots_of(settings, model, status["spec"]).load(name))
    except SnapshotMissing as error:
        raise _gone(client, model, name, error) from error
    journal = open_journal(settings)
    try:
        ends = {p.id: p.end for p in journal.partitions(model)}
    finally:
        journal.close()
    clock = {int(p): offset for p, offset in status["server"]["clock"].items()}
    clock |= {p: ends[p] for p in status["server"]["closed"]}
    closed = target.closed_partitions()
    rows = sum(
        max(upto - target.clock.get(p, 0), 0) for p, upto in clock.items() if p not in closed
    )
    return {"rows": rows, "since": target.created_at, "version": target.version}


def _gone(client: SimpleClient, model: str, name: str, error: Exception) -> Exception:
    """Say which one is nearest if retention has removed a snapshot since it was listed."""
    from paramserver.snapshots.history import parse_name

    version = parse_name(name)
    kept = checked(client.get(f"/v1/models/{model}/snapshots"))["snapshots"]
    before = [row for row in kept if version is not None and tuple(row["version"]) <= version[0]]
    if not before:
        return error
    near = max(before, key=lambda row: row["version"])
    ago = span(time.time() - near["created_at"])
    return StartRefused(
        f"there is no snapshot {name!r}: retention keeps the newest, and older ones at times",
        f"The last one before it is {near['name']}, made {ago} ago; `online snapshot pin NAME` "
        "keeps a snapshot",
    )


def _ask(effect: dict[str, Any], model: str, name: str) -> None:
    ago = span(time.time() - effect["since"])
    at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(effect["since"]))
    text = f"{model} goes back to {name}, made {at} ({ago} ago): {effect['rows']:,} rows are undone"
    kept = ".\nThey are kept: `online rollback --relearn` learns them again."
    agreed(text, "Go back?", more=kept)


# -- events ----------------------------------------------------------------------------------


def list_events(
    client: SimpleClient,
    model: str,
    status: str,
    after: str | None,
    limit: int,
    only: Mapping[str, str] | None = None,
    *,
    as_json: bool,
) -> None:
    """Print the events with a status: undone, frozen or quarantined."""
    events: list[dict[str, Any]] = []
    page: dict[str, Any] = {"cursor": after, "removed": 0, "left": 0}
    removed = 0
    url, what = f"/v1/models/{model}/events", {"status": status}
    if status == "quarantined":
        url, what = f"/v1/models/{model}/quarantine", {}
    while True:
        query = {**what, **(only or {}), "limit": str(min(limit - len(events), 1000))}
        if page["cursor"] is not None:
            query["after"] = page["cursor"]
        page = checked(client.get(url, params=query))
        events += page["events"]
        removed += page["removed"]
        if page["cursor"] is None or len(events) >= limit:
            break
    if as_json:
        print(json.dumps({**page, "events": events, "removed": removed}))
        return
    rows = table("event", "source", "label", "taken", "row", "status", fold=True)
    for e in events:
        taken = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(e["at"]))
        as_row = f" as {e['learned_as']}" if "learned_as" in e else ""
        label = json.dumps(e["label"])
        rows.add_row(
            readable(e["event_id"]), readable(e["source"]), readable(label), taken, e["row"],
            f"{e['status']}{as_row}",
        )  # fmt: skip
    console().print(rows) if events else print(f"no {status} events")
    if removed:
        print(f"{removed:,} older rows were removed by retention")
    if page["cursor"] is not None:
        print(f"{page['left']:,} rows left to look at: --after {page['cursor']}")


def _relearn(
    client: SimpleClient, model: str, status: str, after: str | None, *, as_json: bool
) -> None:
    """Relearn by pages; after Ctrl-C between pages, the same command continues."""
    total = {"learned": 0, "queued": 0, "failed": 0, "duplicate": 0, "banned": 0, "removed": 0}
    cursor, code = after, 0
    progress = bar("learning", hidden=as_json)
    try:
        with progress:
            task, done = progress.add_task("", total=None), 0
            for page in _pages(client, model, status, after):
                cursor = page["cursor"]
                for key in total:
                    total[key] += page.get(key, 0)
                done += sum(page.get(key, 0) for key in total if key != "removed")
                progress.update(task, completed=done, total=done + page["left"])
    except KeyboardInterrupt:
        code = 130
    result = {**total, "cursor": cursor, "interrupted": code != 0}
    if as_json:
        print(json.dumps(result))
    else:
        print(
            f"{model}: {total['learned']:,} {status} events learned, {total['duplicate']:,} were "
            f"learned already, {total['failed']:,} could not be"
        )
        if total["queued"]:
            print(f"{total['queued']:,} are durable, and are being learned in the background")
        if total["banned"]:
            print(f"{total['banned']:,} are of banned or quarantined sources, and were left")
        if total["removed"]:
            print(f"{total['removed']:,} older rows were removed by retention")
        if code and cursor is not None:
            print(f"interrupted; run the same command again, or faster with --after {cursor}")
    raise typer.Exit(code)


def _pages(
    client: SimpleClient, model: str, status: str, cursor: str | None
) -> Iterator[dict[str, Any]]:
    while True:
        body = {"status": status, "after": cursor, "limit": _PAGE}
        page = patiently(client, f"/v1/models/{model}/relearn", body)
        yield page
        cursor = page["cursor"]
        if cursor is None:
            return


def patiently(client: SimpleClient, url: str, body: dict[str, Any]) -> dict[str, Any]:
    """Send a request, and repeat it while the service is busy or restarting."""
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        try:
            answer = client.post(url, json=body)
        except NoAnswer:
            if time.monotonic() > deadline:
                raise
        else:
            if answer.status_code not in (429, 500, 502, 503, 504) or time.monotonic() > deadline:
                return checked(answer)
        time.sleep(0.2)
