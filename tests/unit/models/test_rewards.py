"""The model of rewards learns of actions what they bring, and its counts add up over replicas."""

from __future__ import annotations

import math

import numpy as np
import pytest

from online.decide import Policy, draw, row, uniform
from online.models.choices.action_counts import Arms
from online.models.choices.expert_table import Table
from online.models.choices.interactions import Vector, alike, hash_of, laid_out, right, settled
from online.models.choices.lessons import Lessons, Rewarded
from online.models.choices.scores import Scores, Served, served_of
from online.models.errors import LearnerUnusable, StateNotFinite
from online.models.rewards import Action, Question, RewardModel, Rewards
from paramserver.core.blocks import ROWS, Block, Blocks, combine, merge
from paramserver.core.tables.rows import Rows
from replay.example import Example, Features

ACTIONS: list[Action] = [("a", {}), ("b", {}), ("c", {})]


def model_of(**given: float) -> RewardModel:
    return Rewards(bits=12, **given).model_for("regression")  # type: ignore[arg-type]


def context_of(t: int) -> Features:
    return {"x": float(t % 3), "kind": "uvw"[t % 3]}


def teach(model: RewardModel, t: int, *, policy: Policy | None = None, notes: bool = True) -> float:
    """One choice whose right action is that of its context's number; the reward."""
    scores = model.score(context_of(t), ACTIONS)
    decision = (policy or Policy()).decide(scores)
    i = draw(decision.probabilities, uniform(b"k", b"%d" % t))
    reward = float(i == t % 3)
    kept = decision.notes(scores, i) if notes else None
    model.learn_noted(Example(row(context_of(t), *ACTIONS[i]), reward, notes=kept), 1.0)
    return reward


def test_what_is_not_rewarded_speaks_for_the_others() -> None:
    seen, blind = model_of(), model_of()
    features = row(context_of(0), "a", {})
    for _ in range(20):
        scores = seen.score(context_of(0), ACTIONS)
        even = Policy(kind="epsilon", epsilon=1.0).decide(scores)
        seen.learn_noted(Example(features, 0.0, notes=even.notes(scores, 0)), 1.0)
        blind.learn(features, 0.0, 1.0)
    rivals = slice(4, 8)
    assert (seen.score(context_of(0), ACTIONS).answers[rivals, 1] > 0.42).all()
    assert (blind.score(context_of(0), ACTIONS).answers[rivals, 1] < 0.34).all()


def test_what_taught_the_rivals_nothing_gives_them_no_say() -> None:
    """Rows of a log that was not chosen here: who else might have been chosen is not known."""
    model = model_of()
    for t in range(300):
        i = t // 3 % 3
        model.learn(row(context_of(t), *ACTIONS[i]), float(i == t % 3), 1.0)
    scores = model.score(context_of(0), ACTIONS)
    rivals = [*range(4, 8), *range(12, 16)]
    assert scores.votes[rivals].sum() < 0.05
    assert scores.answers[rivals] == pytest.approx(1 / 3)
    assert scores.shares[0] > 0.9, scores.shares


def test_deltas_of_two_replicas_merge_to_what_both_have_counted() -> None:
    first, second = model_of(), model_of()
    for t in range(40):
        teach(first, t)
        teach(second, t + 1000)
    deltas = first.cut(), second.cut()
    there, back = combine(*deltas), combine(*reversed(deltas))
    values: Blocks = {}
    merge(values, there)
    for name in ("arms", "tried"):
        ours, theirs = there[name].data, back[name].data
        assert ours.keys() == theirs.keys()
        assert all(math.isclose(ours[k], theirs[k], abs_tol=1e-12) for k in ours)
    rows, others = there["experts"].data, back["experts"].data
    assert set(rows.ids.tolist()) == set(others.ids.tolist())
    assert rows.numbers == pytest.approx(others.get(rows.ids)[0], abs=1e-5)
    assert values["arms"].data["n:"] == 80
    fresh = model_of()
    fresh.reset(values)
    assert fresh.score(context_of(0), ACTIONS).arms.n.sum() == 80


def test_a_replica_that_takes_the_values_goes_on_as_the_one_that_learned() -> None:
    one, values = model_of(), Blocks()
    for t in range(60):
        teach(one, t)
    merge(values, one.cut())
    other = model_of()
    other.reset(values)
    assert other.score(context_of(1), ACTIONS).shares.tolist() == pytest.approx(
        one.score(context_of(1), ACTIONS).shares.tolist(), abs=1e-12
    )


