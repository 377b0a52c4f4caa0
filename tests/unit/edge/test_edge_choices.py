"""A model of rewards as a file that ranks actions; what its releases have in its place."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
from typer.testing import CliRunner

from online.commands.cli import app
from online.decide import Policy, draw, row
from online.edge import choices
from online.edge.choices import Choices
from online.edge.errors import ExportRefused, PackCorrupt, ParityFailed
from online.edge.export import Exported
from online.edge.lowering.ir import EdgeModel
from online.edge.lowering.lower import lower
from online.edge.targets import pack
from online.models.loading.from_settings import load_model
from online.models.rewards import Action, RewardModel, Rewards
from online.models.selfrate import SelfRate
from online.rows.prediction_ids import Keys
from online.settings import config
from online.settings.places import snapshots_path
from paramserver.core.state import SnapshotState
from paramserver.snapshots.format import encode
from paramserver.snapshots.places import lineage_place, open_snapshots
from replay.example import Example, Features

ABOUT: Final = {"model": "shop", "sequence": 7, "freshness": {}}
ENDS: Final = {"age": (0.0, 90.0, 0.0, 90.0), "@minutes": (0.0, 200.0, 0.0, 200.0)}
ACTIONS: Final[list[Action]] = [
    ("news", {"minutes": 3.0, "kind": "short"}),
    ("film", {"minutes": 95.0, "kind": "long"}),
    ("sport", {"minutes": 20.0}),
]


def taught(model: RewardModel, choices_of: int = 300) -> list[Features]:
    """Teach it choices with numbers, texts, words and actions' features; the rows."""
    rng, rows = random.Random(1), []
    for _ in range(choices_of):
        context: Features = {
            "age": rng.gauss(40.0, 10.0), "hour": rng.choice([1, 2, 3]),
            "day": rng.choice(["mon", "sun"]), "member": rng.random() < 0.5,
            "words": rng.choice(["free now", "hello you", "free hello"]),
        }  # fmt: skip
        scores = model.score(context, ACTIONS)
        decision = Policy().decide(scores)
        i = draw(decision.probabilities, rng.random())
        rewarded = rng.random() < 0.3 + 0.4 * (i == (context["day"] == "sun"))
        rows.append(row(context, *ACTIONS[i]))
        notes = decision.notes(scores, i)
        model.learn_noted(Example(rows[-1], float(rewarded), notes=notes), 1.0)
    return rows


@pytest.fixture(scope="module")
def learned() -> tuple[RewardModel, list[Features]]:
    model = Rewards(low=-1.0, high=3.0, text=("words",), bits=14).model_for("regression")
    return model, taught(model)


@pytest.fixture(scope="module")
def made(learned: tuple[RewardModel, list[Features]]) -> Exported:
    return choices.export(learned[0], ENDS, learned[1][-64:], ABOUT)


def test_a_file_ranks_as_the_model_does_and_says_how_it_was_proved(made: Exported) -> None:
    told = made.manifest["targets"]["choices"]
    assert told["parity"]["rows"] > 64, "rows that look for trouble are asked, too"
    assert told["parity"]["max_abs"] <= choices.BOUND
    assert told["size"] == len(made.files["shop.choices.edgepack"])
    assert made.manifest["features"] == ["@minutes", "age", "hour"]
    golden = json.loads(made.files[told["parity"]["golden"]])
    best = {max(range(len(g["expected"])), key=g["expected"].__getitem__) for g in golden}
    assert len(best) > 1, "the context decides"
    assert {"choices.js", "edge.js"} <= made.files.keys()


def test_what_is_asked_leaves_the_model_as_it_was(
    learned: tuple[RewardModel, list[Features]],
) -> None:
    model, rows = learned
    before = choices.encode(model, ENDS)
    choices.export(model, ENDS, rows[-8:], ABOUT)
    assert choices.encode(model, ENDS) == before


