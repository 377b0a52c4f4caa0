"""The log of choices as the Open Bandit Pipeline (obp) reads it: arrays of bandit feedback."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from online.decide.record import Choice
from online.errors import ConfigError
from replay.example import Features

COLUMNS_MAX: Final = 1_000
"""The most columns of the context, and the most actions: each choice has a number in each."""


class Feedback:
    """Collects choices with their rewards; a number has a column, and so has each text."""

    def __init__(self) -> None:
        self._columns: dict[str, int] = {}
        self._actions: dict[str, int] = {}
        self._contexts: list[dict[int, float]] = []
        self._chances: list[dict[int, float]] = []
        self._said: list[tuple[int, float, float]] = []

    def add(self, choice: Choice, reward: float) -> None:
        """Take one more choice.  Raises ConfigError: there are too many
        names for arrays."""
        self._contexts.append(
            {
                self._place(self._columns, name, "columns of the context"): number
                for name, number in _numbers(choice.context).items()
            }
        )
        places = [self._place(self._actions, name, "actions") for name, _ in choice.actions]
        self._chances.append(dict(zip(places, choice.probabilities, strict=True)))
        self._said.append((places[choice.chosen], reward, choice.propensity))

    def save(self, place: Path) -> None:
        """Write the arrays under the names that obp gives them, compressed."""
        n, k = len(self._said), len(self._actions)
        said = np.array(self._said, np.float64).reshape(n, 3)
        with place.open("wb") as file:
            np.savez_compressed(
                file,
                n_rounds=n,
                n_actions=k,
                context=_dense(self._contexts, len(self._columns)),
                action_context=np.eye(k),
                action=said[:, 0].astype(np.int64),
                position=np.zeros(n, np.int64),
                reward=said[:, 1],
                pscore=said[:, 2],
                pi_b=_dense(self._chances, k)[:, :, None],
                actions=np.array(list(self._actions), np.str_),
                columns=np.array(list(self._columns), np.str_),
            )

    @staticmethod
    def _place(places: dict[str, int], name: str, what: str) -> int:
        if name not in places and len(places) == COLUMNS_MAX:
            problem = f"more than {COLUMNS_MAX:,} {what}"
            raise ConfigError("--obp", problem, "Write the log with --dsjson, or a shorter time")
        return places.setdefault(name, len(places))


def _numbers(context: Features) -> dict[str, float]:
    """Numbers as they are, and 1 for each text."""
    found: dict[str, float] = {}
    for name, value in context.items():
        if isinstance(value, (bool, int, float)):
            found[name] = float(value)
        elif isinstance(value, str):
            found[f"{name}={value}"] = 1.0
    return found


def _dense(rows: list[dict[int, float]], width: int) -> npt.NDArray[np.float64]:
    found = np.zeros((len(rows), width))
    for i, row in enumerate(rows):
        found[i, list(row)] = list(row.values())
    return found
