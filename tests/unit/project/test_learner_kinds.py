"""Nobody asks a learner of which kind it is: a learner answers what is wanted and due itself."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

ONLINE: Final = Path(__file__).parents[3] / "online"
MOST: Final = 2
KINDS: Final = frozenset(
    {
        "BaseLearner", "Challenger", "Follower", "Learner", "LocalModel", "OrderedFollower",
        "OrderedLearner", "OverlayLearner",
    }
)  # fmt: skip


def asked(source: str) -> Iterator[int]:
    """Lines in which an object is asked whether it is of a kind of learner, or of follower."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and len(node.args) == 2:
            named = {n.id for n in ast.walk(node.args[1]) if isinstance(n, ast.Name)}
            named |= {n.attr for n in ast.walk(node.args[1]) if isinstance(n, ast.Attribute)}
            if getattr(node.func, "id", "") in ("isinstance", "issubclass") and named & KINDS:
                yield node.lineno
        elif isinstance(node, ast.MatchClass) and getattr(node.cls, "id", "") in KINDS:
            yield node.lineno


def test_no_learner_is_asked_for_its_kind() -> None:
    places = [
        f"{path.relative_to(ONLINE)}:{line}"
        for path in sorted(ONLINE.rglob("*.py"))
        for line in asked(path.read_text(encoding="utf-8"))
    ]
    assert len(places) <= MOST, f"have the learner answer instead: {places}"


@pytest.mark.parametrize(
    ("source", "lines"),
    [
        ("isinstance(a, Learner)", [1]),
        ("x = 1\nif not isinstance(self.learner, (Learner, merged.OverlayLearner)): ...", [2]),
        ("issubclass(a, OrderedFollower | None)", [1]),
        ("match a:\n    case OrderedLearner(): ...", [2]),
        ("isinstance(a, Mendable)", []),
        ("learner = Learner(a, b)", []),
    ],
)
def test_a_question_for_the_kind_is_noticed(source: str, lines: list[int]) -> None:
    assert list(asked(source)) == lines
