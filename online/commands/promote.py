"""`online promote`: the challenger takes the place of the model that serves, or gives it back."""

from __future__ import annotations

import json
import sys
import time
from typing import Annotated, Any, Final

import typer

from online.client.asking import Asking
from online.commands.base import (
    AsJson,
    FileOption,
    Model,
    StateDir,
    checked,
    connect,
    load_settings,
    pick,
)
from online.errors import StartRefused
from online.service.run_file import running
from online.settings.config import Settings

_PATIENCE_S: Final = 120.0
_LOOK_S: Final = 0.2


def promote(
    back: Annotated[bool, typer.Option("--back", help="let what served before serve")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="do not ask")] = False,
    model: Model = None,
    path: FileOption = None,
    state_dir: StateDir = None,
    as_json: AsJson = False,
) -> None:
    """Let the challenger serve, with what it has learned; the service answers meanwhile.

    What served becomes the challenger and learns on: --back lets it serve again.

    Exit code 1 if it was refused, or the replicas did not go over.

    Example: online promote
    """
    client = connect(path, state_dir)
    name = pick(client, model)
    status = checked(client.get(f"/v1/models/{name}"))
    if (found := status["challenger"]) is None:
        raise StartRefused(
            f"model {name} has no challenger", "Name one in the settings: models[].challenger"
        )
    if not (back or yes):
        _ask(name, status["learner"], found)
    done = checked(client.post(f"/v1/models/{name}/promote", json={"back": back}))
    settings = load_settings(path, state_dir=state_dir)
    served = _wait(client, settings, name, done["to"])
    if as_json:
        print(json.dumps({**done, "version": served["version"]}))
    else:
        print(f"{name}: {served['learner']} serves, version {served['version']}")
        print("  take it back: online promote --back")


def _ask(name: str, learner: str, found: dict[str, Any]) -> None:
    """A challenger that is better needs no question."""
    if found.get("verdict") == "better":
        return
    text = f"{found['learner']} is not known to be better than {learner}: {found.get('verdict')}"
    if not sys.stdin.isatty():
        raise StartRefused(f"{text}; nobody is here to say yes", "Say it with --yes")
    print(f"{text}, {found.get('rows', 0):,} rows compared.", file=sys.stderr)
    if not typer.confirm(f"Let it serve as {name}?", err=True):
        raise StartRefused("nothing was changed", "Say y, or --yes")


def _wait(client: Asking, settings: Settings, name: str, spec: str) -> dict[str, Any]:
    """Status of the model once every replica answers with the spec, as the service notes it."""
    deadline = time.monotonic() + _PATIENCE_S
    while running(settings.state_dir).get("specs", {}).get(name) != spec:
        if time.monotonic() > deadline:
            raise StartRefused(
                f"{name} is promoted, and its replicas have not gone over in {_PATIENCE_S:.0f} s",
                "See what `online serve` says",
            )
        time.sleep(_LOOK_S)
    return checked(client.get(f"/v1/models/{name}"))
