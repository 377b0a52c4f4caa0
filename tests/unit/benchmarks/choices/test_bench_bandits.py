"""The studies of choices in small: streams, worlds and logs."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from benchmarks.attacks import poisoned_rewards
from benchmarks.choices import bandits, bandits_worlds, propensities
from benchmarks.choices.bandits_streams import chances
from benchmarks.studies import offpolicy
from online.decide import Policy


def test_a_stream_as_choices_is_learned_beside_what_is_possible() -> None:
    lines = {
        line.what: line for line in bandits.run("phishing", None, (1,), 200, policies=["auto"])
    }
    assert {"auto", "full information", "best constant"} <= lines.keys()
    assert lines["best constant"].reward < lines["river LinUCB"].reward  # it sees the context
    assert lines["river Thompson"].reward < lines["auto"].reward
    assert lines["best constant"].reward + 0.1 < lines["auto"].reward
    assert lines["auto"].rows == 200
    there = importlib.util.find_spec("vowpalwabbit") is not None
    skipped = [name for name in lines if "skipped" in name]
    assert there != bool(skipped)


def test_actions_are_chosen_as_often_as_the_log_says_and_sharper_draws_are_noticed() -> None:
    """The short form of `python -m benchmarks propensities`."""
    for cells in propensities.run(20_000, ["auto", "softmax"]):
        assert cells.p >= 0.001
        assert cells.sharper < 0.001
        assert cells.cells > 10


def test_a_quarter_of_liars_is_heard_beside_the_others() -> None:
    """The short form of `python -m benchmarks poisoned-rewards`; without filters they are heard."""
    (clean, one, _) = poisoned_rewards.run([1], 120, names=["arms"])
    assert clean.regret > 0.0
    assert one.lie == "one action"
    assert clean.honest_aside < 0.1  # rewards of an action that come again are no copies


def test_the_peer_is_told_late_as_we_are() -> None:
    peer = pytest.importorskip("benchmarks.choices.bandits_peer")
    pytest.importorskip("vowpalwabbit")
    told = chances("phishing", None, 1, 150)
    at_once, never = (peer.run(told, "greedy", 0.5, 0.0, 1, late) for late in (0, 150))
    assert at_once > never


def test_rewards_that_are_told_late_are_learned_too() -> None:
    told = chances("phishing", None, 1, 200)
    assert bandits.play(told, Policy(), 1, late=50) > bandits.best_constant(told)


@pytest.mark.parametrize("world", bandits_worlds.WORLDS)
def test_each_world_has_a_best_action_that_is_there(world: str) -> None:
    made = bandits_worlds.make(world, 1, 40)
    assert (made.means <= 1.0).all()
    best = [min(made.regret(t, i) for i in range(made.means.shape[1])) for t in range(40)]
    assert max(best) == 0.0 or world == "late"
    assert made.there.any(axis=1).all()


def test_regret_is_less_than_that_of_no_policy_at_all() -> None:
    auto, *_ = [r for r in bandits_worlds.run("arms", (1, 2), 200, ["auto"]) if r.what == "auto"]
    evenly = []
    for seed in (1, 2):
        world = bandits_worlds.make("arms", seed, 200)
        evenly.append(sum(world.regret(t, t % 10) for t in range(200)))
    assert auto.regret < 0.7 * sum(evenly) / 2


def test_intervals_cover_in_small_and_the_simple_one_does_not() -> None:
    lines = offpolicy.run(range(1, 11), 150)
    assert all(line.good for line in lines)
    assert sum(line.missed_simple for line in lines) >= 10


def test_a_peer_that_is_not_there_is_missed_at_once(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no obp in"):
        offpolicy.run([1], 10, tmp_path)


def test_a_policy_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="no policy 'bold'"):
        bandits.kinds(["bold"])
