"""The command line: every command of `online`, and the exit codes."""

from __future__ import annotations

import sys
from typing import Annotated

import httpx
import typer

from online import __version__
from online.commands import (
    backfill,
    doctor,
    edge,
    export,
    forget,
    init,
    load,
    models,
    promote,
    quarantine,
    report,
    rescore,
    rewrites,
    scores,
    serve,
    settings,
    snapshot,
    status,
    stream,
    triggers,
)
from online.errors import OnlineError
from replay.plain import PlainStream

app = typer.Typer(
    name="online",
    help="A model that answers over HTTP and learns from every piece of feedback.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for command in (
    init.init, doctor.doctor, serve.serve, stream.stream, status.status, status.fsck,
    report.report, rescore.rescore, backfill.backfill, export.export, rewrites.rollback,
    forget.forget, rewrites.freeze, rewrites.unfreeze, promote.promote, triggers.triggers,
):  # fmt: skip
    app.command()(command)
app.add_typer(snapshot.app, name="snapshot")
app.add_typer(quarantine.app, name="quarantine")
app.add_typer(scores.app, name="scores")
app.add_typer(edge.app, name="edge")
app.add_typer(settings.app, name="config")
app.add_typer(models.app, name="models")
app.add_typer(load.app, name="bench")


@app.callback(invoke_without_command=True)
def top(
    version: Annotated[bool, typer.Option("--version", help="print the version")] = False,
) -> None:
    """Options that stand before a command."""
    if version:
        print(__version__)
        raise typer.Exit


def main() -> None:
    """Run a command: exit code 0, 1 for a refusal (said on stderr), 2 for wrong usage."""
    run(app, "online")


def run(commands: typer.Typer, name: str) -> None:
    """Run the command that was asked for, and say in one line what is refused.

    Parameters
    ----------
    commands
        One of them is run, with the arguments of this process.
    name
        Begins each line about a refusal.
    """
    from evaluation.errors import EvaluationError
    from online.models.errors import ModelError
    from paramserver.errors import ParamServerError
    from replay.errors import ReplayError

    sys.stdout, sys.stderr = PlainStream(sys.stdout), PlainStream(sys.stderr)
    known = (OnlineError, EvaluationError, ModelError, ParamServerError, ReplayError)
    try:
        commands()
    except known as error:
        print(f"{name}: {error}", file=sys.stderr)
        sys.exit(1)
    except OSError as error:
        if error.filename is None:  # of no place that anybody has given
            raise
        print(f"{name}: {error.filename}: {error.strerror}", file=sys.stderr)
        sys.exit(1)
    except httpx.TransportError as error:
        print(
            f"{name}: the service does not answer ({error}); see `online status`", file=sys.stderr
        )
        sys.exit(1)
