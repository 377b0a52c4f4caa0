"""The limited scaler: a standard scaler that clips outliers.

Values are clipped to :data:`LIMIT` standard deviations before they enter the moments, and after
standardisation, so that a few outliers spoil neither the moments nor a learning step.  It comes in
two forms: as a step of a river pipeline (:class:`LimitedScaler`) and as a block that merges
(:class:`Limited`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from math import isfinite, sqrt
from typing import Any, Final, Literal

import numpy as np
from river import base, preprocessing

from online.models.errors import StateNotFinite
from online.models.state.scalers import NO_MOMENTS, Columns, FeatureStatistics, Standard, Walked

LIMIT: Final = 8.0
"""Standard deviations from the mean to which values are clipped."""

LIMIT_FROM: Final = 50
"""Rows that a feature must have before the values that enter its moments are clipped."""

_NONE: Final = (0.0, 0.0, 0.0, 0.0)

Scale = bool | Literal["limited"]
"""How values are standardised: as river does (True), clipped ("limited") or not at all (False)."""


class LimitedScaler(base.Transformer):  # type: ignore[misc]
    """The scaler as a step of a river pipeline.

    Attributes:
        held: Count, mean, M2 and 1 / standard deviation by feature name.
    """

    def __init__(self) -> None:
        self.held: dict[str, list[float]] = {}

    def learn_one(self, x: dict[str, Any]) -> None:
        """Update the moments with a row.  Raises StateNotFinite."""
        Limited("", self).learn(x)

    def transform_one(self, x: dict[str, Any]) -> dict[str, Any]:
        """Return the standardised values; names that were never learned are left out."""
        held_by, out = self.held, {}
        for name, value in x.items():
            if (held := held_by.get(name)) is not None:
                z = (value - held[1]) * held[3]
                out[name] = LIMIT if z > LIMIT else -LIMIT if z < -LIMIT else z
        return out


class Limited(FeatureStatistics):
    """The moments of a :class:`LimitedScaler` as a block that merges."""

    def __init__(self, name: str, scaler: LimitedScaler | None = None) -> None:
        self._scaler = LimitedScaler() if scaler is None else scaler
        self._now = self._scaler.held
        super().__init__(name, {key: (n, mean, m2) for key, (n, mean, m2, _) in self._now.items()})

    @property
    def known(self) -> Collection[str]:
        """Return the feature names that were learned."""
        return self._now.keys()

    def transform(self, x: dict[str, Any]) -> dict[str, Any]:
        """Return the standardised values; names that were never learned are left out."""
        return self._scaler.transform_one(x)

    def learn(self, x: dict[str, Any]) -> dict[str, Any]:
        """Update the moments with a row, then return it standardised.  Raises StateNotFinite."""
        now, moments, out = self._now, self._open, {}
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
            z = (value - mean) * inverse
            out[name] = LIMIT if z > LIMIT else -LIMIT if z < -LIMIT else z
            if (mine := moments.get(name)) is None:
                moments[name] = [1.0, near, 0.0]
                continue
            n, mean, m2 = mine  # Welford (1962)
            off, n = near - mean, n + 1.0
            step = off / n
            mine[:] = n, mean + step, m2 + off * (off - step)
        return out

    def transform_many(self, names: Sequence[str], x: Columns) -> tuple[list[str], Columns]:
        """Standardise columns, bit for bit as :meth:`transform` does row by row."""
        now = self._now
        held = [now[name] for name in names if name in now]
        learned = list(names)
        if len(held) < len(names):
            known = [i for i, name in enumerate(names) if name in now]
            learned, x = [names[i] for i in known], x[:, known]
        z = x - np.array([h[1] for h in held])
        z *= np.array([h[3] for h in held])
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
        for name, column in zip(names, columns, strict=True):
            n, mean, m2, inverse = self._now.get(name, _NONE)
            count, own, own_m2 = self._open.get(name, NO_MOMENTS)
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
        return Walked(out, now, mine)

    def put(self, names: Sequence[str], walked: Walked) -> None:
        """Set the moments to the result of :meth:`walk`."""
        for name, now, mine in zip(names, walked.now, walked.opened, strict=True):
            self._now[name], self._open[name] = list(now), mine

    def _held(self) -> tuple[dict[str, Any], ...]:
        return (self._now,)

    def _set(self, state: Mapping[str, Any]) -> None:
        for name, (n, mean, m2) in state.items():
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


def _inverse(n: float, m2: float) -> float:
    """Return 1 / standard deviation, or 0 if the standard deviation is 0, as river does."""
    return 1.0 / sqrt(m2 / n) if m2 > 0.0 else 0.0
