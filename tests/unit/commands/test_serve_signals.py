"""A signal while the service starts ends it with 130, whoever handles the signal then."""

from __future__ import annotations

import errno
import io
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from online.commands.operate import serve as command
from online.commands.operate.serve import _Foreground, _GivenUp
from online.service import service
from online.settings.config import Settings, load

SIGNALS = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)


@pytest.fixture
def settings(tmp_path: Path) -> Iterator[Settings]:
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield load(None, {"state_dir": str(tmp_path), "cluster": "embedded"}, {})
    for number, handler in before.items():
        signal.signal(number, handler)


def _ray_handles_it() -> None:
    """While Ray starts, its own handler of SIGTERM is installed: sys.exit(signum)."""
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(number))
    signal.raise_signal(signal.SIGTERM)


def _given_up() -> None:
    raise _GivenUp


def _interrupted() -> None:
    raise KeyboardInterrupt


def test_signals_are_taken_before_the_start_begins(settings: Settings) -> None:
    """Until then SIGTERM ends the process without a word, and with another exit code."""
    taken: list[object] = []

    def begin() -> None:
        taken.extend(map(signal.getsignal, (signal.SIGINT, signal.SIGTERM)))
        _given_up()

    foreground = _Foreground(settings, lambda: settings)
    assert foreground.run(begin) == 130
    assert taken == 2 * [foreground._on_signal]


@pytest.mark.parametrize("begin", [_ray_handles_it, _given_up, _interrupted])
def test_a_start_that_a_signal_ends_says_so_by_its_exit_code(
    settings: Settings, begin: Callable[[], None]
) -> None:
    assert _Foreground(settings, lambda: settings).run(begin) == 130


def test_a_stop_before_ray_was_imported_imports_nothing(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An import that a signal has ended can't be made again: half of Ray's modules are there."""
    monkeypatch.setattr(
        sys, "modules", {name: x for name, x in sys.modules.items() if name != "ray"}
    )
    assert service._stopped_gently(settings, {}) == []
    assert "ray" not in sys.modules


class _Full(io.TextIOBase):
    """A log on a full disk."""

    def write(self, text: str) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_log_that_can_not_be_written_ends_no_service(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The runbook asks for SIGHUP just when the disk is full."""
    foreground, reloaded = _Foreground(settings, lambda: settings), list[Settings]()

    class Running:
        def reload(self, given: Settings) -> list[str]:
            reloaded.append(given)
            foreground.stop.set()
            return ["limits"]

        def alive(self) -> bool:
            return True

        def stop(self) -> None:
            pass

    monkeypatch.setattr(command, "_SETTLED_S", 0.0)
    monkeypatch.setattr(foreground, "running", Running())
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, _Full())
    foreground._hangup.set()
    assert foreground.run(lambda: None) == 0
    assert reloaded == [settings]
