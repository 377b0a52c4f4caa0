"""A challenger follows the journal, answers before it learns, and goes on where it was."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest

from online.challenger import Ahead, Challenger, Standing
from online.config import Settings
from online.local import score_of
from online.model_settings import Challenge, ModelSettings, Snapshots
from online.models.base import Model, learn_example
from online.models.load import Loaded
from online.names import load_model, open_journal, snapshots_path
from online.shadow import Shadow
from online.tokens import event_key
from paramserver import rewrites
from paramserver.actor import ParameterServer
from paramserver.lineage import Lineage
from replay import codec
from replay.example import Example, Features, label_text
from replay.journal.base import NewRow, Verdict
from replay.journal.sqlite import SqliteJournal

KEY = b"0" * 32
STEP_S = 0.01


def settings_of(folder: Path, task: str, champion: str, challenger: str, **given: Any) -> Settings:
    challenge = Challenge(learner=challenger, delay=given.pop("delay", 0.5), **given)
    model = ModelSettings.model_validate(
        {"name": "m", "task": task, "learner": champion, "challenger": challenge.model_dump()}
    )
    model = model.model_copy(update={"snapshots": Snapshots(interval_s=1)})
    return Settings(state_dir=folder, models=(model,))


@dataclass
class World:
    """A champion that is asked and learns, and whatever challenger follows its journal."""

    settings: Settings
    now_s: float = 1_000.0
    late_s: float = 0.0

    def __post_init__(self) -> None:
        self.settings.state_dir.mkdir(exist_ok=True)
        self.journal = open_journal(self.settings)
        assert isinstance(self.journal, SqliteJournal)
        self.model = self.settings.models[0]
        self.champion = self.load(self.model)
        challenging = self.model.challenging
        assert challenging is not None
        self.challenger = self.load(challenging)
        self.serving: Model = self.champion.build()
        self.partition = self.journal.register("m", "r", self.champion.spec_hash, 1.0).id
        self.n = 0
        self.proposed: list[Standing] = []
        self.open: list[tuple[Features, Any, Example]] = []

    def load(self, model: ModelSettings) -> Loaded:
        return load_model(model, self.settings, KEY)

    def feed(self, features: Features, label: Any, labels_late: int = 0) -> None:
        """A question now, its label ``labels_late`` rows later; then the champion learns it."""
        self.now_s += STEP_S
        answer = self.serving.predict(features)
        score = score_of(self.model.task, answer)
        example = Example(features, label, 1.0, score, (1, 0, 0), self.now_s, notes=answer.notes)
        self.open.append((features, label, example))
        while len(self.open) > labels_late:
            self.label()

    def label(self) -> None:
        features, _, example = self.open.pop(0)
        self.now_s += STEP_S
        self.n += 1
        key, name = event_key("event", "t", str(self.n)), f"e{self.n}"
        new = NewRow(key, name, "t", Verdict.ACCEPTED, codec.encode(example), self.now_s)
        self.journal.append(self.partition, self.n - 1, [new])
        learn_example(self.serving, example)

    def shadow(self) -> Shadow:
        made = Shadow(
            self.settings,
            self.model,
            self.challenger,
            self.journal,
            rival=self.champion.spec_hash,
            now_s=lambda: self.now_s,
            monotonic_s=lambda: self.now_s,
            propose=self.proposed.append,
        )
        made.begin()
        return made

    def catch_up(self, shadow: Shadow) -> Standing:
        self.now_s += 10.0
        while shadow.step() or shadow.ahead.rows:
            pass
        return shadow.standing()


def stream(n: int, seed: int = 1) -> list[tuple[Features, bool]]:
    """Labels that depend on the last one, and somewhat on the features."""
    rng = random.Random(seed)
    out: list[tuple[Features, bool]] = []
    for _ in range(n):
        x = rng.random() - 0.5
        out.append(({"x": x, "z": rng.random()}, (rng.random() < 0.9) == (x > 0)))
    return out


class Peeking(Challenger):
    """Learns the label before it answers."""

    def ask(self, seq: int, example: Example) -> None:
        for _ in range(20):
            self.serving.learn(example.features, example.label, 1.0)
        super().ask(seq, example)


def equal_pair(tmp_path: Path) -> World:
    world = World(settings_of(tmp_path / "s", "binary", "linear", "linear", rows_min=30))
    return world


@pytest.mark.parametrize("labels_late", [0, 7])
def test_equal_models_have_the_same_answers(tmp_path: Path, labels_late: int) -> None:
    world = equal_pair(tmp_path)
    for features, label in stream(400):
        world.feed(features, label, labels_late)
    now = world.catch_up(world.shadow())
    assert (now.rows, now.late) == (400 - labels_late, 0)
    assert now.champion == now.challenger
    assert now.champion_loss == pytest.approx(now.challenger_loss, abs=1e-12)
    assert now.difference == 0.0
    assert now.verdict == "undecided"


def test_one_that_peeks_at_the_label_is_found_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("online.shadow.Challenger", Peeking)
    world = equal_pair(tmp_path)
    for features, label in stream(400):
        world.feed(features, label)
    now = world.catch_up(world.shadow())
    assert now.difference != 0.0