def test_a_file_of_another_state_is_not_written(
    learned: tuple[RewardModel, list[Features]], monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Rewards(low=-1.0, high=3.0, text=("words",), bits=14).model_for("regression")
    taught(other, 40)
    stale = choices.encode(other, ENDS)
    monkeypatch.setattr(choices, "encode", lambda model, ends: stale)
    with pytest.raises(ParityFailed, match="choices: golden row"):
        choices.export(learned[0], ENDS, learned[1][-8:], ABOUT)


def test_a_model_that_has_learned_nothing_finds_all_actions_alike() -> None:
    made = choices.export(Rewards(bits=8).model_for("regression"), {}, [], ABOUT)
    found = Choices(made.files["shop.choices.edgepack"]).expected({"age": 3.0}, ACTIONS)
    assert found == pytest.approx([found[0]] * 3)


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
def test_the_browser_expects_what_the_service_does(made: Exported, tmp_path: Path) -> None:
    for name, data in made.files.items():
        (tmp_path / name).write_bytes(data)
    (tmp_path / "package.json").write_text('{"type": "module"}')
    told = made.manifest["targets"]["choices"]
    (tmp_path / "ask.js").write_text(f"""
        import {{ readFileSync }} from "node:fs";
        import {{ load }} from "./choices.js";
        const model = load(readFileSync("{told["file"]}"));
        const golden = JSON.parse(readFileSync("{told["parity"]["golden"]}"));
        const listed = (of) => of.map(([id, features]) => ({{ id, features }}));
        const out = golden.map((g) => model.expected(g.context, listed(g.actions)));
        const best = golden.map((g) => model.choose(g.context, listed(g.actions)).action);
        console.log(JSON.stringify({{ out, best }}));
    """)
    done = subprocess.run(
        ["node", "ask.js"], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    golden = json.loads(made.files[told["parity"]["golden"]])
    assert len(said["out"]) == len(golden)
    for g, out, best in zip(golden, said["out"], said["best"], strict=True):
        assert out == pytest.approx(g["expected"], abs=1e-9), g
        names = [name for name, _ in g["actions"]]
        assert out[names.index(best)] == max(out)


def test_bytes_that_are_no_file_of_choices_are_refused(made: Exported) -> None:
    header, tables = pack.parts_of(made.files["shop.choices.edgepack"])
    del header["tensors"]
    for wrong in (
        pack.contained({**header, "body": "linear"}, tables),
        pack.contained(header, {n: t for n, t in tables.items() if n != "votes"}),
        pack.contained(header, {**tables, "weights": np.zeros((1, 4), "<f4")}),
    ):
        with pytest.raises(PackCorrupt, match="do not fit"):
            Choices(wrong)
    with pytest.raises(PackCorrupt):
        Choices(b"no file")


def test_the_command_writes_the_file_of_a_model_that_chooses(tmp_path: Path) -> None:
    (tmp_path / "online.yaml").write_text(
        "models:\n- {name: shop, task: choose, choose: {reward_range: [0, 1]}}\n"
    )
    settings = config.load(tmp_path / "online.yaml", {"state_dir": tmp_path / "state"}, {})
    keys = Keys.from_file(settings.key_path)
    loaded = load_model(settings.models[0], settings, keys.secret, keys.old_secrets)
    model: Any = loaded.model
    taught(model, 40)
    state = SnapshotState("shop", loaded.spec_hash, loaded.spec_text, (1, 1), model.cut(), {1: 40})
    place = lineage_place(snapshots_path(settings), "shop", loaded.spec_hash)
    open_snapshots(place).publish("1-1", encode(state))

    def run(*words: str) -> Any:
        command = ["export", "--config", str(tmp_path / "online.yaml"), "--state-dir",
                   str(tmp_path / "state"), "--out", str(tmp_path / "out"), *words]  # fmt: skip
        return CliRunner().invoke(app, command)

    done = run("--json")
    assert done.exit_code == 0, done.output
    held = Choices((tmp_path / "out" / "shop.choices.edgepack").read_bytes())
    context: Features = {"age": 41.0, "hour": 2, "day": "sun"}
    expected = model.score(context, ACTIONS).means
    assert held.expected(context, ACTIONS) == pytest.approx(expected, abs=1e-9)
    old = str(tmp_path / "out" / "shop.choices.edgepack")
    again = json.loads(run("--json", "--since", old).output)
    assert again["left_out"] == {"difference": "of a file of choices there is none"}
    refused = run("--targets", "edgepack")
    assert "it weighs all actions at once" in str(refused.exception)


def test_a_release_of_rewards_is_refused_with_what_has_one() -> None:
    with pytest.raises(
        ExportRefused, match=r"use `online export`.*`learner: linear` has one.*in every context"
    ):
        lower(Rewards(bits=8).model_for("regression"), "regression")
    linear: Any = SelfRate().model_for("regression")
    rewards: Any = Rewards(bits=14).model_for("regression")
    for i in range(300):  # b is best in the first hour, a in the others
        told = {"@": "ab"[i % 2], "hour": float(i % 3)}
        for model in (linear, rewards):
            model.learn(dict(told), float((i % 2 == 1) == (i % 3 == 0)), 1.0)
    assert isinstance(lower(linear, "regression"), EdgeModel)
    asked = [[{"@": name, "hour": float(hour)} for name in "ab"] for hour in (0, 2)]
    best = [
        [max(pair, key=lambda one: float(model.predict(one).label or 0.0))["@"] for pair in asked]
        for model in (linear, rewards)
    ]
    assert best == [["a", "a"], ["b", "a"]]
