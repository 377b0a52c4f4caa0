"""`online snapshot`: lists, creates, shows and pins snapshots."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from online.commands.base import (
    AsJson,
    Context,
    FileOption,
    Model,
    StateDir,
    checked,
    common,
    console,
    load_settings,
    pick_model,
    table,
)
from online.settings.config import Settings

if TYPE_CHECKING:
    from paramserver.snapshots.places import Snapshots

app = typer.Typer(help="List, create, show and pin snapshots.", no_args_is_help=True)


@app.command("list")
@common()
def snapshot_list(context: Context) -> None:
    """List the stored snapshots, newest first.

    Example: online snapshot list
    """
    client, name = context.asked()
    snapshots = checked(client.get(f"/v1/models/{name}/snapshots"))["snapshots"]
    if context.as_json:
        print(json.dumps(snapshots))
        return
    rows = table("snapshot", "version", "age", "bytes", "pinned")
    for s in snapshots:
        age = time.time() - s["created_at"]
        pinned = "yes" if s["pinned"] else ""
        version = ".".join(map(str, s["version"]))
        rows.add_row(s["name"], version, f"{age:,.0f} s", f"{s['size']:,}", pinned)
    console().print(rows)


@app.command("create")
@common()
def snapshot_create(
    context: Context,
    pin: Annotated[bool, typer.Option("--pin", help="exempt it from retention")] = False,
) -> None:
    """Publish a snapshot now.

    Example: online snapshot create --pin
    """
    client, name = context.asked()
    made = checked(client.post(f"/v1/models/{name}/snapshots", params={"pin": pin}))
    if context.as_json:
        print(json.dumps(made))
        return
    print(f"{name}: snapshot {made['name']}{', pinned' if made['pinned'] else ''}")


@app.command("pin")
@common()
def snapshot_pin(
    context: Context,
    snapshot: Annotated[str, typer.Argument(help="its name, from `snapshot list`")],
    off: Annotated[bool, typer.Option("--off", help="remove the pin")] = False,
) -> None:
    """Exempt a snapshot from retention, or (--off) end that.

    Example: online snapshot pin 3-120
    """
    client, name = context.asked()
    url = f"/v1/models/{name}/snapshots/{snapshot}/pin"
    done = checked(client.post(url, params={"on": not off}))
    if context.as_json:
        print(json.dumps(done))
    else:
        print(f"{name}: snapshot {snapshot} is {'pinned' if done['pinned'] else 'not pinned'}")


@app.command("show")
def snapshot_show(
    snapshot: Annotated[str, typer.Argument(help="its name, from `snapshot list`, or its file")],
    lineage: Annotated[
        bool, typer.Option("--lineage", help="also list the snapshots it descends from")
    ] = False,
    model: Model = None,
    path: FileOption = None,
    state_dir: StateDir = None,
    as_json: AsJson = True,
) -> None:
    """Verify a snapshot and show its contents; works without a running service.

    Example: online snapshot show 3-120 --lineage
    """
    from paramserver.snapshots.chain import read, read_file
    from paramserver.snapshots.history import ancestors

    stored, name = None, Path(snapshot).name.removesuffix(".snapshot")
    if Path(snapshot).is_file():
        state = read_file(Path(snapshot))
    else:
        stored = _stored(load_settings(path, state_dir=state_dir), model)
        state = read(stored, name)
    sizes = {n: len(b.data) if hasattr(b.data, "__len__") else 1 for n, b in state.values.items()}
    content = {
        "model": state.model, "spec": state.spec, "version": list(state.version),
        "clock": dict(state.clock), "closed": sorted(state.closed), "control": state.control,
        "rewrite": state.rewrite, "frozen": state.frozen, "created_at": state.created_at,
        "parent": state.parent, "blocks": sizes,
        "spec_text": json.loads(state.spec_text) if state.spec_text else None,
    }  # fmt: skip
    if lineage:
        snapshots = stored or _stored(
            load_settings(path, state_dir=state_dir), model or state.model
        )
        content["lineage"] = ancestors(name, snapshots.names())
    print(json.dumps(content, indent=1))


def _stored(settings: Settings, model: str | None) -> Snapshots:
    """The stored snapshots of a model of the settings."""
    from online.challenger.promotion import as_stored
    from online.models.loading.from_settings import load_model
    from online.rows.prediction_ids import Keys
    from online.settings.places import snapshots_of

    settings = as_stored(settings)
    chosen = pick_model(settings, model)
    spec = load_model(chosen, settings, *Keys.stored(settings.key_path)).spec_hash
    return snapshots_of(settings, chosen.name, spec)
