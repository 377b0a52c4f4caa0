"""Collects everything that a report needs in one pass over the rows, in bounded memory."""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from evaluation.comparison import Comparison
from evaluation.drift.labelfree import LabelFree
from evaluation.drift.watch import Watch, WatchSettings
from evaluation.metrics import Majority, Task, add, details, increments
from evaluation.report.limits import ControlChart
from evaluation.report.panes import Pane, Panes
from evaluation.report.rows import Column, Floats, Origin, Rows
from evaluation.report.slices import Slices
from replay.example import Label

END_ROWS: Final = 5000
"""Number of complete rows kept from either end of the stream: reference and newest rows."""

FEATURES_MAX: Final = 100
"""Greatest number of features, the first ones that occur."""

GROUPS_MAX: Final = 200
"""Greatest number of versions; further ones are counted together."""

BASELINES: Final = {"no_change": "no_change_correct", "majority": "majority_correct"}
"""The baselines that the model is compared with, and the counters of their correct answers."""

OTHER: Final = "(others)"
_DELAY_BINS: Final = 26  # bins per decade: delays are known to within 5 %
_DELAY_DECADES: Final = (-3, 9)


@dataclass(frozen=True, slots=True)
class Part:
    """Complete rows: numbers, scores, correctness (NaN: no label or prediction), features."""

    first_row: int
    score: Floats
    right: Floats
    features: Mapping[str, Column]

    def __len__(self) -> int:
        return len(self.score)

    def cut(self, begin: int, end: int) -> Part:
        """Return the rows ``begin … end - 1`` of this part."""
        features = {name: values[begin:end] for name, values in self.features.items()}
        return Part(self.first_row + begin, self.score[begin:end], self.right[begin:end], features)


