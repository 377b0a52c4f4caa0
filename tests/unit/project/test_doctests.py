"""Examples in docstrings do what they say."""

from __future__ import annotations

import doctest
import importlib
import types
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parents[3]
PACKAGES: Final = ("evaluation", "online", "paramserver", "refusals", "replay")


def with_examples() -> list[str]:
    """Modules that have some."""
    places = (path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
    found = [path.relative_to(ROOT) for path in places if ">>> " in path.read_text("utf-8")]
    return sorted(".".join(path.with_suffix("").parts) for path in found)


@pytest.mark.parametrize("name", with_examples())
def test_examples_of_the_documentation(name: str) -> None:
    found = doctest.testmod(importlib.import_module(name))
    assert found.attempted > 0
    assert found.failed == 0


def test_some_have_examples_and_a_wrong_one_is_noticed(capsys: pytest.CaptureFixture[str]) -> None:
    assert {"online.client.client", "replay.rehearsal"} <= set(with_examples())
    wrong = types.ModuleType("wrong")
    wrong.__doc__ = ">>> 1 + 1\n3\n"
    assert doctest.testmod(wrong).failed == 1
    assert "Expected" in capsys.readouterr().out
