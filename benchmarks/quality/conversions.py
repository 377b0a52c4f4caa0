"""Labels that come late and only if they are positive: each row is negative until it is not.

The row of a stream is a click, and its positive label a purchase that comes some rows later, by a
law of delays; what never comes is a negative that nobody sends.  Whoever learns is judged by the
log loss of what it answers to each row, by the label that the row turns out to have:

* the *oracle* has the label at once;
* *drawn*: a provisional negative when a delay has passed that is drawn from those seen of late, if
  no positive has come by then; and the final positive when it comes;
* *at once*: the same with the provisional negative as soon as the row was asked about;
* *after 1*, *25*, *100*: as a service with ``conversion_window`` of so many rows does, by its own
  rule: then a negative, weighed by the share of positives that have come by then
  (:mod:`online.sure.delays`), and later positives in its place;
* *known*: the true label of each row after 100 rows: whoever waits so long knows no more;
* *whole*: the last of them with negatives and late positives that weigh one;
* *weighted*: fake negatives by importance (Ktena et al. 2019), the peer;
* *beside*: a negative at once, and a positive learned beside it when it comes.

Negatives that last need no final label: it would teach nothing.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random
from typing import Final

import msgspec

from benchmarks.fixtures.sources import STREAMS as SOURCES
from benchmarks.fixtures.sources import Row
from benchmarks.quality.defaults import built
from online.models.base import Model, learn_example
from online.sure.delays import Delays
from replay.example import Corrects, Example, Features

STREAMS: Final = ("elec2", "acs", "insects")
"""Of several classes the most frequent one is the positive label."""

LEARNERS: Final = ("logreg", "ftrl", "linear")

SHARE: Final = 0.05
"""Of positives: so many are left in a stream that there is one in twenty rows."""

LAWS: Final = ("fixed", "exponential", "heavy")
DELAY: Final = 100.0
"""Rows: of all, in the mean, and (of the heavy tail) of half of them."""

WINDOWS: Final = (1, 25, 100)
"""Rows after which no label is a negative."""

ROWS: Final = 8_000
CLOSED: Final = 0.5
"""By provisional negatives at once, of the gap of `logreg`, whose rate is constant."""

_LEAST: Final = 1e-6
_READ_MAX: Final = 60_000


@dataclass(frozen=True, slots=True)
class Line:
    """Log losses on one stream, and what share of the gap between peer and oracle is closed.

    NaN where the peer is as good as the oracle.
    """

    stream: str
    law: str
    learner: str
    positives: float
    oracle: float
    at_once: float
    drawn: float
    after_1: float
    after_25: float
    after_100: float
    whole: float
    known: float
    weighted: float
    beside: float
    closed_at_once: float
    closed_drawn: float
    closed_after_1: float


class Plain:
    """A learner that is told of each row at once, and of a positive once more when it comes.

    Attributes:
        now: The row that is looked at.
    """

    def __init__(self, model: Model) -> None:
        self.model, self.now = model, 0

    def after(self, seen: Seen) -> float | None:
        """Rows until a row without a positive label is a negative; None: nobody knows yet."""
        return 0.0

    def asked(self, example: Example) -> None:
        """A row was answered; the label is what it turns out to have."""

    def answer(self, features: Features) -> float:
        """The probability of True."""
        shares = self.model.predict(features).probabilities or {}
        return min(max(shares.get(True, 0.5), _LEAST), 1.0 - _LEAST)

    def negative(self, example: Example) -> None:
        """No positive label of the row has come."""
        learn_example(self.model, _with(example, False))

    def positive(self, example: Example, *, told: bool) -> None:
        """The row's positive label has come; ``told``: after it counted as a negative."""
        learn_example(self.model, example)


class Oracle(Plain):
    """Learns the true label at once."""

    def negative(self, example: Example) -> None:
        learn_example(self.model, example)

    def positive(self, example: Example, *, told: bool) -> None:
        """The label is known already."""


