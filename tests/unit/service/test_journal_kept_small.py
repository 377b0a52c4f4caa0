"""The journal's write-ahead log is moved on by whoever can, as soon as he can."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any, cast

import pytest

from online.service import one_process
from online.service.one_process import OneProcess
from online.service.state import journal_upkeep
from online.settings.config import load
from replay.errors import JournalHeld


class Journal:
    """Counts checkpoints."""

    def __init__(self) -> None:
        self.checkpoints, self.moved, self.closed = 0, threading.Event(), False

    def checkpoint(self) -> int:
        self.checkpoints += 1
        self.moved.set()
        return 0

    def close(self) -> None:
        self.closed = True


def test_a_journal_that_is_held_at_the_start_is_moved_on_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal, held = Journal(), [JournalHeld("a slow disk", 0.5)]

    def opener(*_: object, **__: object) -> Any:
        def opened() -> Journal:
            if held:
                raise held.pop()
            return journal

        return opened

    for module in (journal_upkeep, one_process):
        monkeypatch.setattr(module, "journal_opener", opener)
    monkeypatch.setattr(one_process, "_TEND_S", 0.001)
    given = {"state_dir": tmp_path, "cluster": "embedded"}
    parts = OneProcess(load(None, given, {}), cast(Any, None), print)
    thread = threading.Thread(target=parts._tend)
    thread.start()
    assert journal.moved.wait(60), "its log would grow for the life of the service"
    parts._stopping.set()
    thread.join(60)
    assert journal.closed
