"""Fifteen ways in which a stream's rows come from honest sources that differ; in this process only.

Nobody lies, and each deal is played once without filters and once with the default ones:

* *alike*: 26 sources send any row;
* *day-night*: half of them send by day, half by night; *turning*: phases of 200 rows, nine of ten
  of one group of labels, which half of the sources send alone;
* *half*: one source sends half of the rows; *half-label*: nine of ten of its rows have the most
  frequent label; *huge*: one sends 60 %, and 80 small ones the rest; *power*: sizes by the sixth
  power of an even draw;
* *region*: each of five groups of sources sends one range of a number; *late*: five that join at
  half send its highest quarter;
* *by-label*: nine of ten rows of a source have one third of the labels; *one-label*: all of them;
  *rare*: the rarest label comes from two sources of 26; *seasons*: 400 rows of the most frequent
  label, then as many of the others;
* *noise*: eight sources send a tenth of wrong labels; *bias*: six add one standard deviation to a
  number.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from statistics import pstdev
from typing import Final

from benchmarks.attacks.floods import SET_ASIDE_MAX, SOURCES, Row, rows_of, settings_of
from benchmarks.attacks.honest import POINTS
from benchmarks.fixtures.several_replicas import Dealt
from online.settings.model import ModelSettings
from replay.example import Features, Label
from replay.journal.base import Verdict

_MOSTLY: Final = 0.9
_NOISY, _WRONG, _BIASED = 8, 0.1, 6
_FEW_VALUES: Final = 4

Sent = tuple[str, Features, Label]
Deal = Callable[[Sequence[Row], Random], Iterator[Sent]]
"""Who sends which row; the order and the labels may be others than the stream's."""

Namer = Callable[[int, Features, Label], str]
"""Return the source of the ``n``-th row."""


@dataclass(frozen=True, slots=True)
class Honest:
    """One deal of one stream; shares and accuracies in percent.

    ``weight``: what a row was learned with, on average; ``set_aside``: rows that were not learned.
    ``good``: at most half a point and one row in fifty are lost.
    """

    what: str
    seed: int
    rows: int
    accuracy: float
    unfiltered: float
    set_aside: float
    weight: float
    quarantined: int
    good: bool


def _anyone(draw: Random, first: str = "s", many: int = SOURCES) -> str:
    return f"{first}{draw.randrange(many):02d}"


def _named(namer: Callable[[Sequence[Row], Random], Namer]) -> Deal:
    """Deal the rows as they are, each to the source that is named for it."""

    def deal(rows: Sequence[Row], draw: Random) -> Iterator[Sent]:
        name = namer(rows, draw)
        return ((name(n, x, y), x, y) for n, (x, y) in enumerate(rows))

    return deal


def _value(features: Features, name: str) -> float:
    value = features.get(name, 0.0)
    assert isinstance(value, float | int)
    return float(value)


def _number(rows: Sequence[Row], draw: Random) -> tuple[str, list[float]]:
    """Return the name of a number that varies, and its values in order."""
    given = sorted(rows[0][0].items())
    names = [k for k, v in given if isinstance(v, float | int) and not isinstance(v, bool)]
    values = {name: sorted(_value(x, name) for x, _ in rows) for name in names}
    name = draw.choice([k for k, v in values.items() if len(set(v)) > _FEW_VALUES] or names)
    return name, values[name]


def _usual(rows: Sequence[Row]) -> Label:
    return Counter(y for _, y in rows).most_common(1)[0][0]


def _day_night(rows: Sequence[Row], draw: Random) -> Namer:
    half = SOURCES // 2
    by_time = "period" in rows[0][0]
    return lambda n, x, y: _anyone(
        draw, "dn"[0.25 <= (_value(x, "period") if by_time else n % 200 / 200) < 0.75], half
    )


def _one_large(share: float, others: int) -> Deal:
    return _named(
        lambda rows, draw: (
            lambda n, x, y: "big" if draw.random() < share else _anyone(draw, many=others)
        )
    )


def _half_label(rows: Sequence[Row], draw: Random) -> Namer:
    usual = _usual(rows)
    part = sum(y == usual for _, y in rows) / len(rows)
    own, other = _MOSTLY / 2.0 / part, (1.0 - _MOSTLY) / 2.0 / (1.0 - part)
    return lambda n, x, y: (
        "big" if draw.random() < (own if y == usual else other) else _anyone(draw, "s", SOURCES - 1)
    )


