"""`online init --task choose` writes settings for a log of choices, and says what it could earn."""

from __future__ import annotations

import json
import random
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from typer.testing import CliRunner

from online.commands import cli
from online.commands.setup.init_choices import logged_of
from online.errors import ConfigError, StartRefused
from online.models.loading.from_settings import load_model
from online.models.rewards import RewardModel
from online.rows.prediction_ids import Keys
from online.settings.config import load
from online.settings.places import snapshots_path
from online.tables import inputs, readers
from online.tables.errors import InputRefused
from online.tables.first_look import open_table
from paramserver.snapshots.history import SnapshotHistory
from paramserver.snapshots.places import lineage_place, open_snapshots
from paramserver.snapshots.store import Retention

SHARES = {"news": 0.5, "sport": 0.3, "film": 0.2}
ROWS = 800


def run(*words: str) -> str:
    done = CliRunner().invoke(cli.app, words)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.output


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """News are liked before noon, films after it, by .6; everything else by .1."""
    monkeypatch.chdir(tmp_path)
    rng, lines = random.Random(1), ["daytime,age,offer,propensity,clicked"]
    for _ in range(ROWS):
        daytime = rng.choice(["am", "pm"])
        (offer,) = rng.choices(list(SHARES), list(SHARES.values()))
        liked = rng.random() < (0.6 if offer == {"am": "news", "pm": "film"}[daytime] else 0.1)
        age = rng.randrange(20, 60)
        lines.append(f"{daytime},{age},{offer},{SHARES[offer]},{int(liked)}")
    (tmp_path / "offers.csv").write_text("\n".join(lines) + "\n")
    return tmp_path / "offers.csv"


