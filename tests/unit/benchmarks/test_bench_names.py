"""A name that no benchmark knows is refused, with those that it knows, before it measures."""

from __future__ import annotations

import json
from dataclasses import dataclass

import pytest
from typer.testing import CliRunner

import benchmarks.commands.cli  # noqa: F401  (its commands)
from benchmarks.commands.table import app, one_of, verdict


def test_names_that_are_known_are_given_back() -> None:
    assert one_of(["b"], ("a", "b")) == ["b"]
    assert one_of(None, ("a", "b")) == one_of([], ("a", "b")) == ["a", "b"]


@pytest.mark.parametrize(
    ("words", "known"),
    [
        ("observed --only nonsense", "explain, linear"),
        ("bandits --stream nonsense", "digits"),
        ("bandits --policy nonsense --stream digits", "auto"),
        ("bandit-worlds --world nonsense", "arms"),
        ("bandit-worlds --policy nonsense", "auto"),
        ("poisoned-rewards --filters nonsense", "default"),
        ("conversions --stream nonsense", "acs"),
        ("conversions --learner nonsense --stream elec2", "ftrl"),
        ("defaults --stream nonsense", "phishing"),
        ("defaults --learner nonsense", "linear"),
        ("asleep --stream nonsense", "demand"),
        ("factors --learner nonsense", "fm"),
        ("liars --stream nonsense", "elec2"),
        ("doors weight --stream nonsense", "insects"),
        ("floods --stream nonsense", "phishing"),
        ("floods --kind nonsense", "unsure"),
        ("outliers --stream nonsense", "elec2"),
    ],
)
def test_a_name_that_is_not_known_is_refused_with_those_that_are(words: str, known: str) -> None:
    found = CliRunner().invoke(app, words.split(), env={"COLUMNS": "1000"})
    assert found.exit_code == 2, found.output
    assert "nonsense" in found.output
    assert known in found.output


@dataclass(frozen=True)
class Line:
    good: bool | None


@pytest.mark.parametrize(
    ("lines", "code"), [([Line(True), Line(None)], 0), ([Line(True), Line(False)], 1)]
)
def test_a_line_that_is_not_good_fails_the_command(
    lines: list[Line], code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert verdict("lines", iter(lines), as_json=True).exit_code == code
    assert [row["good"] for row in json.loads(capsys.readouterr().out)] == [x.good for x in lines]