def test_what_is_sent_is_to_the_last_bit_what_was_learned() -> None:
    """Contexts have no numbers: moments, which add up within rounding, have no part in it."""
    model, alone, values = model_of(), model_of(), Blocks()
    for t in range(90):
        scores = model.score({"kind": "uvw"[t % 3]}, ACTIONS)
        notes = Policy(kind="softmax").decide(scores).notes(scores, t % 2)
        features = row({"kind": "uvw"[t % 3]}, *ACTIONS[t % 2])
        for each in (model, alone):
            each.learn_noted(Example(features, float(t % 5 == 0), notes=notes), 1.0)
        if t % 7 == 6:
            merge(values, model.cut())
            model.rebase(values)
    other, asked = model_of(), {"kind": "u"}
    other.reset(values)
    behind = other.score(asked, ACTIONS).answers[:16]
    merge(values, model.cut())
    other.reset(values)
    now = model.score(asked, ACTIONS).answers[:16]
    assert other.score(asked, ACTIONS).answers[:16].tolist() == now.tolist()
    assert behind.tolist() != now.tolist()  # the control: rows since the cut before were not in it
    assert alone.score(asked, ACTIONS).answers[:16] == pytest.approx(now, abs=1e-5)


def test_all_experts_in_arrays_answer_as_sums_feature_by_feature() -> None:
    """The plain loop: each expert's sum over the features, one number of the table at a time."""
    model = Rewards().model_for("regression")  # 2^18 places: no two features share one
    told: list[Action] = [(f"a{i}", {"price": float(i), "red": bool(i % 2)}) for i in range(4)]
    for t in range(60):
        teach_one(model, t, told)
    context = {"x": 0.7, "kind": "u"}
    answers = model.score(context, told).answers
    x = laid_out([model._crossing.context(context)])
    sides, forms = x.sides[0], x.forms[0]
    for i, (name, features) in enumerate(told):
        one, own = model._crossing.action(features), hash_of(name)
        for head, form, part in ((0, 0, slice(0, x.plain)), (2, 1, slice(x.plain, None))):
            sums = np.zeros(4)
            for side, number in zip(sides[part], forms[form, part], strict=True):
                salt = 0xD6E8FEB86659FD93 * head % 2**64
                sums += held(model, side, np.uint64(own ^ salt)) * number
            at = slice(4 * head, 4 * head + 4)
            assert answers[at, i] == pytest.approx(1.0 / (1.0 + np.exp(-sums)), abs=1e-12)
        salt = np.uint64(0xD6E8FEB86659FD93 * 4 % 2**64)
        sums = held(model, sides[0], np.uint64(own) ^ salt).astype(np.float64)
        for action, value in zip(one.hashes, one.numbers, strict=True):
            for side, number in zip(sides[: x.plain], x.plain_numbers[0], strict=True):
                sums += held(model, side, action ^ salt) * value * number
        assert answers[16:20, i] == pytest.approx(1.0 / (1.0 + np.exp(-sums)), abs=1e-12)
    assert np.abs(answers[:20] - 0.5).max() > 0.1


def test_of_two_features_with_one_place_the_later_of_an_action_counts() -> None:
    """By column each feature of the context, then by feature of the action the plain ones."""
    model = model_of()
    x = laid_out([model._crossing.context({"a": True, "b": True})])
    of_action = Vector(np.array([[7, 8]], np.uint64), np.array([[1.0, 2.0]]))
    rivals = (hash_of("a"), hash_of("b"))
    made = Lessons.of([Rewarded(rivals, 1, 1.0, 1.0, 1.0)], x, of_action, 12)
    sides, salt = x.sides[0], 0xD6E8FEB86659FD93

    def at(features: slice, column: int, head: int) -> list[int]:
        hashed = right(np.array([column ^ (salt * head % 2**64)], np.uint64))
        return settled(sides[features] ^ hashed, 12).tolist()

    plain, knots = slice(0, x.plain), slice(x.plain, None)
    wanted = at(plain, rivals[1], 0) + at(knots, rivals[1], 2)
    for rival in rivals:
        wanted += at(plain, rival, 1) + at(knots, rival, 3)
    wanted += at(plain, 7, 4) + at(plain, 8, 4) + at(slice(0, 1), rivals[1], 4)
    assert made.places.tolist() == [wanted]
    held = np.zeros((6, 1), np.float32)  # all in one slot
    made.teach(held, np.zeros_like(made.places))
    alone = np.zeros((6, 1 + max(made.places[0])), np.float32)
    made.teach(alone, made.places)
    assert held[:, 0].tolist() == alone[:, made.places[0, -1]].tolist()


