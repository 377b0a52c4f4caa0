"""An aligned cut: snapshots of all shards with the same rows, and the one state that they make."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from paramserver.core.admission import KEPT
from paramserver.core.blocks import Block, Blocks
from paramserver.core.shards import Cut
from paramserver.core.state import SnapshotState
from paramserver.core.tables.rows import Rows
from paramserver.process.aligned import aligned, whole
from paramserver.snapshots.history import SnapshotHistory, snapshot_name
from paramserver.snapshots.places import open_snapshots
from paramserver.snapshots.store import Retention


class Shards:
    """Two places of snapshots."""

    def __init__(self, path: Path) -> None:
        self.histories = [
            SnapshotHistory(open_snapshots(str(path / str(number))), Retention())
            for number in range(2)
        ]

    def publish(
        self,
        shard: int,
        count: int,
        clock: Mapping[int, int],
        *,
        closed: frozenset[int] = frozenset(),
        control: int = 0,
    ) -> str:
        state = SnapshotState("m", "s" * 64, "{}", (1, count), {}, clock, closed, control)
        name = snapshot_name(state.version, None)
        self.histories[shard].publish(name, state)
        return name


@pytest.fixture
def shards(tmp_path: Path) -> Shards:
    return Shards(tmp_path)


def test_the_newest_with_the_same_rows_are_taken(shards: Shards) -> None:
    shards.publish(0, 1, {1: 4})
    same = shards.publish(0, 2, {1: 6, 2: 1}), shards.publish(1, 7, {1: 6, 2: 1})
    alone = shards.publish(0, 3, {1: 9, 2: 1})
    shards.publish(1, 8, {1: 8, 2: 1})
    assert aligned(shards.histories, {1: 9, 2: 1}) == same
    assert aligned(shards.histories, {1: 9, 2: 1}, same[0]) == same
    assert aligned(shards.histories, {1: 9, 2: 1}, alone) is None
    assert aligned(shards.histories, {1: 9, 2: 1}, "9-9") is None


def test_what_was_before_the_lineage_began_anew_is_not_its_past(shards: Shards) -> None:
    same = shards.publish(0, 1, {1: 4}), shards.publish(1, 1, {1: 4})
    assert aligned(shards.histories, {1: 4}, since=1) == same
    assert aligned(shards.histories, {1: 4}, since=2) is None


def test_a_closed_partition_has_the_rows_up_to_its_end(shards: Shards) -> None:
    same = (
        shards.publish(0, 1, {2: 3}, closed=frozenset({1})), shards.publish(1, 1, {1: 5, 2: 3}),
    )  # fmt: skip
    assert aligned(shards.histories, {1: 5, 2: 3}) == same
    assert aligned(shards.histories, {1: 6, 2: 3}) is None


def test_decisions_that_one_has_not_taken_in_part_them(shards: Shards) -> None:
    shards.publish(0, 1, {1: 3}, control=2)
    shards.publish(1, 1, {1: 3}, control=1)
    assert aligned(shards.histories, {1: 3}) is None
    shards.publish(1, 2, {1: 3}, control=2)
    assert aligned(shards.histories, {1: 3}) == ("1-1", "1-2")


def test_the_parts_of_a_state_make_it_again() -> None:
    ids = np.arange(100, dtype=np.uint64) * 3
    values: Blocks = {
        "w": Block("additive", {f"k{i}": float(i) for i in range(100)}),
        "t": Block("rows", Rows(ids, np.arange(200, dtype=np.float32).reshape(100, 2))),
        "n": Block("count", {"rows": 3}),
        "digest": Block("digest", {"count": 2, "sum": 5}),
        f"{KEPT}sights.t": Block("opaque", b"of the server"),
    }
    state = SnapshotState("m", "s" * 64, "{}", (4, 9), values, {1: 7}, control=3, rewrite=2)
    for of in (2, 3, 5):
        parts = [replace(state, values=part) for part in Cut(of).blocks(values)]
        made = whole(parts)
        assert made == replace(state, values=made.values)
        assert made.values == {name: b for name, b in values.items() if name != f"{KEPT}sights.t"}
        again = Cut(4).blocks(made.values)
        assert [part.keys() for part in again] == [
            part.keys() - {f"{KEPT}sights.t"} for part in Cut(4).blocks(values)
        ]
