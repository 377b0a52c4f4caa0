"""How a model does on parts of its rows: counters by the values of features that are named.

They add up over replicas as the counters of all rows do, and say of each value how many answers
were judged, how many were right (regression: how far off), and how many sets or intervals had the
label.  A feature has so many values; what comes later is counted together as others.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from evaluation.metrics import Task
from online.sure.threshold import held
from online.sure.values import Values, plain_value
from paramserver.core.blocks import Blocks
from paramserver.core.sums import Sums
from replay.example import Example, label_text

SLICES: Final = "slices"
"""The block: sums over the learned rows."""


class Slices(Sums):
    """Counters of one model by slice, with an open delta; a view of the learned rows.

    Parameters:
        names: Features by whose values rows are told apart.
        most: Values that each has; others are counted together.
    """

    def __init__(self, task: Task, names: Sequence[str], most: int) -> None:
        super().__init__(SLICES)
        self._task, self._values = task, Values(names, most)

    def add(self, example: Example, at: float = 0.0, source: str = "") -> None:
        """Count one learned row, if something was answered to it."""
        if not (score := example.score) or not example.scored:
            return
        counted = {"n": 1.0}
        if self._task == "regression":
            counted["abs_error"] = abs(score.get("", 0.0) - float(example.label))
        else:
            top = max(score, key=score.__getitem__)
            counted["correct"] = float(top == label_text(example.label))
        if (found := held(self._task, example)) is not None:
            counted |= {"asked": 1.0, "covered": float(found[0])}
        for key in self._values.keys(example.features, learned=True):
            for counter, number in counted.items():
                self.count(f"{key}\t{counter}", number)

    def rebase(self, values: Blocks) -> None:
        """Take new values for the keys given, with the open delta on top."""
        super().rebase(values)
        if (block := values.get(SLICES)) is not None:
            self._values.meet(block.data)

    def reset(self, values: Blocks) -> None:
        """Become exactly ``values``, with an empty open delta."""
        self._values.forget()
        super().reset(values)

    # -- what is told ------------------------------------------------------------------------

    def summary(self) -> dict[str, dict[str, dict[str, Any]]]:
        """By feature and value: ``n``, ``accuracy`` or ``mae``, ``coverage``; most rows first.

        Features that are not named any more are left out.
        """
        found: dict[str, dict[str, dict[str, float]]] = {name: {} for name in self._values.names}
        for key, number in self.now.items():
            name, value, counter = key.split("\t")
            if name in found:
                found[name].setdefault(plain_value(value), {})[counter] = number
        return {
            name: {
                value: self._scores(counted)
                for value, counted in sorted(values.items(), key=lambda item: -item[1]["n"])
            }
            for name, values in found.items()
        }

    def _scores(self, counted: dict[str, float]) -> dict[str, Any]:
        n, asked = counted["n"], counted.get("asked", 0.0)
        out: dict[str, Any] = {"n": int(n)}
        if self._task == "regression":
            out["mae"] = counted.get("abs_error", 0.0) / n
        else:
            out["accuracy"] = counted.get("correct", 0.0) / n
        if asked:
            out["coverage"] = counted.get("covered", 0.0) / asked
        return out
