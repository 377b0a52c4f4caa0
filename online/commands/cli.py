"""The command line: all commands of `online`, and their exit codes.

Only the module of the invoked command is imported: importing all of them would take longer than a
running service takes to answer.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import io
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, Final

import typer

from online import __version__
from online.client.simple_client import NoAnswer
from online.errors import OnlineError
from paramserver.process.acting import acting, this_user
from replay.plain import PlainStream

_COMMANDS: Final[Mapping[str, str]] = {
    "init": "setup.init", "doctor": "setup.doctor", "serve": "operate.serve",
    "stream": "operate.stream", "status": "operate.status", "fsck": "operate.status",
    "report": "inspect.report", "rescore": "publish.rescore", "backfill": "change.backfill",
    "export": "publish.export", "rollback": "change.rewrites", "forget": "change.forget",
    "freeze": "change.rewrites", "unfreeze": "change.rewrites", "promote": "change.promote",
    "triggers": "inspect.triggers", "top": "operate.top", "history": "operate.history",
    "evaluate": "inspect.evaluate",
}  # fmt: skip
"""Maps a command to the module, below `online.commands`, that has a function of the same name."""

_GROUPS: Final[Mapping[str, str]] = {
    "snapshot": "change.snapshot", "quarantine": "change.quarantine", "scores": "publish.scores",
    "edge": "publish.edge", "config": "setup.settings", "models": "setup.models",
    "bench": "operate.load", "alerts": "setup.alerts", "audit": "inspect.audit",
    "events": "operate.events", "certificates": "inspect.certificates",
}  # fmt: skip
"""Maps a command with subcommands to the module whose ``app`` they belong to."""

_BEHIND: Final = frozenset({"forget", "backfill", "report"})
"""Commands that compute for seconds beside a running service, so they lower their priority."""

_NICENESS: Final = 10

_DISK: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EIO})
"""Errors of writing that do not name a file."""


def application(only: str | None = None) -> typer.Typer:
    """Build the command line with the command ``only``, or with all if there is no such command.

    Each command has the same help, options and errors either way.
    """
    app = typer.Typer(
        name="online",
        help="A model that answers over HTTP and learns from every piece of feedback.",
        no_args_is_help=True,
        add_completion=True,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )
    app.callback(invoke_without_command=True)(_top)
    one = only in _COMMANDS or only in _GROUPS
    for name, module in _COMMANDS.items():
        if not one or name == only:
            app.command()(getattr(_module(module), name))
    for name, module in _GROUPS.items():
        if not one or name == only:
            app.add_typer(_module(module).app, name=name)
    return app


def _module(name: str) -> Any:
    return importlib.import_module(f"online.commands.{name}")


def __getattr__(name: str) -> typer.Typer:
    """Build `app`, the whole command line, on demand."""
    if name == "app":
        return application()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _top(
    version: Annotated[bool, typer.Option("--version", help="print the version")] = False,
) -> None:
    """Options that stand before a command."""
    if version:
        print(__version__)
        raise typer.Exit


def main() -> None:
    """Run a command: exit code 0, 1 for a refusal (reported on stderr), 2 for wrong usage.

    Ctrl-C exits with 130 at any time.
    """
    try:
        with nothing_begun():
            only = sys.argv[1] if sys.argv[1:] else None
            if only in _BEHIND:
                stand_behind()
            commands = application(only)
        run(commands, "online")
    except KeyboardInterrupt:
        sys.exit(130)


def stand_behind() -> None:
    """Lower this process's priority, so that a service on the same machine goes first.

    A command that replays thousands of rows uses a whole processor; on a machine with two,
    predictions waited until it was done.
    """
    with contextlib.suppress(OSError):
        nice = os.getpriority(os.PRIO_PROCESS, 0)
        os.setpriority(os.PRIO_PROCESS, 0, max(nice, _NICENESS))


@contextlib.contextmanager
def nothing_begun() -> Iterator[None]:
    """Let Ctrl-C end the process at once and silently while modules are being imported."""
    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:  # background commands of a shell ignore SIGINT
        signal.signal(signal.SIGINT, lambda *_: os._exit(130))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def run(commands: Callable[[], object], name: str) -> None:
    """Run the invoked command, and report a refusal in one line.

    Parameters:
        commands: Runs the command, with the arguments of this process.
        name: Prefix of each line about a refusal.
    """
    with nothing_begun():
        from evaluation.errors import EvaluationError
        from online.models.errors import ModelError
        from paramserver.errors import ParamServerError
        from replay.errors import ReplayError

    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal may not support Unicode
            stream.reconfigure(errors="backslashreplace")
    sys.stdout, sys.stderr = PlainStream(sys.stdout), PlainStream(sys.stderr)
    nobody = acting.set(this_user())
    known = (OnlineError, EvaluationError, ModelError, ParamServerError, ReplayError)
    try:
        commands()
    except known as error:
        print(f"{name}: {error}", file=sys.stderr)
        sys.exit(1)
    except OSError as error:
        if error.filename is None and error.errno not in _DISK:  # not caused by the user's input
            raise
        place = "the disk" if error.filename is None else error.filename
        print(f"{name}: {place}: {error.strerror}", file=sys.stderr)
        sys.exit(1)
    except UnicodeEncodeError as error:
        print(f"{name}: {error.object[:80]!a} is no text. Write it in UTF-8", file=sys.stderr)
        sys.exit(1)
    except Exception as error:
        if not _is_of_transport(error):
            raise
        print(f"{name}: {NoAnswer(str(error))}", file=sys.stderr)
        sys.exit(1)
    finally:
        acting.reset(nobody)


def _is_of_transport(error: Exception) -> bool:
    """Whether httpx got no answer; if it was never imported, it raised nothing."""
    httpx = sys.modules.get("httpx")
    return httpx is not None and isinstance(error, httpx.TransportError)
