"""Verdicts with two replicas are the same in every process, whatever its hash seed is."""

from __future__ import annotations

import os
import subprocess
import sys

ROWS = """
from benchmarks.attacks import floods
from benchmarks.fixtures.several_replicas import Dealt
from online.settings.model import ModelSettings

rows = floods.rows_of("phishing", None, 0)[:450]
loop = Dealt(ModelSettings.model_validate(floods.settings_of("phishing", "default")), 2)
for group in floods.flood(rows, 250, 8, 1, 31):
    for source, features, label, _ in group:
        row = loop.step(source, features, label)
        print(row.verdict.value, row.factor.hex())
"""
AS_SETS = """
from paramserver.core import blocks

select = blocks.select
blocks.select = lambda values, touched: select(
    values, {name: set(k) if isinstance(k, dict) else k for name, k in touched.items()}
)
from paramserver.core import parts
parts.select = blocks.select
"""


def verdicts(before: str = "") -> list[list[str]]:
    """What each of two processes says of the same rows."""
    running = [
        subprocess.Popen(
            [sys.executable, "-c", before + ROWS],
            env={**os.environ, "PYTHONHASHSEED": seed, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            text=True,
        )
        for seed in ("1", "2")
    ]
    told = [process.communicate(timeout=300)[0].splitlines() for process in running]
    assert [process.returncode for process in running] == [0, 0]
    return told


def test_verdicts_do_not_hang_on_hash_seeds() -> None:
    first, second = verdicts()
    assert len(first) == 650
    assert any(not row.startswith("accepted") for row in first), "something is judged"
    assert first == second


def test_with_sets_of_changed_keys_they_did() -> None:
    """Control: values that arrive in the order of a set."""
    first, second = verdicts(AS_SETS)
    assert first != second
