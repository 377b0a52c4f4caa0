"""The buffers' table in small: its rows, its verdict, and a peer that answers or does not."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.studies.memory import buffers as bench
from replay.errors import SettingInvalid

AVALANCHE = """
import random
class AvalancheDataset(list):
    def __init__(self, parts): super().__init__(row for part in parts for row in part)
class ReservoirSamplingBuffer:
    def __init__(self, max_size): self.buffer, self.max_size = [], max_size
    def update_from_dataset(self, rows): self.buffer = (rows + self.buffer)[: self.max_size]
"""


def stand_in(folder: Path) -> Path:
    """A Python whose ``avalanche`` has the two classes that the peer uses."""
    for module in ("avalanche", "avalanche/benchmarks", "avalanche/training"):
        (folder / module).mkdir()
        (folder / module / "__init__.py").touch()
    (folder / "avalanche/benchmarks/utils.py").write_text(AVALANCHE)
    (folder / "avalanche/training/storage_policy.py").write_text(AVALANCHE)
    python = folder / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH={folder} exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    return python


def test_a_row_for_each_policy_and_size(tmp_path: Path) -> None:
    told: list[str] = []
    found = bench.run(
        sizes=(100, 400), rounds=2, steps=20, peer=stand_in(tmp_path), progress=told.append
    )
    expected = [(name, n) for name in bench.POLICIES for n in (100, 400)]
    assert [(row.what, row.items) for row in found.kept] == expected
    assert [(row.what, row.items) for row in found.offered] == expected
    assert [row.items for row in found.beside] == [100, 400]
    costs: list[Any] = [*found.kept, *found.offered, *found.beside]
    assert all(row.step_us > 0 for row in costs)
    assert {row.ratio for row in (*found.kept, *found.offered) if row.items == 100} == {1.0}
    assert told[0] == "reservoir"
    assert told[-1] == "beside Avalanche, 400 items"


def test_the_verdict() -> None:
    flat = bench.Cost("ring", 1_000, 20.0, bench.FLAT_MAX)
    faster = bench.Beside(1_000, 20.0, 21.0, 1.05)
    assert bench.Found([flat], [flat], [faster]).good
    assert bench.Found([flat], [flat], []).good
    grows = replace(flat, ratio=bench.FLAT_MAX + 0.1)
    assert not bench.Found([grows], [flat], [faster]).good
    assert not bench.Found([flat], [grows], [faster]).good
    assert not bench.Found([flat], [flat], [replace(faster, ratio=0.99)]).good


def test_a_peer_without_the_library(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} -S -I "$@"\n')
    python.chmod(0o755)
    with pytest.raises(bench.PeerGone, match=r"avalanche-lib==0\.6\.0"):
        bench.run(sizes=(50,), rounds=1, steps=2, peer=python)
    assert "No module named 'avalanche'" in capfd.readouterr().err


def test_the_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "buffers", "--largest", "1000", "--rounds", "1"],
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert "by items offered to 1,000 slots" in done.stdout, done.stderr
    assert done.returncode == 0


def test_nothing_is_measured_of_an_impossible_size() -> None:
    with pytest.raises(SettingInvalid):
        bench.run(sizes=(0,), rounds=1, steps=1)
