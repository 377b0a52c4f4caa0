"""A scikit-learn estimator with ``partial_fit``.  At a constant rate it merges.

models:
  - name: sorts
    task: multiclass
    learner: examples/sgd.py:build
    params: {inputs: [a, b, c], labels: [apple, pear, quince]}
"""

from __future__ import annotations

from collections.abc import Sequence

from sklearn.linear_model import SGDClassifier

from online.models.estimator import Estimator


def build(
    inputs: Sequence[str] = ("a", "b", "c"),
    labels: Sequence[str] = ("apple", "pear", "quince"),
    lr: float = 0.05,
) -> Estimator:
    """One logistic regression for each label."""
    estimator = SGDClassifier(loss="log_loss", learning_rate="constant", eta0=lr, alpha=0.0)
    return Estimator(estimator, inputs, labels)
