"""Of all tests: the same examples in each run, and a run that is told to end ends as by Ctrl-C.

It stops what its tests started.  ``EXPLORE=1`` has Hypothesis look for examples that nobody has
seen, as `make bench` does: what fails once in a hundred runs is found there, with its example.
"""

from __future__ import annotations

import gc
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import redis_server
from hypothesis import HealthCheck, settings

_BEGUN_S = time.monotonic()

# How long an example takes says how busy the machine is.
any_machine = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("explored", any_machine)
settings.register_profile("repeated", any_machine, derandomize=True, max_examples=40)
settings.load_profile("explored" if os.environ.get("EXPLORE") else "repeated")

# What tests start finds the package `benchmarks`, which is in no wheel, wherever it is started.
os.environ["PYTHONPATH"] = os.pathsep.join(
    [*filter(None, [os.environ.get("PYTHONPATH")]), str(Path(__file__).parents[1])]
)


def pytest_sessionstart(session: pytest.Session) -> None:
    """SIGTERM ends it, too; and SIGINT does, which a shell's `&` switches off."""

    def end(number: int, frame: Any) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # `make` sends one after a Ctrl-C
        session.shouldstop = "told to end"  # where a finalizer or a callback drops what is raised
        raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, end)


@pytest.hookimpl(trylast=True)
def pytest_collection_finish() -> None:
    """Leave the libraries and tests that are there by now to themselves when garbage is looked for.

    They are a million objects, which each whole look would walk.
    """
    gc.collect()
    gc.freeze()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say what these tests cost: a lane of `make test`, say, which prints it once more at its end.

    CPU time is the same whatever else the machine does.  Processes that nobody waits for, as most
    of Ray's, are not in it.
    """
    used = os.times()
    given = terminalreporter.config.args
    what = " ".join(given if len(given) < 4 else [given[0], "…", given[-1]])
    line = (
        f"CPU time of {what}: {used.user + used.system:.0f} s, and"
        f" {used.children_user + used.children_system:.0f} s of processes that they started,"
        f" in {time.monotonic() - _BEGUN_S:.0f} s"
    )
    terminalreporter.write_line(line)
    if lanes := os.environ.get("LANES"):
        with Path(lanes).open("a") as file:
            file.write(f"{line}\n")


@pytest.fixture(scope="session", autouse=True)
def _certificates_are_read_once() -> Iterator[None]:
    """Else httpx reads the machine's for each of thousands of clients, which takes 7 ms."""
    from httpx._transports import default

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(default, "create_ssl_context", cache(default.create_ssl_context))
        yield


@pytest.fixture(scope="module")
def redis_node() -> Iterator[Any]:
    """A Redis or Valkey server of the module's own, as its journal needs it.

    Its files are in memory, where there is room: it syncs each of some ten thousand writes.
    """
    if redis_server.find_binary() is None:
        pytest.skip(redis_server.NO_SERVER)
    memory = Path("/dev/shm")
    roomy = memory.is_dir() and shutil.disk_usage(memory).free > 1 << 30
    with (
        tempfile.TemporaryDirectory(dir=memory if roomy else None) as folder,
        redis_server.running(Path(folder) / "redis") as node,
    ):
        yield node
