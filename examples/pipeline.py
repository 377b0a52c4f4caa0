"""A river pipeline: a scaler and logistic regression.  It merges: any number of replicas.

models: [{name: clicks, task: binary, learner: examples/pipeline.py:build, params: {lr: 0.05}}]
"""

from __future__ import annotations

from typing import Any

from river import linear_model, optim, preprocessing


def build(lr: float = 0.05, l2: float = 0.0) -> Any:
    """Logistic regression by SGD behind running standardisation."""
    final = linear_model.LogisticRegression(optim.SGD(lr), l2=l2)
    return preprocessing.StandardScaler() | final
