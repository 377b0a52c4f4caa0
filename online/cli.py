"""The command line: every command of `online`, and the exit codes.

A command imports its own module alone: what a question to a running service would wait for
otherwise takes longer than the answer.
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
"""Commands that compute for seconds beside a service, whose answers go first."""

_NICENESS: Final = 10

_DISK: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EIO})
"""Errors of a write, which names no file."""


def application(only: str | None = None) -> typer.Typer:
    """The command line, with the command ``only`` or with every one if there is none of the name.

    Each has the same help, options and errors in both.
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
    """`app`, the whole command line, made when it is asked for."""
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
    """Run a command: exit code 0, 1 for a refusal (said on stderr), 2 for wrong usage.

    Ctrl-C is 130 wherever it comes, also between what takes it for itself.
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
    """Leave the processors of this machine to whoever answers requests, if they want them.

    A command that learns thousands of rows again takes a whole one: with two of them predictions
    waited until it was done.
    """
    with contextlib.suppress(OSError):
        nice = os.getpriority(os.PRIO_PROCESS, 0)
        os.setpriority(os.PRIO_PROCESS, 0, max(nice, _NICENESS))


@contextlib.contextmanager
def nothing_begun() -> Iterator[None]:
    """Ctrl-C ends the process at once and without a word, as code is only being read."""
    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:  # a shell's background command does not take it
        signal.signal(signal.SIGINT, lambda *_: os._exit(130))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def run(commands: Callable[[], object], name: str) -> None:
    """Run the command that was asked for, and say in one line what is refused.

    Parameters:
        commands: One of them is run, with the arguments of this process.
        name: Begins each line about a refusal.
    """
    with nothing_begun():
        from evaluation.errors import EvaluationError
        from online.models.errors import ModelError
        from paramserver.errors import ParamServerError
        from replay.errors import ReplayError

    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal that is not UTF-8 has no such letters
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
        if error.filename is None and error.errno not in _DISK:  # of no place that is given
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
    """Whether a client of httpx got no answer; who has not imported that has no such error."""
    httpx = sys.modules.get("httpx")
    return httpx is not None and isinstance(error, httpx.TransportError)
