"""A forecast of a series of numbers with a season, as a class of your own.

A row says how many steps `ahead` is asked for; its label is the value of that step, sent when it is
known.  Each value is learned once, from the row that asked one step ahead, so ask that one always;
the answers to others are judged, and teach nothing.

    models: [{name: load, task: regression, learner: examples/forecast.py:Seasonal}]
"""

from __future__ import annotations


class Seasonal:
    """A level and a season of so many steps, each corrected by what the last forecast was off."""

    numeric_only = True

    def __init__(self, season: int = 24, level_rate: float = 0.1, season_rate: float = 0.3) -> None:
        self.rates = level_rate, season_rate
        self.level, self.season, self.seen = 0.0, [0.0] * season, 0

    def predict(self, features: dict[str, float]) -> float:
        """The value so many steps ahead, 1 if the row does not say."""
        ahead = int(features.get("ahead", 1))
        return self.level + self.season[(self.seen + ahead - 1) % len(self.season)]

    def learn_one(self, features: dict[str, float], value: float) -> None:
        """Learn the next value of the series."""
        if features.get("ahead", 1) != 1:
            return
        if self.seen == 0:
            self.level = value
        place = self.seen % len(self.season)
        off = value - self.level - self.season[place]
        self.level += self.rates[0] * off
        self.season[place] += self.rates[1] * off
        self.seen += 1
