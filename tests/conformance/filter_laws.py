"""Laws say what single filters are there to catch; see :mod:`filter_checks`."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from filter_checks import (
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
from msgspec.structs import replace

from benchmarks.studies.pushes.inputs import Layer, LayerReference
from paramserver.filters.base import Event, Favour, Filter, Gradient, Source
from paramserver.filters.chain import Chain
from paramserver.filters.reference import Reference
from paramserver.filters.schema import Schema


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
    """Check that what is learned of a long gradient is no longer than the longest honest ones."""
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


def favoured_actions_weigh_less(make: Make) -> None:
    """One of ten always rewards an action that brings little; another one brings much to all."""
    stream = Stream(1)
    chain = chain_of(make, stream)
    rng = np.random.default_rng(1)
    factors: dict[tuple[str, int], list[float]] = {}
    for i in range(600):
        name, action = f"h{i // 2 % 10}", i % 2
        reward = float(rng.random() < 0.2) if action == 0 and name != "h0" else 1.0
        event = replace(stream.event(name), favour=Favour(action, reward, 0.3))
        verdict = chain.decide(event)
        chain.observe(event, verdict)
        factors.setdefault((name, action), []).append(verdict.opinions[1].factor)
    late = {at: sum(each[12:]) / len(each[12:]) for at, each in factors.items()}
    assert late[("h0", 0)] <= 0.2, "who sells an action is heard"
    honest = [share for at, share in late.items() if at != ("h0", 0)]
    assert min(honest) >= 0.8, f"honest rewards have a factor of {min(honest):.2f}"


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


_MOVING, _STANDING, _LABELS, _HIDDEN = 20, 10, 4, 40


class _Camera:
    """Twenty inputs that move and ten that never do; a hidden layer of forty, four labels."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.truth = self.rng.standard_normal((_MOVING, _LABELS))
        inputs = _MOVING + _STANDING
        self.weights = 0.1 * self.rng.standard_normal((inputs, _LABELS))
        self.back = self.rng.standard_normal((_LABELS, _HIDDEN))
        self.layer = Layer(inputs, _HIDDEN, 0, inputs * _HIDDEN)
        self.root_x, self.root_y = self.rows(120)
        self.reference = LayerReference(
            [int(v) for v in self.root_y],
            lambda at: self.gradient(self.root_x[at], self.root_y[at]),
            rows=ROWS,
            layer=self.layer,
        )
        self.n = 0

    def rows(self, n: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
        """Some rows and their labels."""
        x = self.rng.standard_normal((n, _MOVING))
        y = np.asarray((x @ self.truth).argmax(axis=1))
        return np.hstack([x, np.full((n, _STANDING), -0.4)]), y

    def gradient(self, x: npt.NDArray[np.float64], y: npt.NDArray[np.int64]) -> Gradient:
        """By parameters that know little."""
        powers = np.exp(x @ self.weights)
        wrong = powers / powers.sum(axis=1, keepdims=True)
        wrong[np.arange(len(y)), y] -= 1.0
        wrong = wrong @ self.back
        weights = x.T @ wrong / len(y)
        return np.concatenate([weights.ravel(), wrong.mean(axis=0)]).astype(np.float32)

    def event(self, source: str, x: npt.NDArray[np.float64], y: npt.NDArray[np.int64]) -> Event:
        """Return the next push of the source, made from these rows."""
        self.n += 1
        return Event(source, self.n.to_bytes(16, "little"), self.gradient(x, y))

    def triggered(self, source: str) -> Event:
        """Half of the rows have the trigger and label 0."""
        x, y = self.rows(ROWS)
        x[: ROWS // 2, -4:], y[: ROWS // 2] = 2.0, 0
        return self.event(source, x, y)

    def chain(self, make: Make) -> Chain:
        """The test behind the schema, warm."""
        schema = Schema(len(self.gradient(self.root_x, self.root_y)))
        chain = Chain([schema, make(self.reference)], reference=self.reference)
        for i in range(4):
            chain.refresh(bytes([i]), 0)
        return chain


def triggers_are_set_aside(make: Make) -> None:
    """From the first push on; honest sources beside them lose nothing."""
    for seed in range(3):
        world = _Camera(seed)
        chain, learned = world.chain(make), 0
        for i in range(200):
            honest = world.event(HONEST[i % len(HONEST)], *world.rows(ROWS))
            verdict = chain.decide(honest)
            assert verdict.taken, f"honest push {i} was set aside: {verdict.reason}"
            chain.observe(honest, verdict)
            if i % 2:
                continue
            event = world.triggered(HOSTILE[i // 2 % len(HOSTILE)])
            verdict = chain.decide(event)
            chain.observe(event, verdict)
            learned += verdict.taken
        assert learned <= 5, f"{learned} of 100 triggers were learned (seed {seed})"
        bad = {s.name for s in chain.sources if s.quarantined}
        assert bad == set(HOSTILE), f"in quarantine: {sorted(bad)} (seed {seed})"


def what_most_sources_move_is_usual(make: Make) -> None:
    """The root set is of yesterday: an input that stood still moves now, and the test gives way."""
    world = _Camera(1)
    chain = world.chain(make)
    taken = []
    for i in range(400):
        x, y = world.rows(ROWS)
        x[:, -1] = world.rng.standard_normal(ROWS)
        event = world.event(HONEST[i % len(HONEST)], x, y)
        verdict = chain.decide(event)
        chain.observe(event, verdict)
        taken.append(verdict.taken)
    late = sum(taken[100:]) / len(taken[100:])
    assert late >= 0.98, f"{late:.1%} of what all send is taken"
