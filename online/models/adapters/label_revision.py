"""Linear models of river that take a lesson back: the gradients of two labels and their difference.

Of the log loss and the squared loss the prediction cancels in that difference: what is left is
(first label − final label) · x, whatever the model has learned meanwhile, so the steps of several
replicas add up in any order.  Parameters of the past are not asked for.
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
    """The part of a linear model that takes lessons back."""

    estimator: Any
    _final: Any

    def learn(self, features: Features, label: Label, weight: float) -> None:
        raise NotImplementedError

    def numbers(self, features: Features) -> dict[str, Any]:
        raise NotImplementedError

    @property
    def why_not_revised(self) -> str | None:
        """Why it can't take a lesson back; None: it can."""
        loss = _final_of(self.estimator).loss
        if type(loss) in _LOSSES:
            return None
        return f"of the loss {type(loss).__name__} no lesson is taken back, only of log and squared"

    def learn_provisional(self, example: Example, weight: float) -> None:
        """Learn the row as any other: the scalers count it, and its final label does not again."""
        self.learn(example.features, example.label, weight)

    def revise(self, example: Example, weight: float, before: Before) -> None:
        """Step by the difference of both gradients.  Raises StateNotFinite, WeightUnsupported."""
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
    """The last step of a pipeline, or the estimator alone."""
    steps = getattr(estimator, "steps", None)
    return estimator if steps is None else list(steps.values())[-1]


def _gradients(final: Any, x: dict[str, Any], label: Label, weight: float) -> dict[str, float]:
    """Return the derivative of the loss by each output, as river's ``learn_one`` takes it."""
    if isinstance(final, linear_model.SoftmaxRegression):
        slopes = final.loss.gradient(y_true=label, y_pred=final.predict_proba_one(x))
        return {label_text(known): weight * slope for known, slope in slopes.items()}
    slope = weight * final.loss.gradient(y_true=label, y_pred=final._raw_dot_one(x))
    return {"": float(max(min(slope, final.clip_gradient), -final.clip_gradient))}
