"""Releases whose weights are in steps, published by the command."""

from __future__ import annotations

import json
import math
from itertools import islice
from pathlib import Path
from typing import Any

import test_edge_publish as commands

from evaluation.streams import open_stream
from online.edge.releases.channel import KEEP
from online.edge.releases.folder import Folder
from online.edge.targets import deltas, runners
from online.models.loading.from_settings import load_model
from online.rows.prediction_ids import Keys
from online.settings import config
from online.settings.places import snapshots_path
from paramserver.core.state import SnapshotState
from paramserver.snapshots import format as snapshots
from paramserver.snapshots.places import lineage_place, open_snapshots

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
    rows = {target["parity"]["parts"]["rows"]["sha256"] for target in (*whole, *small)}
    assert len(rows) == 1, "devices have them"
    last = {delta["from_sha256"]: delta for delta in small[2]["deltas"]}
    for base in small[:2]:
        delta = file(last[base["sha256"]]["sha256"])
        assert deltas.apply(file(base["sha256"]), delta) == file(small[2]["sha256"])
    before = {delta["from_sha256"]: delta for delta in whole[2]["deltas"]}
    assert last[small[1]["sha256"]]["size"] < 0.6 * before[whole[1]["sha256"]]["size"]


def test_digits_of_the_docs_are_sent_in_small_updates(tmp_path: Path) -> None:
    """A row that lacks every number is a tie of all classes: it decides about no scaler."""
    (tmp_path / "online.yaml").write_text(
        "models:\n- {name: mails, task: multiclass, learner: softmax, params: {scale: plain}}\n"
    )
    settings = config.load(tmp_path / "online.yaml", {"state_dir": tmp_path / "state"}, {})
    keys = Keys.from_file(settings.key_path)
    for count in (1200, 1201):
        loaded = load_model(settings.models[0], settings, keys.secret, keys.old_secrets)
        place = lineage_place(snapshots_path(settings), "mails", loaded.spec_hash)
        for x, y in islice(open_stream("digits").rows, count):
            loaded.model.learn(x, y, 1.0)
        held = SnapshotState(
            "mails", loaded.spec_hash, loaded.spec_text, (1, count), loaded.model.cut(),
            {1: count}, created_at=commands.NOW,
        )  # fmt: skip
        open_snapshots(place).publish(f"1-{count}", snapshots.encode(held))
    commands.run(tmp_path, "keygen")
    for count in (1200, 1201):
        told = commands.run(
            tmp_path, "publish", f"1-{count}", "--steps", "--stream", "digits", "--percent", "100"
        )
        assert told["sequence"] == count - 1199
    target = commands.head(tmp_path)["targets"]["edgepack"]
    assert target["dtype"] == "steps"
    assert target["deltas"][0]["size"] < 0.15 * target["size"]


def test_golden_rows_of_callers_do_not_stay_for_ever(state: Path) -> None:
    """Every eighth release draws new ones, and so does one whose rows come from elsewhere."""
    commands.run(state, "keygen")
    origins, rows = [], []
    for at in range(2 * KEEP + 2):
        words = ["--stream", "phishing"] if at > KEEP + 1 else []
        commands.run(state, "publish", f"1-{1 + at % 3}", "--percent", "100", *words)
        parity = commands.head(state)["targets"]["edgepack"]["parity"]
        origins.append(parity["origin"])
        rows.append(parity["parts"]["rows"]["sha256"])
    assert origins == ["journal"] * (KEEP + 2) + ["stream"] * KEEP
    changed = [at for at in range(1, len(rows)) if rows[at] != rows[at - 1]]
    assert changed == [KEEP, KEEP + 2]
