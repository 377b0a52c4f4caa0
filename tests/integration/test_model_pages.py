"""The blocks of Python in the page on models run as they stand, anomalies and forecasts."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("section", "shown"),
    [
        ("Anomalies", r"False True True\nlearned 50[12]\n"),
        ("Forecasts", r"\{'1': \d\.\d, '6': \d\.\d\}\n"),
    ],
)
def test_the_lines_of_the_section_run(tmp_path: Path, section: str, shown: str) -> None:
    page = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
    text = page.partition(f"## {section}\n")[2].partition("\n## ")[0]
    (lines,) = re.findall(r"^```python\n(.*?)^```$", text, re.M | re.S)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    ended = subprocess.run(
        [sys.executable, "-c", lines], capture_output=True, text=True, timeout=240, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False,
    )  # fmt: skip
    assert (ended.returncode, ended.stderr) == (0, "")
    said = [line for line in ended.stdout.splitlines() if not line.startswith("online: ")]
    assert re.fullmatch(shown, "".join(f"{line}\n" for line in said)), said
