"""What single filters are there to catch; see :mod:`paramserver.filters.checks`."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from paramserver.filters.base import Event, Filter, Gradient, Source
from paramserver.filters.checks import (
    HONEST,
    HOSTILE,
    ROWS,
    SIZE,
    Forge,
    Make,
    Stream,
    chain_of,
    play,
    share_taken,
)
from paramserver.filters.reference import Reference


def _most(make: Make, forge: Forge, share: float, *, n: int = 400, skip: int = 100) -> None:
    for seed in range(2):
        stream = Stream(seed)
        chain = chain_of(make, stream)
        played = play(chain, stream, n, forge)
        got = share_taken(played[skip:], HOSTILE)
        assert got <= share, (
            f"hostile events have a factor of {got:.2f}, at most {share} (seed {seed})"
        )


def opposite_is_set_aside(make: Make) -> None:
    """Gradients against the root set."""
    _most(make, lambda s, i, e: replace(e, gradient=-_of(e)), 0.05)


def wrong_labels_are_set_aside(make: Make) -> None:
    """Labels against the truth, whatever the gradient."""
    _most(make, lambda s, i, e: s.event(e.source, wrong=True), 0.1, skip=300)


def long_ones_are_scaled(make: Make) -> None:
    """What is learned of a long gradient is no longer than the longest honest ones."""
    stream = Stream(1)
    chain = chain_of(make, stream)
    honest = [float(np.linalg.norm(_of(e))) for e, _ in play(chain, stream, 200)]
    for times in (1.5, 3.0, 30.0, 1e3):
        event = stream.event("x1")
        event = replace(event, gradient=np.float32(times * max(honest)) * _unit(event))
        length = chain.decide(event).factor * float(np.linalg.norm(_of(event)))
        assert length <= 1.3 * max(honest), f"{times} times the longest: {length:.2f} is learned"


def long_ones_do_not_raise_the_cap(make: Make) -> None:
    """Patience is no way to longer gradients."""
    stream = Stream(1)
    chain = chain_of(make, stream)
    play(chain, stream, 100)
    longest = [0.0, 0.0]
    for i in range(600):
        event = stream.event("x1")
        event = replace(event, gradient=np.float32(3.0) * _unit(event) * np.float32(2.0))
        verdict = chain.decide(event)
        chain.observe(event, verdict)
        longest[i >= 300] = max(longest[i >= 300], 6.0 * verdict.factor)
    assert longest[1] <= 1.5 * longest[0] + 1e-6, f"first and second 300 events: {longest}"


def floods_are_held_back(make: Make) -> None:
    """One source of twenty sends nine of ten events."""
    stream = Stream(1)
    chain = chain_of(make, stream)
    play(chain, stream, 300)
    weights: dict[str, float] = dict.fromkeys((*HONEST, "h0"), 0.0)
    stopped = 0
    for i in range(1500):
        name = "h0" if i % 10 else HONEST[1 + i // 10 % (len(HONEST) - 1)]
        event = stream.event(name)
        verdict = chain.decide(event)
        chain.observe(event, verdict)
        weights[name] += verdict.factor if i >= 700 else 0.0
        stopped += not verdict.taken
    share = weights["h0"] / sum(weights.values())
    assert share <= 0.5, f"the flood has {share:.0%} of what is learned"
    assert stopped >= 500, f"{stopped} of 1,350 events of a flood are set aside"
    rest = [weights[name] for name in HONEST[1:]]
    assert min(rest) >= 4, f"what the others have: {rest}"


def made_up_names_share_a_budget(make: Make) -> None:
    """A new name for each event."""
    stream = Stream(1)
    chain = chain_of(make, stream)
    play(chain, stream, 400)
    new = 0.0
    for i in range(1000):
        event = stream.event(f"new{i}" if i % 4 else HONEST[i // 4 % len(HONEST)])
        verdict = chain.decide(event)
        chain.observe(event, verdict)
        new += verdict.factor if i % 4 and i >= 400 else 0.0
    assert new <= 250, f"{new:.0f} of 450 events of made-up names are learned"


def repeats_weigh_less(make: Make) -> None:
    """The same row again and again."""
    stream = Stream(1)
    chain = chain_of(make, stream)
    event = stream.event("h1")
    factors = []
    for i in range(6):
        again = replace(event, key=bytes([i]))
        verdict = chain.decide(again)
        chain.observe(again, verdict)
        factors.append(chain.decide(again).opinions[1].factor)
    assert factors == sorted(factors, reverse=True), factors
    assert factors[-1] <= 0.2, factors
    other = replace(event, source="h2", key=b"other")
    assert chain.decide(other).opinions[1].factor == 1.0, "another source's same row"


def copies_weigh_less(make: Make) -> None:
    """One vector by several sources: the first is heard whole, who comes later is a copier."""
    stream = Stream(1)
    chain = chain_of(make, stream)
    play(chain, stream, 50)
    event = stream.event("h1")
    found = []
    for i, source in enumerate(("h1", "x1", "x2", "x3")):
        noise = np.float32(1e-3) * stream.gradient(*stream.rows(1))
        copy = replace(event, source=source, key=bytes([i]), gradient=_of(event) + noise)
        verdict = chain.decide(copy)
        found.append(verdict.opinions[1])
        chain.observe(copy, verdict)
    assert [round(o.factor, 3) for o in found] == [1.0, 0.5, 0.333, 0.25], found
    assert [o.evidence < 0.0 for o in found] == [False, True, True, True], found
    next_one = chain.decide(replace(event, gradient=stream.event("h1").gradient)).opinions[1]
    assert (next_one.factor, next_one.evidence) == (1.0, 0.0), "who was copied is condemned"
    own = stream.event("h2")
    chain.observe(own, chain.decide(own))
    assert chain.decide(own).opinions[1].factor == 1.0, "who repeats itself is held to copy"


def colluders_are_set_aside(make: Make) -> None:
    """Five who send one vector, whatever it is."""
    _most(make, lambda s, i, e: replace(e, gradient=s.root_gradient(np.arange(40))), 0.05)


def says_nothing_where_honest_ones_are_alike(make: Make) -> None:
    """Means of very many rows are all one vector."""
    stream = Stream(2)
    stream.reference = Reference(
        [int(v) for v in stream.root_y], stream.root_gradient, rows=100 * ROWS
    )
    chain = chain_of(make, stream)
    first, second = stream.event("h1"), stream.event("h2")
    chain.observe(first, chain.decide(first))
    opinion = chain.decide(replace(second, gradient=first.gradient)).opinions[1]
    assert opinion.off, opinion


def contradictions_count(make: Make) -> None:
    """One source, one row, two labels."""
    stream = Stream(1)
    chain = chain_of(make, stream)
    event = stream.event("h1")
    chain.observe(event, chain.decide(event))
    against = replace(event, label="other", digest=1)
    opinion = chain.decide(against).opinions[1]
    assert opinion.evidence < 0, opinion
    assert chain.decide(replace(against, source="h2")).opinions[1].evidence == 0.0, "framed"


def refuses_what_is_no_gradient(make: Make) -> None:
    """Not finite, too long, of another shape or type."""
    stream = Stream(1)
    test: Filter = make(stream.reference)
    good = stream.event("h1")
    bad: list[object] = [np.zeros(SIZE + 1, np.float32), np.zeros((1, SIZE), np.float32)]
    bad += [np.zeros(SIZE), [0.0] * SIZE, "x"]
    for value in (float("nan"), float("inf"), -float("inf"), 1e12, 3e38):
        vector = _of(good).copy()
        vector[3] = value
        bad.append(vector)
    events = [replace(good, gradient=vector) for vector in bad]  # type: ignore[arg-type]
    events += [replace(good, loss=x) for x in (float("nan"), float("inf"), -1.0, 1e12)]
    events += [replace(good, source=name) for name in ("", "n" * 257)]
    for event in events:
        opinion = test.judge(event, Source("h1"))
        assert opinion.refuse, f"{event}: {opinion}"
        assert opinion.stop, opinion
    assert not test.judge(good, Source("h1")).refuse, "an ordinary event"


def a_turned_world_is_followed(make: Make) -> None:
    """All labels turn at once: nobody is condemned for it, and after a while all is learned."""
    for seed in range(3):
        stream = Stream(seed)
        chain = chain_of(make, stream)
        play(chain, stream, 400)
        stream.turned = True
        played = play(chain, stream, 600)
        bad = [s.name for s in chain.sources if s.quarantined]
        assert not bad, f"in quarantine: {bad} (seed {seed})"
        share = share_taken(played[300:], HONEST)
        assert share >= 0.9, f"the turned world is learned with a factor of {share:.2f}"


def _of(event: Event) -> Gradient:
    assert event.gradient is not None
    return event.gradient


def _unit(event: Event) -> Gradient:
    return _of(event) / np.float32(np.linalg.norm(_of(event)))
