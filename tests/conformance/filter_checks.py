"""Every filter has to pass these checks: plain functions over a factory, for any test runner.

``make(reference)`` gives a new filter.  What a filter is there to catch is a law of its own and is
handed over with it, see :mod:`filter_laws`.  Each check raises AssertionError with
what was found.  :func:`yield_checks` is for parametrised tests, :func:`check_filter` runs all.

The checks play a stream: logistic regression on forty numbers, twenty sources, sixteen rows a push.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Iterator
from copy import deepcopy
from functools import partial
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from msgspec.structs import replace

from paramserver.filters.base import STEP_MAX, Event, Filter, Gradient, Source
from paramserver.filters.chain import Chain, Verdict
from paramserver.filters.reference import Reference
from paramserver.filters.schema import Schema

Make = Callable[[Reference], Filter]
Check = Callable[[Make], None]
Forge = Callable[["Stream", int, Event], Event]

SIZE: Final = 40
ROWS: Final = 16
"""Numbers of a row; rows of a push."""

HONEST: Final = tuple(f"h{i}" for i in range(15))
HOSTILE: Final = tuple(f"x{i}" for i in range(5))


def check_filter(make: Make, laws: Iterable[Check] = ()) -> None:
    """Run every check and the filter's own laws; the first that fails raises AssertionError."""
    for _, run in yield_checks(make, laws):
        run()


def yield_checks(
    make: Make, laws: Iterable[Check] = ()
) -> Iterator[tuple[str, Callable[[], None]]]:
    """Name and body of each check; the laws first, which say most of what a filter is."""
    for check in (*laws, *_CHECKS):
        yield getattr(check, "__name__", repr(check)), partial(check, make)


