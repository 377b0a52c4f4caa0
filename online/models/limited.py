"""The limited scaler: a standard scaler that clips outliers.

Values are clipped to :data:`LIMIT` standard deviations before they enter the moments, and after
standardisation, so that a few outliers spoil neither the moments nor a learning step.  It comes in
two forms: as a step of a river pipeline (:class:`LimitedScaler`) and as a block that merges
(:class:`Limited`).

Rows may contain only what is not zero, such as the words of a text with their counts.  Among the
rows that have it such a number hardly varies, so a standardised one would say nothing: it would be
0 whether the word is there or not.  So a rare feature, which less than a third of the rows have
that lacked some known feature, or one that is constant where features are lacking, becomes one more
than its standardised number, and is 0 where it is absent: that a row has it counts as much as a
deviation.  Its variance is estimated as if some more rows, the more the rarer it is, had had
deviations as large as the mean (LIMIT standard deviations at most): otherwise the second occurrence
of a rare word would count many times as much as the first.  A number that has either sign, or for
which 0 would be far off, such as a year or a pressure, is standardised however few rows have it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from math import isfinite, sqrt
from typing import Any, Final, Literal

import numpy as np
from river import base, preprocessing

from online.models.errors import StateNotFinite
from online.models.state.scalers import NO_MOMENTS, Columns, FeatureStatistics, Standard, Walked
from paramserver.core.blocks import Blocks, Touched

LIMIT: Final = 8.0
"""Standard deviations from the mean to which values are clipped."""

LIMIT_FROM: Final = 50
"""Rows that a feature must have before the values that enter its moments are clipped."""

_NONE: Final = (0.0, 0.0, 0.0, 0.0)
_LACKING: Final = "\0lacking"  # no feature has such a name
_LEAST: Final = 1e-300
_NEAR: Final = 0.3  # standard deviations from 0 of the mean of a number that has either sign
_FAR: Final = 2.0  # and of the mean of a number far from 0, which is beyond LIMIT itself
_FEW: Final = 3.0  # a feature that fewer than one of so many rows have is rare
_RARE: Final = 5.0  # a feature that one of so many rows has is estimated with one more row

Scale = bool | Literal["limited"]
"""How values are standardised: as river does (True), clipped ("limited") or not at all (False)."""


class LimitedScaler(base.Transformer):  # type: ignore[misc]
    """The scaler as a step of a river pipeline.

    Attributes:
        held: Count, mean, M2 and 1 / standard deviation by feature name.
        lacking: Number of learned rows that lacked a feature known by then.
    """

    lacking = 0.0  # older pickles have none

    def __init__(self) -> None:
        self.held: dict[str, list[float]] = {}

    def learn_one(self, x: dict[str, Any]) -> None:
        """Update the moments with a row.  Raises StateNotFinite."""
        Limited("", self).learn(x)

    def transform_one(self, x: dict[str, Any]) -> dict[str, Any]:
        """Return the standardised values; names that were never learned are left out."""
        held_by, lacking, out = self.held, self.lacking, {}
        for name, value in x.items():
            if (held := held_by.get(name)) is not None:
                if lacking:
                    center, factor = _affine(held, lacking)
                    z = (value - center) * factor
                else:
                    z = (value - held[1]) * held[3]
                out[name] = LIMIT if z > LIMIT else -LIMIT if z < -LIMIT else z
        return out

    def affine(self, name: str) -> tuple[float, float]:
        """Return center and factor of a learned feature: it becomes (value − center) · factor."""
        return _affine(self.held[name], self.lacking)


class Limited(FeatureStatistics):
    """The moments of a :class:`LimitedScaler` as a block that merges."""

    def __init__(self, name: str, scaler: LimitedScaler | None = None) -> None:
        self._scaler = LimitedScaler() if scaler is None else scaler
        self._now = self._scaler.held
        built = {key: (n, mean, m2) for key, (n, mean, m2, _) in self._now.items()}
        if lacking := self._scaler.lacking:
            built[_LACKING] = (lacking, 0.0, 0.0)
        super().__init__(name, built)

    @property
    def known(self) -> Collection[str]:
        """Return the feature names that were learned."""
        return self._now.keys()

    def affine(self, name: str) -> tuple[float, float]:
        """Return center and factor of a learned feature: it becomes (value − center) · factor."""
        return self._scaler.affine(name)

    def transform(self, x: dict[str, Any]) -> dict[str, Any]:
        """Return the standardised values; names that were never learned are left out."""
        return self._scaler.transform_one(x)

    def learn(self, x: dict[str, Any]) -> dict[str, Any]:
        """Update the moments with a row, then return it standardised.  Raises StateNotFinite."""
        now, moments, out = self._now, self._open, {}
        complete = not self._scaler.lacking and len(x) >= len(now)  # and if new names come: below
        for name, value in x.items():
            n, mean, m2, inverse = now.get(name, _NONE)
            off = value - mean
            if n > LIMIT_FROM and inverse:
                far = LIMIT / inverse
                off = far if off > far else -far if off < -far else off
            near, n = mean + off, n + 1.0
            step = off / n
            mean, m2 = mean + step, m2 + off * (off - step)
            if not isfinite(m2):
                raise StateNotFinite(m2)
            inverse = _inverse(n, m2)
            now[name] = [n, mean, m2, inverse]
            if complete:
                z = (value - mean) * inverse
                out[name] = LIMIT if z > LIMIT else -LIMIT if z < -LIMIT else z
            if (mine := moments.get(name)) is None:
                moments[name] = [1.0, near, 0.0]
                continue
            n, mean, m2 = mine  # Welford (1962)
            off, n = near - mean, n + 1.0
            step = off / n
            mine[:] = n, mean + step, m2 + off * (off - step)
        if 0 < len(x) < len(now):
            self._add_lacking(1.0)
        return self._scaler.transform_one(x) if self._scaler.lacking else out

    def transform_many(self, names: Sequence[str], x: Columns) -> tuple[list[str], Columns]:
        """Standardise columns, bit for bit as :meth:`transform` does row by row."""
        now = self._now
        learned = [name for name in names if name in now]
        if len(learned) < len(names):
            x = x[:, [i for i, name in enumerate(names) if name in now]]
        lacking = self._scaler.lacking
        ends = np.array([_affine(now[name], lacking) for name in learned]).reshape(-1, 2)
        z = x - ends[:, 0]
        z *= ends[:, 1]
        np.minimum(z, LIMIT, out=z)
        np.maximum(z, -LIMIT, out=z)
        return learned, z

    def walk(self, names: Sequence[str], columns: Iterable[Sequence[float]]) -> Walked | None:
        """Compute what :meth:`learn` would do to rows with these names, without changing state.

        Returns None if a moment would become infinite or NaN.
        """
        out: list[list[float]] = []
        now: list[tuple[float, ...]] = []
        mine: list[list[float]] = []
        lacks = not self._now.keys() <= set(names)
        for name, column in zip(names, columns, strict=True):
            n, mean, m2, inverse = self._now.get(name, _NONE)
            count, own, own_m2 = self._open.get(name, NO_MOMENTS)
            lacking = self._scaler.lacking
            scaled: list[float] = []
            for x in column:
                off = x - mean
                if n > LIMIT_FROM and inverse:
                    far = LIMIT / inverse
                    off = far if off > far else -far if off < -far else off
                near, n = mean + off, n + 1.0
                step = off / n
                mean, m2 = mean + step, m2 + off * (off - step)
                inverse = 1.0 / sqrt(m2 / n) if m2 > 0.0 else 0.0
                if lacks or lacking:
                    lacking += lacks
                    center, factor = _affine((n, mean, m2, inverse), lacking)
                    z = (x - center) * factor
                else:
                    z = (x - mean) * inverse
                scaled.append(LIMIT if z > LIMIT else -LIMIT if z < -LIMIT else z)
                off, count = near - own, count + 1.0  # Welford (1962)
                step = off / count
                own, own_m2 = own + step, own_m2 + off * (off - step)
            if not isfinite(m2):
                return None
            out.append(scaled)
            now.append((n, mean, m2, inverse))
            mine.append([count, own, own_m2])
        return Walked(out, now, mine, len(out[0]) if lacks and out else 0)

    def put(self, names: Sequence[str], walked: Walked) -> None:
        """Set the moments to the result of :meth:`walk`."""
        for name, now, mine in zip(names, walked.now, walked.opened, strict=True):
            self._now[name], self._open[name] = list(now), mine
        if walked.lacking:
            self._add_lacking(walked.lacking)

    def reset(self, values: Blocks) -> None:
        self._scaler.lacking = 0.0
        super().reset(values)

    def touched(self, names: Collection[str]) -> Touched:
        return super().touched([*names, _LACKING])

    def mend(self, values: Blocks, names: Collection[str]) -> None:
        super().mend(values, [*names, _LACKING])

    def _add_lacking(self, rows: float) -> None:
        self._scaler.lacking += rows
        mine = self._open.setdefault(_LACKING, [*NO_MOMENTS])
        mine[0] += rows

    def _held(self) -> tuple[dict[str, Any], ...]:
        return (self._now,)

    def _drop(self, names: Collection[str]) -> None:
        super()._drop(names)
        if _LACKING in names:
            self._scaler.lacking = 0.0

    def _set(self, state: Mapping[str, Any]) -> None:
        for name, (n, mean, m2) in state.items():
            if name == _LACKING:
                self._scaler.lacking = n
            else:
                self._now[name] = [n, mean, m2, _inverse(n, m2)]


def scaler_of(scale: Scale, name: str) -> Standard | Limited | None:
    """Make the scaler for the setting, with a block named ``name``; None for no scaling."""
    if scale == "limited":
        return Limited(name)
    return Standard(preprocessing.StandardScaler(), name) if scale else None


def scale_of(value: bool | str) -> Scale:
    """Convert the setting ``scale`` ("limited", "plain" or a bool); "plain" becomes True."""
    if value in ("plain", "limited"):
        return True if value == "plain" else "limited"
    if isinstance(value, bool):
        return value
    raise ValueError(f"scale is limited, plain or false, got {value!r}")


def behind(scale: bool | str, model: Any) -> Any:
    """Put the scaler that the setting names in front of the river model."""
    setting = scale_of(scale)
    if setting == "limited":
        return LimitedScaler() | model
    return preprocessing.StandardScaler() | model if setting else model


def _affine(held: Sequence[float], lacking: float) -> tuple[float, float]:
    """Return center and factor of a feature, if so many rows lacked a known feature."""
    n, mean, m2, inverse = held
    if not lacking or (inverse and (_FEW * n >= lacking or _is_measured(mean, inverse))):
        return mean, inverse
    spread = abs(mean)
    if inverse:
        more, variance = lacking / (_RARE * n), m2 / n
        off = min(mean * mean, LIMIT * LIMIT * variance)
        spread = sqrt((n * variance + more * off) / (n + more))
    return mean - spread, 1.0 / spread if spread > _LEAST else 0.0


def _is_measured(mean: float, inverse: float) -> bool:
    """Whether 0 is no more usual than other values of a feature, as it is for counts of a word."""
    away = abs(mean) * inverse
    return away < _NEAR or (away > _FAR and abs(mean) > LIMIT)


def _inverse(n: float, m2: float) -> float:
    """Return 1 / standard deviation, or 0 if the standard deviation is 0, as river does."""
    return 1.0 / sqrt(m2 / n) if m2 > 0.0 else 0.0
