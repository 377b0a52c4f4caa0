"""Another number of parameter servers is wished for while a service's processes are killed.

Each wish is the command that an operator gives.  Now and then the number that serves is wished for
right behind it, which takes it back.
"""

from __future__ import annotations

import contextlib
import http.client
import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Final

from benchmarks.fixtures.service import Running, own_environment, status

SERVERS_MAX: Final = 4
_TAKEN_BACK: Final = 0.25
_BEGUN_S: Final = 6.0  # from a wish to the kill, at most
_WAIT_S: Final = 300.0


class Wishes:
    """Commands that wish for another number, one at a time.

    Attributes:
        outcomes: What became of them: ``done``, ``withdrawn`` by another command, or ``not done``:
            refused, failed, taken back, or its service was killed.
    """

    def __init__(self, config: Path, model: str, rng: random.Random) -> None:
        self._config, self._model, self._rng = config, model, rng
        self._running: subprocess.Popen[str] | None = None
        self.outcomes: Counter[str] = Counter()

    def wish(self, running: Running) -> None:
        """Wish for another number than serves now, if no command of before waits; wait a little."""
        if self._running is None or self._running.poll() is not None:
            self.settle()
            self._begin(self._servers(running))
        time.sleep(self._rng.uniform(0.0, _BEGUN_S))

    def _begin(self, now: int) -> None:
        others = [n for n in range(1, SERVERS_MAX + 1) if n != now]
        self._running = self._command(self._rng.choice(others))
        if self._rng.random() < _TAKEN_BACK:
            time.sleep(self._rng.uniform(0.5, 3.0))
            withdrawing = self._command(now)
            said = withdrawing.communicate(timeout=_WAIT_S)[0]
            self.outcomes["withdrawn"] += "was withdrawn" in said

    def _servers(self, running: Running) -> int:
        """How many parameter servers the model has, as one of them tells."""
        deadline = time.monotonic() + _WAIT_S
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError, http.client.HTTPException, KeyError):
                if server := status(running, self._model)["server"]:
                    return len(server.get("shards", [1]))
            time.sleep(0.1)
        raise TimeoutError("no parameter server answers")

    def settle(self) -> None:
        """Wait until the last command has ended, and count it."""
        if self._running is None:
            return
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._running.communicate(timeout=_WAIT_S)
        self._running.kill()
        self.outcomes["not done" if self._running.wait() else "done"] += 1
        self._running = None

    def _command(self, shards: int) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [
                sys.executable, "-m", "online", "models", "reshard", self._model,
                "--shards", str(shards), "--config", str(self._config),
            ],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env=own_environment(),
        )  # fmt: skip
