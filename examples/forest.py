"""An adaptive random forest of ten trees.  It does not merge: ``replicas: 1``.

models:
  - {name: clicks, task: binary, learner: examples/forest.py:build, learn: background}
"""

from __future__ import annotations

from typing import Any

from river import forest


def build(n_models: int = 10) -> Any:
    """The forest; half a millisecond and more to learn a row."""
    return forest.ARFClassifier(n_models=n_models, seed=1)
