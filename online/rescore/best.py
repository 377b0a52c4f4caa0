"""Finds the best action for each row of a table, with a model of choices used as a classifier.

The answer to a row, which is a context, is the id of the action with the highest expected reward,
and that reward as its score.  It is not a choice: nothing is drawn, and no reward is awaited.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from online.decide.scoring import score_many
from online.errors import ConfigError
from online.models.base import Model, Prediction
from online.models.choices.interactions import ACTION
from online.models.rewards import Action
from paramserver.core.blocks import Blocks
from replay.example import Features, Label, Value

_FLAG: Final = "--actions"


class _Listed(msgspec.Struct, forbid_unknown_fields=True):
    """An action as in a file, and in the body of a choice request."""

    id: str
    features: dict[str, Value] = {}


class BestAction:
    """Predicts which of some actions is the best; it can't learn.

    Parameters:
        low, high: The least and the greatest reward.
    """

    mergeable = learns = numeric_only = False
    why_not_mergeable: str | None = "it is only asked"

    def __init__(self, model: Model, actions: Sequence[Action], low: float, high: float) -> None:
        self._model, self._actions, self._ends = model, actions, (low, high)
        self.structure = f"the best action, {model.structure}"

    def predict(self, features: Features) -> Prediction:
        """Return the action with the highest expected reward, the first one if several tie."""
        if wrong := next((name for name in features if name.startswith(ACTION)), None):
            raise ValueError(f"column {wrong!r} begins with {ACTION!r}, as those of actions do")
        (scores,) = score_many(self._model, [(features, self._actions, None)], *self._ends)
        place = int(scores.shares.argmax())
        name = self._actions[place][0]
        return Prediction(name, {name: float(scores.means[place])})

    def predict_many(self, rows: Sequence[Features]) -> list[Prediction]:
        """Predict every row of the batch."""
        return list(map(self.predict, rows))

    def learn(self, features: Features, label: Label, weight: float) -> None:
        """Always raise NotImplementedError; this learner is frozen."""
        raise NotImplementedError(self.why_not_mergeable)

    def cut(self) -> Blocks:
        """Return an empty delta, because it does not learn."""
        return {}

    def rebase(self, values: Blocks) -> None:
        """Replace the values of some keys."""
        self._model.rebase(values)

    def reset(self, values: Blocks) -> None:
        """Replace the state by these ``values``."""
        self._model.reset(values)


def actions_in(path: Path) -> tuple[Action, ...]:
    """Read actions from a JSON file, a list as in the body of a choice.  Raises ConfigError."""
    hint = 'Give a file like [{"id": "news"}, {"id": "film", "features": {"minutes": 95}}]'
    try:
        listed = msgspec.json.decode(path.read_bytes(), type=list[_Listed])
    except OSError as error:
        raise ConfigError(_FLAG, f"{path}: {error}", hint) from None
    except msgspec.MsgspecError as error:
        raise ConfigError(_FLAG, f"{path}: {error}", hint) from None
    if not listed or len({one.id for one in listed}) < len(listed):
        raise ConfigError(_FLAG, f"{path} has no action, or one of them twice", hint)
    return tuple((one.id, one.features) for one in listed)
