"""The tutorial is executed as a notebook does it, by a kernel of its own."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

ROOT = Path(__file__).parents[2]
TUTORIAL = ROOT / "examples" / "tutorial.ipynb"


def executed(book: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, str]]:
    """Outputs of the cells, by kind of content."""
    for name in ("JUPYTER_RUNTIME_DIR", "IPYTHONDIR", "JUPYTER_CONFIG_DIR"):
        monkeypatch.setenv(name, str(folder / name))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ["PYTHONPATH"]]))
    asyncio.run(NotebookClient(book, timeout=300, resources={"metadata": {"path": str(folder)}})
                .async_execute())  # fmt: skip
    return [
        {kind: str(text) for out in cell.outputs for kind, text in out.get("data", out).items()}
        for cell in book.cells
        if cell.cell_type == "code"
    ]


def test_the_tutorial_serves_learns_notices_a_change_and_takes_it_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    book = nbformat.read(TUTORIAL, as_version=4)
    served, played, _, alarms, back, undone, sentence, page, _ = executed(
        book, tmp_path, monkeypatch
    )
    assert "clicks (binary) is served at http://127.0.0.1" in served["text"]
    assert "<caption>clicks (binary)</caption>" in played["text/html"]
    assert "'error', 9" in alarms["text/plain"], "an alarm of the error, soon after row 900"
    assert back["text/plain"] == "(True, True, 900)"
    assert "'status': 'undone'" in undone["text/plain"]
    assert len(sentence["text/plain"]) > 20
    assert page["text/html"].startswith('<iframe title="report" sandbox srcdoc="&lt;!doctype')
    assert page["text/plain"].startswith("<report, ")


def test_a_cell_that_fails_would_be_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("import online; online.x")])
    with pytest.raises(CellExecutionError, match="has no attribute 'x'"):
        executed(book, tmp_path, monkeypatch)


def test_nothing_large_is_stored_with_it() -> None:
    """Outputs are made again by whoever runs it: their diffs would say nothing."""
    book = nbformat.read(TUTORIAL, as_version=4)
    assert TUTORIAL.stat().st_size < 16_384
    for cell in book.cells:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None
