"""`online promote`: promotes a challenger or an apprentice, or reverts that."""

from __future__ import annotations

import json
import sys
import time
from typing import Annotated, Any, Final

import typer

from online.client.simple_client import SimpleClient
from online.commands.base import Context, agreed, checked, common
from online.errors import StartRefused
from online.service.state.run_file import running
from online.settings.config import Settings

_PATIENCE_S: Final = 120.0
_LOOK_S: Final = 0.2


@common()
def promote(
    context: Context,
    back: Annotated[bool, typer.Option("--back", help="serve the previous model again")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="do not ask")] = False,
) -> None:
    """Promote the challenger with its learned state; the service answers meanwhile.

    The previous model becomes the challenger and learns on: --back promotes it again.

    For a model that chooses as an apprentice: let it answer by itself if it is certain to keep
    enough of the reward that the caller's own choices earn; --yes: in any case, --back: no longer.

    Exit code 1 if it was refused, or the replicas did not switch.

    Example: online promote
    """
    client, name = context.asked()
    status = checked(client.get(f"/v1/models/{name}"))
    choices = status.get("choices")
    if choices is not None and (status["challenger"] is None or choices["answers"] == "caller"):
        _let_answer(client, name, choices, back=back, yes=yes, as_json=context.as_json)
        return
    if (challenger := status["challenger"]) is None:
        raise StartRefused(
            f"model {name} has no challenger", "Name one in the settings: models[].challenger"
        )
    if not (back or yes):
        _ask(name, status["learner"], challenger)
    done = checked(client.post(f"/v1/models/{name}/promote", json={"back": back}))
    settings = context.settings()
    served = _wait(client, settings, name, done["to"])
    if context.as_json:
        print(json.dumps({**done, "version": served["version"]}))
    else:
        print(f"{name}: {served['learner']} serves, version {served['version']}")
        print("  take it back: online promote --back")


def _ask(name: str, learner: str, challenger: dict[str, Any]) -> None:
    """Ask for confirmation, unless the challenger is known to be better."""
    if (verdict := challenger.get("verdict")) == "better":
        return
    text = f"{challenger['learner']} is not known to be better than {learner}: {verdict}"
    rows = f", {challenger.get('rows', 0):,} rows compared."
    agreed(text, f"Let it serve as {name}?", more=rows)


def _let_answer(
    client: SimpleClient,
    name: str,
    choices: dict[str, Any],
    *,
    back: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Let an apprentice answer, or no longer; ask for confirmation unless it is ready."""
    stands = choices["apprentice"]
    waits = choices["answers"] == "caller" and not (back or yes)
    if waits and sys.stdin.isatty() and stands is not None and not stands["ready"]:
        print(
            f"It agrees with {stands['agreed']:.1%} of {stands['n']:,} choices; that it keeps "
            f"{stands['asked']:.0%} of their reward is not sure.",
            file=sys.stderr,
        )
        if not typer.confirm(f"Let it answer as {name}?", err=True):
            raise StartRefused("nothing was changed", "Answer y, or give --yes")
        yes = True
    body = {"back": back, "force": yes}
    done = checked(client.post(f"/v1/models/{name}/promote", json=body))
    if as_json:
        print(json.dumps(done))
        return
    who = (
        "the model answers" if done["answers"] == "model" else "the caller's own choice is answered"
    )
    print(f"{name}: {who}, version {done['version'][0]}.{done['version'][1]}")
    if not done["complete"]:
        print(f"  not seen yet by {', '.join(done['missing'])}: they will")
    if done["answers"] == "model":
        print("  take it back: online promote --back")


def _wait(client: SimpleClient, settings: Settings, name: str, spec: str) -> dict[str, Any]:
    """Status of the model once every replica serves the spec, as the run file says."""
    deadline = time.monotonic() + _PATIENCE_S
    while running(settings.state_dir).get("specs", {}).get(name) != spec:
        if time.monotonic() > deadline:
            raise StartRefused(
                f"{name} is promoted; its replicas have not switched within {_PATIENCE_S:.0f} s",
                "See what `online serve` says",
            )
        time.sleep(_LOOK_S)
    return checked(client.get(f"/v1/models/{name}"))
