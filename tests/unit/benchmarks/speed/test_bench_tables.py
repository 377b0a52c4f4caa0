"""The comparison of tables, on a small one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.speed import growing, host_table
from benchmarks.speed import ids as tables


@pytest.mark.parametrize("what", tables.KINDS)
def test_each_table_is_filled_asked_and_added_to(
    what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "_BATCHES", 2)
    line = tables.measured(what, 2_500, 4)
    assert line.ids == 2_500
    assert min(line.read_m_per_s, line.added_m_per_s, line.filled_m_per_s, line.event_us) > 0


@pytest.mark.parametrize("what", tables.KINDS)
def test_what_was_added_is_read_from_each(what: str) -> None:
    ids = tables.spread(50)
    table = tables.KINDS[what](50, 2)
    table.put(ids, np.full((50, 2), 0.5, dtype=np.float32))
    table.add(ids[3:5], np.array([[1.0, 2.0], [3.0, 4.0]], dtype=np.float32))
    found = table.read(ids[2:5])
    numbers = np.asarray(found[0] if what == "rows" else found)  # type: ignore[index]
    expected = np.array([[0.5, 0.5], [1.5, 2.5], [3.5, 4.5]])
    assert np.array_equal(numbers.T if what == "dicts of floats" else numbers, expected)


def test_a_snapshot_is_saved_restored_and_shared(tmp_path: Path) -> None:
    found = tables.snapshots(5_000, 4, tmp_path)
    assert [line.what.split()[0] for line in found] == [
        "begun", "saved", "restored,", "until", "1", "begun,", "leaning,", "leaning,", "until",
        "thirty",
    ]  # fmt: skip
    whole, leaning = (line.file_mb for line in found if line.file_mb)
    assert leaning < whole / 20


def test_an_event_is_smaller_with_a_table() -> None:
    one, other = tables.one_event()
    assert one.bytes < 2_000 < 4_000 < other.bytes
    table, names = tables.events(50, 1)
    assert (table.what, names.what) == ("a table", "names")
    assert 0 < table.bytes < names.bytes
    assert min(table.learned_us, names.predicted_us, table.cut_us) > 0


def test_another_model_is_pushed_to_beside_a_table_that_grows() -> None:
    has, grows = growing.run(doublings=2, turns=1)
    assert [line.what for line in (has, grows)] == ["it has its size", "it grows"]
    assert has.rows == grows.rows == 4_000
    for line in (has, grows):
        assert line.pushes > 0
        assert 0 < line.p50_ms <= line.p99_ms <= line.slowest_ms


def test_replicas_of_the_measured_host_read_the_servers_table() -> None:
    """They looked for its views in a folder without the host's name, and pulled the table."""
    memory, replicas = host_table.run(5_000, events=20)
    assert [line.what for line in memory] == ["server", "replica 1", "replica 2"]
    for line in replicas:
        assert (line.parts, line.own_rows_left) == (0, 0)
        assert line.own_rows_most < 5_000
