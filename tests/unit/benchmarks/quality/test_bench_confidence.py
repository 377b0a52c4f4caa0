"""The table of sets and intervals, on the first rows of a bundled stream."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchmarks.quality import confidence


def test_the_table_has_each_delay_in_one_replica_and_in_four(tmp_path: Path) -> None:
    lines = confidence.run(["bananas"], tmp_path, most=1_600, delays=(0, 48))
    assert [(line.delay, line.who) for line in lines] == [
        (delay, who) for delay in (0, 48) for who in ("ours", "ours, 4 replicas")
    ]
    assert all(0.84 < line.coverage < 0.96 for line in lines)
    assert all(line.alone is not None and line.alone < 0.7 for line in lines)


def test_groups_are_told_apart_on_the_same_answers(tmp_path: Path) -> None:
    asked = confidence.ask("bananas", tmp_path, 0, 800)
    rows = [{"half": i % 2, "rare": i == 7} for i in range(800)]
    found = confidence.grouped(asked, rows, ("half", "rare"), replicas=2)
    assert [(one.group, one.rows) for one in found] == [
        ("half 0", 400), ("half 1", 400), ("rare False", 799),
    ]  # fmt: skip
    assert all(0.8 < one.own < 1.0 and 0.8 < one.one < 1.0 for one in found)


def test_a_peer_is_judged_on_the_same_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    peer = tmp_path / "peer.py"
    peer.write_text(
        "import json\nfor line in iter(input, ''):\n"
        "    print(json.dumps([0.5] * len(json.loads(line)['scores'])), flush=True)\n    break\n"
    )
    monkeypatch.setattr(confidence, "_PEER", peer)
    asked = confidence.ask("bananas", tmp_path, 0, 600)
    found = confidence.saocp(asked, Path(sys.executable))
    assert found.who == "SAOCP"
    assert found.coverage == found.alone  # a threshold of one half: single labels
