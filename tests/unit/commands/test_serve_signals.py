"""A signal while the service starts ends it with 130, whoever handles the signal then."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

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
