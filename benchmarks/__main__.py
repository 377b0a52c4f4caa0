"""Run `python -m benchmarks` and a name in the repository's folder: one measured table a name."""

from __future__ import annotations

import benchmarks.cli  # noqa: F401  (its commands)
from benchmarks.table import app
from online.cli import run

if __name__ == "__main__":
    run(app, "benchmarks")
