"""The first words of every docstring tell somebody who has not read the code what stands there."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parents[3]
PACKAGES: Final = ("benchmarks", "online", "paramserver", "replay", "evaluation", "refusals")
WORDS_MIN: Final = 4
OPENINGS: Final = ("Of", "As", "What")

_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def unclear(source: str) -> Iterator[str]:
    """Docstrings that are too short for a sentence, or that go on from what nobody has read."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, _DOCUMENTED) and (text := ast.get_docstring(node)) is not None:
            words = text.split()
            if len(words) < WORDS_MIN or words[0].rstrip(",.:") in OPENINGS:
                yield f"{getattr(node, 'name', 'the module')}: {text.splitlines()[0]}"


@pytest.mark.parametrize("package", PACKAGES)
def test_every_docstring_begins_with_a_sentence(package: str) -> None:
    seen = {
        str(path.relative_to(ROOT)): texts
        for path in sorted((ROOT / package).rglob("*.py"))
        if (texts := list(unclear(path.read_text(encoding="utf-8"))))
    }
    assert seen == {}


@pytest.mark.parametrize("text", ["The rows.", "Of one model in one replica.", "What is said."])
def test_others_are_noticed(text: str) -> None:
    assert list(unclear(f'def f() -> None:\n    """{text}"""\n')) == [f"f: {text}"]
    assert list(unclear(f'"""{text}"""\n'))


def test_a_sentence_is_let_be() -> None:
    assert not list(unclear('def f() -> None:\n    """Return the rows that are left."""\n'))
