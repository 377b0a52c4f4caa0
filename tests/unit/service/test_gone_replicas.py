"""Which replicas have ended, as their names and this host's processes say."""

from __future__ import annotations

import os
import socket
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from online.service.replica_names import gone, replica_name


def partitions(*names: str) -> list[Any]:
    return [SimpleNamespace(id=i, replica=name) for i, name in enumerate(names)]


def test_a_process_that_ended_is_gone_and_one_of_another_host_is_not_known() -> None:
    host, started = socket.gethostname(), psutil.Process().create_time()
    assert gone(
        partitions(
            replica_name(),
            f"{host}:{os.getpid()}:{started + 0.37:.2f}",  # its number was given out again
            f"{host}:{2**22 + 1}:{started:.2f}",
            f"{host}:?:?",
            f"other-{replica_name()}",
        )
    ) == [1, 2, 3]


@pytest.mark.parametrize("off_s", [-86_400.0, -1.0, 1.0, 3_600.0])
def test_a_clock_that_is_set_ends_nobody(monkeypatch: pytest.MonkeyPatch, off_s: float) -> None:
    """Else each live replica would lose its partition, and the next one, every quarter second."""
    name, started = replica_name(), psutil.Process.create_time
    monkeypatch.setattr(psutil.Process, "create_time", lambda self: started(self) + off_s)
    assert gone(partitions(name)) == []