class Known(Plain):
    """Learns the true label when the longest window has passed."""

    def __init__(self, model: Model) -> None:
        super().__init__(model)
        self._waiting: deque[Example] = deque()

    def asked(self, example: Example) -> None:
        self._waiting.append(example)
        if len(self._waiting) > WINDOWS[-1]:
            learn_example(self.model, self._waiting.popleft())

    def negative(self, example: Example) -> None:
        """It is known later."""

    def positive(self, example: Example, *, told: bool) -> None:
        """It is known later."""


class AtOnce(Plain):
    """Takes the negative lesson back."""

    def negative(self, example: Example) -> None:
        learn_example(self.model, _with(example, False, provisional=True))

    def positive(self, example: Example, *, told: bool) -> None:
        learn_example(self.model, example, before=(False, 1.0) if told else None)


class Drawn(AtOnce):
    """The same, and a negative is told of as late as a positive would be."""

    def after(self, seen: Seen) -> float | None:
        return seen.draw()


class Windowed(AtOnce):
    """A service with ``conversion_window``; not ``weighs``: both labels weigh one."""

    def __init__(self, model: Model, window: float, *, weighs: bool = True) -> None:
        super().__init__(model)
        self._window, self._weighs, self._delays = window, weighs, Delays(window)
        self._given: dict[int, Example] = {}

    def after(self, seen: Seen) -> float | None:
        return self._window

    def negative(self, example: Example) -> None:
        weight, late = self._delays.weights() if self._weighs else (1.0, 1.0)
        given = _with(example, False, provisional=True)
        given = msgspec.structs.replace(given, weight=weight, late=late)
        learn_example(self.model, given)
        self._given[_place(example)] = given

    def positive(self, example: Example, *, told: bool) -> None:
        self._delays.add(example, float(self.now))
        if (given := self._given.pop(_place(example), None)) is None:
            learn_example(self.model, example)
            return
        assert given.late is not None
        corrects = Corrects(1, 1, b"", False, given.weight, "", defaulted=True)
        final = msgspec.structs.replace(example, weight=given.late, corrects=corrects)
        learn_example(self.model, final, before=(False, given.weight))


class Weighted(Plain):
    """The peer: fake negatives weighted, (1 − p)(1 + p) a negative and 1 + p a positive."""

    def _learn(self, example: Example, weight: float) -> None:
        self.model.learn(example.features, example.label, max(weight, _LEAST))

    def negative(self, example: Example) -> None:
        p = self.answer(example.features)
        self._learn(_with(example, False), (1.0 - p) * (1.0 + p))

    def positive(self, example: Example, *, told: bool) -> None:
        self._learn(example, 1.0 + self.answer(example.features))


def _place(example: Example) -> int:
    """The row that an example is."""
    assert example.predicted_at is not None
    return int(example.predicted_at)


KINDS: Final[tuple[Callable[[Model], Plain], ...]] = (
    Oracle,
    AtOnce,
    Drawn,
    Weighted,
    Plain,
    *(partial(Windowed, window=float(rows)) for rows in WINDOWS),
    partial(Windowed, window=float(WINDOWS[-1]), weighs=False),
    Known,
)


def _with(example: Example, label: bool, *, provisional: bool = False) -> Example:
    given = (example.features, label, example.weight, example.score, None, example.predicted_at)
    return Example(*given, notes=example.notes, provisional=provisional)


def delay(law: str, rng: Random) -> float:
    """Rows until a positive label comes, at least 1."""
    if law == "fixed":
        return DELAY
    if law == "exponential":
        return 1.0 + rng.expovariate(1.0 / DELAY)
    # without a variance; half come in DELAY
    return float(DELAY / 2.0**0.8 * rng.paretovariate(1.25))


class Seen:
    """Delays of the positives that have come of late, and rows that wait for one of them."""

    def __init__(self, rng: Random) -> None:
        self._delays: deque[float] = deque(maxlen=1_000)
        self._rng = rng

    def note(self, rows: float) -> None:
        """A positive label has come after so many rows."""
        self._delays.append(rows)

    def draw(self) -> float | None:
        """A delay like those that were seen; None: none was."""
        return self._rng.choice(self._delays) if self._delays else None


