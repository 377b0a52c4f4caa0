"""A challenger follows the journal, answers before it learns, and goes on where it was."""

from __future__ import annotations

import gc
import os
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import msgspec
import pytest

from benchmarks.quality.shadowed import BETTER, EQUAL, Apart, turning
from online.challenger.comparison import Challenger, ReadAhead, Standing
from online.challenger.shadow import PAGE_ROWS, Shadow
from online.learning.scores import score_of
from online.models.base import Model, learn_example
from online.models.loaded import Loaded
from online.models.loading.from_settings import load_model
from online.rows.prediction_ids import event_key
from online.settings.config import Settings
from online.settings.model import Challenge, ModelSettings, Snapshots
from online.settings.places import open_journal
from paramserver.core import rewrites
from paramserver.snapshots.store import Retention
from replay import codec
from replay.example import Example, Features
from replay.journal.base import NewRow, Row, Verdict

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
    epoch: int = 1

    def __post_init__(self) -> None:
        self.settings.state_dir.mkdir(exist_ok=True)
        self.journal = open_journal(self.settings)
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
        self.known: dict[int, int] | None = None

    def load(self, model: ModelSettings) -> Loaded:
        return load_model(model, self.settings, KEY)

    def feed(self, features: Features, label: Any, labels_late: int = 0) -> None:
        """A question now, its label ``labels_late`` rows later; then the champion learns it."""
        self.now_s += STEP_S
        answer = self.serving.predict(features)
        score = score_of(self.model.task, answer)
        example = Example(
            features, label, 1.0, score, (self.epoch, 0, 0), self.now_s, notes=answer.notes,
            known=self.known,
        )  # fmt: skip
        self.open.append((features, label, example))
        while len(self.open) > labels_late:
            self.label()

    def label(self) -> None:
        _, _, example = self.open.pop(0)
        self.now_s += STEP_S
        self.n += 1
        name = f"e{self.partition}.{self.n}"
        key = event_key("event", "t", name)
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
        end = self.journal.follow("m", 2**62, 1).upto
        while not shadow.superseded and (shadow.step() or shadow.learner.position < end):
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

    def ask(self, seq: int, example: Example, *, compare: bool) -> None:
        for _ in range(20):
            self.serving.learn(example.features, example.label, 1.0)
        super().ask(seq, example, compare=compare)


def equal_pair(tmp_path: Path) -> World:
    return World(settings_of(tmp_path / "s", "binary", "linear", "linear", rows_min=30))


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
    monkeypatch.setattr("online.challenger.shadow.Challenger", Peeking)
    world = equal_pair(tmp_path)
    for features, label in stream(400):
        world.feed(features, label)
    now = world.catch_up(world.shadow())
    assert now.difference != 0.0


class WhenTheLabelComes(ReadAhead):
    """Asks a row when its label comes: by then others are learned that came after the question."""

    def read(self, rows: Sequence[Row], ended_s: float | None) -> None:
        super().read(rows, ended_s)
        at = {row.seq: row.at for row in self.rows}
        self._asks_at = sorted((at[seq], seq, *rest) for _, seq, *rest in self._asks_at)


def test_one_that_is_asked_later_than_the_champion_is_found_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("online.challenger.shadow.ReadAhead", WhenTheLabelComes)
    world = equal_pair(tmp_path)
    for features, label in stream(200):
        world.feed(features, label, labels_late=7)
    now = world.catch_up(world.shadow())
    assert now.champion_loss is not None
    assert now.challenger_loss is not None
    assert abs(now.champion_loss - now.challenger_loss) > 1e-4


def test_labels_that_come_after_the_delay_are_learned_and_not_compared(tmp_path: Path) -> None:
    world = World(
        settings_of(tmp_path / "s", "binary", "linear", "logreg", rows_min=30, delay=0.05)
    )
    shadow = world.shadow()
    for features, label in stream(200):
        world.feed(features, label, labels_late=20)
        shadow.step()
    now = world.catch_up(shadow)
    assert shadow.learner.tally.digest[0] == 180
    assert now.rows + now.late == 180
    assert 0 < now.rows <= 5, "those that were asked before the first label had come"
    assert now.verdict == "not enough data"
    assert "challenger.delay" in now.lacking[-1]