class Tally:
    """Collects rows in the order of events for :mod:`evaluation.report.build`."""

    def __init__(self, origin: Origin) -> None:
        self.origin = origin
        self.rows = 0
        self.no_answer = self.no_label = self.no_time = self.out_of_order = 0
        self.panes = Panes()
        self.course = ControlChart(share=origin.task != "regression")
        self.watch = Watch(WatchSettings(regression=origin.task == "regression"))
        self.label_free = LabelFree()
        self.versions: dict[str, dict[str, float]] = {}
        self.version_rows: dict[str, int] = {}
        self.head: list[Part] = []
        self.tail: deque[Part] = deque()
        self.kinds: dict[str, str] = {}
        self.tops: dict[str, str] = {}
        self.ranges: dict[str, tuple[float, float]] = {}
        self.left_out = 0
        self.slices = Slices(origin.slices, origin.slice_values)
        classes = origin.task != "regression"  # errors of numbers have no bound
        self.comparisons = {name: Comparison() for name in BASELINES} if classes else {}
        self.verdicts: dict[str, int] = {}
        self.delays: NDArray[np.int64] = np.zeros(
            (_DELAY_DECADES[1] - _DELAY_DECADES[0]) * _DELAY_BINS, np.int64
        )
        self._known = Known(origin.task, origin.delay)
        self._newest = -math.inf

    # -- adding rows -------------------------------------------------------------------------

    def add(self, rows: Rows) -> None:
        """Add consecutive rows to the tally."""
        n = len(rows)
        if n == 0:
            return
        self._times(rows)
        score = self._scores(rows)
        right, rule = np.full(n, np.nan), np.full(n, np.nan)
        first = self.rows + 1
        features = self._features(rows)
        begin = 0
        while begin < n:
            pane, room = self.panes.room(first + begin)
            end = min(n, begin + room)
            self._pane(pane, rows, right, rule, begin, end)
            self._span(pane, rows, score, begin, end)
            self._feature_sums(pane, features, begin, end)
            begin = end
        self.rows += n
        self._watch(rows, features, score, right, rule)
        self.slices.add({**features, **rows.declared}, rows.source, right, rows.covered)
        self._keep(Part(first, score, right, features))
        for verdict in rows.verdict or ():
            self.verdicts[verdict] = self.verdicts.get(verdict, 0) + 1

    def _times(self, rows: Rows) -> None:
        known = rows.time[np.isfinite(rows.time)]
        self.no_time += len(rows) - len(known)
        if len(known):
            before = np.maximum.accumulate(np.concatenate(([self._newest], known)))
            self.out_of_order += int(np.sum(known < before[:-1]))
            self._newest = float(before[-1])
        late = rows.label_time - rows.time if rows.delay is None else rows.delay
        late = late[np.isfinite(late) & (late >= 0)]
        if len(late):
            place = (np.log10(np.maximum(late, 1e-3)) - _DELAY_DECADES[0]) * _DELAY_BINS
            place = np.clip(place, 0, len(self.delays) - 1).astype(np.int64)
            self.delays += np.bincount(place, minlength=len(self.delays))

    def _scores(self, rows: Rows) -> Floats:
        """Return each row's score by task: p(positive), p(predicted label), or the number."""
        if self.origin.task == "regression":
            return np.array([math.nan if p is None else float(p) for p in rows.predicted])
        if self.origin.task == "binary":
            values = [
                math.nan if p is None or len(p) < 2 else p.get("true", 0.0)
                for p in rows.probabilities
            ]
        else:
            values = [
                math.nan if p is None or len(p) < 2 else max(p.values()) for p in rows.probabilities
            ]
        return np.array(values, dtype=np.float64)

    def _pane(
        self, pane: Pane, rows: Rows, right: Floats, rule: Floats, begin: int, end: int
    ) -> None:
        """Score rows ``begin … end - 1`` one by one, with the labels known at each of them."""
        task, known = self.origin.task, self._known
        wrong_by = "abs_error" if task == "regression" else "correct"
        first = self.rows + 1
        for i in range(begin, end):
            label, predicted = rows.label[i], rows.predicted[i]
            newest = known.at(float(rows.time[i]))
            if rows.no_change is not None:
                newest = rows.no_change[i]
            if predicted is None:
                self.no_answer += 1
            else:
                pane.answered += 1
                pane.positive += predicted is True
            if label is None:
                self.no_label += 1
            else:
                pane.labelled += 1
            if label is not None and predicted is not None:
                what: dict[str, Any] = {
                    "label": label, "predicted": predicted, "probabilities": rows.probabilities[i],
                }  # fmt: skip
                more = increments(task, **what, no_change=newest, majority=known.most())
                more.update(details(task, **what))
                add(pane.counters, more)
                self._version(rows, i, more)
                right[i] = more.get(wrong_by, math.nan)
                rule[i] = 1.0 - more.get("no_change_correct", math.nan)
                self._judged(first + i, more)
                for name, comparison in self.comparisons.items():
                    comparison.add(more["correct"], more[BASELINES[name]])
            timed = not math.isnan(rows.time[i])
            known.add(label, float(rows.label_time[i]) if timed else math.nan)
        for name, comparison in self.comparisons.items():
            pane.steps[name] = comparison.now()

    def _judged(self, row: int, more: Mapping[str, float]) -> None:
        """Add a row's error and those of the baselines to the control chart."""
        if not self.comparisons:
            if "abs_error" in more:
                self.course.add(row, more["abs_error"])
            return
        rules = [1.0 - more[name] for name in BASELINES.values()]
        self.course.add(row, 1.0 - more["correct"], rules)

    def _version(self, rows: Rows, i: int, more: Mapping[str, float]) -> None:
        if rows.version is None or (name := rows.version[i]) is None:
            return
        if name not in self.versions and len(self.versions) >= GROUPS_MAX:
            name = OTHER
        counters = self.versions.setdefault(name, {})
        self.version_rows[name] = self.version_rows.get(name, 0) + 1
        add(counters, more)

    def _span(self, pane: Pane, rows: Rows, score: Floats, begin: int, end: int) -> None:
        pane.rows += end - begin
        scored = score[begin:end][np.isfinite(score[begin:end])]
        pane.score_n += len(scored)
        pane.score_sum += float(scored.sum())
        sure = np.maximum(scored, 1.0 - scored) if self.origin.task == "binary" else scored
        pane.sure_sum += float(sure.sum())
        times = rows.time[begin:end]
        times = times[np.isfinite(times)]
        if len(times):
            pane.times(float(times.min()), float(times.max()))
        if rows.version is not None and rows.version[end - 1] is not None:
            pane.version = rows.version[end - 1]

    def _watch(
        self, rows: Rows, features: Mapping[str, Column], score: Floats, right: Floats, rule: Floats
    ) -> None:
        """Pass each row to the drift detectors and to the label-free estimate."""
        classes = self.origin.task != "regression"
        columns = [v.tolist() if isinstance(v, np.ndarray) else v for v in features.values()]
        names, values = list(features), zip(*columns, strict=True) if columns else None
        ats, scores = rows.time.tolist(), score.tolist()
        judged = zip(right.tolist(), rule.tolist(), strict=True)
        for at, p, (hit, same), said in zip(ats, scores, judged, rows.predicted, strict=True):
            row = dict(zip(names, next(values), strict=True)) if values is not None else {}
            share = p if classes and 0.0 <= p <= 1.0 else None
            when = at if at == at else None
            self.watch.served(row, share, at=when)
            if hit == hit:
                no_change = same if same == same else None
                self.watch.judged(1.0 - hit if classes else hit, rule=no_change, at=when)
            if share is not None:
                sure = 1.0 - share if said is False else share
                if hit == hit:
                    self.label_free.judged(sure, hit == 1.0, was_open=False)
                else:
                    self.label_free.served(sure)

    # -- features ----------------------------------------------------------------------------

    def _features(self, rows: Rows) -> dict[str, Column]:
        """Return the features that have the kind (number or category) of their first batch."""
        out: dict[str, Column] = {}
        for name, values in rows.features.items():
            kind = "number" if isinstance(values, np.ndarray) else "category"
            if name not in self.kinds:
                if len(self.kinds) >= FEATURES_MAX:
                    self.left_out = max(self.left_out, len(rows.features) - FEATURES_MAX)
                    continue
                self.kinds[name] = kind
            if self.kinds[name] == kind:
                out[name] = values
        return out

    def _feature_sums(
        self, pane: Pane, features: Mapping[str, Column], begin: int, end: int
    ) -> None:
        for name, values in features.items():
            part = values[begin:end]
            if isinstance(part, np.ndarray):
                known = part[~np.isnan(part)]
                pane.feature(name, len(known), float(known.sum()))
                continue
            if name not in self.tops:
                top = most_frequent([str(v) for v in values if v is not None])
                if top is None:
                    continue
                self.tops[name] = top
            top = self.tops[name]
            pane.feature(name, len(part), sum(text == top for text in part))

    def _keep(self, part: Part) -> None:
        held = sum(map(len, self.head))
        if held < END_ROWS:
            self.head.append(part.cut(0, END_ROWS - held))
        self.tail.append(part)
        while sum(map(len, self.tail)) - len(self.tail[0]) >= END_ROWS:
            self.tail.popleft()

    def then(self, n: int) -> Part:
        """Return the first ``n`` rows (≤ END_ROWS) as one part."""
        return joined(self.head, self.kinds).cut(0, n)

    def now(self, n: int) -> Part:
        """Return the newest ``n`` rows (≤ END_ROWS) as one part."""
        part = joined(list(self.tail), self.kinds)
        return part.cut(max(len(part) - n, 0), len(part))

    def delay(self, share: float) -> float | None:
        """Return a quantile of the label delay in seconds, to within 5 %; None: unknown."""
        total = int(self.delays.sum())
        if not total:
            return None
        at = int(np.searchsorted(np.cumsum(self.delays), share * total))
        return float(10 ** (_DELAY_DECADES[0] + (at + 0.5) / _DELAY_BINS))


