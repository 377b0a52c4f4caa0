"""Releases whose weights are in steps, published by the command."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import test_edge_publish as commands

from online.edge import deltas, runners
from online.edge.folder import Folder

state = commands.state


def released(state: Path, *words: str) -> list[dict[str, Any]]:
    """What the manifest says of each snapshot's pack."""
    told = []
    for count in (1, 2, 3):
        commands.run(state, "publish", f"1-{count}", "--percent", "100", *words)
        told.append(commands.head(state)["targets"]["edgepack"])
    return told


def test_releases_in_steps(state: Path) -> None:
    """Small differences; every device holds the same bytes, and proves these, not the model."""
    commands.run(state, "keygen")
    whole, small = released(state), released(state, "--steps")
    file = Folder(state / "state" / "edge" / "mails").file
    for exact, target in zip(whole, small, strict=True):
        assert target["dtype"] == "steps"
        assert 1e-6 < target["parity"]["max_abs"] <= 5e-3
        golden = json.loads(file(target["parity"]["sha256"]))
        rows = [{**row["x"], **dict.fromkeys(row["nan"], math.nan)} for row in golden["rows"]]
        off = runners.run_pack(file(target["sha256"]), rows) - golden["expected"]
        assert abs(off).max() <= 1e-12
        off = runners.run_pack(file(exact["sha256"]), rows) - golden["expected"]
        assert abs(off).max() > 1e-6, "the model's own answers would fail on devices"
    last = {delta["from_sha256"]: delta for delta in small[2]["deltas"]}
    for base in small[:2]:
        delta = file(last[base["sha256"]]["sha256"])
        assert deltas.apply(file(base["sha256"]), delta) == file(small[2]["sha256"])
    before = {delta["from_sha256"]: delta for delta in whole[2]["deltas"]}
    assert last[small[1]["sha256"]]["size"] < 0.6 * before[whole[1]["sha256"]]["size"]
