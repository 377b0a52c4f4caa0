"""Scoring the actions of a choice with any model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from online.models.base import Model, Prediction
from online.models.choices.action_counts import Counted
from online.models.choices.interactions import hash_of, row
from online.models.choices.scores import Scores
from online.models.errors import NotAnswered
from online.models.rewards import Action, Question, RewardModel
from replay.example import Features


def score_many(
    model: Model, asked: Sequence[Question], low: float = 0.0, high: float = 1.0
) -> list[Scores]:
    """Score the actions of several choices, without changing state.

    ``low`` and ``high`` are the least and greatest reward.  Raises NotAnswered.
    """
    if isinstance(model, RewardModel):
        return model.score_many(asked)
    return [by_predictions(model, context, actions, low, high) for context, actions, _ in asked]


def by_predictions(
    model: Model, context: Features, actions: Sequence[Action], low: float, high: float
) -> Scores:
    """Score actions by a general model's predictions, one row for each action.

    An action without an answer, as of an untrained model, or whose answer is no number, gets the
    middle of the range.  Raises NotAnswered if the trained model raises.
    """
    try:
        answers = model.predict_many([row(context, name, features) for name, features in actions])
    except NotAnswered as error:
        if error.taught:
            raise
        answers = [Prediction(None, None)] * len(actions)
    means = [
        answer.probabilities.get(True, 0.5)
        if answer.probabilities is not None
        else 0.5
        if answer.label is None
        else (float(answer.label) - low) / (high - low)
        for answer in answers
    ]
    shares = np.clip(np.array(means, dtype=np.float64), 0.0, 1.0)
    shares[np.isnan(shares)] = 0.5
    n = len(actions)
    return Scores(
        low=low,
        range=high - low,
        ids=[hash_of(name) for name, _ in actions],
        answers=shares[None, :],
        votes=np.ones(1),
        shares=shares,
        variances=np.zeros(n),
        arms=Counted(np.zeros(n), np.zeros(n), np.zeros(n), np.zeros(n), 0.5),
        context=bool(context),
        tried={},
        of_model=[answer.notes for answer in answers],
    )