class Stream:
    """Honest events of a world with two classes, and a model that learns them."""

    def __init__(self, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.truth = self.rng.standard_normal(SIZE)
        self.weights = np.zeros(SIZE)
        self.turned = False
        x, y = self.rows(120)
        self.root_x, self.root_y = x, y
        self.reference = Reference([int(v) for v in y], self.root_gradient, rows=ROWS)
        self.n = 0

    def rows(self, n: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Rows and labels (0 or 1), a few of them wrong."""
        x = self.rng.standard_normal((n, SIZE))
        y = (x @ self.truth + 0.3 * self.rng.standard_normal(n) > 0).astype(np.float64)
        return x, 1.0 - y if self.turned else y

    def gradient(self, x: Any, y: Any) -> Gradient:
        """Return the gradient of the mean log loss."""
        p = 1.0 / (1.0 + np.exp(-x @ self.weights))
        return np.asarray(((p - y)[:, None] * x).mean(axis=0), dtype=np.float32)

    def root_gradient(self, rows: npt.NDArray[np.intp]) -> Gradient:
        """Return the gradient of these rows of the root set."""
        return self.gradient(self.root_x[rows], self.root_y[rows])

    def event(self, source: str, *, wrong: bool = False, rows: int = ROWS) -> Event:
        """The next one of the source, with the first row's loss and label; all may be wrong."""
        x, y = self.rows(rows)
        if wrong:
            y = 1.0 - y
        self.n += 1
        margin = float(x[0] @ self.weights) * (2.0 * y[0] - 1.0)
        features = hash(x[0].tobytes())
        return Event(
            source,
            self.n.to_bytes(16, "little"),
            self.gradient(x, y),
            float(np.log1p(np.exp(-margin))),
            label=str(int(y[0])),
            digest=hash((features, y[0])),
            features_digest=features,
        )

    def learn(self, event: Event, factor: float = 1.0) -> None:
        """One step of the model."""
        assert event.gradient is not None
        self.weights = self.weights - 0.02 * factor * event.gradient


def chain_of(make: Make, stream: Stream) -> Chain:
    """The filter behind the schema, warm."""
    chain = Chain([Schema(SIZE), make(stream.reference)], reference=stream.reference)
    for i in range(6):
        chain.refresh(bytes([i]), 0)
    return chain


def play(
    chain: Chain,
    stream: Stream,
    n: int,
    forge: Forge | None = None,
    *,
    sources: Iterable[str] = HONEST,
) -> list[tuple[Event, Verdict]]:
    """``n`` honest events in turn, every third arrival forged by a hostile source."""
    names, out = tuple(sources), []
    for i in range(n):
        events = [stream.event(names[int(stream.rng.integers(len(names)))])]
        if forge is not None and i % 2:
            x = stream.event(HOSTILE[i % len(HOSTILE)])
            events.append(forge(stream, i, x))
        for event in events:
            verdict = chain.decide(event)
            chain.observe(event, verdict)
            if verdict.taken:
                stream.learn(event, verdict.factor)
            out.append((event, verdict))
    return out


def share_taken(played: Iterable[tuple[Event, Verdict]], of: Iterable[str]) -> float:
    """Mean weight with which events of these sources were learned."""
    names = set(of)
    factors = [v.factor for e, v in played if e.source in names]
    return sum(factors) / len(factors)


def honest_cost_nothing(make: Make) -> None:
    for seed in range(2):
        stream = Stream(seed)
        chain = chain_of(make, stream)
        played = play(chain, stream, 600)
        rejected = sum(not v.taken for _, v in played) / len(played)
        assert rejected <= 0.04, f"{rejected:.1%} of honest events set aside (seed {seed})"
        share = share_taken(played[300:], HONEST)
        assert share >= 0.75, (
            f"honest events are learned with a factor of {share:.2f} (seed {seed})"
        )
        bad = [s.name for s in chain.sources if s.quarantined]
        assert not bad, f"honest sources in quarantine: {bad} (seed {seed})"


def honest_are_served_beside_hostile(make: Make, least: float = 0.85) -> None:
    def both(stream: Stream, i: int, event: Event) -> Event:
        assert event.gradient is not None
        return replace(event, gradient=-3 * event.gradient, loss=9.0)

    for seed in range(2):
        stream = Stream(seed)
        chain = chain_of(make, stream)
        played = play(chain, stream, 600, both)
        share = share_taken(played[300:], HONEST)
        assert share >= least, f"honest events have a factor of {share:.2f} beside hostile ones"


def judging_changes_nothing(make: Make) -> None:
    stream, twin = Stream(1), Stream(1)
    chain, other = chain_of(make, stream), chain_of(make, twin)
    play(chain, stream, 100)
    play(other, twin, 100)
    source, probe = Source("h1"), stream.event("h1")
    twin.event("h1")
    before = deepcopy(source)
    for i in range(50):
        for event in (probe, replace(probe, gradient=-9 * _vector(probe), key=bytes([i]))):
            chain.filters[1].judge(event, source)
    assert source == before, "judging changed the source"
    got, expected = play(chain, stream, 60), play(other, twin, 60)
    assert [v for _, v in got] == [v for _, v in expected], "judging changed later verdicts"


def _vector(event: Event) -> Gradient:
    assert event.gradient is not None
    return event.gradient


def answers_keep_their_bounds(make: Make) -> None:
    stream = Stream(2)
    chain = chain_of(make, stream)
    play(chain, stream, 200)
    probe, source = stream.event("h1"), chain.sources.get("h1")
    zero = np.zeros(SIZE, np.float32)
    vectors = [None, zero, *(np.float32(s) * _vector(probe) for s in (1e-30, 1e-6, -1.0, 1e4))]
    for vector in vectors:
        for loss in (None, 0.0, 1.0, 1e6):
            event = replace(probe, gradient=vector, loss=loss)
            opinion = chain.filters[1].judge(event, source)
            where = f"gradient {vector}, loss {loss}: {opinion}"
            assert 0.0 <= opinion.factor <= 1.0, where
            assert abs(opinion.evidence) <= STEP_MAX, where
            assert math.isfinite(opinion.score), where
            assert bool(opinion.reason) == (opinion.factor < 1.0), where
            assert not opinion.stop or opinion.factor == 0.0, where


def follows_from_the_events(make: Make) -> None:
    before = random.getstate(), np.random.get_state()[1].tolist()  # type: ignore[index]
    verdicts = []
    for _ in range(2):
        stream = Stream(3)
        verdicts.append([v for _, v in play(chain_of(make, stream), stream, 200)])
    assert verdicts[0] == verdicts[1], "the same events had other verdicts"
    after = random.getstate(), np.random.get_state()[1].tolist()  # type: ignore[index]
    assert before == after, "a global generator was used"


def keeps_nothing_of_the_callers(make: Make) -> None:
    stream, twin = Stream(4), Stream(4)
    chain, other = chain_of(make, stream), chain_of(make, twin)
    for _ in range(120):
        event, same = stream.event("h1"), twin.event("h1")
        kept = _vector(event).copy()
        verdict, expected = chain.decide(event), other.decide(same)
        chain.observe(event, verdict)
        other.observe(same, expected)
        assert np.array_equal(kept, _vector(event)), "the gradient was changed"
        assert verdict == expected, "a gradient that the caller used again changed a verdict"
        _vector(event)[:] = 1e3


def state_is_bounded(make: Make) -> None:
    stream = Stream(5)
    chain = chain_of(make, stream)
    test = chain.filters[1]
    sizes: list[int] = []
    for n in (6_000, 6_000):
        for i in range(n):
            name, label = f"s{i % 2000}-{len(sizes)}", f"{i}-{len(sizes)}"
            event = Event(name, i.to_bytes(16, "little"), None, 0.1, i, i, label, i, i)
            source = Source(event.source)
            test.learn(event, test.judge(event, source), source, taken=True)
            if i % 500 == 0:
                test.refresh([source])
        sizes.append(_entries(vars(test)))
    assert sizes[1] <= 1.2 * sizes[0] + 2_500, f"entries kept after 6,000 and 12,000: {sizes}"


def _entries(value: Any, depth: int = 3) -> int:
    if isinstance(value, dict):
        return len(value) + sum(_entries(v, depth - 1) for v in value.values() if depth)
    if hasattr(value, "__len__") and not isinstance(value, str | bytes):
        return len(value)
    return 0


_CHECKS: tuple[Check, ...] = (
    honest_cost_nothing,
    honest_are_served_beside_hostile,
    judging_changes_nothing,
    answers_keep_their_bounds,
    follows_from_the_events,
    keeps_nothing_of_the_callers,
    state_is_bounded,
)
