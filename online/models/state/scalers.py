"""Scalers as blocks that merge: moments or extrema by feature.

River's ``StandardScaler`` and ``MinMaxScaler`` are called as river's pipelines call them, except
that names they have not learned are left out: ``transform_one`` would insert them.  The service's
own scaler is in :mod:`online.models.limited`.
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
"""Count, mean and M2 (the sum of squared deviations) of zero rows."""

Columns = npt.NDArray[np.float64]
"""Rows of numbers, one column for each feature."""


class Walked(NamedTuple):
    """The result of scaling and learning rows: scaled values by column, and the new moments.

    ``now`` has the scaler's state by name after all rows, ``opened`` count, mean and M2 of the rows
    since the cut; ``lacking`` is the number of rows that lack a known feature, where that counts.
    """

    columns: list[list[float]]
    now: list[tuple[float, ...]]
    opened: list[list[float]]
    lacking: int = 0


class FeatureStatistics(ABC):
    """Base class of scalers: statistics by feature name, with an open delta, as one block.

    Parameters:
        name: Name of the block.
        built: The statistics of the model as built.

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
        """Return the dicts by feature name that hold the state."""

    @abstractmethod
    def _set(self, state: Mapping[str, Any]) -> None:
        """Set the statistics of the names in ``state``."""

    def _mine(self) -> dict[str, Any]:
        """Return the open delta as plain data."""
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

    def _drop(self, names: Collection[str]) -> None:
        held = self._held()
        for name in names:
            for numbers in held:
                numbers.pop(name, None)


class Standard(FeatureStatistics):
    """A river ``StandardScaler``, with the moments of the rows since the cut.

    The moments since the cut have their own accumulator: as a difference of two states they would
    lose all digits of the variance after many rows.
    """

    def __init__(self, scaler: Any, name: str) -> None:
        self._scaler = scaler
        super().__init__(name, _moments(scaler))

    def transform(self, x: dict[str, Any]) -> dict[str, Any]:
        # transform_one would insert an unknown name, for which the model has no weight anyway.
        known = self._scaler.counts
        if not x.keys() <= known.keys():
            x = {name: value for name, value in x.items() if name in known}
        out: dict[str, Any] = self._scaler.transform_one(x)
        return out

    def transform_many(self, names: list[str], x: Columns) -> tuple[list[str], Columns]:
        """Scale columns, bit for bit as :meth:`transform` does row by row."""
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
        """Compute what :meth:`learn` would do to rows with these names, without changing state.

        The results equal river's, bit for bit: the moments and scaled values of one name do not
        depend on other names, so they are computed by column.  Returns None if this scaler has to
        learn row by row.
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
        """Set the moments to the result of :meth:`walk`."""
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
    """Return count, mean and M2 by name; river stores the population variance, M2 / n."""
    means, variances = scaler.means, scaler.vars
    return {
        name: (n, float(means[name]), max(0.0, float(variances.get(name, 0.0)) * n))
        for name, n in scaler.counts.items()
    }


def on_top(
    kind: str, given: dict[str, Any], built: dict[str, Any], mine: dict[str, Any]
) -> dict[str, Any]:
    """Merge the state as built, the given values and the open delta, for the given keys."""
    state = {"": Block(kind, {name: built[name] for name in given if name in built})}
    merge(state, {"": Block(kind, given)})
    merge(state, {"": Block(kind, {name: mine[name] for name in given if name in mine})})
    data: dict[str, Any] = state[""].data
    return data


class MinMax(FeatureStatistics):
    """A river ``MinMaxScaler``, with the minima and maxima of the rows since the cut."""

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
        """Scale columns, bit for bit as :meth:`transform` does row by row."""
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
    """Keep the columns whose names the scaler has learned."""
    if all(name in known for name in names):
        return names, x
    learned = [i for i, name in enumerate(names) if name in known]
    return [names[i] for i in learned], x[:, learned]


def _divide(x: Columns, by: Columns) -> Columns:
    """Return x / by, and 0 where ``by`` is 0, as river does."""
    return np.divide(x, by, out=np.zeros_like(x), where=by != 0)
