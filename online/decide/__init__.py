"""Choices: from expected rewards to a distribution over actions, a draw, and its evaluation."""

from online.decide.policy import Decision, Policy, draw, uniform
from online.models.choices.interactions import row

__all__ = ["Decision", "Policy", "draw", "row", "uniform"]
