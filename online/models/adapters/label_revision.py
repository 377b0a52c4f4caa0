"""Label revision for river's linear models: a learned label is replaced by its final label.

The step is the difference of the gradients of both labels.  For the log loss and the squared loss
the prediction cancels in it: (first label − final label) · x remains, whatever the model has
learned meanwhile.  So the steps of several replicas add up in any order, and no old parameters are
needed.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite
from typing import Any, Final

from river import linear_model, optim

from online.models.base import Before
from online.models.errors import StateNotFinite
from online.models.gradients import Hashing
from replay.example import Example, Features, Label, label_text

_LOSSES: Final = (optim.losses.Log, optim.losses.Squared, optim.losses.CrossEntropy)


class RevisedLinear(Hashing):
    """Base class of linear models that can replace a learned label."""

    estimator: Any
    _final: Any

    def learn(self, features: Features, label: Label, weight: float) -> None:
        raise NotImplementedError

    def numbers(self, features: Features) -> dict[str, Any]:
        raise NotImplementedError

    @property
    def why_not_revised(self) -> str | None:
        """Return why the model can't replace a learned label; None if it can."""
        loss = _final_of(self.estimator).loss
        if type(loss) in _LOSSES:
            return None
        return f"of the loss {type(loss).__name__} no lesson is taken back, only of log and squared"

    def learn_provisional(self, example: Example, weight: float) -> None:
        """Learn the row as any other.  The scalers count it now, and not at its final label."""
        self.learn(example.features, example.label, weight)

    def revise(self, example: Example, weight: float, before: Before) -> None:
        """Do a step by the difference of both gradients.

        Raises StateNotFinite and WeightUnsupported.
        """
        self._final.check(weight)
        x, final = self.numbers(example.features), _final_of(self.estimator)
        gradients = _gradients(final, x, example.label, weight)
        for output, slope in _gradients(final, x, *before).items():
            gradients[output] = gradients.get(output, 0.0) - slope
        rate = final.optimizer.lr.learning_rate
        moves: dict[str, Mapping[str, float]] = {
            output: {name: -rate * slope * value for name, value in x.items()}
            for output, slope in gradients.items()
        }
        slow = getattr(final, "intercept_lr", None)
        bias = 0.0 if slow is None else -slow.learning_rate * gradients[""]
        self._final.add(moves, bias, 1.0)
        if not isfinite(total := self._final.total(x)):
            raise StateNotFinite(total)


def _final_of(estimator: Any) -> Any:
    """Return the last step of a pipeline, or the estimator itself."""
    steps = getattr(estimator, "steps", None)
    return estimator if steps is None else list(steps.values())[-1]


def _gradients(final: Any, x: dict[str, Any], label: Label, weight: float) -> dict[str, float]:
    """Return the derivative of the loss by each output, as river's ``learn_one`` computes it."""
    if isinstance(final, linear_model.SoftmaxRegression):
        slopes = final.loss.gradient(y_true=label, y_pred=final.predict_proba_one(x))
        return {label_text(known): weight * slope for known, slope in slopes.items()}
    slope = weight * final.loss.gradient(y_true=label, y_pred=final._raw_dot_one(x))
    return {"": float(max(min(slope, final.clip_gradient), -final.clip_gradient))}
