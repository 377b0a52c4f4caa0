"""Compares the first and the newest rows of the stream: sections 6 to 8 and 11 of the report."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy.special import chdtrc, kolmogorov  # scipy.stats takes half a second to import

from evaluation.drift.domain import tell_apart
from evaluation.drift.profile import ROWS_MIN, Shift, Window, build, compare
from evaluation.report.rows import Column, Floats
from evaluation.report.tally import END_ROWS, Part, Tally
from evaluation.report.values import (
    Feature,
    FeatureDrift,
    Histogram,
    Multivariate,
    PredictionDrift,
    Spread,
)

SHOWN: Final = 6
"""Number of features whose histograms are in the report."""

_BINS: Final = 16
_NAMES: Final = 7  # categories shown in a histogram; the others are one bar
_INFO_BINS: Final = 10
_SCORE: Final = "score"
_LEVELS: Final = {"act": "large", "watch": "some"}


class Ends:
    """The first and the newest quarter of a tally's rows, at most ``END_ROWS`` each.

    Attributes:
        lacking: Why they cannot be compared; empty if they can.
    """

    def __init__(self, tally: Tally) -> None:
        n = min(END_ROWS, max(tally.rows // 4, min(tally.rows // 2, ROWS_MIN)))
        self._tally = tally
        self.then, self.now = tally.then(n), tally.now(n)
        self.lacking = (
            f"{n:,} rows at either end of the stream; {ROWS_MIN} are needed" if n < ROWS_MIN else ""
        )
        self._rows: tuple[list[dict[str, Any]], list[dict[str, Any]]] | None = None

    def rows(self) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Return both ends as rows."""
        if self._rows is None:
            self._rows = (_dicts(self.then), _dicts(self.now))
        return self._rows

    def features(self) -> FeatureDrift:
        """Return section 7 of the report: the drift of the features."""
        then, now = self.rows()
        shifts = _shifts(then, now)
        pairs = {s.name: (self.then.features[s.name], self.now.features[s.name]) for s in shifts}
        ps = holm({name: _p(*pair) for name, pair in pairs.items()})
        compared = []
        for i, shift in enumerate(shifts):
            a, b = pairs[shift.name]
            compared.append(self._feature(shift, a, b, ps[shift.name], shown=i < SHOWN))
        return FeatureDrift(
            then_first=self.then.first_row,
            then_last=self.then.first_row + len(self.then) - 1,
            now_first=self.now.first_row,
            now_last=self.now.first_row + len(self.now) - 1,
            features=tuple(compared),
            left_out=self._tally.left_out,
        )

    def _feature(
        self, shift: Shift, a: Column, b: Column, p: tuple[float | None, float | None], shown: bool
    ) -> Feature:
        number = isinstance(a, np.ndarray)
        return Feature(
            name=shift.name,
            kind="number" if number else "category",
            level=_LEVELS.get(shift.state, "none"),  # type: ignore[arg-type]
            why=shift.why,
            spread=Spread(
                n_then=len(a), n_now=len(b), psi=shift.psi, js=shift.js,
                shift_sd=shift.wasserstein, p=p[0], p_holm=p[1],
            ),
            mean_then=_mean(a) if number else None,
            mean_now=_mean(b) if number else None,
            top_then=None if number else _top(a),
            top_now=None if number else _top(b),
            missing_then=shift.missing_reference,
            missing_now=shift.missing,
            new=None if number else shift.new,
            outside=_outside(a, b) if number else None,
            importance=information(b, self.now.score),
            spark=self._spark(shift.name, number=number),
            histogram=_histogram(a, b) if shown else None,
        )  # fmt: skip

    def _spark(self, name: str, *, number: bool) -> tuple[float | None, ...]:
        out: list[float | None] = []
        for pane in self._tally.panes.all:
            n, total = pane.features.get(name, (0.0, 0.0))
            out.append(total / n if n else None)
        return tuple(out)

    def predictions(self, of: str) -> PredictionDrift | None:
        """Return section 6, the drift of predictions; None without enough scores."""
        then, now = self.then.score, self.now.score
        if np.isfinite(then).sum() < ROWS_MIN or np.isfinite(now).sum() < ROWS_MIN:
            return None
        shift = _shifts(_dicts_of(then), _dicts_of(now))[0]
        p = _p(then, now)
        share = self._tally.origin.task == "binary"
        return PredictionDrift(
            of=of,
            spread=Spread(
                n_then=int(np.isfinite(then).sum()), n_now=int(np.isfinite(now).sum()),
                psi=shift.psi, js=shift.js, shift_sd=shift.wasserstein, p=p, p_holm=p,
            ),
            histogram=_histogram(then, now, whole=self._tally.origin.task != "regression"),
            mean_then=_mean(then),
            mean_now=_mean(now),
            rate_then=_rate(then) if share else None,
            rate_now=_rate(now) if share else None,
        )  # fmt: skip

    def multivariate(self) -> Multivariate | str:
        """Return section 8, the domain classifier, or why it cannot be computed."""
        separated = tell_apart(*self.rows())
        if separated.auc is None or separated.low is None or separated.high is None:
            return separated.why
        return Multivariate(
            auc=separated.auc, low=separated.low, high=separated.high,
            n_then=separated.n_reference, n_now=separated.n,
            drivers=tuple(name for name, weight in separated.drivers if weight >= 0.2)[:5],
        )  # fmt: skip


