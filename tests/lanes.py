"""Everything that `make test` runs, in four lanes; at the end what each share of it cost.

Two lanes begin with whole services, which wait a lot, and two with what only computes.  A lane that
has ended a share takes the next one, so that none is idle while there is another.  What a share
prints comes when it has ended.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from typing import IO, Any, Final

ROOT: Final = Path(__file__).parents[1]
SERVICES: Final = ("tests/integration/test_[a-h]*.py", "tests/integration/test_[i-z]*.py")
COMPUTED: Final = (
    "tests/simulation tests/properties tests/conformance",
    "tests/unit/[h-o]*",
    "tests/unit/[a-g]*",
    "tests/unit/[p-r]*",
    "tests/unit/[s-z]*",
)
"""The longest first: together every test."""


class Lanes:
    """The shares that are left, and those that run."""

    def __init__(self, services: Sequence[str], computed: Sequence[str]) -> None:
        self._left = {"services": [*services], "computed": [*computed]}
        self._lock = Lock()
        self._running: list[subprocess.Popen[bytes]] = []
        self.failed = False

    def run(self, *kinds: str) -> None:
        """Run shares until none is left, those of the first kind before the others."""
        for kind in kinds:
            while self._left[kind]:
                with tempfile.TemporaryFile() as said:
                    self._run_one(kind, said)

    def _run_one(self, kind: str, said: IO[bytes]) -> None:
        with self._lock:
            if not self._left[kind]:
                return
            share, nice = self._left[kind].pop(0), 10 if kind == "computed" else 0
            command = f"exec nice -n {nice} {shlex.quote(sys.executable)} -m pytest -q {share}"
            running = subprocess.Popen(
                command, shell=True, cwd=ROOT, stdout=said, stderr=subprocess.STDOUT
            )
            self._running.append(running)
            print(f"begun: {share}", flush=True)
        code = running.wait()
        with self._lock:
            said.seek(0)
            sys.stdout.buffer.write(said.read())
            sys.stdout.flush()
            self.failed |= code != 0

    def end(self) -> None:
        """Begin no other share, and tell those that run to end."""
        with self._lock:
            for shares in self._left.values():
                shares.clear()
            for running in self._running:
                running.terminate()


def main(services: Sequence[str] = SERVICES, computed: Sequence[str] = COMPUTED) -> int:
    """Exit code: 1 if a share has failed, 130 if all were told to end."""

    def interrupt(*_: Any) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)  # `make` sends one after a Ctrl-C
        raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupt)
    lanes = Lanes(services, computed)
    with tempfile.NamedTemporaryFile("r") as times, ThreadPoolExecutor(4) as threads:
        os.environ["LANES"] = times.name
        orders = (("services", "computed"), ("computed", "services")) * 2
        running = [threads.submit(lanes.run, *kinds) for kinds in orders]
        try:
            for one in running:
                one.result()
        except KeyboardInterrupt:
            lanes.end()
            return 130
        print(times.read(), end="")
    return int(lanes.failed)


if __name__ == "__main__":
    sys.exit(main())