def loss(learner: Plain, rows: list[Row], law: str, seed: int) -> float:
    """Mean log loss of the answers by the labels that the rows turn out to have."""
    rng, seen, total = Random(seed), Seen(Random(seed + 1)), 0.0
    coming: list[tuple[float, int, bool]] = []  # when, which row, and whether it is a positive
    open_, told, early = dict[int, Example](), set[int](), list[int]()
    for i, (features, label) in enumerate(rows):
        learner.now = i
        while coming and coming[0][0] <= i:
            at, k, positive = heapq.heappop(coming)
            if positive:
                seen.note(at - k)
                learner.positive(open_.pop(k), told=k in told)
            elif k in open_:
                told.add(k)
                learner.negative(open_[k])
        p, answer = learner.answer(features), learner.model.predict(features)
        total -= math.log(p if label else 1.0 - p)
        score = {"false": 1.0 - p, "true": p}
        open_[i] = Example(features, label, 1.0, score, None, float(i), notes=answer.notes)
        learner.asked(open_[i])
        if label:
            heapq.heappush(coming, (i + delay(law, rng), i, True))
        if (rows_on := learner.after(seen)) == 0.0:
            told.add(i)
            learner.negative(open_[i])
            continue
        early.append(i)
        while early and rows_on is not None:
            k = early.pop()
            heapq.heappush(coming, (max(k + rows_on, i + 1), k, False))
            rows_on = learner.after(seen)
    return total / len(rows)


def rows_of(name: str, data: Path | None, most: int, share: float | None, seed: int) -> list[Row]:
    """Rows of a stream as clicks, of which ``share`` are positive (None: as many as there are).

    StreamUnusable if its data are not there.
    """
    source, rng = SOURCES[name], Random(seed)
    rows = list(itertools.islice(source.rows(data or Path()), _READ_MAX))
    often = True if source.task == "binary" else Counter(y for _, y in rows).most_common(1)[0][0]
    told: list[Row] = [(_numbers(x), y == often) for x, y in rows]
    positives = sum(bool(y) for _, y in told) / len(told)
    keep = 1.0
    if share is not None:
        keep = share / (1.0 - share) * (1.0 - positives) / positives
    return [(x, y) for x, y in told if not y or rng.random() < keep][:most]


def _numbers(features: Features) -> Features:
    return {n: float(v) for n, v in features.items() if isinstance(v, (int, float))}


def run(
    name: str,
    data: Path | None,
    law: str,
    learners: Sequence[str] = LEARNERS,
    *,
    rows_max: int = ROWS,
    share: float | None = SHARE,
    seed: int = 1,
) -> Iterator[Line]:
    """A line for each learner on the stream."""
    rows = rows_of(name, data, rows_max, share, seed)
    positives = sum(bool(y) for _, y in rows) / len(rows)
    for learner in learners:
        losses = [loss(kind(built(learner, "binary").model), rows, law, seed) for kind in KINDS]
        oracle, at_once, drawn, weighted, beside, *windows = losses
        after_1, after_25, after_100, whole, known = windows
        gap = weighted - oracle if weighted > oracle else math.nan
        yield Line(
            name,
            law,
            learner,
            positives,
            oracle,
            at_once,
            drawn,
            after_1,
            after_25,
            after_100,
            whole,
            known,
            weighted,
            beside,
            closed_at_once=(weighted - at_once) / gap,
            closed_drawn=(weighted - drawn) / gap,
            closed_after_1=(weighted - after_1) / gap,
        )


def kept(lines: Sequence[Line]) -> bool:
    """Whether enough of the gap is closed where the rate is constant, by a short window, too."""
    return all(
        closed >= CLOSED or found <= line.oracle
        for line in lines
        if line.learner == "logreg"
        for closed, found in (
            (line.closed_at_once, line.at_once),
            (line.closed_after_1, line.after_1),
        )
    )
