"""One table of errors: what the code can answer is what `docs/errors.md` explains."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parents[3]
PAGE: Final = (ROOT / "docs" / "errors.md").read_text()

# These hand an error on that was made elsewhere.
PASSED_ON: Final = Counter(
    {
        "http/openinference/protocol.py": 3,
        "messages/bodies.py": 1,
        "serving/choices/personalizer.py": 1,
    }
)


def sources() -> dict[str, str]:
    folder = ROOT / "online"
    return {str(p.relative_to(folder)): p.read_text() for p in folder.rglob("*.py")}


def raised(files: dict[str, str]) -> tuple[set[tuple[int, str]], Counter[str]]:
    """(status, code) of every error that is made, and how many have another form, by file."""
    found: set[tuple[int, str]] = set()
    others: Counter[str] = Counter()
    for name, text in files.items():
        tree = ast.parse(text)
        for scope in ast.walk(tree):
            if isinstance(scope, ast.FunctionDef | ast.AsyncFunctionDef):
                for call in calls(scope):
                    pairs = list(pairs_of(call, scope))
                    found.update(pairs)
                    others[name] += not pairs
    return found, +others


def calls(scope: ast.AST) -> Iterator[ast.Call]:
    """Calls of ``RequestError`` in a function; not those in a function within it."""
    for node in ast.iter_child_nodes(scope):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("RequestError"):
            yield node
        yield from calls(node)


def pairs_of(call: ast.Call, scope: ast.AST) -> Iterator[tuple[int, str]]:
    if len(call.args) < 2 or not isinstance(call.args[0], ast.Constant):
        return
    for code in constants(call.args[1], scope):
        yield call.args[0].value, code  # type: ignore[misc]


def constants(node: ast.expr, scope: ast.AST) -> Iterator[str]:
    """Values of a text, or of a local name that is one of two texts."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    elif isinstance(node, ast.IfExp):
        yield from constants(node.body, scope)
        yield from constants(node.orelse, scope)
    elif isinstance(node, ast.Name):
        for step in ast.walk(scope):
            if isinstance(step, ast.Assign) and ast.unparse(step.targets[0]) == node.id:
                yield from constants(step.value, scope)


def explained(page: str) -> list[tuple[int, str]]:
    return [(int(s), code) for s, code in re.findall(r"^\| (\d{3}) \| `(\w+)` \|", page, re.M)]


def test_every_error_is_explained_and_none_that_is_not_there() -> None:
    found, others = raised(sources())
    assert others == PASSED_ON, "give status and code as constants, so that they can be found"
    listed = explained(PAGE)
    assert len(listed) == len(set(listed))
    assert listed == sorted(listed, key=lambda row: row[0])
    assert set(listed) == found
    assert len(found) > 25


@pytest.mark.parametrize(
    ("source", "pair"),
    [
        ('raise RequestError(418, "teapot", "x")', (418, "teapot")),
        ('return errors.RequestError(418, "teapot", "x")', (418, "teapot")),
        ('code = "a" if x else "teapot"\n    raise RequestError(418, code, "")', (418, "teapot")),
    ],
)
def test_a_new_error_is_found(source: str, pair: tuple[int, str]) -> None:
    found, others = raised({"new.py": f"def f(x):\n    {source}\n"})
    assert pair in found
    assert pair not in set(explained(PAGE))
    assert not others


def test_an_error_of_another_form_is_found() -> None:
    _, others = raised({"new.py": "async def f(s):\n    raise RequestError(s, 'c', '')\n"})
    assert others == {"new.py": 1}


def test_each_row_says_what_to_do() -> None:
    rows = re.findall(r"^\| \d{3} \| `(\w+)` \| (.+?) \| (.*?) \|", PAGE, re.M)
    assert len(rows) == len(explained(PAGE))
    without = {code for code, _, remedy in rows if not remedy.strip()}
    assert without <= {"disconnected", "refused"}, "of these the message itself says it"
