"""Logs of choices in VowpalWabbit's format are read as rows that teach a model."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any, Final

import pytest
from typer.testing import CliRunner

from online.commands import cli
from online.decide import dsjson
from online.decide.record import Choice
from online.models.loading.from_settings import load_model
from online.models.rewards import RewardModel
from online.rows.prediction_ids import Keys
from online.settings.config import load
from online.settings.places import snapshots_path
from online.tables import logged_choices
from online.tables.logged_choices import NoChoice, row_of
from paramserver.snapshots.history import SnapshotHistory
from paramserver.snapshots.places import lineage_place, open_snapshots
from paramserver.snapshots.store import Retention

DRINKS: Final = {"latte": "hot", "iced mocha": "cold", "water": "cold"}


def personalizer(event: str, weather: str, drink: str, reward: float) -> dict[str, Any]:
    """A line as Personalizer writes it."""
    names = list(DRINKS)
    return {
        "_label_cost": -reward, "_label_probability": 0.4, "_label_Action": names.index(drink) + 1,
        "_labelIndex": names.index(drink),
        "o": [{"v": reward, "EventId": event, "ActionTaken": False}],
        "Timestamp": "2021-02-04T16:31:29.2460000Z", "Version": "1", "EventId": event,
        "a": [3, 2, 1],
        "c": {
            "FromUrl": [{"weather": weather, "day": {"hour": 9}}],
            "_multi": [
                {"_tag": name, "i": {"constant": 1, "id": name}, "j": [{"type": kind}]}
                for name, kind in DRINKS.items()
            ],
        },
        "p": [0.4, 0.3, 0.3], "VWState": {"m": "x"}, "_original_label_cost": -reward,
    }  # fmt: skip


def test_a_line_of_personalizer_has_the_names_that_its_clients_send() -> None:
    assert row_of(personalizer("e1", "Sunny", "iced mocha", 1.0)) == {
        "_action": "iced mocha", "_reward": 1.0, "_probability": 0.4, "_event": "e1",
        "_time": 1612456289.246, "weather": "Sunny", "day.hour": 9, "@type": "cold",
    }  # fmt: skip
    assert str(row_of(personalizer("e1", "Sunny", "latte", 0.0))["_reward"]) == "0.0"


def test_what_is_written_here_is_read_again() -> None:
    choice = Choice(
        {"day.name": "monday", "x": 1.5}, (("a", {"id": "kept"}), ("b", {"size": 2.0})), (), 1,
        (0.25, 0.75), (0.1, 0.2), "auto:1",
    )  # fmt: skip
    assert row_of(json.loads(dsjson.line(choice, 0.5, "e2", 100.25))) == {
        "_action": "b", "_reward": 0.5, "_probability": 0.75, "_event": "e2", "_time": 100.25,
        "day.name": "monday", "x": 1.5, "@size": 2.0,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"_label_cost": None}, "no cost"),
        ({"_labelIndex": None, "_label_Action": None}, "no action"),
        ({"_labelIndex": 3}, "3 actions, and number 4"),
        ({"c": {"FromUrl": []}}, "no list of actions"),
        ({"c": {"_multi": [{"j": []}], "_slots": []}}, "several slots"),
        ({"c": {"_multi": [{"j": []}]}, "_labelIndex": 0}, "no id"),
        ({"_skipLearn": True}, "never activated"),
    ],
)
def test_a_line_that_is_no_choice_with_a_reward_says_why(changed: dict[str, Any], why: str) -> None:
    line = {**personalizer("e1", "Sunny", "latte", 1.0), **changed}
    with pytest.raises(NoChoice, match=why):
        row_of(line)


def test_a_log_of_personalizer_teaches_what_it_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rng, lines = random.Random(1), []
    for i in range(600):
        weather, drink = rng.choice(["Sunny", "Snowy"]), rng.choice(list(DRINKS))
        liked = drink == {"Sunny": "iced mocha", "Snowy": "latte"}[weather]
        lines.append(json.dumps(personalizer(f"e{i}", weather, drink, float(liked))))
    Path("log.dsjson").write_text("\n".join([*lines, '{"RewardValue": 1.0, "EventId": "e7"}', ""]))
    Path("online.yaml").write_text(
        "models: [{name: shop, task: choose, choose: {reward_range: [-1, 1]}}]\n"
    )
    words = ["backfill", "--input", "log.dsjson", "--action", "_action", "--label", "_reward"]
    done = CliRunner().invoke(cli.app, [*words, "--json"])
    assert done.exit_code == 0, done.output
    facts = json.loads(done.output)
    assert (facts["learned"], facts["quarantined"]) == (600, 1)
    settings = load(Path("online.yaml"), {}, {})
    secret = Keys.from_file(settings.key_path).secret
    loaded = load_model(settings.models[0], settings, secret)
    place = lineage_place(snapshots_path(settings), "shop", loaded.spec_hash)
    model = loaded.model
    assert isinstance(model, RewardModel)
    model.reset(SnapshotHistory(open_snapshots(place), Retention()).load(facts["snapshot"]).values)
    actions = [(name, {"type": kind}) for name, kind in DRINKS.items()]
    for weather, best in (("Sunny", "iced mocha"), ("Snowy", "latte")):
        scores = model.score({"weather": weather, "day.hour": 9}, actions)
        assert list(DRINKS)[int(scores.means.argmax())] == best


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("2018-01-19T09:00:00.1234567Z", 1516352400.123456),
        ("2018-01-19T09:00:00", 1516352400.0),
        ("2018-01-19T09:00:00.1234567+02:00", 1516345200.123456),
        ("2018-01-19T09:00:00+02:00", 1516345200.0),
        ("yesterday", None),
    ],
)
def test_times_are_in_their_zone_or_in_utc(text: str, seconds: float | None) -> None:
    assert logged_choices._seconds(text) == seconds