def most_frequent(values: Sequence[str]) -> str | None:
    """Return the most frequent text; if there are several, the first in the alphabet."""
    counts: dict[str, int] = {}
    for text in values:
        counts[text] = counts.get(text, 0) + 1
    return min(counts, key=lambda t: (-counts[t], t), default=None)


def joined(parts: Sequence[Part], kinds: Mapping[str, str]) -> Part:
    """Join consecutive parts to one; a feature that a part lacks is missing in its rows."""
    features: dict[str, Column] = {}
    for name, kind in kinds.items():
        if kind == "number":
            blocks = [p.features.get(name, np.full(len(p), np.nan)) for p in parts]
            features[name] = np.concatenate(
                [np.asarray(b, np.float64) for b in blocks] or [np.zeros(0)]
            )
        else:
            texts: list[str | None] = []
            for part in parts:
                texts.extend(part.features.get(name, [None] * len(part)))
            features[name] = texts
    empty: list[Floats] = [np.zeros(0)]
    return Part(
        parts[0].first_row if parts else 1,
        np.concatenate([p.score for p in parts] or empty),
        np.concatenate([p.right for p in parts] or empty),
        features,
    )


WAITING_MAX: Final = 100_000
"""Greatest number of labels waiting for their time; beyond it the earliest become known."""


class Known:
    """The labels that are known at each row; :meth:`at` and :meth:`add` are called in turn.

    A label with a time is known from that time on.  A label without one is known ``delay`` rows
    later (0 and 1: at the next row, as river's ``delay``).
    """

    def __init__(self, task: Task, delay: int) -> None:
        self._regression = task == "regression"
        self._majority = Majority()
        self._sum = self._n = 0.0
        self._delay = max(delay, 1)
        self._row = 0
        self._pending: deque[Label | None] = deque()
        self._waiting: list[tuple[float, int, Label]] = []
        self._newest_row = -1
        self._newest: Label | None = None

    def at(self, time: float) -> Label | None:
        """Return the newest label known at the next row, predicted at ``time`` (NaN: unknown)."""
        while self._waiting and (self._waiting[0][0] <= time or len(self._waiting) > WAITING_MAX):
            _, row, label = heapq.heappop(self._waiting)
            self._let_in(row, label)
        return self._newest

    def most(self) -> Label | None:
        """Return the most frequent known label, or the mean of the known targets."""
        if self._regression:
            return self._sum / self._n if self._n else None
        return self._majority.label()

    def add(self, label: Label | None, label_time: float) -> None:
        """Add a row's label (None: it never came) and its time (NaN: unknown)."""
        if label is not None and not math.isnan(label_time):
            heapq.heappush(self._waiting, (label_time, self._row, label))
            label = None
        self._pending.append(label)
        self._row += 1
        if len(self._pending) >= self._delay:
            label = self._pending.popleft()
            if label is not None:
                self._let_in(self._row - self._delay, label)

    def _let_in(self, row: int, label: Label) -> None:
        if self._regression:
            self._sum += float(label)
            self._n += 1
        else:
            self._majority.add(label)
        if row > self._newest_row:
            self._newest_row, self._newest = row, label