def _shifts(then: Sequence[dict[str, Any]], now: Sequence[dict[str, Any]]) -> list[Shift]:
    reference = build(then)
    window = Window(reference)
    for row in now:
        window.add(row)
    return compare(reference, window)


def _dicts(part: Part) -> list[dict[str, Any]]:
    columns = {
        name: values.tolist() if isinstance(values, np.ndarray) else values
        for name, values in part.features.items()
    }
    names = list(columns)
    if not names:
        return [{} for _ in range(len(part))]
    return [dict(zip(names, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _dicts_of(values: Floats) -> list[dict[str, Any]]:
    return [{_SCORE: v} for v in values.tolist() if math.isfinite(v)]


def _mean(values: Any) -> float | None:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else None


def _rate(score: Floats) -> float | None:
    known = score[np.isfinite(score)]
    return float((known >= 0.5).mean()) if len(known) else None


def _top(values: Column) -> str | None:
    counts = Counter(v for v in values if v is not None)
    return min(counts, key=lambda t: (-counts[t], t), default=None)


def _outside(then: Any, now: Any) -> float | None:
    a, b = then[np.isfinite(then)], now[np.isfinite(now)]
    if not len(a) or not len(b):
        return None
    return float(((b < a.min()) | (b > a.max())).mean())


# -- tests ---------------------------------------------------------------------------------------


def _p(then: Column, now: Column) -> float | None:
    """Return the asymptotic p-value of a Kolmogorov-Smirnov (numbers) or chi-squared test."""
    if isinstance(then, np.ndarray) and isinstance(now, np.ndarray):
        a, b = np.sort(then[np.isfinite(then)]), np.sort(now[np.isfinite(now)])
        if not len(a) or not len(b):
            return None
        at = np.concatenate((a, b))
        shares = [np.searchsorted(x, at, side="right") / len(x) for x in (a, b)]
        gap = float(np.abs(shares[0] - shares[1]).max())
        return float(kolmogorov(gap * math.sqrt(len(a) * len(b) / (len(a) + len(b)))))
    first, second = Counter(map(str, then)), Counter(map(str, now))
    names = sorted({*first, *second})
    if len(names) < 2:
        return None
    table = np.array([[first[n] for n in names], [second[n] for n in names]], dtype=np.float64)
    expected = np.outer(table.sum(axis=1), table.sum(axis=0)) / table.sum()
    return float(chdtrc(len(names) - 1, ((table - expected) ** 2 / expected).sum()))


def holm(ps: Mapping[str, float | None]) -> dict[str, tuple[float | None, float | None]]:
    """Return each p-value with its value after Holm's correction (Holm 1979); None stays None."""
    known = sorted((p, name) for name, p in ps.items() if p is not None)
    out: dict[str, tuple[float | None, float | None]] = dict.fromkeys(ps, (None, None))
    most = 0.0
    for i, (p, name) in enumerate(known):
        most = max(most, min(1.0, (len(known) - i) * p))
        out[name] = (p, most)
    return out


def information(values: Column, answer: Floats) -> float | None:
    """Return the mutual information of a feature and the prediction, relative to its entropy.

    Both are divided into at most ten groups of equally many rows (categories: the most frequent
    ones).  The bias of (a − 1)(b − 1) / 2n nats (Miller 1955) is subtracted.  The result is in
    [0, 1], or None with too few rows or a constant prediction.
    """
    use = np.isfinite(answer)
    if int(use.sum()) < ROWS_MIN:
        return None
    b = _groups(answer[use])
    if isinstance(values, np.ndarray):
        a = _groups(values[use])
    else:
        chosen = [v for v, ok in zip(values, use, strict=True) if ok]
        common = {v: i for i, (v, _) in enumerate(Counter(chosen).most_common(_INFO_BINS))}
        a = np.array([common.get(v, _INFO_BINS) for v in chosen])
    table = np.zeros((int(a.max()) + 1, int(b.max()) + 1))
    np.add.at(table, (a, b), 1)
    table = table[table.sum(axis=1) > 0][:, table.sum(axis=0) > 0]
    n = table.sum()
    joint = table / n
    rows, columns = joint.sum(axis=1), joint.sum(axis=0)
    entropy = float(-(columns * np.log(columns)).sum())
    if entropy <= 0:
        return None
    some = joint > 0
    mutual = float((joint[some] * np.log(joint[some] / np.outer(rows, columns)[some])).sum())
    chance = (len(rows) - 1) * (len(columns) - 1) / (2 * n)
    return float(min(max((mutual - chance) / entropy, 0.0), 1.0))


def _groups(values: Floats) -> NDArray[np.int64]:
    """Return group numbers for groups of about equal size; NaN is a group of its own."""
    known = values[~np.isnan(values)]
    cuts = (
        np.unique(np.quantile(known, np.arange(1, _INFO_BINS) / _INFO_BINS))
        if len(known)
        else np.zeros(0)
    )
    place = np.searchsorted(cuts, np.nan_to_num(values), side="right")
    place[np.isnan(values)] = len(cuts) + 1
    return place.astype(np.int64)


# -- histograms ----------------------------------------------------------------------------------


def _histogram(then: Column, now: Column, *, whole: bool = False) -> Histogram | None:
    """Return both histograms on the same bins.

    The bins cover [0, 1] if ``whole``, otherwise the 1st to the 99th percentile.
    """
    if isinstance(then, np.ndarray) and isinstance(now, np.ndarray):
        a, b = then[np.isfinite(then)], now[np.isfinite(now)]
        if not len(a) or not len(b):
            return None
        low, high = (0.0, 1.0) if whole else _span(a, b)
        edges = np.linspace(low, high, _BINS + 1)
        return Histogram(
            edges=tuple(edges.tolist()),
            names=(),
            then=tuple(np.histogram(np.clip(a, low, high), edges)[0].tolist()),
            now=tuple(np.histogram(np.clip(b, low, high), edges)[0].tolist()),
        )
    first, second = Counter(map(_value_text, then)), Counter(map(_value_text, now))
    common = [name for name, _ in (first + second).most_common(_NAMES)]
    rest = (
        sum(first.values()) - sum(first[n] for n in common),
        sum(second.values()) - sum(second[n] for n in common),
    )
    names = (*common, "(others)") if any(rest) else tuple(common)
    return Histogram(
        edges=(),
        names=names,
        then=(*(first[n] for n in common), *([rest[0]] if any(rest) else [])),
        now=(*(second[n] for n in common), *([rest[1]] if any(rest) else [])),
    )


def _span(a: Floats, b: Floats) -> tuple[float, float]:
    both = np.concatenate((a, b))
    low, high = (float(v) for v in np.quantile(both, [0.01, 0.99]))
    if low == high:
        low, high = float(both.min()), float(both.max())
    return (low, high) if low < high else (low - 0.5, high + 0.5)


def _value_text(value: str | float | None) -> str:
    return "(missing)" if value is None else str(value)
