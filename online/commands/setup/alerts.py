"""`online alerts`: sends a test message to every receiver in the settings."""

from __future__ import annotations

import json
import time
from typing import Annotated

import typer

from online.commands.base import AsJson, FileOption, load_settings
from online.errors import ConfigError

app = typer.Typer(help="Messages about the service, by webhook and mail.", no_args_is_help=True)


@app.command("test")
def alerts_test(
    text: Annotated[str, typer.Option(help="text of the message")] = "if you read this, it works",
    path: FileOption = None,
    as_json: AsJson = False,
) -> None:
    """Send a test message to every webhook and mailbox of the settings, and show who accepted it.

    The service need not run.  Exit code 1 if one did not accept it.

    Example: online alerts test
    """
    from online.monitoring.alerts import Alert
    from online.monitoring.receivers import NotSent, receivers
    from online.settings.alerts import KINDS

    settings = load_settings(path)
    known = receivers(settings.alerts)
    if not known:
        raise ConfigError(
            "alerts", "no receiver is configured", "Give `webhooks` or `mail`: see docs/alerts.md"
        )
    address = f"http://{settings.host}:{settings.port}"
    outcome: dict[str, str | None] = {}
    for number, receiver in enumerate(known, 1):
        alert = Alert(KINDS[0], None, "test", text, time.time(), address)
        try:
            receiver.send(alert)
            outcome[f"{number}: {receiver.name}"] = None
        except NotSent as error:
            outcome[f"{number}: {receiver.name}"] = error.why
    if as_json:
        print(
            json.dumps(
                {
                    "sent": {name: why is None for name, why in outcome.items()},
                    "failed": {name: why for name, why in outcome.items() if why is not None},
                }
            )
        )
    else:
        for name, why in outcome.items():
            print(f"{name}: {'sent' if why is None else f'not sent: {why}'}")
    if any(why is not None for why in outcome.values()):
        raise typer.Exit(1)
