"""Of all tests: a run that is told to end ends as by Ctrl-C, and stops what its tests started."""

from __future__ import annotations

import signal


def pytest_configure() -> None:
    """SIGTERM ends it, too; and SIGINT does, which a shell's `&` switches off."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
