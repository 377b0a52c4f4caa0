"""A pickled model is served only under the service's seal."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
from river import datasets, linear_model, preprocessing, tree
from typer.testing import CliRunner

from online.commands.cli import app
from online.errors import ConfigError
from online.models.artifacts.sealed import seal
from online.models.errors import LearnerUnusable
from online.models.loaded import Loaded
from online.models.loading.load import load
from online.rows.prediction_ids import Keys

KEY, OLD = b"k" * 32, b"o" * 32
ROWS = list(datasets.Phishing())


class Bomb:
    """Unpickling it makes a folder."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> object:
        return os.mkdir, (str(self.place),)


def served(path: Path, key: bytes = KEY) -> Loaded:
    return load(
        "sealed", {}, task="binary", classes=None, key=key, base_dir=path.parent,
        old_keys=(OLD,), artifact=Path(path.name),
    )  # fmt: skip


@pytest.mark.parametrize(
    "model",
    [
        preprocessing.StandardScaler() | linear_model.LogisticRegression(),
        tree.HoeffdingTreeClassifier(grace_period=20),
    ],
)
@pytest.mark.parametrize("key", [KEY, OLD])
def test_it_begins_where_it_was_trained_to(tmp_path: Path, model: object, key: bytes) -> None:
    model = model.clone()  # type: ignore[attr-defined]
    for x, y in ROWS[:600]:
        model.learn_one(x, y)  # type: ignore[attr-defined]
    path = tmp_path / "model.sealed"
    path.write_bytes(seal(pickle.dumps(model), key))
    loaded = served(path)
    again = loaded.build()
    for x, y in ROWS[600:700]:
        expected = model.predict_proba_one(x)  # type: ignore[attr-defined]
        for one in (loaded.model, again):
            answer = one.predict(x).probabilities
            assert answer is not None
            assert answer == pytest.approx(expected, abs=1e-12)
            one.learn(x, y, 1.0)
        model.learn_one(x, y)  # type: ignore[attr-defined]
    other = tmp_path / "other.sealed"
    other.write_bytes(seal(pickle.dumps(model), KEY))
    assert served(other).spec_hash != loaded.spec_hash


@pytest.mark.parametrize("change", ["byte", "seal", "key", "cut", "plain", "empty"])
def test_nothing_is_read_without_the_seal(tmp_path: Path, change: str) -> None:
    bomb = pickle.dumps(Bomb(tmp_path / "exploded"))
    data = seal(bomb, KEY)
    changed = {
        "byte": data[:-1] + b"\0",
        "seal": data[:10] + bytes([data[10] ^ 1]) + data[11:],
        "key": seal(bomb, b"x" * 32),
        "cut": data[:-3],
        "plain": bomb,
        "empty": b"",
    }[change]
    path = tmp_path / "model.sealed"
    path.write_bytes(changed)
    with pytest.raises(LearnerUnusable) as refusal:
        served(path)
    assert "online models seal" in str(refusal.value)
    assert not (tmp_path / "exploded").exists()
    path.write_bytes(data)  # the same pickle under the seal is run
    with pytest.raises(LearnerUnusable):
        served(path)
    assert (tmp_path / "exploded").exists()


def test_a_file_is_needed() -> None:
    with pytest.raises(LearnerUnusable, match="it has no artifact"):
        load("sealed", {}, task="binary", classes=None, key=KEY, base_dir=Path())


def test_the_command_seals_with_the_services_key(tmp_path: Path) -> None:
    settings = tmp_path / "online.yaml"
    settings.write_text(
        f"state_dir: {tmp_path}/state\nmodels:\n  - {{name: m, task: binary, learner: logreg}}\n"
    )
    pickled, out = tmp_path / "model.pkl", tmp_path / "model.sealed"
    pickled.write_bytes(pickle.dumps(tree.HoeffdingTreeClassifier()))
    command = ["models", "seal", str(pickled), str(out), "--settings", str(settings)]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    (key,) = tmp_path.glob("**/key")
    assert served(out, Keys.from_file(key).secret).model.learns
    pickled.unlink()
    assert isinstance(CliRunner().invoke(app, command).exception, ConfigError)
