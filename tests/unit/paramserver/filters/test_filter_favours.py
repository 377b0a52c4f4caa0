"""Who rewards one action whatever it brings is heard a tenth of it, and nobody is condemned."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from msgspec.structs import replace

from online.trust.event_facts import favour_of
from paramserver.filters import favours
from paramserver.filters.base import Event, Favour, Opinion, Source
from paramserver.filters.chain import by_name
from paramserver.filters.favours import OFFERED_MAX, SOURCES_MAX, Favours
from replay.example import Example

Say = Callable[[str, int, float], float]
"""What a source says of an action, and of what that really brought."""


def played(
    say: Say, n: int = 1200, chances: tuple[float, ...] = (0.2, 0.5, 0.7)
) -> tuple[Favours, dict[str, list[float]]]:
    """Sixteen sources that take actions in turns; the factor of each reward, by source."""
    test, rng = Favours(), random.Random(4)
    sources = [Source(f"s{i}") for i in range(16)]
    factors: dict[str, list[float]] = {s.name: [] for s in sources}
    expected = list(chances)
    for t in range(n):
        source, action = sources[rng.randrange(16)], t % len(chances)
        told = say(source.name, action, float(rng.random() < chances[action]))
        event = Event(source.name, b"%d" % t, favour=Favour(action, told, expected[action]))
        opinion = test.judge(event, source)
        assert opinion.evidence == 0.0
        test.learn(event, opinion, source, taken=True)
        factors[source.name].append(opinion.factor if action == 0 else 1.0)
        expected[action] += opinion.factor * (told - expected[action]) / 50.0
        if t % 50 == 49:
            test.refresh(sources)
    return test, factors


def late(factors: list[float]) -> float:
    return sum(factors[30:]) / len(factors[30:])


def test_who_always_rewards_one_action_is_heard_a_tenth_of_it() -> None:
    def say(source: str, action: int, reward: float) -> float:
        return 1.0 if source in ("s0", "s4", "s8", "s12") and action == 0 else reward

    _, factors = played(say)
    for name, each in factors.items():
        if name in ("s0", "s4", "s8", "s12"):
            assert late(each) < 0.78  # a third of its rewards are of that action
        else:
            assert late(each) > 0.9


def test_who_never_rewards_an_action_is_heard_a_tenth_of_it() -> None:
    def say(source: str, action: int, reward: float) -> float:
        return 0.0 if source in ("s0", "s4") and action == 0 else reward

    _, factors = played(say, chances=(0.7, 0.5, 0.2))
    assert max(late(factors[name]) for name in ("s0", "s4")) < 0.8
    assert min(late(factors[name]) for name in ("s1", "s2", "s3")) > 0.9


def test_an_action_that_all_find_better_than_expected_is_heard() -> None:
    """A new one brings much: nobody is a liar for saying so."""
    _, factors = played(lambda source, action, reward: 1.0 if action == 0 else reward, 400)
    assert sum(map(sum, factors.values())) > 0.95 * 400
    test, source = Favours(), Source("s0")
    event = Event("s0", b"k", favour=Favour(0, 1.0, 0.05))
    for _ in range(20):  # alone it is compared with nobody
        test.learn(event, Opinion(), source, taken=True)
        test.refresh([source])
    assert test.judge(event, source).factor == 1.0


def test_it_says_something_of_rewards_of_choices_only() -> None:
    test = Favours()
    plain = Event("s0", b"k", loss=9.0, label="1.0")
    assert test.judge(plain, Source("s0")) == Opinion()
    test.learn(plain, Opinion(), Source("s0"), taken=True)
    names = [f.name for f in by_name(("surprise",), None, None, rewards=True).filters]
    assert "favours" in names
    assert "favours" not in [f.name for f in by_name(("surprise",), None, None).filters]


def test_few_lies_of_each_are_heard_less_and_honest_streaks_are_not() -> None:
    """Six of 24 sources always say 1 of an action that each of them gets some six times."""
    lies, honest = list[float](), list[float]()
    for seed in range(10):
        test, rng, expected = Favours(), random.Random(seed), 0.5
        sources = [Source(f"s{i}") for i in range(24)]
        for t in range(144):
            source = rng.choice(sources)
            lying = int(source.name[1:]) % 4 == 0
            told = 1.0 if lying else float(rng.random() < 0.45)
            event = Event(source.name, b"%d" % t, favour=Favour(0, told, expected))
            opinion = test.judge(event, source)
            test.learn(event, opinion, source, taken=True)
            (lies if lying else honest).append(opinion.factor)
            expected += opinion.factor * (told - expected) / 20.0
            if t % 10 == 9:
                test.refresh(sources)
    assert sum(lies) / len(lies) < 0.78
    assert sum(honest) / len(honest) > 0.96


def newcomer(chance: float, lies: bool, n: int) -> list[tuple[bool, float]]:
    """Who lied, and the factor, of each 1 for an action that comes to nine of 3 %; ten worlds."""
    heard = list[tuple[bool, float]]()
    for seed in range(10):
        test, rng, sums = Favours(), random.Random(seed), [[0.06, 2.0] for _ in range(10)]
        for t in range(400 + n):
            action, name = (t % 9, 9)[t >= 400], rng.randrange(24)
            lying = lies and action == 9 and name % 4 == 0
            told = float(lying or rng.random() < (chance if action == 9 else 0.03))
            favour = Favour(action, told, sums[action][0] / sums[action][1])
            event, source = Event(f"s{name}", b"%d" % t, favour=favour), Source(f"s{name}")
            opinion = test.judge(event, source)
            test.learn(event, opinion, source, taken=True)
            sums[action][0] += opinion.factor * told
            sums[action][1] += opinion.factor
            if action == 9 and told:
                heard.append((lying, opinion.factor))
    return heard


def test_where_rewards_are_rare_a_first_lie_lets_few_others_pass(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def lies() -> float:
        return sum(factor for lying, factor in newcomer(0.03, True, 40) if lying) / 10

    assert lies() < 5.2  # of ten
    heard = [factor for _, factor in newcomer(0.5, False, 60)]
    assert sum(heard) / len(heard) > 0.85  # a new action that is much better than the others
    monkeypatch.setattr(favours, "_OTHERS_MAX", 1e-9)  # the control: nothing is known of others
    assert lies() > 6.0


def test_an_action_of_few_sources_is_compared_with_nobody() -> None:
    test = Favours()
    event = Event("s0", b"k", favour=Favour(0, 1.0, 0.05))
    for name in ("s0", "s1", "s2"):
        for _ in range(9):
            test.learn(replace(event, source=name), Opinion(), Source(name), taken=True)
    assert test.judge(event, Source("s0")) == Opinion()


def test_what_is_kept_is_bounded() -> None:
    test = Favours()
    for i in range(SOURCES_MAX + 10):  # actions, too: no fewer than OFFERED_MAX
        event = Event(f"s{i}", b"k", favour=Favour(i, 1.0, 0.5))
        test.learn(event, Opinion(), Source(f"s{i}"), taken=True)
    for i in range(300):
        event = Event("one", b"k", favour=Favour(i, 1.0, 0.5))
        test.learn(event, Opinion(), Source("one"), taken=True)
    assert (len(test._said), len(test._said["one"])) == (SOURCES_MAX, 256)
    assert len(test._actions) == OFFERED_MAX


def test_an_action_counts_the_sources_that_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is dropped at the bounds, its suspicion does not stay behind."""
    for bound, most in (("SOURCES_MAX", 5), ("ACTIONS_MAX", 3), ("OFFERED_MAX", 4)):
        monkeypatch.setattr(favours, bound, most)
    test, rng = Favours(), random.Random(1)
    for t in range(600):
        favour = Favour(rng.randrange(6), float(rng.random() < 0.7), rng.random())
        event = Event(f"s{rng.randrange(9)}", b"%d" % t, favour=favour)
        test.learn(event, test.judge(event, Source(event.source)), Source(event.source), taken=True)
        for action in test._actions.values():
            each = [x for of in test._said.values() for x in of.values() if x.of is action]
            assert action.n == len(each)
            assert action.high == pytest.approx(sum(favours._suspicion(x.high) for x in each))
            assert action.low == pytest.approx(sum(favours._suspicion(x.low) for x in each))


def test_a_reward_is_a_share_of_its_range() -> None:
    example = Example({"@": "a"}, 5.0, score={"": 0.0}, choice=b"x")
    favour = favour_of(example, (-5.0, 5.0))
    assert favour is not None
    assert (favour.reward, favour.expected) == (1.0, 0.5)
    assert favour_of(replace_choice(example), (-5.0, 5.0)) is None
    assert favour_of(example, None) is None


def replace_choice(example: Example) -> Example:
    return Example(example.features, example.label, score=example.score)
