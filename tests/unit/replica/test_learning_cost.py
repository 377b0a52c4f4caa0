"""What learning costs, and who learns because of it."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest

from online.models.loading.from_settings import merge_rule
from online.replica.learning_cost import SHARE_MAX, Cost
from online.service.state.check_state import Models
from online.settings.config import Settings
from online.settings.model import ModelSettings
from online.settings.places import snapshots_path
from online.settings.sync import Sync
from paramserver.core.replicas import Replicas
from paramserver.core.state import SnapshotState
from paramserver.core.wire import FORMAT, SyncRequest
from paramserver.snapshots.history import SnapshotHistory
from paramserver.snapshots.places import lineage_place, open_snapshots
from paramserver.snapshots.store import Retention


def test_a_share_of_half_a_minute() -> None:
    now = [0.0]
    cost = Cost(lambda: now[0])
    assert cost.report() == {}
    for _ in range(100):
        now[0] += 0.1
        cost.note(0.05)
    assert cost.report() == {"learn_us": 50_000.0, "learn_share": 0.0}  # too short yet
    now[0] += 10
    assert cost.report()["learn_share"] == pytest.approx(0.25)
    for _ in range(400):
        now[0] += 0.1
        cost.note(0.01)
    assert cost.report()["learn_share"] == pytest.approx(0.1, abs=0.07)
    now[0] += 1000
    assert cost.report()["learn_share"] < 0.01


@pytest.mark.parametrize(
    ("share", "merge", "expected"),
    [
        (SHARE_MAX, "auto", "ordered"),
        (SHARE_MAX + 0.01, "auto", "overlay"),
        (0.9, "ordered", "ordered"),
        (0.9, "lagging", "lagging"),
    ],
)
def test_one_process_learns_what_was_too_much_for_each(
    tmp_path: Path, share: float, merge: str, expected: str
) -> None:
    (tmp_path / "model.py").write_text(
        "from river import tree\n\n\ndef build():\n    return tree.HoeffdingTreeClassifier()\n"
    )
    model = ModelSettings(
        name="m",
        task="binary",
        learner="model.py:build",
        sync=Sync(merge=merge),  # type: ignore[arg-type]
    )
    settings = Settings(models=(model,), state_dir=tmp_path / "state", base_dir=tmp_path)
    said: list[str] = []
    models = Models(settings, said.append)
    loaded = models.load()
    replicas = Replicas(60.0)
    report = {"learn_share": share}
    replicas.note(SyncRequest(FORMAT, "r", 1, [], None, False, [], report=report), 0.0)
    place = lineage_place(snapshots_path(settings), "m", loaded["m"].spec_hash)
    history = SnapshotHistory(open_snapshots(place), Retention())
    state = SnapshotState(
        "m", loaded["m"].spec_hash, "", (1, 1), {}, {}, metrics=replicas.metrics()
    )
    history.publish("1-1", state)
    settings = models.chosen(loaded)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Settings.model_validate(settings.model_dump(mode="json")) == settings
    (chosen,) = settings.models
    assert merge_rule(chosen, loaded["m"].model) == expected
    assert bool(said) == (expected == "overlay")