def test_a_clock_that_was_set_back_does_not_stop_it(tmp_path: Path) -> None:
    world = equal_pair(tmp_path)
    world.now_s += 1e6
    for features, label in stream(40):
        world.feed(features, label)
    shadow = world.shadow()
    world.catch_up(shadow)
    for features, label in stream(10, seed=2):
        world.feed(features, label)
    shadow.step()
    world.now_s -= 1e6
    for seed in (3, 4):
        for features, label in stream(40, seed=seed):
            world.feed(features, label)
        world.now_s += 10.0
        for _ in range(10):
            shadow.step()
    assert shadow.learner.tally.digest[0] == 130
    assert shadow.standing().rows >= 90, "those after it are compared again"


def test_answers_of_what_served_before_are_not_compared(tmp_path: Path) -> None:
    """Written by replicas of another spec, or given before the promotion and labelled since."""
    world = equal_pair(tmp_path)
    rows = stream(90)
    other = world.journal.register("m", "old", "another spec", 1.0).id
    world.partition, own = other, world.partition
    for features, label in rows[:30]:
        world.feed(features, label)
    world.partition, first = own, world.n
    world.n = 0
    for features, label in rows[30:60]:
        world.feed(features, label)
    note = rewrites.Promote("another spec", world.champion.spec_hash, {}, {}, epoch=1)
    world.journal.write_control("m", "promote", "p", msgspec.json.encode(note))
    world.epoch = 2
    for features, label in rows[60:]:
        world.feed(features, label)
    shadow = world.shadow()
    now = world.catch_up(shadow)
    assert first == 30
    assert shadow.learner.tally.counters["n"] == shadow.learner.tally.digest[0] == 90
    assert now.rows == 30


def test_its_snapshots_are_kept_as_the_settings_say(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, "binary", "logreg", "linear")
    kept = Snapshots(keep=6, hourly=5, daily=3, weekly=2, full_every=1)
    model = settings.models[0].model_copy(update={"snapshots": kept})
    shadow = World(settings.model_copy(update={"models": (model,)})).shadow()
    assert shadow._server is not None
    assert shadow._server._running.settings.retention == Retention(6, 5, 3, 2, 1)
    shadow.close()


def test_it_goes_on_where_it_was(tmp_path: Path) -> None:
    rows = stream(600)
    states = []
    for folder, stops in ((tmp_path / "never", ()), (tmp_path / "often", (150, 151, 420))):
        world = World(settings_of(folder, "binary", "logreg", "linear", rows_min=30))
        shadow = world.shadow()
        for i, (features, label) in enumerate(rows):
            world.feed(features, label)
            shadow.step()
            if i in stops:
                if i != 151:
                    shadow.close()  # killed otherwise: it begins at the snapshot before
                shadow = world.shadow()
        now = world.catch_up(shadow)
        states.append((now, shadow.learner.tally.digest, shadow.learner.state().blocks))
        assert shadow.learner.position == world.journal.follow("m", 2**62, 1).upto
    (never, digest, values), (often, same, again) = states
    assert digest == same
    assert digest[0] == 600
    names = set(values) - {"metrics", "newest"}  # of rows asked before a stop some are late
    assert {n: values[n] for n in names} == {n: again[n] for n in names}
    assert never.rows == 600
    assert often.rows + often.late == 600
    assert often.late <= 3


