"""Commands that ask a running service start without a model library, which takes longer."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

_HEAVY = {"river", "torch", "sklearn", "pandas", "ray"}
_SHOWN = f"import sys; print(*sorted({_HEAVY} & sys.modules.keys()))"


def imported(script: str) -> set[str]:
    """Those of the heavy libraries that a process has imported after the script."""
    done = subprocess.run(
        [sys.executable, "-c", f"{script}\n{_SHOWN}"], capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


@pytest.mark.parametrize("command", ["status", "freeze", "snapshot list"])
def test_a_question_to_the_service_imports_no_model_library(tmp_path: Path, command: str) -> None:
    words = [*command.split(), "--state-dir", str(tmp_path)]
    script = (
        "from typer.testing import CliRunner\n"
        "from online.commands.cli import app\n"
        "from online.errors import StartRefused\n"
        f"found = CliRunner().invoke(app, {words})\n"
        "assert isinstance(found.exception, StartRefused), found\n"
    )
    assert imported(script) == set()


def test_a_model_library_would_be_found() -> None:
    assert "river" in imported("import online.models.loading.load")
