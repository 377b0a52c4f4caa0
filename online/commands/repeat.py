"""A command that is given again and again: in its time, whatever became of it the last time."""

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
    """Call ``once`` every so many seconds, until KeyboardInterrupt: then typer.Exit(130).

    One that takes longer is followed by the next at once; none is made up for.

    Parameters:
        once: Its exit code; other than 0: it has failed and has said why.  2 is wrong usage, which
            no other time will mend: typer.Exit(2).
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
    """Return a function that runs `online` with these arguments in a process of its own.

    Whatever ends that process, this one goes on.  The other is asked to end once, gently, when this
    process is (SIGINT or SIGTERM).
    """
    command = [sys.executable, "-m", "online", *arguments]

    def once() -> int:
        child: subprocess.Popen[bytes] | None = None
        asked = False

        def interrupt(*_: Any) -> None:
            nonlocal asked
            asked = True
            if child is not None:  # else nobody would end the child that is just being started
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
    """SIGTERM calls it meanwhile, and so does SIGINT, unless a shell has it ignored."""
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
    """The arguments but for one option and its value."""
    out: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        if argument == option:
            next(rest, None)
        elif not argument.startswith(f"{option}="):
            out.append(argument)
    return out
