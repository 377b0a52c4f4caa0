"""Checks that the laboratory is in no wheel, and that its command line is whole."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any, Final

import pytest
import typer
from setuptools import find_packages

from benchmarks.commands.cli import app
from benchmarks.fixtures import service
from online.commands import cli

ROOT: Final = Path(__file__).parents[3]
TABLES: Final = {
    "all",
    "strangers",
    "anomalies",
    "bandit-worlds",
    "asleep",
    "bandits",
    "buffers",
    "challenger",
    "choice-cost",
    "choices-killed",
    "conversions-killed",
    "poisoned-rewards",
    "propensities",
    "comparison",
    "confidence",
    "conversions",
    "contention",
    "defaults",
    "detectors",
    "doors",
    "durability",
    "edge",
    "embedded",
    "exactly-once",
    "factors",
    "fidelity",
    "floods",
    "forgetting",
    "freshness",
    "honest",
    "hostile-http",
    "hosts",
    "http",
    "judging",
    "learning-back",
    "liars",
    "merge",
    "mishaps",
    "newcomer",
    "observed",
    "off-policy",
    "outliers",
    "prequential",
    "push",
    "recovery",
    "rehearsal",
    "relearning",
    "reloads",
    "replicas",
    "report",
    "rescore",
    "robustness",
    "scale",
    "scores",
    "shard-killed",
    "soak",
    "start",
    "tables",
    "trees",
}


def commands(of: typer.Typer) -> dict[str, Any]:
    """Commands of a command line by their names."""
    found: Any = typer.main.get_command(of)
    return dict(found.commands)


def test_the_wheel_has_no_laboratory() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    chosen = project["tool"]["setuptools"]["packages"]["find"]["include"]
    found = find_packages(str(ROOT), include=chosen)
    assert {"online", "online.client.load", "online.commands", "evaluation"} <= set(found)
    assert not [name for name in found if "bench" in name]
    assert "benchmarks.studies" in find_packages(str(ROOT)), (
        "the control: there is one to leave out"
    )


def test_every_table_has_its_command() -> None:
    assert set(commands(app)) == TABLES


def test_one_measurement_stays_with_the_service() -> None:
    assert set(commands(cli.app)["bench"].commands) == {"load"}


def test_a_table_is_asked_for_in_the_checkout() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "doors", "nothing"],
        capture_output=True, text=True, timeout=240, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert "weight, joins, ids or forget" in done.stderr
    assert "Usage: python -m benchmarks doors" in done.stderr


def test_what_is_started_finds_its_learners_elsewhere(tmp_path: Path) -> None:
    """The control: without the laboratory's environment it does not (nor by a link, with -S)."""
    plain = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    for environment, good in ((plain, False), (service.own_environment(), True)):
        done = subprocess.run(
            [sys.executable, "-S", "-c", "import benchmarks"], cwd=tmp_path, env=environment,
            capture_output=True,
            text=True, timeout=240,
        )  # fmt: skip
        assert (done.returncode == 0) is good, done.stderr


@pytest.mark.parametrize("before", ["", os.pathsep.join(["one", "two"])])
def test_own_places_come_before_the_checkout(monkeypatch: pytest.MonkeyPatch, before: str) -> None:
    monkeypatch.delenv("PYTHONPATH", raising=False)
    found = service.own_environment({"PYTHONPATH": before, "TEST_ELSE": "1"})
    assert found["TEST_ELSE"] == "1"
    assert (
        found["PYTHONPATH"].split(os.pathsep)
        == [*before.split(os.pathsep), str(ROOT)][0 if before else 1 :]
    )
