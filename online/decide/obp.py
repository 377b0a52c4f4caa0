"""Export of choices for the Open Bandit Pipeline (obp): arrays of bandit feedback."""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from online.decide.record import Choice
from online.errors import ConfigError
from replay.example import Features

COLUMNS_MAX: Final = 1_000
"""Most columns of the context, and most actions: each choice has a number for each of them."""

NUMBERS_MAX: Final = 25_000_000
"""Most numbers of all arrays together, of 8 bytes each."""

_FIXED: Final = 4
"""Numbers of a choice besides those of its context and its actions."""


class Feedback:
    """Collects choices with their rewards; each number and each distinct text has a column.

    Features of actions are left out: obp's feedback identifies an action by its number only.
    """

    def __init__(self) -> None:
        self._columns: dict[str, int] = {}
        self._actions: dict[str, int] = {}
        self._contexts, self._chances, self._chosen = _Rows(), _Rows(), array("d")

    def add(self, choice: Choice, reward: float) -> None:
        """Add a choice.  Raises ConfigError for too many columns, actions or numbers."""
        numbers = _numbers(choice.context)
        columns = [self._place(self._columns, name, "columns of the context") for name in numbers]
        places = [self._place(self._actions, name, "actions") for name, _ in choice.actions]
        wide = len(self._columns) + len(self._actions) + _FIXED
        if (self._contexts.n + 1) * wide > NUMBERS_MAX:
            raise _refused(f"{NUMBERS_MAX:,} numbers in {self._contexts.n:,} choices of {wide:,}")
        self._contexts.add(columns, numbers.values())
        self._chances.add(places, choice.probabilities)
        self._chosen.extend((places[choice.chosen], reward, choice.propensity))

    def save(self, place: Path) -> None:
        """Write the arrays under obp's names to a compressed .npz file."""
        n, k = self._contexts.n, len(self._actions)
        chosen = np.frombuffer(self._chosen).reshape(n, 3) if n else np.zeros((0, 3))
        with place.open("wb") as file:
            np.savez_compressed(
                file,
                n_rounds=n,
                n_actions=k,
                context=self._contexts.dense(len(self._columns)),
                action_context=np.eye(k),
                action=chosen[:, 0].astype(np.int64),
                position=np.zeros(n, np.int64),
                reward=chosen[:, 1],
                pscore=chosen[:, 2],
                pi_b=self._chances.dense(k)[:, :, None],
                actions=np.array(list(self._actions), np.str_),
                columns=np.array(list(self._columns), np.str_),
            )

    @staticmethod
    def _place(places: dict[str, int], name: str, what: str) -> int:
        if name not in places and len(places) == COLUMNS_MAX:
            raise _refused(f"{COLUMNS_MAX:,} {what}")
        return places.setdefault(name, len(places))


class _Rows:
    """Sparse rows: counts, columns and values, one after the other."""

    def __init__(self) -> None:
        self._many, self._places, self._numbers = array("q"), array("q"), array("d")

    @property
    def n(self) -> int:
        return len(self._many)

    def add(self, places: list[int], numbers: Iterable[float]) -> None:
        self._many.append(len(places))
        self._places.extend(places)
        self._numbers.extend(numbers)

    def dense(self, width: int) -> npt.NDArray[np.float64]:
        """Return all rows as a dense array of shape (rows, width)."""
        dense = np.zeros((self.n, width))
        if self._places:
            row = np.repeat(np.arange(self.n), np.frombuffer(self._many, np.int64))
            dense[row, np.frombuffer(self._places, np.int64)] = np.frombuffer(self._numbers)
        return dense


def _refused(most: str) -> ConfigError:
    remedy = "Write the log with --dsjson, or a shorter time (--since, --until)"
    return ConfigError("--obp", f"more than {most}", remedy)


def _numbers(context: Features) -> dict[str, float]:
    """Return numbers by name, and 1 for each text by name and value."""
    numbers: dict[str, float] = {}
    for name, value in context.items():
        if isinstance(value, (bool, int, float)):
            numbers[name] = float(value)
        elif isinstance(value, str):
            numbers[f"{name}={value}"] = 1.0
    return numbers
