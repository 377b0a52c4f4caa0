"""The map of modules: the first line of each, by package and room, in the order of the floors."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[1]
PACKAGES: Final = ("online", "evaluation", "paramserver", "replay", "refusals", "benchmarks")

_HEAD: Final = """# Every module

<!-- Made by `python -m pages` from the first lines of the modules: change them there. -->

One line for each module, the first of its docstring, by package and folder. [The
architecture](architecture.md) shows how they work together, and [one event's
life](explanation.md) what happens to one event.

## Rooms of online/

A room is a folder or module of `online/` on one floor (layer), and imports only from lower floors.
Contracts in `pyproject.toml`, checked by `make check`, enforce this and list the few modules that
may import Ray, FastAPI, Redis or torch. `learning`, `rows`, `messages`, `replay` and `evaluation`
import none of these, even indirectly; `replay/journal/redis/server` and `evaluation/dense` may.

| floor | room | |
|---|---|---|
"""


def page() -> str:
    """The rooms of the service by floor; then every module of every package."""
    return _HEAD + "".join([*_floors(), *(line for name in PACKAGES for line in _package(name))])


def _floors() -> Iterator[str]:
    """Rooms from the lowest floor up, as the contract of the imports has them."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    contracts = project["tool"]["importlinter"]["contracts"]
    layers = next(one["layers"] for one in contracts if one.get("id") == "rooms")
    for floor, layer in enumerate(reversed(layers), 1):
        for room in layer.split(" | "):
            folder = ROOT / "online" / room
            inside = folder / "__init__.py" if folder.is_dir() else folder.with_suffix(".py")
            slash = "/" if folder.is_dir() else ""
            yield f"| {floor} | `{room}{slash}` | {first_line(inside)} |\n"


def _package(name: str) -> Iterator[str]:
    """Tables of a package's modules, one a folder; a package of one file is one line."""
    for folder in sorted({path.parent for path in (ROOT / name).rglob("*.py")}):
        place, inside = folder.relative_to(ROOT), folder / "__init__.py"
        yield f"\n{'#' * (len(place.parts) + 1)} {place}/\n"
        if inside.exists():
            yield f"\n{first_line(inside)}\n"
        modules = [path for path in sorted(folder.glob("*.py")) if path.stem != "__init__"]
        if modules:
            yield "\n| module | |\n|---|---|\n"
        yield from (f"| `{path.stem}` | {first_line(path)} |\n" for path in modules)


def first_line(path: Path) -> str:
    """The first line of a module's docstring, as a cell of a table in Markdown."""
    told = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    line = re.sub(r":\w+:`~?([^`]+)`", r"`\1`", told.split("\n", 1)[0]).replace("``", "`")
    return line.replace("|", "\\|").rstrip(".")
