"""Runs a command repeatedly at fixed intervals, whatever the outcome of the previous run."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import typer

from online.commands.base import span

_END_S: Final = 30.0
_INTERRUPTED: Final = 130


def repeat(
    once: Callable[[], int],
    every_s: float,
    *,
    monotonic_s: Callable[[], float] = time.monotonic,
    wait: Callable[[float], None] = time.sleep,
    say: Callable[[str], None] = lambda line: print(line, file=sys.stderr, flush=True),
) -> None:
    """Call ``once`` every ``every_s`` seconds until KeyboardInterrupt, then raise typer.Exit(130).

    A call that takes longer is followed by the next one at once; missed calls are not made up.

    Parameters:
        once: Returns an exit code.  Other than 0: it failed and has reported why.  2 is wrong
            usage, which a further call would not change: raises typer.Exit(2).
    """
    failed = 0
    try:
        while True:
            began = monotonic_s()
            code = once()
            left_s = max(0.0, every_s - (monotonic_s() - began))
            if code == 2:
                raise typer.Exit(code)
            failed = failed + 1 if code else 0
            if failed:
                times = "" if failed == 1 else f", {failed} times in a row"
                say(f"online: that run failed (exit code {code}){times}; next in {span(left_s)}")
            wait(left_s)
    except KeyboardInterrupt:
        raise typer.Exit(_INTERRUPTED) from None


def in_child(arguments: Sequence[str]) -> Callable[[], int]:
    """Return a function that runs `online` with these arguments in a child process.

    Whatever ends the child, this process goes on.  When this process gets SIGINT or SIGTERM, the
    child is asked once to end.
    """
    command = [sys.executable, "-m", "online", *arguments]

    def once() -> int:
        child: subprocess.Popen[bytes] | None = None
        asked = False

        def interrupt(*_: Any) -> None:
            nonlocal asked
            asked = True
            if child is not None:  # else wait until the child that is being started can be ended
                raise KeyboardInterrupt

        with _answered_by(interrupt):
            child = subprocess.Popen(command, start_new_session=True)
            try:
                if asked:
                    raise KeyboardInterrupt
                return child.wait()
            except KeyboardInterrupt:
                with contextlib.suppress(ProcessLookupError):
                    child.send_signal(signal.SIGINT)
                try:
                    child.wait(_END_S)
                except subprocess.TimeoutExpired:
                    child.kill()
                    child.wait()
                raise

    return once


@contextlib.contextmanager
def _answered_by(interrupt: Callable[..., None]) -> Iterator[None]:
    """Handle SIGTERM, and SIGINT unless a shell has it ignored, by ``interrupt`` in the context."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def without(arguments: Sequence[str], option: str) -> list[str]:
    """Return the arguments without one option and its value."""
    out: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        if argument == option:
            next(rest, None)
        elif not argument.startswith(f"{option}="):
            out.append(argument)
    return out
