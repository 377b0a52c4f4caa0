"""The workflows for a hosted CI are what its schema takes, and run what the Makefile has.

They are not run here.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final

import pytest
import yaml
from check_jsonschema import main
from click.testing import CliRunner

ROOT: Final = Path(__file__).parents[3]
WORKFLOWS: Final = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def is_valid(path: Path) -> bool:
    """Whether the schema that comes with the package check-jsonschema takes the file."""
    arguments = ["--builtin-schema", "vendor.github-workflows", str(path)]
    return CliRunner().invoke(main, arguments).exit_code == 0


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_the_schema_takes_it(path: Path) -> None:
    assert is_valid(path)


def test_the_schema_refuses_a_job_without_steps(tmp_path: Path) -> None:
    data: dict[Any, Any] = yaml.safe_load(WORKFLOWS[0].read_text())
    for job in data["jobs"].values():
        job["steps"] = "make test"
    broken = tmp_path / "broken.yml"
    broken.write_text(yaml.safe_dump(data))
    assert not is_valid(broken)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_what_it_runs_is_there(path: Path) -> None:
    made = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.M)
    for job in yaml.safe_load(path.read_text())["jobs"].values():
        for line in (step["run"] for step in job["steps"] if "run" in step):
            assert set(re.findall(r"\bmake (\w+)", line)) <= set(made)
            for name in re.findall(r"(?:\btests|\.ci)/[\w./]+", line):
                assert (ROOT / name).exists(), name