def told(*words: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(run("init", *words, "--task", "choose", "--json"))
    return found


def taught(*words: str) -> RewardModel:
    """The model that the command has taught, as the next start begins with it."""
    facts = json.loads(run(*words, "--json"))
    assert (facts["learned"], facts["quarantined"]) == (ROWS, 0)
    settings = load(Path("online.yaml"), {}, {})
    secret = Keys.from_file(settings.key_path).secret
    loaded = load_model(settings.models[0], settings, secret)
    place = lineage_place(snapshots_path(settings), "offers", loaded.spec_hash)
    model = loaded.model
    assert isinstance(model, RewardModel)
    model.reset(SnapshotHistory(open_snapshots(place), Retention()).load(facts["snapshot"]).values)
    return model


@pytest.mark.parametrize("names", [list(SHARES), ["1", "2", "3"]])
def test_the_command_that_it_says_teaches_the_log(log: Path, names: list[str]) -> None:
    text = log.read_text()
    for name, said in zip(SHARES, names, strict=True):
        text = text.replace(name, said)
    log.write_text(text)
    said = run("init", str(log), "--task", "choose")
    (command,) = re.findall(r"^  (online backfill .*)$", said, re.M)
    model = taught(*shlex.split(command)[1:])
    for daytime, liked in (("am", names[0]), ("pm", names[2])):
        scores = model.score({"daytime": daytime, "age": 30}, [(name, {}) for name in names])
        assert names[int(scores.means.argmax())] == liked


def test_a_log_teaches_nothing_before_its_action_is_named(log: Path) -> None:
    run("init", str(log), "--task", "choose")
    words = ["backfill", "--config", "online.yaml", "--input", str(log), "--label", "clicked"]
    with pytest.raises(
        InputRefused, match=r"which action was taken.*Name it, --action COLUMN: .*offer"
    ):
        run(*words)
    Path("plain.yaml").write_text("models: [{name: m, task: binary, learner: logreg}]\n")
    with pytest.raises(StartRefused, match="does not choose"):
        run(*words, "--config", "plain.yaml", "--action", "offer")


def test_a_log_becomes_settings_of_a_model_that_chooses(log: Path) -> None:
    said = run("init", str(log), "--task", "choose")
    assert "choices among 3 actions" in said
    assert re.search(r"offer +action: ", said)
    text = Path("online.yaml").read_text()
    assert not Path("model.py").exists()
    (model,) = yaml.safe_load(text)["models"]
    assert (model["name"], model["task"]) == ("offers", "choose")
    (served,) = load(Path("online.yaml"), {}, {}).models
    assert served.choose is not None
    assert served.choose.reward_range == (0.0, 1.0)
    asked, rewarded = (
        json.loads(shlex.split(words)[-1]) for words in re.findall(r"^#   curl (.*)$", text, re.M)
    )
    assert sorted(x["id"] for x in asked["actions"]) == sorted(SHARES)
    assert set(asked["context"]) == {"daytime", "age"}
    assert rewarded["reward"] in (0.0, 1.0)


def test_what_a_model_would_have_earned_is_told_beside_the_log_and_one_action(log: Path) -> None:
    """By the world: .6 is the most, the best action alone has .35 and the log .24."""
    found = told(str(log))
    assert found["rows"] == ROWS
    assert found["reward"] == pytest.approx(0.275, abs=0.06)
    assert found["constant"]["reward"] == pytest.approx(0.35, abs=0.08)
    assert found["earned"] > found["constant"]["reward"] + 0.1
    assert found["columns"]["propensity"]["kind"] == "probability"


def test_without_a_probability_each_action_counts_as_drawn_by_its_share(log: Path) -> None:
    rows = [line.split(",") for line in log.read_text().splitlines()]
    log.write_text("".join(",".join([*row[:3], row[4]]) + "\n" for row in rows))
    found = told(str(log))
    assert "propensity" not in found["columns"]
    assert found["earned"] > found["constant"]["reward"] + 0.1


def test_rewards_of_another_range_and_columns_of_other_names_are_taken(tmp_path: Path) -> None:
    lines = ["banner,spent", *(f"{'abc'[i % 3]},{i % 7 - 2}.5" for i in range(60))]
    (tmp_path / "log.csv").write_text("\n".join(lines) + "\n")
    words = "--action", "banner", "--label", "spent", "--folder", str(tmp_path)
    found = told(str(tmp_path / "log.csv"), *words)
    assert found["actions"] == ["a", "b", "c"]
    (model,) = yaml.safe_load((tmp_path / "online.yaml").read_text())["models"]
    assert model["choose"]["reward_range"] == [-2.5, 4.5]


@pytest.mark.parametrize(
    ("header", "row", "words", "wrong"),
    [
        ("x,clicked", "1,{i}", (), "--action"),
        ("offer,x", "a{i},1", (), "--label"),
        ("offer,clicked", "a,{i}", (), "--action"),
        ("offer,clicked", "a{i},1", (), "--label"),
        ("offer,clicked", "a{i},yes", (), "--label"),
        ("offer,clicked", "a{i},{i}", ("--action", "banner"), "--action"),
    ],
)
def test_a_table_that_is_no_log_is_refused_with_the_option_to_mend_it(
    tmp_path: Path, header: str, row: str, words: tuple[str, ...], wrong: str
) -> None:
    table = tmp_path / "log.csv"
    table.write_text("\n".join([header, *(row.format(i=i % 2) for i in range(20))]) + "\n")
    with pytest.raises(ConfigError) as refused:
        told(str(table), "--folder", str(tmp_path), *words)
    assert str(refused.value).startswith(wrong)
    assert not (tmp_path / "online.yaml").exists()


def test_an_impossible_probability_is_refused_with_the_option_to_mend_it(log: Path) -> None:
    log.write_text(log.read_text().replace(",0.5,", ",0,", 1))
    with pytest.raises(ConfigError, match=r"probability of 0 .*--probability none"):
        told(str(log), "--probability", "propensity")


@pytest.mark.parametrize("value", ["0", "1.5", "", "often", "true"])
def test_a_column_is_taken_for_the_probability_only_if_all_of_its_values_are(
    log: Path, value: str
) -> None:
    log.write_text(log.read_text().replace(",0.5,", f",{value},", 1))
    column = told(str(log))["columns"]["propensity"]
    assert column["kind"] != "probability"
    assert "--probability propensity: it is" in column["why"]


def test_a_price_called_p_is_a_feature_if_somebody_says_so(log: Path) -> None:
    log.write_text(log.read_text().replace("propensity", "p", 1))
    assert told(str(log))["columns"]["p"]["kind"] == "probability"
    found = told(str(log), "--probability", "none", "--force")
    assert found["columns"]["p"] == {"kind": "number", "why": "3 different numbers"}
    log.write_text(log.read_text().replace("age,offer,p", "p,offer,drawn", 1))
    columns = told(str(log), "--probability", "drawn", "--force")["columns"]
    assert (columns["drawn"]["kind"], columns["p"]["kind"]) == ("probability", "number")


def test_what_is_named_already_is_no_probability(tmp_path: Path) -> None:
    """Neither the reward nor the action is, although each could be by name and values."""
    lines = ["age,offer,p,prob", *(f"{i % 7},{'ab'[i % 2]},{1 - i % 2 / 2},{i % 4 / 4 + 0.25}"
                                   for i in range(60))]  # fmt: skip
    (tmp_path / "log.csv").write_text("\n".join(lines) + "\n")
    words = str(tmp_path / "log.csv"), "--folder", str(tmp_path), "--force"
    columns = told(*words, "--label", "p")["columns"]
    assert (columns["p"]["kind"], columns["prob"]["kind"]) == ("reward", "probability")
    columns = told(*words, "--label", "prob", "--action", "p")["columns"]
    assert (columns["p"]["kind"], columns["prob"]["kind"]) == ("action", "reward")
    for column, wrong in (("p", "p is the reward"), ("offer", "offer is the action"), ("q", "no")):
        with pytest.raises(ConfigError, match=f"^--probability: .*{wrong}"):
            told(*words, "--label", "p", "--probability", column)


@pytest.mark.parametrize("option", ["--action", "--probability"])
def test_an_option_of_choices_without_the_task_is_refused(log: Path, option: str) -> None:
    with pytest.raises(ConfigError, match=f"{option}: .*--task choose"):
        run("init", str(log), option, "offer")


FAR = 2**53 + 1
"""The next whole number is the same as a float."""


@pytest.mark.parametrize(
    ("form", "cells", "names"),
    [
        ("csv", ["red", "blue"], ["red", "blue"]),
        ("csv", ["1", "2"], ["1", "2"]),
        ("csv", ["1.0", "2.5"], ["1", "2.5"]),
        ("csv", ["true", "false"], ["true", "false"]),
        ("csv", ["True", "False"], ["true", "false"]),
        ("csv", ["rød", "青い"], ["rød", "青い"]),
        ("csv", ["red", ""], ["red", None]),
        ("csv", ["red", "  "], ["red", None]),
        ("csv", ["007", "7"], ["007", "7"]),
        ("csv", [f"{FAR}", f"{FAR + 1}"], [f"{FAR}", f"{FAR + 1}"]),
        ("parquet", ["red", "blue"], ["red", "blue"]),
        ("parquet", ["rød", " "], ["rød", None]),
        ("parquet", ["red", None], ["red", None]),
        ("parquet", ["True", "1.0"], ["True", "1.0"]),
        ("parquet", [1, 2], ["1", "2"]),
        ("parquet", [1.0, 2.5], ["1", "2.5"]),
        ("parquet", [1.0, float("nan")], ["1", None]),
        ("parquet", [True, False], ["true", "false"]),
        ("parquet", [FAR, FAR + 1], [f"{FAR}", f"{FAR + 1}"]),
        ("jsonl", [True, FAR], ["true", f"{FAR}"]),
        ("jsonl", ["red", 2.0], ["red", "2"]),
    ],
)
def test_who_guesses_and_who_teaches_call_an_action_the_same(
    tmp_path: Path, form: str, cells: list[Any], names: list[str | None]
) -> None:
    drawn = [*range(len(cells)), *random.Random(7).choices(range(len(cells)), k=40)]
    path, rows = tmp_path / f"log.{form}", [(i % 7, cells[i], i % 2) for i in drawn]
    if form == "parquet":
        columns = dict(
            zip(("x", "offer", "clicked"), map(list, zip(*rows, strict=True)), strict=True)
        )
        pq.write_table(pa.table(columns), path)
    elif form == "csv":
        path.write_text("x,offer,clicked\n" + "".join(f"{x},{a},{y}\n" for x, a, y in rows))
    else:
        path.write_text(
            "".join(json.dumps({"x": x, "offer": a, "clicked": y}) + "\n" for x, a, y in rows)
        )
    taught = [names[i] for i in drawn]
    files = inputs.files_of([str(path)])
    layout = inputs.layout(
        files, key=None, time=None, ignored=(), known=(), numeric_only=False, missing_ok=False,
        text_bytes_max=100, label="clicked", action="offer",
    )  # fmt: skip
    counted, shards = inputs.cut(files, np.random.default_rng(0))
    (piece,) = readers.read(counted[0], shards[0], layout)
    assert not piece.bad
    assert [row.get("offer") for row in piece.rows.dicts()] == taught
    if form != "jsonl" and None not in names:
        named = {"--action": "offer", "--label": "clicked", "--probability": None}
        log = logged_of(open_table(path), named)
        assert [row.action for row in log.rows()] == taught
        assert set(log.shares) == set(names)


def test_a_row_without_an_action_or_a_reward_is_not_learned_and_says_so(log: Path) -> None:
    """Four of the rows have an empty cell, or what programs write for one."""
    lines = log.read_text().splitlines()
    for i, (cell, missing) in enumerate([(2, ""), (2, " "), (4, "nan"), (4, "NA")], 3):
        cells = lines[i].split(",")
        cells[cell] = missing
        lines[i] = ",".join(cells)
    log.write_text("\n".join(lines[:60]) + "\n")
    found = told(str(log))
    assert (found["rows"], sorted(found["actions"])) == (55, sorted(SHARES))
    words = ["--label", "clicked", "--action", "offer", "--ignore", "propensity", "--json"]
    facts = json.loads(run("backfill", "--config", "online.yaml", "--input", str(log), *words))
    assert (facts["learned"], facts["quarantined"]) == (55, 4)
    (aside,) = Path(facts["quarantine"]).glob("*.parquet")
    why = sorted(
        (row["row"], row["column"], row["reason"]) for row in pq.read_table(aside).to_pylist()
    )
    assert why[:2] == [(2, "offer", "no action"), (3, "offer", "no action")]
    assert [(row, column) for row, column, _ in why[2:]] == [(4, "clicked"), (5, "clicked")]
