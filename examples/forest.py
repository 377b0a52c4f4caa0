"""An adaptive random forest of ten trees.  It does not merge: each replica learns all rows.

models:
  - {name: clicks, task: binary, learner: examples/forest.py:build}
"""

from __future__ import annotations

from typing import Any

from river import forest


def build(n_models: int = 10) -> Any:
    """The forest; half a millisecond and more to learn a row."""
    return forest.ARFClassifier(n_models=n_models, seed=1)
