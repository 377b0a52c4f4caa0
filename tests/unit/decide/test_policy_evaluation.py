"""Policies are judged by the records of choices alone."""

from __future__ import annotations

import io
import json
import random
from contextlib import nullcontext
from pathlib import Path

import msgspec
import numpy as np
import pytest
from typer.testing import CliRunner

from online.commands.cli import application
from online.commands.inspect import evaluate
from online.decide import obp
from online.decide.dsjson import line
from online.decide.obp import COLUMNS_MAX, Feedback
from online.decide.policy_evaluation import SERVED, Judging, PolicyUnknown, target
from online.decide.record import Choice
from online.errors import ConfigError
from online.rows import journal_rows
from replay.example import Features

MEANS = (0.2, 0.5, 0.8)


def choice(chosen: int = 0, excluded: tuple[int, ...] = (), baseline: int | None = None) -> Choice:
    actions = tuple((name, {}) for name in "abc")
    return Choice({}, actions, excluded, chosen, (0.5, 0.3, 0.2), MEANS, "p", baseline)


def test_each_policy_answers_by_what_the_record_says() -> None:
    assert target(SERVED)(choice()) == (0.5, 0.3, 0.2)
    assert target("greedy")(choice()) == [0.0, 0.0, 1.0]
    assert target("greedy")(choice(excluded=(2,))) == [0.0, 1.0, 0.0]
    assert target("uniform")(choice(excluded=(0,))) == [0.0, 0.5, 0.5]
    assert target("epsilon:0.3")(choice()) == pytest.approx([0.1, 0.1, 0.8])
    assert target("always:b")(choice()) == [0.0, 1.0, 0.0]
    assert target("always:b")(choice(excluded=(1,))) is None
    assert target("always:d")(choice()) is None
    assert target("baseline")(choice()) is None
    assert target("baseline")(choice(baseline=0)) == [1.0, 0.0, 0.0]
    for name in ("", "best", "epsilon", "epsilon:2", "epsilon:x", "always:", "always"):
        with pytest.raises(PolicyUnknown, match="Give greedy"):
            target(name)


def test_the_log_is_written_as_vowpal_wabbit_reads_it() -> None:
    chosen = msgspec.structs.replace(
        choice(2, (0,)), context={"hour": 9, "odd": None}, probabilities=(0.0, 0.25, 0.75)
    )
    said = json.loads(line(chosen, 0.5, "order-1", 0.0))
    assert (said["_label_cost"], said["_label_probability"]) == (-0.5, 0.75)
    assert (said["_label_Action"], said["_labelIndex"], said["a"]) == (2, 1, [2, 1])
    assert said["p"] == [0.75, 0.25]
    assert said["c"]["context"] == {"hour": 9}
    assert said["c"]["_multi"] == [{"action": {"id": "b"}}, {"action": {"id": "c"}}]
    assert (said["EventId"], said["Timestamp"]) == ("order-1", "1970-01-01T00:00:00Z")


def test_the_log_is_written_as_arrays_that_the_open_bandit_pipeline_takes(tmp_path: Path) -> None:
    feedback, rewards = Feedback(), [1.0, 0.0, 0.5]
    for chosen, context, reward in zip(
        (0, 2, 1), ({"hour": 9, "on": "tv"}, {"odd": None}, {"hour": 1.5}), rewards, strict=True
    ):
        feedback.add(msgspec.structs.replace(choice(chosen), context=context), reward)
    feedback.save(tmp_path / "log.npz")
    said = np.load(tmp_path / "log.npz")
    assert (int(said["n_rounds"]), int(said["n_actions"])) == (3, 3)
    assert (said["action"].tolist(), said["reward"].tolist()) == ([0, 2, 1], rewards)
    assert said["pscore"].tolist() == pytest.approx([0.5, 0.2, 0.3])
    assert said["pi_b"][1, :, 0].tolist() == pytest.approx([0.5, 0.3, 0.2])
    assert said["columns"].tolist() == ["hour", "on=tv"]
    assert said["context"].tolist() == [[9.0, 1.0], [0.0, 0.0], [1.5, 0.0]]
    assert said["actions"].tolist() == ["a", "b", "c"]


@pytest.mark.parametrize("more", [0, 1])
def test_a_log_with_more_names_than_arrays_take_is_refused(more: int) -> None:
    wide: Features = {f"x{i}": 1.0 for i in range(COLUMNS_MAX + more)}
    refused = pytest.raises(ConfigError, match="more than 1,000 columns") if more else nullcontext()
    feedback = Feedback()
    with refused:
        feedback.add(msgspec.structs.replace(choice(), context=wide), 1.0)


def test_a_log_with_more_numbers_than_fit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(obp, "NUMBERS_MAX", 3 * (1 + 3 + 4))  # column, actions, the rest
    feedback, one = Feedback(), msgspec.structs.replace(choice(), context={"x": 1.0})
    for _ in range(3):
        feedback.add(one, 1.0)
    with pytest.raises(ConfigError, match="more than 24 numbers in 3 choices of 8"):
        feedback.add(one, 1.0)


def test_a_refused_log_leaves_no_half_of_the_other_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(obp, "NUMBERS_MAX", 20)  # one choice of three actions has 7
    rows = [evaluate.Logged(choice(), 1.0, f"{i}", 0.0) for i in range(3)]
    monkeypatch.setattr(evaluate, "logged", lambda *_: iter(rows))
    monkeypatch.setattr(journal_rows, "open_for_report", lambda _: io.BytesIO())
    settings = tmp_path / "online.yaml"
    settings.write_text("models: [{name: m, task: choose}]\n")
    log, arrays = tmp_path / "log", tmp_path / "log.npz"
    words = [f"--config={settings}", f"--dsjson={log}", f"--obp={arrays}"]
    done = CliRunner().invoke(application("evaluate"), ["evaluate", *words])
    assert (done.exit_code != 0, log.exists(), arrays.exists()) == (True, False, False), done.output
    assert "more than 20 numbers in 2 choices" in done.output + str(done.exception)


def test_the_values_of_policies_are_within_their_intervals() -> None:
    rng = random.Random(11)
    judging = Judging(["greedy", "uniform", "always:a", "always:d"], 0.05, 0.0, 1.0)
    for _ in range(4000):
        chosen = rng.choices(range(3), (0.5, 0.3, 0.2))[0]
        judging.add(choice(chosen), float(rng.random() < MEANS[chosen]))
    found = judging.now()
    worth = {SERVED: 0.41, "greedy": 0.8, "uniform": 0.5, "always:a": 0.2}
    for name, value in worth.items():
        one = found[name]
        assert one.interval is not None
        assert one.interval.low <= value <= one.interval.high
        assert one.dr == pytest.approx(value, abs=0.05)
        assert not one.warnings
    assert (found["always:d"].n, judging.unanswered["always:d"]) == (0, 4000)


@pytest.mark.parametrize("apprentice", [False, True])
def test_a_floor_is_advised_only_where_the_model_answers(apprentice: bool) -> None:
    judging = Judging(["always:c"], 0.05, 0.0, 1.0, apprentice=apprentice)
    for _ in range(200):
        judging.add(msgspec.structs.replace(choice(), probabilities=(1.0, 0.0, 0.0)), 1.0)
    said = " ".join(judging.now()["always:c"].warnings)
    assert "100.0% of its choices are never served" in said
    assert ("give the served policy a floor" in said) is not apprentice
    assert ("online promote" in said) is apprentice
