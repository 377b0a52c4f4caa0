"""Re-scoring names the best of some actions for each row, as the model that chooses expects it."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import rescore_world as worlds

from online.decide import row
from online.errors import ConfigError
from online.learning.bounds import Bounds
from online.models.base import Model, Prediction
from online.models.choices.interactions import ACTION
from online.models.loading.from_settings import load_model
from online.models.rewards import Action, RewardModel, Rewards
from online.models.selfrate import SelfRate
from online.rescore.best import BestAction, actions_in
from online.rescore.snapshot import scored
from online.rows.prediction_ids import Keys
from online.settings import config
from online.settings.places import snapshots_path
from paramserver.core.state import SnapshotState
from paramserver.snapshots import format as snapshot_format
from paramserver.snapshots.places import lineage_place, open_snapshots
from replay.example import Example

ACTIONS: tuple[Action, ...] = (("news", {}), ("film", {"minutes": 95.0}), ("sport", {}))
WITHIN = (0.0, 10.0)


def teach(model: Model) -> None:
    """News is liked in the morning, films in the evening, by 8 of 10."""
    for t in range(240):
        daytime, (name, features) = ("morning", "evening")[t % 2], ACTIONS[t // 2 % 3]
        liked = name == ("news" if daytime == "morning" else "film")
        context = {"daytime": daytime, "age": float(t % 5)}
        model.learn(row(context, name, features), 8.0 if liked else 1.0, 1.0)


def taught() -> RewardModel:
    model = Rewards(*WITHIN, bits=12).model_for("regression")
    teach(model)
    return model


def asked(model: Model) -> BestAction:
    return BestAction(model, ACTIONS, *WITHIN)


def people(path: Path) -> str:
    """Contexts of people, by id."""
    found = {
        "id": np.arange(90),
        "daytime": ["morning" if i % 3 else "evening" for i in range(90)],
        "age": np.arange(90) % 7 * 1.0,
    }
    return worlds.write(path, pa.table(found), group=30)


def table_of(output: Path) -> list[dict[str, object]]:
    return [x for p in sorted(output.rglob("shards/*")) for x in pq.read_table(p).to_pylist()]


def test_each_row_has_its_best_action_and_what_is_expected_of_it(tmp_path: Path) -> None:
    path, model = people(tmp_path / "people.parquet"), taught()
    source = worlds.source(lambda: asked(taught()), "multiclass", within=WITHIN)
    outcome = worlds.run([path], tmp_path / "out", scored=source)
    assert outcome.report is not None
    assert not outcome.report.blocking
    rows = table_of(tmp_path / "out")
    assert len(rows) == 90
    for i, found in enumerate(rows):
        context = {"daytime": "morning" if i % 3 else "evening", "age": i % 7 * 1.0}
        means = model.score(context, ACTIONS).means
        assert found["prediction"] == ("news" if i % 3 else "film")
        assert found["score"] == pytest.approx(means.max(), rel=1e-9)
    assert max(x["score"] for x in rows) > 5.0  # type: ignore[type-var]


def test_of_a_stored_snapshot_other_actions_are_another_run(tmp_path: Path) -> None:
    file = tmp_path / "online.yaml"
    choose = "choose: {reward_range: [0, 10]}"
    file.write_text(
        f"state_dir: {tmp_path / 'state'}\nmodels:\n  - {{name: m, task: choose, {choose}}}\n"
    )
    settings = config.load(file, {}, {})
    settings.state_dir.mkdir(exist_ok=True)
    loaded = load_model(settings.models[0], settings, Keys.from_file(settings.key_path).secret)
    teach(loaded.model)
    bounds = Bounds()
    for t in range(200):
        film = row({"age": 1.0}, "film", {"minutes": 90.0 + t % 10})
        bounds.add(Example(film, 1.0))
        loaded.model.learn(film, float(t % 10), 1.0)
    values = {**loaded.model.cut(), **bounds.cut()}
    state = SnapshotState(
        "m", loaded.spec_hash, loaded.spec_text, (1, 240), values, {}, created_at=1.0
    )
    place = lineage_place(snapshots_path(settings), "m", loaded.spec_hash)
    open_snapshots(place).publish("1-240", snapshot_format.encode(state))
    found = partial(scored, settings.models[0], settings, "1-240")
    path = people(tmp_path / "people.parquet")
    all_, fewer = (
        worlds.run([path], tmp_path / "out", scored=found(some), force=True)
        for some in (ACTIONS, ACTIONS[1:])
    )
    assert all_.run != fewer.run
    assert fewer.report is not None
    assert fewer.report.histogram.keys() <= {"film", "sport"}
    assert found().task == "regression"
    far, most = (found([("film", {"minutes": n})]).make() for n in (1e6, 99.0))
    assert far.predict({"age": 1.0}) == most.predict({"age": 1.0}), "as a choice is answered"


def test_a_model_that_knows_no_choices_is_asked_action_by_action() -> None:
    model = SelfRate().model_for("binary")
    for t in range(200):
        model.learn(row({"x": float(t % 2)}, "ab"[t // 2 % 2], {}), (t + t // 2) % 2 == 0, 1.0)
    best = BestAction(model, (("a", {}), ("b", {})), 0.0, 1.0)
    said: Prediction = best.predict({"x": 0.0})
    assert said.label in ("a", "b")
    assert best.predict_many([{"x": 0.0}]) == [said]
    with pytest.raises(ValueError, match="begins with"):
        best.predict({ACTION + "x": 1.0})


@pytest.mark.parametrize(
    "listed", [[], [{"id": "a"}, {"id": "a"}], {"id": "a"}, [{"name": "a"}], [{"id": 1}], None]
)
def test_a_file_that_lists_no_actions_is_refused(tmp_path: Path, listed: object) -> None:
    path = tmp_path / "actions.json"
    if listed is not None:
        path.write_text(json.dumps(listed))
    with pytest.raises(ConfigError, match="--actions") as refused:
        actions_in(path)
    assert "news" in str(refused.value)


def test_a_file_of_actions_is_as_the_body_of_a_choice(tmp_path: Path) -> None:
    path = tmp_path / "actions.json"
    path.write_text('[{"id": "news"}, {"id": "film", "features": {"minutes": 95}}]')
    assert actions_in(path) == (("news", {}), ("film", {"minutes": 95}))
