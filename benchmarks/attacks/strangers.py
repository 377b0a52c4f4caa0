"""Lies that a stranger would try who has read how sources are judged; in this process only.

Eighteen sources are honest.  Eight behave as long as a flood's do, and then send one row each time
that an honest one comes, which is an earlier row whose label is

* *tenth*, *third*: wrong as often as that, and true else; *light*: a third, where the true rows
  weigh hardly anything and the wrong ones twice as much as others;
* *ramp*: wrong in a share of the rows that grows from none to all;
* *class*: wrong, of one class only; *region*: of rows only in which one number is high;
* *near*: the likeliest of the wrong ones, as the model has it (of several labels);
* *vouch*: wrong, of forty rows only that all eight send in turn;
* *stale*: wrong, and sent to an answer from long ago, when the model knew little;
* *confirm*: what the model answers, of rows about which it errs.
"""

from __future__ import annotations

import copy
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks.attacks.floods import (
    SOURCES,
    Flooded,
    Row,
    honest_name,
    parts_of,
    rows_of,
    settings_of,
)
from benchmarks.fixtures.several_replicas import Dealt
from online.learning.scores import score_of
from online.settings.model import ModelSettings
from replay.example import Features, Label, label_text
from replay.journal.base import Verdict

KINDS: Final = (
    "tenth", "third", "light", "ramp", "class", "region", "near", "vouch", "stale", "confirm",
)  # fmt: skip
LIARS: Final = 8

_LATELY: Final = 500
_VOUCHED: Final = 40
_ASKED: Final = 200
_SHARES: Final = {"tenth": 0.1, "third": 1.0 / 3.0, "light": 1.0 / 3.0}
_LIGHT, _HEAVY = 0.01, 2.0  # weights
_HIGH: Final = 0.8
_EARLY: Final = 10

Lie = Callable[[int, Any], tuple[Features, Label, bool]]
"""What comes after the ``n``-th row, as that model answers; last, whether it is a lie."""


def lies_of(kind: str, task: Any, rows: Sequence[Row], before: int, seed: int) -> Lie:
    """The lies of one kind."""
    draw = random.Random(seed)
    labels = list({str(y): y for _, y in sorted(rows, key=lambda row: str(row[1]))}.values())
    usual = Counter(label_text(label) for _, label in rows[:before]).most_common(1)[0][0]
    name, high = _high(rows[:before], draw)
    vouched = [rows[before - 1 - i] for i in range(_VOUCHED)]

    def wrong(label: Label) -> Label:
        return draw.choice([other for other in labels if other != label])

    def lately(n: int, fits: Callable[[Features, Label], bool]) -> Row:
        for _ in range(_ASKED):
            features, label = rows[draw.randrange(max(n - _LATELY, 0), n + 1)]
            if fits(features, label):
                break
        return features, label

    def lie(n: int, model: Any) -> tuple[Features, Label, bool]:
        features, label = lately(n, lambda x, y: True)
        if kind in _SHARES or kind == "ramp":
            share = _SHARES.get(kind, (n - before) / (len(rows) - before))
            false = draw.random() < share
            return features, wrong(label) if false else label, false
        if kind == "class":
            features, label = lately(n, lambda x, y: label_text(y) == usual)
        elif kind == "region":
            features, label = lately(n, lambda x, y: float(x.get(name, 0.0)) >= high)  # type: ignore[arg-type]
        elif kind == "vouch":
            features, label = vouched[n // LIARS % _VOUCHED]
            return features, next(other for other in labels if other != label), True
        elif kind == "confirm":
            features, label = lately(n, lambda x, y: bool(model.predict(x).label != y))
            said = model.predict(features).label
            return features, said, said != label
        elif kind == "near":
            score = score_of(task, model.predict(features)) or {}
            others = [other for other in labels if other != label]
            return features, max(others, key=lambda y: score.get(label_text(y), 0.0)), True
        return features, wrong(label), True

    return lie


def _high(rows: Sequence[Row], draw: random.Random) -> tuple[str, float]:
    """A number of the rows, and above what one of five lies."""
    names = sorted(
        name
        for name in rows[0][0]
        if len({x.get(name) for x, _ in rows if isinstance(x.get(name), float)}) > _EARLY
    )
    name = draw.choice(names or sorted(rows[0][0]))
    order = sorted(float(x[name]) for x, _ in rows)  # type: ignore[arg-type]
    return name, order[int(_HIGH * len(order))]


def play(
    name: str, kind: str | None, rows: Sequence[Row], before: int, filters: str, seed: int
) -> tuple[float, Dealt, Counter[str]]:
    """Accuracy among the lies in percent, the replica, and what was set aside of whom."""
    settings = ModelSettings.model_validate(settings_of(name, filters))
    loop, draw = Dealt(settings, 1), random.Random(seed)
    lie = lies_of(kind, settings.task, rows, before, seed) if kind else None
    names = [honest_name(i) for i in range(SOURCES)]
    weighs = kind == "light" and getattr(loop.model, "takes_weight", True)
    aside, right, early = Counter[str](), 0, None
    for n, (features, label) in enumerate(rows):
        if n == before // _EARLY:
            early = copy.deepcopy(loop.model)
        if n >= before:
            right += loop.model.predict(features).label == label
        sender = names[draw.randrange(SOURCES if n < before else SOURCES - LIARS)]
        honest = loop.step(sender, features, label).verdict is not Verdict.QUARANTINED
        if n >= before:
            aside["honest"] += not honest
        if lie is not None and n >= before:
            sent, said, false = lie(n, loop.model)
            answer = early.predict(sent) if kind == "stale" and early is not None else None
            weight = (_HEAVY if false else _LIGHT) if weighs else 1.0
            row = loop.step(names[SOURCES - LIARS + n % LIARS], sent, said, weight, answer=answer)
            aside["lies"] += false
            aside["taken"] += false and row.verdict is not Verdict.QUARANTINED
    return 100.0 * right / (len(rows) - before), loop, aside


def run(
    data_dir: Path | None, names: Sequence[str], seeds: Sequence[int],
    kinds: Sequence[str] = KINDS, most: int | None = None,
) -> Iterator[Flooded]:  # fmt: skip
    """Each kind on each stream with each seed.  Raises StreamUnusable."""
    for name in names:
        before, _ = parts_of(name, most)
        for seed in seeds:
            rows = rows_of(name, data_dir, seed, most)
            clean, _, _ = play(name, None, rows, before, "none", seed)
            for kind in kinds:
                bare, _, _ = play(name, kind, rows, before, "none", seed)
                accuracy, loop, aside = play(name, kind, rows, before, "default", seed)
                filters = loop.replicas[0].filters
                assert filters is not None
                condemned = {*filters.reputations.quarantined}
                liars = {honest_name(SOURCES - 1 - i) for i in range(LIARS)}
                yield Flooded(
                    f"{name}, {kind}", seed, 1, accuracy, clean, bare, len(condemned & liars),
                    LIARS, 100.0 * aside["honest"] / (len(rows) - before),
                    len(condemned - liars), aside["taken"], aside["lies"], accuracy >= clean - 5.0,
                )  # fmt: skip
