"""No file, class, function or constructor is larger than a reader can hold.

Whatever outgrows a bound hides a noun: a value that several parameters are, or a part with a task
of its own.  `make check` runs this, too.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parents[3]
FOLDERS: Final = (
    "benchmarks", "evaluation", "examples", "online", "paramserver", "refusals", "replay", "tests",
)  # fmt: skip

FILE_LINES_MAX: Final = 500
CLASS_LINES_MAX: Final = 300
FUNCTION_LINES_MAX: Final = 70
PARAMETERS_MAX: Final = 8
"""Parameters of a constructor, beside ``self``."""

EXCEPTIONS: Final[dict[str, str]] = {}  # nothing is added here


def too_large(place: str, source: str) -> Iterator[str]:
    """Names of what is larger than its bound; a constructor is a class's name with ``()``."""
    if len(source.splitlines()) > FILE_LINES_MAX:
        yield place
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        lines = (node.end_lineno or 0) - node.lineno + 1
        if isinstance(node, ast.ClassDef):
            if lines > CLASS_LINES_MAX:
                yield f"{place}:{node.name}"
            if any(_parameters(one) > PARAMETERS_MAX for one in node.body):
                yield f"{place}:{node.name}()"
        elif lines > FUNCTION_LINES_MAX:
            yield f"{place}:{node.name}"


def _parameters(node: ast.stmt) -> int:
    """How many a constructor has; 0 for anything else."""
    if not isinstance(node, ast.FunctionDef) or node.name != "__init__":
        return 0
    found = node.args
    return len([*found.posonlyargs, *found.args, *found.kwonlyargs]) - 1


@pytest.fixture(scope="module")
def found() -> set[str]:
    """All that is too large in the repository."""
    return {
        name
        for folder in FOLDERS
        for path in (ROOT / folder).rglob("*.py")
        for name in too_large(str(path.relative_to(ROOT)), path.read_text(encoding="utf-8"))
    }


def test_nothing_is_larger_than_its_bound(found: set[str]) -> None:
    assert sorted(found - EXCEPTIONS.keys()) == [], "find a noun, or split it"


def test_the_exceptions_become_fewer(found: set[str]) -> None:
    assert sorted(EXCEPTIONS.keys() - found) == [], "small enough by now: take them off the list"


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("x = 1\n" * 501, "m.py"),
        ("class A:\n" + "    x = 1\n" * 300, "m.py:A"),
        ("def f():\n" + "    x = 1\n" * 70, "m.py:f"),
        ("async def f():\n" + "    x = 1\n" * 70, "m.py:f"),
        ("class A:\n    def __init__(self, a, b, c, d, e, f, g, *, h, i): ...\n", "m.py:A()"),
    ],
)
def test_one_too_many_is_noticed(source: str, name: str) -> None:
    assert list(too_large("m.py", source)) == [name]


@pytest.mark.parametrize(
    "source",
    [
        "x = 1\n" * 500,
        "class A:\n" + "    x = 1\n" * 299,
        "def f():\n" + "    x = 1\n" * 69,
        "class A:\n    def __init__(self, a, b, c, d, e, f, g, *, h): ...\n",
    ],
)
def test_what_just_fits_is_let_be(source: str) -> None:
    assert list(too_large("m.py", source)) == []
