"""Scalers as blocks that merge: moments, or extrema, by feature.

River's two are driven as river's pipeline drives them, and leave out names that they have never
met: ``transform_one`` would insert them.  Our own is in :mod:`online.models.limited`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, ClassVar, Final, NamedTuple

import numpy as np
import numpy.typing as npt
from river import preprocessing

from paramserver.core.blocks import EXTREMA, MOMENTS, Block, Blocks, Touched, merge

SCALERS: Final = (preprocessing.StandardScaler, preprocessing.MinMaxScaler)

NO_MOMENTS: Final = (0.0, 0.0, 0.0)
"""Count, mean and M2 of no row."""

Columns = npt.NDArray[np.float64]
"""Rows of numbers, one column a feature."""


class Walked(NamedTuple):
    """Rows behind a scaler, by column, and the moments that they leave, by name.

    ``now`` has what the scaler keeps of all rows, ``opened`` count, mean and M2 of those since the
    cut.
    """

    columns: list[list[float]]
    now: list[tuple[float, ...]]
    opened: list[list[float]]


class OfNames(ABC):
    """Holds numbers by name, and what the rows since the cut have done to them, as one block.

    Parameters:
        name: Of the block.
        built: What is held as the model was built.

    Attributes:
        built: The same, by the block's name.
    """

    kind: ClassVar[str] = MOMENTS

    def __init__(self, name: str, built: dict[str, Any]) -> None:
        self._name = name
        self._open: dict[str, Any] = {}
        self.built = {name: built}

    @abstractmethod
    def _held(self) -> tuple[dict[str, Any], ...]:
        """All that is held by name."""

    @abstractmethod
    def _set(self, state: Mapping[str, Any]) -> None:
        """Hold this for the names that it has."""

    def _mine(self) -> dict[str, Any]:
        """Return what the rows since the cut have done, as plain data."""
        return {name: (n, mean, m2) for name, (n, mean, m2) in self._open.items()}

    def cut(self) -> Blocks:
        delta, self._open = self._mine(), {}
        return {self._name: Block(self.kind, delta)} if delta else {}

    def rebase(self, values: Blocks) -> None:
        if (block := values.get(self._name)) is not None:
            self._set(on_top(self.kind, block.data, self.built[self._name], self._mine()))

    def reset(self, values: Blocks) -> None:
        self._open = {}
        for held in self._held():
            held.clear()
        self._set(self.built[self._name])
        self.rebase(values)

    def touched(self, names: Collection[str]) -> Touched:
        return {self._name: dict.fromkeys(names)}

    def mend(self, values: Blocks, names: Collection[str]) -> None:
        self._open = {}
        built = self.built[self._name]
        self._drop(names)
        self._set({name: built[name] for name in names if name in built})
        self.rebase(values)

    def forget(self, values: Blocks) -> None:
        if (block := values.get(self._name)) is not None:
            self._drop(block.data)

    def _drop(self, names: Iterable[str]) -> None:
        held = self._held()
        for name in names:
            for numbers in held:
                numbers.pop(name, None)


class Standard(OfNames):
    """A ``StandardScaler``, and the moments of the rows since the cut.

    They have an accumulator of their own: the difference of two states would lose all digits of
    the variance once many rows have been seen.
    """

    def __init__(self, scaler: Any, name: str) -> None:
        self._scaler = scaler
        super().__init__(name, _moments(scaler))

    def transform(self, x: dict[str, Any]) -> dict[str, Any]:
        # transform_one would insert an unknown name, and weight 0 is all that it could meet.
        known = self._scaler.counts
        if not x.keys() <= known.keys():
            x = {name: value for name, value in x.items() if name in known}
        out: dict[str, Any] = self._scaler.transform_one(x)
        return out

    def transform_many(self, names: list[str], x: Columns) -> tuple[list[str], Columns]:
        """Columns as :meth:`transform` would give them, up to the last bit."""
        scaler = self._scaler
        names, x = _known(names, x, scaler.counts)
        x = x - np.array([scaler.means[name] for name in names], dtype=np.float64)
        if not scaler.with_std:
            return names, x
        deviations = np.sqrt(np.array([scaler.vars[name] for name in names], dtype=np.float64))
        return names, _divide(x, deviations)

    def learn(self, x: dict[str, Any]) -> dict[str, Any]:
        self._scaler.learn_one(x)
        moments = self._open
        for name, value in x.items():  # Welford (1962)
            if (mine := moments.get(name)) is None:
                moments[name] = [1, float(value), 0.0]
                continue
            n = mine[0] = mine[0] + 1
            off = value - mine[1]
            mean = mine[1] = mine[1] + off / n
            mine[2] += off * (value - mean)
        out: dict[str, Any] = self._scaler.transform_one(x)
        return out

    def walk(self, names: Sequence[str], columns: Iterable[Sequence[float]]) -> Walked | None:
        """Work out what :meth:`learn` would do to rows of these names; nothing is changed.

        Each number is what river's own arithmetic gives, bit for bit: a name's moments and its
        numbers behind the scaler depend on no other name, so they are worked out by column.
        None: this scaler has to be taught row by row.
        """
        scaler, opened = self._scaler, self._open
        if not scaler.with_std:
            return None
        out: list[list[float]] = []
        now: list[tuple[float, ...]] = []
        mine: list[list[float]] = []
        for name, column in zip(names, columns, strict=True):
            count = scaler.counts.get(name, 0)
            mean, var = scaler.means.get(name, 0.0), scaler.vars.get(name, 0.0)
            n, own, m2 = opened.get(name, NO_MOMENTS)
            scaled: list[float] = []
            for x in column:
                count += 1
                off = x - mean
                mean += off / count
                gap = x - mean
                var += (off * gap - var) / count
                scaled.append(gap / var**0.5 if var else 0.0)
                n += 1.0
                off = x - own  # Welford (1962)
                own += off / n
                m2 += off * (x - own)
            out.append(scaled)
            now.append((count, mean, var))
            mine.append([n, own, m2])
        return Walked(out, now, mine)

    def put(self, names: Sequence[str], walked: Walked) -> None:
        """Be as :meth:`walk` has found."""
        scaler = self._scaler
        for name, (count, mean, var), mine in zip(names, walked.now, walked.opened, strict=True):
            scaler.counts[name], scaler.means[name], scaler.vars[name] = int(count), mean, var
            self._open[name] = mine

    def _mine(self) -> dict[str, Any]:
        return {name: (int(n), mean, m2) for name, (n, mean, m2) in self._open.items()}

    def _held(self) -> tuple[dict[str, Any], ...]:
        return self._scaler.counts, self._scaler.means, self._scaler.vars

    def _set(self, state: Mapping[str, Any]) -> None:
        scaler = self._scaler
        for name, (n, mean, m2) in state.items():
            scaler.counts[name] = int(n)
            scaler.means[name] = mean
            if scaler.with_std:
                scaler.vars[name] = m2 / n if n else 0.0


def _moments(scaler: Any) -> dict[str, tuple[float, float, float]]:
    """River keeps the population variance, M2 / n."""
    means, variances = scaler.means, scaler.vars
    return {
        name: (n, float(means[name]), max(0.0, float(variances.get(name, 0.0)) * n))
        for name, n in scaler.counts.items()
    }


def on_top(
    kind: str, given: dict[str, Any], built: dict[str, Any], mine: dict[str, Any]
) -> dict[str, Any]:
    """Merge the state as built, the values given and the open delta, for the keys given."""
    state = {"": Block(kind, {name: built[name] for name in given if name in built})}
    merge(state, {"": Block(kind, given)})
    merge(state, {"": Block(kind, {name: mine[name] for name in given if name in mine})})
    data: dict[str, Any] = state[""].data
    return data


class MinMax(OfNames):
    """A ``MinMaxScaler``, and the least and greatest values of the rows since the cut."""

    kind = EXTREMA

    def __init__(self, scaler: Any, name: str) -> None:
        self._scaler = scaler
        built = {key: (low.get(), scaler.max[key].get()) for key, low in scaler.min.items()}
        super().__init__(name, built)

    def transform(self, x: dict[str, Any]) -> dict[str, Any]:
        known = self._scaler.min
        if not x.keys() <= known.keys():
            x = {name: value for name, value in x.items() if name in known}
        out: dict[str, Any] = self._scaler.transform_one(x)
        return out

    def transform_many(self, names: list[str], x: Columns) -> tuple[list[str], Columns]:
        """Columns as :meth:`transform` would give them, up to the last bit."""
        scaler = self._scaler
        names, x = _known(names, x, scaler.min)
        low = np.array([scaler.min[name].get() for name in names], dtype=np.float64)
        high = np.array([scaler.max[name].get() for name in names], dtype=np.float64)
        return names, _divide(x - low, high - low)

    def learn(self, x: dict[str, Any]) -> dict[str, Any]:
        self._scaler.learn_one(x)
        mine = self._open
        for name, value in x.items():
            if name not in mine:
                mine[name] = (float(value), float(value))
            elif value < mine[name][0]:
                mine[name] = (float(value), mine[name][1])
            elif value > mine[name][1]:
                mine[name] = (mine[name][0], float(value))
        out: dict[str, Any] = self._scaler.transform_one(x)
        return out

    def _mine(self) -> dict[str, Any]:
        return self._open

    def _held(self) -> tuple[dict[str, Any], ...]:
        return self._scaler.min, self._scaler.max

    def _set(self, state: Mapping[str, Any]) -> None:
        for name, (low, high) in state.items():
            self._scaler.min[name].min = low
            self._scaler.max[name].max = high


def _known(names: list[str], x: Columns, known: Any) -> tuple[list[str], Columns]:
    """The columns that a scaler has met."""
    if all(name in known for name in names):
        return names, x
    kept = [i for i, name in enumerate(names) if name in known]
    return [names[i] for i in kept], x[:, kept]


def _divide(x: Columns, by: Columns) -> Columns:
    """x / by, and 0 where ``by`` is 0, as river has it."""
    return np.divide(x, by, out=np.zeros_like(x), where=by != 0)
