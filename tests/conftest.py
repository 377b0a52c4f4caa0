"""Of all tests: a run that is told to end ends as by Ctrl-C, and stops what its tests started."""

from __future__ import annotations

import signal
from typing import Any


def _end(number: int, frame: Any) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # `make` sends one after a Ctrl-C
    raise KeyboardInterrupt


def pytest_configure() -> None:
    """SIGTERM ends it, too; and SIGINT does, which a shell's `&` switches off."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _end)