def held(model: RewardModel, side: np.uint64, hashed: np.uint64) -> np.ndarray:
    """What the table has of each expert at the place of a product."""
    place = settled(np.array([side]) ^ right(np.array([hashed])), 18)[0]
    return model._table._now[place, :4].astype(np.float64)


def teach_one(model: RewardModel, t: int, told: list[Action]) -> None:
    """One choice among these, drawn evenly."""
    scores = model.score(context_of(t), told)
    decision = Policy(kind="epsilon", epsilon=1.0).decide(scores)
    i = t % len(told)
    notes = decision.notes(scores, i)
    model.learn_noted(Example(row(context_of(t), *told[i]), float(i == t % 3), notes=notes), 1.0)


def test_scoring_all_at_once_is_scoring_one_by_one_where_actions_do_not_compete() -> None:
    model = model_of()
    described: list[Action] = [("a", {"price": 1.0}), ("b", {"price": 3.0, "red": True})]
    for t in range(30):
        for name, features in described:
            model.learn(row(context_of(t), name, features), float(name == "a"), 1.0)
    together = model.score(context_of(0), described)
    for i, action in enumerate(described):
        alone = model.score(context_of(0), [action])
        for experts in (slice(0, 4), slice(8, 12), slice(16, 20)):
            assert together.answers[experts, i] == pytest.approx(alone.answers[experts, 0])


def test_actions_that_are_alike_are_scored_in_one_array_as_each_by_itself() -> None:
    model = model_of()
    told: list[Action] = [
        (f"a{i}", {"price": float(i), "size": i % 3, "old": -0.5 * i}) for i in range(5)
    ]
    for t in range(60):
        name, features = told[t % 5]
        model.learn(row(context_of(t), name, features), float(t % 5 == t % 3), 1.0)
    turned = [(name, dict(reversed(features.items()))) for name, features in told[:1]]
    asked = [*told, ("new", {"price": 1e9, "size": 2**53, "old": 0.0})]
    assert alike([features for _, features in asked]) is not None
    assert alike([features for _, features in (*turned, *asked[1:])]) is None
    together, apart = (
        model.score(context_of(1), asked),
        model.score(context_of(1), turned + asked[1:]),
    )
    assert together.shares.tolist() == pytest.approx(apart.shares.tolist(), abs=1e-12)
    assert together.variances.tolist() == pytest.approx(apart.variances.tolist(), rel=1e-12)
    assert together.means[0] != pytest.approx(together.means[4], abs=1e-3)


def test_choices_that_are_asked_together_are_scored_and_decided_as_each_by_itself() -> None:
    model, rng = model_of(), np.random.default_rng(3)
    for t in range(60):
        teach(model, t)
    asked: list[Question] = []
    for t in range(40):
        told: list[Action] = [
            (f"a{(i + t // 7) % 9}", {"price": float(rng.normal()), "size": 1.0 + i})
            for i in range(3 + t % 2)
        ]
        if t % 5 == 0:  # not alike
            told[0] = told[0][0], {"red": True}
        context = context_of(t) if t % 4 else {"x": 1.0, "y": float(t)}
        asked.append(({} if t % 11 == 0 else context, told, None))
    policies = Policy(floor=0.05), Policy(budget=0.2), Policy(kind="softmax"), Policy()
    together = model.score_many(asked)
    shapes = {id(scores.tried) for scores in together}
    assert len(shapes) < 30  # some of them were in the same arrays
    allowed = [
        [j != 1 for j in range(len(told))] if t % 3 else None
        for t, (_, told, _) in enumerate(asked)
    ]
    for policy in policies:
        several = policy.decide_many(together, allowed)
        for question, scores, decision, free in zip(asked, together, several, allowed, strict=True):
            alone = model.score(*question)
            assert scores.answers == pytest.approx(alone.answers, abs=1e-12)
            assert scores.variances == pytest.approx(alone.variances, rel=1e-12)
            assert scores.ids == alone.ids
            one = policy.decide(alone, free)
            assert decision.probabilities == pytest.approx(one.probabilities, abs=1e-6)
            assert decision.tried.keys() == one.tried.keys()
            for name, p in one.tried.items():
                assert decision.tried[name] == pytest.approx(p, abs=1e-6)
            assert list(decision.allowed) == list(one.allowed)
    rows = [row(context, *told[0]) for context, told, _ in asked]
    for answer, features in zip(model.predict_many(rows), rows, strict=True):
        assert answer.label == pytest.approx(model.predict(features).label, abs=1e-12)


