"""Each file in examples/ can be copied: it passes the checks of every model, and it learns."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from types import NoneType
from typing import Any

import pytest
from typer.testing import CliRunner

from evaluation.prequential import prequential
from online.commands.cli import app
from online.errors import OnlineError
from online.models.adapters.opaque import Opaque
from online.models.loading.load import load
from replay.example import Features

EXAMPLES = Path(__file__).parents[3] / "examples"
TASKS = {
    "pipeline.py:build": ("binary", "is merged"),
    "forest.py:build": ("binary", "learns all rows"),
    "own_class.py:MeanByShop": ("regression", "learns all rows"),
    "network.py:build": ("binary", "is merged"),
    "forecast.py:Seasonal": ("regression", "learns all rows"),
    "anomalies.py:Distance": ("anomaly", "learns all rows"),
    "sgd.py:build": ("multiclass", "is merged"),
}


def check(learner: str, *arguments: str) -> tuple[int, str, str]:
    """Exit code, what was printed, and what `online` says of an error."""
    place = learner if learner.startswith("/") else f"{EXAMPLES}/{learner}"
    done = CliRunner().invoke(app, ["models", "check", place, *arguments])
    error = done.exception if isinstance(done.exception, OnlineError) else ""
    assert error or isinstance(done.exception, (SystemExit, NoneType)), done.exception
    return done.exit_code, done.stdout, str(error)


def test_every_example_is_checked() -> None:
    assert {name.partition(":")[0] for name in TASKS} == {p.name for p in EXAMPLES.glob("*.py")}


@pytest.mark.parametrize("learner", TASKS)
def test_examples_keep_the_promises(learner: str) -> None:
    task, merge = TASKS[learner]
    code, said, errors = check(learner, "--task", task)
    assert code == 0, said + errors
    assert said.count("ok    ") == 15
    assert merge in said.splitlines()[-1]


def test_a_model_that_travels_whole_is_asked_its_own_inputs(tmp_path: Path) -> None:
    (tmp_path / "bayes.py").write_text(
        "from sklearn.naive_bayes import GaussianNB\n"
        "from online.models.estimator import Estimator\n\n\n"
        "def build():\n    return Estimator(GaussianNB(), ['temp', 'hum'])\n"
    )
    code, said, errors = check(f"{tmp_path}/bayes.py")
    assert code == 0, said + errors
    assert "GaussianNB has no merge" in said.splitlines()[-1]


def test_the_detector_sorts_anomalies_from_the_rest() -> None:
    """Asked before it learns, as the service does it; known anomalies are not learned."""
    made = load(
        f"{EXAMPLES}/anomalies.py:Distance", {}, task="binary", classes=None, key=bytes(32),
        base_dir=Path(), threshold=0.99,
    )  # fmt: skip
    assert isinstance(made.model, Opaque)
    draw, rows = random.Random(1), list[tuple[Features, bool]]()
    for i in range(2_000):
        odd = i % 50 == 49
        far = 5.0 * odd * draw.choice([-1, 1])
        rows.append(({name: draw.gauss(far, 1.0) for name in "abc"}, odd))
    judged = prequential(made.model.estimator, rows, "binary", window=500)
    aucs = [window.summary.auc or 0.0 for window in judged.windows]
    print(aucs)
    assert min(aucs[1:]) > 0.95


def test_the_forecast_is_better_than_the_last_value_and_that_of_a_season_ago() -> None:
    made = load(
        f"{EXAMPLES}/forecast.py:Seasonal", {}, task="regression", classes=None, key=bytes(32),
        base_dir=Path(),
    )  # fmt: skip
    draw = random.Random(3)
    values = [8.0 * math.sin(math.tau * t / 24) + draw.gauss(0.0, 1.0) for t in range(600)]
    off = {"forecast": 0.0, "last": 0.0, "season ago": 0.0}
    for t, value in enumerate(values[:-6]):
        said, comes = made.model.predict({"ahead": 6.0}).label, values[t + 5]
        assert isinstance(said, float)
        if t > 100:
            off["forecast"] += abs(said - comes)
            off["last"] += abs(values[t - 1] - comes)
            off["season ago"] += abs(values[t - 19] - comes)
        made.model.learn({"ahead": 1.0}, value, 1.0)
        made.model.learn({"ahead": 6.0}, comes, 1.0)  # judged by the service, and not learned
    assert off["forecast"] < 0.98 * off["season ago"] < 0.5 * off["last"]


BROKEN = """
class Model:
    def __init__(self):
        self.seen = 0

    def predict(self, x):
        self.seen += 1
        return float(self.seen)

    def learn_one(self, x, y):
        pass
"""


def test_a_model_that_breaks_a_promise_is_told_which_and_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text(BROKEN)
    learner = f"{tmp_path}/broken.py:Model"
    code, said, _ = check(learner, "--task", "regression")
    assert code == 1
    assert "FAIL  predict changes nothing" in said
    assert "state differs after 400 predictions" in said
    assert "Insert nothing while answering" in said
    code, said, _ = check(learner, "--task", "regression", "--json")
    found: Any = json.loads(said)
    assert (code, found["good"]) == (1, False)
    assert {"check": "structure is stable", "good": True} in found["checks"]


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["pipeline.py", "--task", "ranking"], "no task"),
        (["pipeline.py", "--params", "lr=1"], "no JSON"),
        (["pipeline.py", "--params", "[1]"], "no JSON object"),
        (["pipeline.py", "--params", '{"rate": 1}'], "It takes: lr, l2"),
        (["pipeline.py", "--stream", "image_segments"], "is multiclass, not binary"),
        (["network.py", "--params", '{"inputs": []}'], "Give the names of the features"),
        (["sgd.py", "--task", "binary"], "task is binary and it has 3 outputs"),
        (["nothing.py"], "No such file"),
    ],
)
def test_wrong_usage_is_explained(arguments: list[str], problem: str) -> None:
    code, _, errors = check(*arguments)
    assert code == 1
    assert problem in errors


def test_there_is_a_hint_for_every_check() -> None:
    from online.commands.setup.models import HINTS
    from online.models.loading.checks import yield_checks

    names = [one.__name__.removeprefix("check_").replace("_", " ") for one in yield_checks()]
    assert list(HINTS) == names
