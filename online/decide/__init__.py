"""Choosing: from what is expected of each action to a distribution, and one draw from it."""

from online.decide.policy import Decision, Policy, draw, uniform
from online.models.choices.interactions import row

__all__ = ["Decision", "Policy", "draw", "row", "uniform"]