def test_the_better_one_is_proposed_once_its_guards_hold(tmp_path: Path) -> None:
    settings = settings_of(
        tmp_path / "s", "binary", "prior.py:build", "linear", rows_min=400, promote="auto"
    )
    (tmp_path / "prior.py").write_text(
        "from river import dummy\ndef build():\n    return dummy.PriorClassifier()\n"
    )
    world = World(settings.model_copy(update={"base_dir": tmp_path}))
    shadow = world.shadow()
    for features, label in stream(390):
        world.feed(features, label)
    early = world.catch_up(shadow)
    world.now_s += 2
    shadow.step()
    assert (early.verdict, world.proposed) == ("not enough data", [])
    assert early.interval is not None
    assert early.interval[0] > 0, "only rows_min holds it back"
    for features, label in stream(100, seed=2):
        world.feed(features, label)
    now = world.catch_up(shadow)
    shadow.incident = "something"
    world.now_s += 2
    shadow.step()
    assert world.proposed == [], "an incident holds it back"
    shadow.incident = None
    world.now_s += 2
    shadow.step()
    again = world.shadow()
    for why in ("failed", "back"):
        note = rewrites.Promote(world.challenger.spec_hash, world.champion.spec_hash, {}, {}, why)
        world.journal.write_control("m", "promote", why, msgspec.json.encode(note))
        again.begin()
        assert "by hand" in (again.held_back(now) or ""), "it would go to and fro"
    [proposed] = world.proposed
    assert (proposed, proposed.verdict) == (now, "better")
    worse = Standing("better", 1500, 0, 0.6, 0.9, 0.5, 0.6, 0.3, (0.1, 0.5), ())
    assert worse.held_back("binary") == "its log loss is 0.6, the champion's 0.5"


def test_a_failure_is_written_down_and_no_row_is_lost_by_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = equal_pair(tmp_path)
    shadow = world.shadow()
    kind: Any = type(shadow.learner.serving)
    learn = kind.learn_noted

    def picky(self: Any, example: Example, weight: float) -> None:
        if example.features["z"] == 0.25:
            raise ValueError("it dislikes a quarter")
        learn(self, example, weight)

    monkeypatch.setattr(kind, "learn_noted", picky)
    world.champion.build()
    for i, (features, label) in enumerate(stream(40)):
        world.now_s += 1
        answer = world.serving.predict(features)
        given = {**features, "z": 0.25} if i == 7 else features
        world.open.append(
            (
                features,
                label,
                Example(
                    given,
                    label,
                    predicted_at=world.now_s,
                    score=score_of("binary", answer),
                    notes=answer.notes,
                ),
            )
        )
        monkeypatch.setattr(kind, "learn_noted", learn)
        world.label()
        monkeypatch.setattr(kind, "learn_noted", picky)
    world.catch_up(shadow)
    assert shadow.failed == 1
    assert shadow.learner.tally.digest[0] == 39
    [failed] = [c for c in world.journal.controls("m", 0) if c.kind == "failed"]
    assert failed.key.startswith(f"failed:{world.challenger.spec_hash[:16]}:")


@pytest.mark.parametrize("kind", [rewrites.ROLLBACK, rewrites.FORGET])
def test_what_the_other_lineage_undoes_is_learned_around(tmp_path: Path, kind: str) -> None:
    world = equal_pair(tmp_path)
    for features, label in stream(100):
        world.feed(features, label)
    shadow = world.shadow()
    world.catch_up(shadow)
    note = rewrites.Rollback("another spec", "1-1", 0, {}, [], {world.partition: (60, 100)})
    spans = {world.partition: rewrites.packed(((60, 100),))}
    forget = rewrites.Forget("another spec", "t", None, None, "1-1", 0, {}, [], spans)
    said = msgspec.json.encode(note if kind == rewrites.ROLLBACK else forget)
    world.journal.write_control("m", kind, "r", said)
    world.catch_up(shadow)
    assert shadow.learner.tally.digest[0] == 60
    for features, label in stream(5, seed=2):
        world.feed(features, label)
    world.catch_up(world.shadow())
    assert world.shadow().decisions.undone.count == 40
    recovered = msgspec.structs.replace(note, undone={}, again=True)
    world.journal.write_control("m", "rollback", "r2", msgspec.json.encode(recovered))
    version = shadow.learner.server.met
    assert not shadow.superseded
    world.catch_up(shadow)
    assert shadow.superseded, "another process took the lineage since"
    assert shadow.learner.server.met == version


def apart(
    tmp_path: Path, pair: tuple[dict[str, Any], dict[str, Any]], rows: int, **more: Any
) -> Apart:
    """One replica answers, another takes the labels: both models have come so far."""
    world = Apart(tmp_path / "apart", *pair, **more)
    world.play(turning(rows, 5))
    return world


