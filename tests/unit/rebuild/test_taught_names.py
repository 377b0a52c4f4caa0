"""What a table teaches beside the model's own values: its names and its classes."""

from __future__ import annotations

from pathlib import Path

from river import linear_model, optim

from online.learning.counters import Tally
from online.learning.vocabulary import Classes, Vocabulary
from online.models.adapters.linear import Linear
from online.models.loading.from_settings import load_model
from online.rebuild.backfill import Teacher
from online.settings.config import Settings
from online.settings.model import ModelSettings
from replay.example import Example


def test_the_names_of_a_table_are_known_and_no_source_has_brought_them() -> None:
    model = Linear(linear_model.LogisticRegression(optim.SGD(0.1)))
    teacher = Teacher(model, {})
    for i in range(8):
        assert teacher.learn(Example({f"x{i}": 1.0}, label=True)) is None
    names = Vocabulary()
    names.most, names.share = 10, 0.5
    names.reset(teacher.values())
    assert len(names) == 8
    assert names.fresh({"x3": 1.0, "y": 2.0}) == ["y"], "it has learned x3"
    assert names.taught({f"x{i}": 1.0 for i in range(8)}, "s", 0.0, 1.0)[1] is None
    new = {"a": 1.0, "b": 1.0, "c": 1.0}
    assert names.taught(new, "s", 0.0, 1.0)[1] == {"c": 1.0}, "there is room for ten names"


def test_the_classes_of_a_table_are_known_and_older_than_any_label(tmp_path: Path) -> None:
    settings = ModelSettings(name="m", task="multiclass", learner="linear")
    model = load_model(settings, Settings(state_dir=tmp_path, models=(settings,)), b"0" * 32)
    teacher = Teacher(model.build(), {})
    for label in ("a", "b", "c"):
        assert teacher.learn(Example({"x": 1.0}, label)) is None
    tally = Tally()
    tally.reset(teacher.values())
    assert tally.seen.keys() == {'"a"', '"b"', '"c"'}
    classes = Classes(3)
    assert classes.admit('"b"', tally.seen, 0.0, 1.0)
    assert not classes.admit('"d"', tally.seen, 0.0, 1.0), "it has three"
    tally.add(bytes(16), {}, '"a"', 1.0)
    assert tally.newest() == "a"
