"""The cost of checksums is measured on the journal itself, and the other half goes without."""

from __future__ import annotations

from pathlib import Path

from benchmarks.studies import checksums
from replay.journal import sqliteappend, sqliteproof
from replay.journal.checksum import checksum, proves


def test_a_short_run(tmp_path: Path) -> None:
    (one,) = checksums.run(turns=2, seconds=0.02, batches=(8,), folder=tmp_path)
    assert one.turns == 2
    assert one.low < one.ratio < one.high
    assert (sqliteappend.checksum, sqliteproof.proves) == (checksum, proves)


def test_the_bound_is_that_of_the_interval() -> None:
    pairs = [(97.0 + i % 3, 100.0) for i in range(12)]
    assert checksums._cost(1, pairs).good
    assert not checksums._cost(1, [(90.0 + i % 3, 100.0) for i in range(12)]).good
