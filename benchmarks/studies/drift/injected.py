"""Drift put into real rows: the protocol of Cerqueira et al., KDD'26 (arXiv:2606.07789), again.

As in their repository (vcerqueira/experiments-drift_evaluation): the rows are shuffled, so that
only the injected drift is one; a Hoeffding tree learns all of them; detectors watch from a quarter
of the stream on; the onset is uniform between 50 and 80 %; each alarm within 2,500 rows of it is a
true positive, each other one a false positive, a trial without a hit a false negative.  Four
injections: features permuted; one class renamed to the other; three of four rows of a class left
out; rows left out where a feature is above its median.

Differences: river's tree in place of MOA's; fewer trials; the four injections of a trial share its
shuffle, its onset and what was learned before.
"""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Final

from river import tree

from benchmarks.studies.drift.detectors import ALL, Make, Progress
from benchmarks.studies.drift.scoring import Episode, score
from evaluation.drift.profile import build
from evaluation.drift.watch import Watch, WatchSettings
from evaluation.streams import Row, open_stream

DELAY: Final = 2_500
START: Final = 0.25
ONSET: Final = (0.5, 0.8)
KEPT: Final = 0.25
INJECTIONS: Final = ("x_permutation", "y_swap", "y_prior", "x_exceed")
FEEDS: Final = ("error", "correct")
ERROR_WATCHED: Final = "watch of the error"
WATCHED: Final = "watch of error and features"
WINDOW: Final = 500
"""Rows of a window of features in the watch."""

PUBLISHED: Final[Mapping[str, str]] = {
    "hddm_a": ".466",
    "adwin": ".430",
    "hddm_w": ".358",
    "page_hinkley": ".17",
    "ddm": ".07",
    WATCHED: "1.000 ABCD(X), x_permutation",
}
"""F1 on Electricity, abrupt, defaults; their feed is 1 for a right answer."""
ASKED: Final = 0.466


@dataclass(frozen=True, slots=True)
class Trial:
    """Rows that detectors watch under one injection.

    Attributes:
        rows: Number in the stream, features as the model had them, and whether it was wrong.
        onset: Row of the change.
    """

    rows: list[tuple[int, dict[str, Any], bool]]
    onset: int


@dataclass(frozen=True, slots=True)
class Line:
    """F1 of a detector by injection, and their mean; ``published`` is of the same stream."""

    what: str
    feed: str
    x_permutation: float
    y_swap: float
    y_prior: float
    x_exceed: float
    f1: float
    recall: float
    mtd: float
    false_per_1k: float
    published: str


def trials(data: Sequence[Row], seed: int) -> tuple[dict[str, Trial], list[dict[str, Any]]]:
    """One shuffle and onset under each injection, and the features before the watch begins."""
    rng = Random(seed)
    rows = list(data)
    rng.shuffle(rows)
    n = len(rows)
    start, onset = int(n * START), int(n * rng.uniform(*ONSET))
    model = tree.HoeffdingTreeClassifier()
    before = []
    for i, (x, y) in enumerate(rows[:onset]):
        if i > start:
            before.append((i, x, model.predict_one(x) != y))
        model.learn_one(x, y)
    found = {}
    for name in INJECTIONS:
        inject = _injection(name, rows, rng)
        found[name] = Trial([*before, *_after(copy.deepcopy(model), rows, onset, inject)], onset)
    return found, [x for x, _ in rows[:start]]


def _after(
    model: Any, rows: Sequence[Row], onset: int, inject: Callable[[Any, Any], Row | None]
) -> Iterator[tuple[int, dict[str, Any], bool]]:
    for i in range(onset, len(rows)):
        row = inject(*rows[i])
        if row is None:
            continue
        x, y = row
        yield i, x, model.predict_one(x) != y
        model.learn_one(x, y)


def _injection(name: str, rows: Sequence[Row], rng: Random) -> Callable[[Any, Any], Row | None]:
    data: Sequence[tuple[dict[str, Any], Any]] = rows
    features = list(data[0][0])
    label = rng.choice(sorted({y for _, y in rows}, key=str))
    other = rng.choice(sorted({y for _, y in rows if y != label}, key=str))
    if name == "x_permutation":
        order = rng.sample(features, len(features))
        return lambda x, y: ({a: x[b] for a, b in zip(features, order, strict=True)}, y)
    if name == "y_swap":
        return lambda x, y: (x, other if y == label else y)
    if name == "y_prior":
        return lambda x, y: None if y == label and rng.random() >= KEPT else (x, y)
    feature = rng.choice(features)
    median = statistics.median(x[feature] for x, _ in data)
    return lambda x, y: None if x[feature] > median else (x, y)


def run(
    data_dir: Path | None,
    *,
    seeds: Sequence[int] = range(10),
    rows: int | None = None,
    makes: Mapping[str, Make] = ALL,
    progress: Progress = lambda line: None,
) -> list[Line]:
    """Elec2, every detector on both feeds, and the whole watch.

    Raises:
        StreamUnusable: Elec2 is not in ``data_dir``.
    """
    data = list(open_stream("elec2", data_dir).rows)[:rows]
    episodes: dict[tuple[str, str], dict[str, list[Episode]]] = {}
    for seed in seeds:
        progress(f"injected drift: trial {seed}")
        made, before = trials(data, seed)
        for injection, trial in made.items():
            for name, feed, alarms in _alarms(trial, makes, before):
                by = episodes.setdefault((name, feed), {})
                last = trial.onset + DELAY
                by.setdefault(injection, []).append(
                    Episode(len(trial.rows), alarms, trial.onset, last)
                )
    return [_line(name, feed, by) for (name, feed), by in episodes.items()]


def _alarms(
    trial: Trial, makes: Mapping[str, Make], before: Sequence[dict[str, Any]]
) -> Iterator[tuple[str, str, list[int]]]:
    for name, make in makes.items():
        for feed in FEEDS:
            one, wanted = make(), feed == "error"
            found = [i for i, _, wrong in trial.rows if one.update(wrong == wanted) is not None]
            yield name, feed, found
    reference = build(before)
    for name, seen in ((ERROR_WATCHED, False), (WATCHED, True)):
        watch, found = Watch(WatchSettings(window_rows=WINDOW), reference), []
        for i, x, wrong in trial.rows:
            alarms = (watch.served(x) if seen else []) + watch.judged(wrong)
            if alarms:
                found.append(i)
        yield name, "error", found


def _line(name: str, feed: str, by: Mapping[str, list[Episode]]) -> Line:
    scored = {injection: score(episodes) for injection, episodes in by.items()}
    together = score([e for episodes in by.values() for e in episodes])
    f1 = {injection: scored[injection].f1 for injection in INJECTIONS}
    return Line(
        what=name,
        feed=feed,
        **f1,
        f1=statistics.fmean(f1.values()),
        recall=together.recall or 0.0,
        mtd=together.mtd or 0.0,
        false_per_1k=together.false_per_1k,
        published=PUBLISHED.get(name, ""),
    )
