"""The table of what `online.serve` takes in a program, once."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.speed import embedded


@pytest.mark.long
@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="the kernel does not tell")
def test_each_program_tells_its_memory_and_ours_its_first_answer() -> None:
    alone, answers, ours = embedded.run(1)
    assert alone.more_mb == 0.0
    assert alone.memory_mb > 10.0
    assert ours.memory_mb > answers.memory_mb > 0.0
    assert (alone.first_cpu_s, answers.first_cpu_s) == (0.0, 0.0)
    assert ours.first_cpu_s > 0.0
