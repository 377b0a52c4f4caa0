"""Run `python -m pages` in the repository's folder: the pages are written into docs/."""

from __future__ import annotations

from pathlib import Path

from pages.made import made

if __name__ == "__main__":
    for name, text in made().items():
        (Path(__file__).parents[1] / "docs" / name).write_text(text, encoding="utf-8")