def test_an_equal_challenger_is_not_promoted_for_labels_that_the_answer_could_not_have(
    tmp_path: Path,
) -> None:
    """What a replica hears of others' rows is some time old: that is what both are asked as of."""
    world = apart(tmp_path, EQUAL, 900)
    now = world.shadow.standing()
    assert (now.rows, now.late, world.proposed) == (900, 0, [])
    assert now.champion == pytest.approx(now.challenger, abs=0.002)
    world.close()


def test_rows_of_several_replicas_that_do_not_say_what_was_known_are_not_compared(
    tmp_path: Path,
) -> None:
    """They are from before it was written down."""
    world = apart(tmp_path, EQUAL, 60, writes=False)
    now = world.shadow.standing()
    assert (now.rows, now.late) == (0, 60)
    assert world.shadow.learner.tally.digest[0] == 60
    world.close()


def test_asked_as_of_the_question_an_equal_challenger_would_be_better(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Shadow, "_alone", lambda self: True)
    world = apart(tmp_path, EQUAL, 900, writes=False)
    now = world.shadow.standing()
    assert now.champion is not None
    assert now.challenger is not None
    assert now.challenger > now.champion + 0.01
    world.close()


def test_a_better_challenger_is_promoted_where_answers_know_less_than_has_come(
    tmp_path: Path,
) -> None:
    world = apart(tmp_path, BETTER, 1_800)
    assert world.proposed
    assert world.proposed[0].verdict == "better"
    world.close()


def test_a_row_of_which_nobody_wrote_down_what_was_known_is_learned_and_not_compared(
    tmp_path: Path,
) -> None:
    """An id has no room for the offsets of more than so many partitions."""
    world = equal_pair(tmp_path)
    for i, (features, label) in enumerate(stream(60)):
        world.known = {} if i % 2 else {world.partition: world.n}
        world.feed(features, label)
    now = world.catch_up(world.shadow())
    assert (now.rows, now.late) == (30, 30)
    assert now.difference == 0.0


def test_what_a_model_knows_is_what_its_answers_include(tmp_path: Path) -> None:
    world = Apart(tmp_path / "apart", *EQUAL)
    world.play(turning(130, 5))
    (asked, _), (taught, partition) = world.replicas
    for learner, at_least in ((asked, 60), (taught, 130)):
        known = learner.known()[partition]
        assert known >= at_least
        assert learner.includes(partition, known)
        assert not learner.includes(partition, known + 1)
    world.close()


def test_rows_of_other_models_are_not_counted_as_those_it_has_to_learn(tmp_path: Path) -> None:
    world = equal_pair(tmp_path)
    other = world.journal.register("other", "r", "another", 1.0).id
    for n, (features, label) in enumerate(stream(2 * PAGE_ROWS)):
        world.feed(features, label)
        key = event_key("event", "t", f"other.{n}")
        world.journal.append(other, n, [NewRow(key, "e", "t", Verdict.FROZEN, b"", 1.0)])
    learned = (shadow := world.shadow()).step()
    assert 0 < shadow.behind == 2 * PAGE_ROWS - learned


def test_beginning_again_opens_nothing_more(tmp_path: Path) -> None:
    """It begins again after every error, so once a second while a journal does not answer."""
    shadow = equal_pair(tmp_path).shadow()
    gc.collect()  # else what earlier tests have left is closed meanwhile
    opened = len(os.listdir("/proc/self/fd"))
    shadow.begin()
    assert len(os.listdir("/proc/self/fd")) == opened


def test_it_reads_each_decision_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = equal_pair(tmp_path)
    world.journal.write_control("m", "failed", "failed:other:1", b"no")
    shadow, controls = world.shadow(), Mock(return_value=())
    monkeypatch.setattr(world.journal, "controls", controls, raising=False)
    for _ in range(5):  # once a second, and there is one for each row that could not be learned
        shadow._look()
    assert [call.args for call in controls.call_args_list] == [("m", 1)] * 5