def _region(rows: Sequence[Row], draw: Random) -> Namer:
    name, values = _number(rows, draw)
    edges = [values[len(values) * i // 5] for i in range(1, 5)]
    return lambda n, x, y: _anyone(draw, f"r{bisect_right(edges, _value(x, name))}-", 5)


def _late(rows: Sequence[Row], draw: Random) -> Namer:
    name, values = _number(rows, draw)
    high, half = values[int(0.75 * len(values))], len(rows) // 2

    def sender(n: int, x: Features, y: Label) -> str:
        joined = n >= half and _value(x, name) >= high and draw.random() < _MOSTLY
        return _anyone(draw, "l", 5) if joined else _anyone(draw, "s", SOURCES - 5)

    return sender


def _by_label(share: float) -> Deal:
    def namer(rows: Sequence[Row], draw: Random) -> Namer:
        group = {y: i % 3 for i, y in enumerate(sorted({y for _, y in rows}, key=str))}

        def sender(n: int, x: Features, y: Label) -> str:
            at = group[y] if draw.random() < share else draw.randrange(3)
            return f"s{3 * draw.randrange(8) + at:02d}"

        return sender

    return _named(namer)


def _rare(rows: Sequence[Row], draw: Random) -> Namer:
    rarest = Counter(y for _, y in rows).most_common()[-1][0]
    return lambda n, x, y: (
        f"s{draw.randrange(2) if y == rarest else draw.randrange(2, SOURCES):02d}"
    )


def _phases(rows: Sequence[Row], length: int, share: float, draw: Random) -> Iterator[Row]:
    """Rows of the most frequent label and all others in turn, ``share`` of a phase of its own."""
    usual, n = _usual(rows), 0
    queues = [[r for r in rows if (r[1] == usual) is own] for own in (True, False)]
    while all(queues):
        yield queues[(n // length + (draw.random() >= share)) % 2].pop(0)
        n += 1


def _turning(rows: Sequence[Row], draw: Random) -> Iterator[Sent]:
    for n, (x, y) in enumerate(_phases(rows, 200, _MOSTLY, draw)):
        yield _anyone(draw, "dn"[n // 200 % 2], SOURCES // 2), x, y


def _seasons(rows: Sequence[Row], draw: Random) -> Iterator[Sent]:
    return ((_anyone(draw), x, y) for x, y in _phases(rows, 400, 1.0, draw))


def _noise(rows: Sequence[Row], draw: Random) -> Iterator[Sent]:
    labels = sorted({y for _, y in rows}, key=str)
    for x, y in rows:
        at = draw.randrange(SOURCES)
        wrong = at < _NOISY and draw.random() < _WRONG
        yield f"s{at:02d}", x, draw.choice([z for z in labels if z != y]) if wrong else y


def _bias(rows: Sequence[Row], draw: Random) -> Iterator[Sent]:
    name, values = _number(rows, draw)
    more = pstdev(values)
    for x, y in rows:
        at = draw.randrange(SOURCES)
        yield f"s{at:02d}", {**x, name: _value(x, name) + more} if at < _BIASED else x, y


DEALS: Final[dict[str, Deal]] = {
    "alike": _named(lambda rows, draw: lambda n, x, y: _anyone(draw)),
    "day-night": _named(_day_night),
    "turning": _turning,
    "half": _one_large(0.5, SOURCES - 1),
    "half-label": _named(_half_label),
    "huge": _one_large(0.6, 80),
    "power": _named(lambda rows, draw: lambda n, x, y: f"s{int(SOURCES * draw.random() ** 6):02d}"),
    "region": _named(_region),
    "late": _named(_late),
    "by-label": _by_label(_MOSTLY),
    "one-label": _by_label(1.0),
    "rare": _named(_rare),
    "seasons": _seasons,
    "noise": _noise,
    "bias": _bias,
}


def play(name: str, deal: str, rows: Sequence[Row], filters: str, seed: int) -> Honest:
    """Play one deal with these filters; ``unfiltered`` is the same accuracy."""
    loop = Dealt(ModelSettings.model_validate(settings_of(name, filters)), 1)
    right, aside, weight = 0, 0, 0.0
    truth = {id(x): y for x, y in rows}  # a wrong label is no right answer
    for source, x, y in DEALS[deal](rows, Random(seed)):
        right += loop.model.predict(x).label == truth.get(id(x), y)
        row = loop.step(source, x, y)
        left_out = row.verdict is Verdict.QUARANTINED
        aside, weight = aside + left_out, weight + (0.0 if left_out else row.factor)
    n, judges = loop.n, loop.replicas[0].filters
    condemned = 0 if judges is None else len(judges.reputations.quarantined)
    accuracy, set_aside = 100.0 * right / n, 100.0 * aside / n
    return Honest(
        f"{name}, {deal}", seed, n, accuracy, accuracy, set_aside, weight / n, condemned,
        set_aside <= SET_ASIDE_MAX,
    )  # fmt: skip


def run(
    data_dir: Path | None, names: Sequence[str], seeds: Sequence[int],
    deals: Sequence[str] = tuple(DEALS), most: int | None = None,
) -> Iterator[Honest]:  # fmt: skip
    """Each deal of each stream with each seed.  Raises StreamUnusable."""
    for name in names:
        for seed in seeds:
            rows = rows_of(name, data_dir, seed)[:most]
            for deal in deals:
                bare = play(name, deal, rows, "none", seed).accuracy
                found = play(name, deal, rows, "default", seed)
                good = found.good and bare - found.accuracy <= POINTS
                yield replace(found, unfiltered=bare, good=good)
