"""Pages that are made from the code are current, what is public is said, what is drawn is there.

`make check` runs this, too.
"""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, Final

import pytest

import online
from online import client
from online.settings.config import Settings
from pages import settings
from pages.made import made
from pages.python import PUBLIC

DOCS: Final = Path(__file__).parents[3] / "docs"
ONLINE: Final = {"Learner", "__version__", "serve"}
MADE: Final = ("commands.md", "modules.md", "python.md", "settings.md")
CLIENT: Final = {
    "AsyncBatch", "AsyncClient", "AsyncModel", "Batch", "Chosen", "Client", "ClientError", "Event",
    "Model", "NotANumber", "NotASlot", "NotAValue", "NotIncluded", "NotRows", "OutcomeUnknown",
    "Pending", "Prediction", "Predictions", "Receipt", "Retry", "ServiceRefused",
    "ServiceUnavailable", "Status",
}  # fmt: skip
"""Whoever adds or removes a name comes by here, and by docs/compatibility.md."""


@cache
def all_pages() -> dict[str, str]:
    """All pages, made once for the tests that read them."""
    return made()


@pytest.mark.parametrize("name", MADE)
def test_pages_are_current(name: str) -> None:
    assert (DOCS / name).read_text() == all_pages()[name], "write them: python -m pages"


def test_a_page_is_the_same_each_time() -> None:
    assert made() == all_pages()
    assert sorted(all_pages()) == sorted(MADE)


def test_what_is_public_is_what_was_said() -> None:
    assert set(online.__all__) == ONLINE
    assert set(client.__all__) == CLIENT
    assert PUBLIC == ("online", "online.client")
    for name in PUBLIC:
        module = importlib.import_module(name)
        assert all(hasattr(module, public) for public in module.__all__)


def test_what_is_public_has_a_docstring() -> None:
    for name in CLIENT:
        assert (getattr(client, name).__doc__ or "").strip(), name


def fields(schema: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every setting that is a value, with its place."""
    for where in (schema, *schema["$defs"].values()):
        for name, field in where.get("properties", {}).items():
            if "$ref" not in field and "$ref" not in field.get("items", {}):
                yield f"{where['title']}.{name}", field


def test_every_setting_says_what_it_means() -> None:
    schema = Settings.model_json_schema()
    silent = [name for name, field in fields(schema) if not field.get("description")]
    assert silent == []
    assert len(list(fields(schema))) > 90


def test_a_changed_setting_changes_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    schema = Settings.model_json_schema()
    schema["properties"]["port"]["default"] = 8765
    monkeypatch.setattr(Settings, "model_json_schema", lambda: schema)
    changed = settings.page()
    assert "`8765`" in changed
    assert changed != (DOCS / "settings.md").read_text()


def test_every_command_is_on_its_page() -> None:
    page = all_pages()["commands.md"]
    for called in ("online serve", "online snapshot list", "online bench load", "online edge halt"):
        assert f"\n## {called}\n" in page
    assert "`--state-dir`" in page


def test_the_map_has_every_module() -> None:
    page = all_pages()["modules.md"]
    for name in ("writer", "write_ahead_log", "exactly_once", "selfrate"):
        assert f"\n| `{name}` | " in page
    assert "\n| 11 | `commands/` | " in page


def astray(page: str) -> list[str]:
    """Places in the code that a page names (`file.py`, `file.py:Name`) and that are not there."""
    out = []
    for place, name in re.findall(r"`((?:\w+/)+\w+\.py)(?::([\w.]+))?`", page):
        file = DOCS.parent / place
        tree = ast.parse(file.read_text()) if file.exists() else ast.Module([], [])
        names = {getattr(node, "name", "") for node in ast.walk(tree)}
        if not file.exists() or (name and not names.issuperset(name.split("."))):
            out.append(f"{place}:{name}")
    return out


def test_places_that_the_explanation_names_are_there() -> None:
    page = (DOCS / "explanation.md").read_text()
    assert astray(page) == []
    assert len(astray(page.replace("lineage.py:recover", "lineage.py:recovers"))) == 1


PATH: Final = {
    "App": "online/http/app.py",
    "Serving": "online/serving/serving.py",
    "Events": "online/serving/feedback/events.py",
    "Writer": "online/replica/writer.py",
    "Filtering": "online/trust/filtering.py",
    "Journal": "replay/journal/base.py",
    "Follower": "online/replica/follower.py",
    "Learner": "online/learning/merged.py",
    "Exchange": "online/replica/exchange.py",
    "Server": "paramserver/core/server.py",
    "Publishing": "paramserver/process/publishing.py",
}


def drawn(page: str) -> list[str]:
    """Objects in the drawing of an event's path, in their order."""
    return re.findall(r"^  [①-⑳]  (\w+) ─", page, re.M)


def test_what_an_event_passes_is_there_and_is_drawn() -> None:
    page = (DOCS / "explanation.md").read_text()
    assert drawn(page) == list(PATH)
    assert len(PATH) <= 14
    for name, place in PATH.items():
        tree = ast.parse((DOCS.parent / place).read_text())
        assert name in {node.name for node in tree.body if isinstance(node, ast.ClassDef)}, place
    assert drawn(page.replace("Writer ─", "Wroter ─")) != list(PATH)