@pytest.mark.parametrize("odd", [True, "text", None, 2**53 + 1, 10**400])
def test_what_is_no_plain_number_is_not_in_the_array(odd: object) -> None:
    rows: list[Features] = [{"x": 1.0, "y": 2}, {"x": 3.0, "y": odd}]  # type: ignore[dict-item]
    assert alike(rows) is None
    assert alike(rows[:1]) is not None
    assert alike([{}, {}]) is None
    assert alike([*rows[:1], {"x": 1.0}]) is None


def test_an_action_that_was_never_seen_is_known_by_its_features() -> None:
    model = Rewards().model_for("regression")
    for t in range(200):
        price = float(t % 5)
        reward = float(price < 2.0)
        model.learn(row({"x": float(t % 3)}, f"item {t}", {"price": price}), reward, 1.0)
    new: list[Action] = [("new", {"price": 4.0}), ("newer", {"price": 0.0})]
    scores = model.score({"x": 1.0}, new)
    assert scores.means[1] > scores.means[0] + 0.3
    nameless = model.score({"x": 1.0}, [("new", {}), ("newer", {})])
    assert nameless.means[1] == pytest.approx(nameless.means[0], abs=0.02)  # the control


def test_rewards_of_any_range_are_foretold_in_their_own_unit() -> None:
    model = model_of(low=-5.0, high=15.0)
    for t in range(200):
        model.learn(row({}, "ab"[t % 2], {}), 10.0 if t % 2 else -2.0, 1.0)
    means = model.score({}, [("a", {}), ("b", {})]).means
    assert means.tolist() == pytest.approx([-2.0, 10.0], abs=0.5)


def test_a_seldom_chosen_action_weighs_more_if_that_is_asked_for() -> None:
    def moved(clip: float) -> float:
        model = model_of(clip=clip)
        scores = model.score(context_of(0), ACTIONS)
        notes = scores.notes(0, 0.1, [True] * 3, {})
        model.learn_noted(Example(row(context_of(0), "a", {}), 1.0, notes=notes), 1.0)
        return float(model.score(context_of(0), ACTIONS).answers[2, 0])

    assert moved(1.0) == moved(1.0)
    assert moved(8.0) > moved(1.0)


def test_the_width_that_gains_is_believed_and_in_another_log_another() -> None:
    served = Served(0.5, b"", tried={"0.1": 0.9, "1": 0.1})
    assert served.credits(1.0, 0.5)["0.1"] > served.credits(1.0, 0.5)["1"]
    assert served.credits(0.0, 0.5)["0.1"] < served.credits(0.0, 0.5)["1"]
    assert Served(0.0, b"", tried={"1": 1.0}).credits(1.0, 0.5) == {}


def test_notes_of_a_choice_hold_the_propensity_and_who_was_allowed() -> None:
    model = model_of()
    scores = model.score(context_of(0), ACTIONS)
    decision = Policy().decide(scores, [True, False, True])
    served = served_of(decision.notes(scores, 2) or b"")
    assert served is not None
    assert served.propensity == pytest.approx(decision.probabilities[2])
    assert served.rivals(scores.ids[2]) == [scores.ids[0], scores.ids[2]]
    assert served.rivals(scores.ids[1]) is None
    assert served_of(b"\xc1") is None


def test_notes_of_very_many_actions_leave_out_who_they_were() -> None:
    model = model_of()
    many: list[Action] = [(f"item {i}", {}) for i in range(2000)]
    scores = model.score({}, many)
    notes = scores.notes(5, 0.5, [True] * 2000, {})
    assert notes is not None
    assert len(notes) < 4096
    served = served_of(notes)
    assert served is not None
    assert served.rivals(scores.ids[5]) is None


def test_asking_changes_nothing() -> None:
    model = model_of()
    for t in range(10):
        teach(model, t)
    model.cut()
    before = model.score(context_of(0), ACTIONS).shares.tolist()
    model.score({"new": 1.0}, [("z", {"w": 2.0})])
    assert model.cut() == {}
    assert model.score(context_of(0), ACTIONS).shares.tolist() == before


def test_settings_that_can_not_be_are_refused() -> None:
    with pytest.raises(LearnerUnusable, match="are no range"):
        Rewards(low=1.0, high=1.0)
    with pytest.raises(LearnerUnusable, match="clip is"):
        Rewards(clip=0.5)
    with pytest.raises(LearnerUnusable, match="the task is multiclass"):
        Rewards().model_for("multiclass")


def test_scores_are_frozen() -> None:
    scores: Scores = model_of().score({}, ACTIONS)
    with pytest.raises(AttributeError):
        scores.low = 1.0  # type: ignore[misc]
    assert np.isfinite(scores.shares).all()


def changed(table: Table, places: list[int], steps: np.ndarray) -> bool:
    """Add a step to the numbers at each place, one place after the other."""
    slots, numbers, at = table.opened(np.array([places]))
    for i in at[0]:
        numbers[:, i] += steps
    return table.put(slots, numbers)


