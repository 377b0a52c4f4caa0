"""Run `python -m benchmarks` and a name in the repository's folder: one measured table a name."""

from __future__ import annotations

import benchmarks.commands.cli  # noqa: F401  (its commands)
from benchmarks.commands.table import app
from online.commands.cli import run

if __name__ == "__main__":
    run(app, "benchmarks")
