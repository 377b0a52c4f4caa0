"""Metrics of a model by slice: counters by the values of named features.

For each value they have the number of scored answers, of correct ones (in regression the absolute
error), and of conformal sets or intervals that contained the label.  They merge by addition.  The
number of values of a feature is bounded; later ones are counted together as "others".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from evaluation.metrics import Task
from online.sure.conformal import held
from online.sure.slice_values import Values, plain_value
from paramserver.core.blocks import Blocks
from paramserver.core.sums import Sums
from replay.example import Example, label_text

SLICES: Final = "slices"
"""Name of the block with the sums over the learned rows."""


class Slices(Sums):
    """Counters of one model by slice: a view of the learned rows, with an open delta.

    Parameters:
        task: The model's task.
        names: Features by whose values rows are grouped.
        most: Most values of each feature; later ones are counted together.
    """

    scores: Final = True

    def __init__(self, task: Task, names: Sequence[str], most: int) -> None:
        super().__init__(SLICES)
        self._task, self._values = task, Values(names, most)

    def add(self, example: Example, at: float = 0.0, source: str = "") -> None:
        """Count one learned row, if it had an answer."""
        if not (score := example.score) or not example.scored:
            return
        counted = {"n": 1.0}
        if self._task == "regression":
            counted["abs_error"] = abs(score.get("", 0.0) - float(example.label))
        else:
            top = max(score, key=score.__getitem__)
            counted["correct"] = float(top == label_text(example.label))
        if (in_set := held(self._task, example)) is not None:
            counted |= {"asked": 1.0, "covered": float(in_set[0])}
        for key in self._values.keys(example.features, learned=True):
            for counter, number in counted.items():
                self.count(f"{key}\t{counter}", number)

    def rebase(self, values: Blocks) -> None:
        """Set new values of the given keys with the open delta on top."""
        super().rebase(values)
        if (block := values.get(SLICES)) is not None:
            self._values.meet(block.data)

    def reset(self, values: Blocks) -> None:
        """Set the whole state to ``values``, with an empty open delta."""
        self._values.forget()
        super().reset(values)

    def summary(self) -> dict[str, dict[str, dict[str, Any]]]:
        """Return ``n``, ``accuracy`` or ``mae``, and ``coverage`` by feature and value.

        Values with most rows come first.  Features that are no longer named are left out.
        """
        by_name: dict[str, dict[str, dict[str, float]]] = {name: {} for name in self._values.names}
        for key, number in self.now.items():
            name, value, counter = key.split("\t")
            if name in by_name:
                by_name[name].setdefault(plain_value(value), {})[counter] = number
        return {
            name: {
                value: self._scores(counted)
                for value, counted in sorted(values.items(), key=lambda item: -item[1]["n"])
            }
            for name, values in by_name.items()
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