def test_a_slot_that_a_row_repeats_is_in_the_delta_once_and_new_values_leave_its_change() -> None:
    table, steps = Table("experts", 6), np.array([1.0, -1.0, 0.5, 0.25, 2.0, 3.0])
    for places in ([3, 5, 3], [5, 7]):
        assert changed(table, places, steps)
    learned = table.take(np.array([3, 5, 7]))
    np.testing.assert_array_equal(learned, np.outer([2.0, 2.0, 1.0], steps))
    assert not changed(table, [3, 9], np.full(6, np.inf))
    np.testing.assert_array_equal(table.take(np.array([3, 5, 7])), learned)
    new = Rows(np.array([3, 9], np.uint64), np.ones((2, 6), np.float32))
    table.rebase({"experts": Block(ROWS, new)})
    np.testing.assert_array_equal(table.take(np.array([3])), learned[:1] + 1.0)
    cut = table.cut()["experts"].data
    assert sorted(cut.ids.tolist()) == [3, 5, 7]
    order = np.argsort(cut.ids)
    np.testing.assert_allclose(cut.numbers[order], learned, rtol=1e-6)
    assert table.cut() == {}


def rewarded(model: RewardModel, t: int, n: int, *, text: bool) -> Example:
    """One rewarded choice among ``n`` actions; of 40, eight have no notes."""
    rng = np.random.default_rng(t)
    context: Features = {"x": float(rng.normal()), "y": int(rng.integers(9))}
    if text:
        context["kind"] = "uvw"[t % 3]
    told: list[Action] = [(f"a{i}", {"price": float(rng.normal())}) for i in range(n)]
    scores = model.score(context, told)
    decision = Policy().decide(scores)
    i = draw(decision.probabilities, uniform(b"k", b"%d" % t))
    notes = decision.notes(scores, i) if t // 8 % 5 else None
    return Example(row(context, *told[i]), float(rng.random() < 0.4), notes=notes)


@pytest.mark.parametrize("text", [False, True])
def test_rewards_in_one_pass_leave_what_one_by_one_leaves(text: bool) -> None:
    one, many = model_of(clip=3.0), model_of(clip=3.0)
    passes = 0
    for t in range(0, 120, 8):
        some = [rewarded(one, t + i, 5 + (t // 8 + i // 6) % 2, text=text) for i in range(8)]
        weights = [1.0 + 0.5 * (i % 3) for i in range(8)]
        for example, weight in zip(some, weights, strict=True):
            one.learn_noted(example, weight)
        for begin, end in ((0, 6), (6, 7), (7, 8)):
            if many.learn_alike(some[begin:end], weights[begin:end]):
                passes += end - begin > 1
                continue
            for example, weight in zip(some[begin:end], weights[begin:end], strict=True):
                many.learn_noted(example, weight)
        if t % 3 == 0:
            assert one.cut() == many.cut()
    assert one.cut() == many.cut()
    asked = one.score({"x": 0.5, "y": 1}, [("a0", {"price": 1.0}), ("a1", {"price": 0.0})])
    same = many.score({"x": 0.5, "y": 1}, [("a0", {"price": 1.0}), ("a1", {"price": 0.0})])
    assert asked.shares.tolist() == same.shares.tolist()
    assert one.cut() == {}
    assert passes > 5


def test_rewards_that_differ_in_shape_or_are_not_finite_change_nothing_in_one_pass() -> None:
    model = model_of()
    few, many = rewarded(model, 8, 3, text=False), rewarded(model, 9, 4, text=False)
    huge = Example(row({"x": 1e200, "y": 1}, "a0", {"price": 1.0}), 1.0, notes=few.notes)
    odd = Example(row({"x": "text", "y": 1}, "a0", {"price": 1.0}), 1.0, notes=few.notes)
    assert model.learn_alike([few, few], [1.0, 1.0])
    model.cut()
    for wrong in ([few, many], [few, huge], [few, odd]):
        assert not model.learn_alike(wrong, [1.0, 1.0])
        assert model.cut() == {}
    with pytest.raises(StateNotFinite):
        model.learn_noted(huge, 1.0)


def test_the_means_of_one_action_are_those_it_has_among_others() -> None:
    arms = Arms()
    for i in range(60):
        arms.learn(i % 3, (i % 5) / 4.0, 1.0 + i % 2)
    among = arms.of((0, 1, 2, 7)).means
    for i, action in enumerate((0, 1, 2, 7)):
        assert arms.means_of(action) == tuple(among[:, i])
