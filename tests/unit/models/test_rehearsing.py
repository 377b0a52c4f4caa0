"""Steps that learn kept rows beside a fresh one: beside gradients that torch works out itself."""

from __future__ import annotations

import copy
import itertools
import math
from typing import Any

import pytest
import torch
from river import linear_model, optim, preprocessing

from online.models.adapters.linear import Linear
from online.models.base import learn_example
from online.models.errors import LearnerUnusable, StateNotFinite
from online.models.estimator import Estimator
from online.models.ftrl import Ftrl
from online.models.loading.load import load
from online.models.network import Network, NetworkModel
from online.settings.model import Training
from paramserver.core import blocks as algebra
from paramserver.core.blocks import Blocks
from replay.buffers.item import Item
from replay.example import Example, Label
from replay.memory import Drawn, logits_of

INPUTS = ["a", "b", "c"]


def module(outputs: int) -> torch.nn.Sequential:
    torch.manual_seed(3)
    return torch.nn.Sequential(
        torch.nn.Linear(3, 5), torch.nn.Tanh(), torch.nn.Linear(5, outputs)
    ).double()


def features(i: int) -> dict[str, Any]:
    return {"a": math.sin(i), "b": math.cos(3 * i), "c": (i % 7) / 7}


def drawn(labels: list[Label], score: dict[str, float] | None, **more: Any) -> Drawn:
    logits = None if score is None else logits_of(score)
    items = tuple(
        Item(bytes([i]) * 16, features(i + 50), label, 1.0 + i, "", logits, 7 * i)
        for i, label in enumerate(labels)
    )
    settings: dict[str, Any] = {"shares": {}, "distil": 0.0, **more}
    return Drawn(items, tuple(100 - item.at for item in items), **settings)


def by_hand(
    outputs: int, loss: Any, targets: list[Any], weights: list[float], adjust: Any, pull: Any
) -> list[torch.Tensor]:
    """Weights after one step of rate .1, differentiated by torch from the loss as it is written."""
    net = module(outputs)
    rows = [features(1), *(features(i + 50) for i in range(len(targets) - 1))]
    out = net(torch.tensor([[x[name] for name in INPUTS] for x in rows], dtype=torch.float64))
    total = torch.zeros((), dtype=torch.float64)
    for i, (target, weight) in enumerate(zip(targets, weights, strict=True)):
        total = total + weight * loss(out[i : i + 1] + adjust, target)
    total = total + pull(out[1:])
    total.backward()
    with torch.no_grad():
        return [p - 0.1 * p.grad for p in net.parameters()]


def served(outputs: int, task: Any, **options: Any) -> NetworkModel:
    settings: dict[str, Any] = {"optimizer": _sgd, "scale": False, **options}
    return Network(module(outputs), INPUTS, **settings).model_for(task)


def _sgd(parameters: Any) -> Any:
    return torch.optim.SGD(parameters, lr=0.1)


def weights_of(model: NetworkModel) -> list[torch.Tensor]:
    return list(model._module.parameters())


def same(model: NetworkModel, expected: list[torch.Tensor]) -> None:
    for got, want in zip(weights_of(model), expected, strict=True):
        assert torch.allclose(got, want, rtol=0, atol=1e-12)


def long(i: int) -> torch.Tensor:
    return torch.tensor([i])


def number(x: float) -> torch.Tensor:
    return torch.tensor([[x]], dtype=torch.float64)


def test_classes_with_shares_and_outputs_that_were_kept() -> None:
    shares: dict[Label, float] = {0: 0.5, 1: 0.2}
    score = {"0": 0.6, "1": 0.3, "2": 0.1}
    lesson = (drawn([1, 0], score, shares=shares, distil=0.3),)
    model = served(3, "multiclass")
    model.rehearse(Example(features(1), 2), 2.0, lesson)
    adjust = torch.tensor(
        [math.log(shares.get(c, 0.0) + 1e-8) for c in (0, 1, 2)], dtype=torch.float64
    )
    kept = torch.tensor(list(logits_of(score).values()), dtype=torch.float64)

    def pull(out: torch.Tensor) -> torch.Tensor:
        apart = (out - out.mean(1, keepdim=True)) - kept
        return 0.3 * apart.square().sum(1).mean()

    loss = torch.nn.CrossEntropyLoss()
    expected = by_hand(3, loss, [long(2), long(1), long(0)], [2.0, 1 / 2, 2 / 2], adjust, pull)
    same(model, expected)


def test_two_classes_of_one_output() -> None:
    shares: dict[Label, float] = {True: 0.1, False: 0.6}
    score = {"true": 0.8, "false": 0.2}
    lesson = (drawn([True], score, shares=shares, distil=0.5),)
    model = served(1, "binary")
    model.rehearse(Example(features(1), False), 1.0, lesson)
    kept = math.log(0.8 / 0.2)

    def pull(out: torch.Tensor) -> torch.Tensor:
        return 0.5 * ((out - kept) / 2).square().mul(2).sum(1).mean()

    adjust = math.log(0.1 + 1e-8) - math.log(0.6 + 1e-8)
    loss = torch.nn.BCEWithLogitsLoss()
    same(model, by_hand(1, loss, [number(0), number(1)], [1.0, 1.0], adjust, pull))


def test_numbers() -> None:
    lesson = (drawn([1.5, -2.0], {"": 0.5}, distil=0.2),)
    model = served(1, "regression")
    model.rehearse(Example(features(1), 3.0), 1.0, lesson)

    def pull(out: torch.Tensor) -> torch.Tensor:
        return 0.2 * (out - 0.5).square().sum(1).mean()

    targets = [number(3.0), number(1.5), number(-2.0)]
    same(model, by_hand(1, torch.nn.MSELoss(), targets, [1.0, 0.5, 1.0], 0.0, pull))


def test_a_loss_of_ones_own() -> None:
    lesson = (drawn([1.5, -2.0], None, distil=0.2),)
    model = served(1, "regression", loss=torch.nn.HuberLoss(delta=0.5))
    model.rehearse(Example(features(1), 3.0), 1.0, lesson)
    targets = [number(3.0), number(1.5), number(-2.0)]
    loss = torch.nn.HuberLoss(delta=0.5)
    same(model, by_hand(1, loss, targets, [1.0, 0.5, 1.0], 0.0, lambda out: 0.0))


def test_kept_outputs_count_less_with_age_behind_running_standardisation() -> None:
    moved = []
    for age in (0, 200, 10_000):
        item = Item(b"i" * 16, features(9), True, 1.0, "", logits_of({"true": 0.99, "false": 0.01}))
        pass_ = Drawn((item,), (age,), {True: 0.5, False: 0.5}, 50.0)
        plain = Drawn((item,), (age,), {True: 0.5, False: 0.5}, 0.0)
        ends = []
        for one in (pass_, plain):
            model = served(1, "binary", scale=True)
            for i in range(5):
                model.learn(features(i), i % 2 == 0, 1.0)
            model.rehearse(Example(features(1), False), 1.0, (one,))
            ends.append(torch.cat([p.detach().reshape(-1) for p in weights_of(model)]))
        moved.append(float((ends[0] - ends[1]).norm()))
    assert moved[1] == pytest.approx(moved[0] / 2, rel=1e-6)
    assert moved[2] < 1e-9


def test_outputs_of_classes_that_both_know_are_compared() -> None:
    lesson = (drawn([0], {"0": 0.5, "1": 0.5}, shares={0: 1.0}, distil=1.0),)
    model, twin = served(3, "multiclass"), served(3, "multiclass")
    model.rehearse(Example(features(1), 0), 1.0, lesson)
    twin.rehearse(Example(features(1), 0), 1.0, (drawn([0], None, shares={0: 1.0}),))
    head, bare = weights_of(model)[-1], weights_of(twin)[-1]
    assert head[2] == bare[2]  # the third class was not known then
    assert head[0] != bare[0]


def test_the_standardisation_counts_fresh_rows_only_and_once() -> None:
    model, plain = served(1, "binary", scale=True), served(1, "binary", scale=True)
    for i in range(6):
        again = drawn([True, False], None, shares={True: 0.5, False: 0.5})
        model.rehearse(Example(features(i), i % 2 == 0), 1.0, (again, again))
        plain.learn(features(i), i % 2 == 0, 1.0)
    assert model.cut()["scaler"] == plain.cut()["scaler"]


def test_a_second_pass_is_a_second_step() -> None:
    again = drawn([True], None, shares={True: 0.5, False: 0.5})
    twice, once = served(1, "binary"), served(1, "binary")
    twice.rehearse(Example(features(1), False), 1.0, (again, again))
    once.rehearse(Example(features(1), False), 1.0, (again,))
    once.rehearse(Example(features(1), False), 1.0, (again,))
    same(twice, weights_of(once))


def _rectified(optimizer: Any, **training: Any) -> NetworkModel:
    torch.manual_seed(3)
    net = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.ReLU(), torch.nn.Linear(5, 3))
    made = Network(net.double(), INPUTS, optimizer=optimizer).model_for("multiclass")
    made.train(Training(average=0.5, **training))
    return made


@pytest.mark.parametrize("training", [{}, {"clip": 0.2}, {"warm_up": 9}, {"l2": 0.1}])
def test_layers_with_rectifiers_learn_without_autograd_as_with_it(training: Any) -> None:
    model = _rectified(_sgd, **training)
    # a momentum of next to nothing is learned by torch's optimizer
    twin = _rectified(lambda p: torch.optim.SGD(p, lr=0.1, momentum=1e-300), **training)
    assert (model._layers is None) == ("l2" in training)
    assert twin._layers is None
    for i in range(6):
        again = drawn([1, 0], {"0": 0.6, "1": 0.3, "2": 0.1}, shares={0: 0.5, 1: 0.2}, distil=0.3)
        for one in (model, twin):
            one.rehearse(Example(features(i), i % 3), 1.0, (again, again))
    within = 1e-6 if "clip" in training else 1e-12  # torch divides by the length plus 1e-6
    for got, want in zip(weights_of(model), weights_of(twin), strict=True):
        assert torch.allclose(got, want, rtol=0, atol=within)
    answers = twin.predict(features(9)).probabilities
    assert model.predict(features(9)).probabilities == pytest.approx(answers, abs=within)


@pytest.mark.parametrize("task", ["multiclass", "regression"])
def test_a_draw_of_nothing_teaches_the_fresh_row(task: Any) -> None:
    for made in (served(3 if task == "multiclass" else 1, task), _rectified(_sgd)):
        before = [p.clone() for p in weights_of(made)]
        made.rehearse(Example(features(1), 1), 1.0, (drawn([], None, shares={1: 1.0}, distil=0.3),))
        assert not all(map(torch.equal, before, weights_of(made)))


def test_an_optimizer_of_some_parameters_moves_no_others() -> None:
    model = _rectified(lambda p: torch.optim.SGD(list(p)[2:], lr=0.1))
    first = weights_of(model)[0].clone()
    model.rehearse(Example(features(1), 0), 1.0, (drawn([1], None, shares={0: 1.0}),))
    assert torch.equal(weights_of(model)[0], first)


def test_layers_whose_slope_is_no_number_raise() -> None:
    model = _rectified(_sgd)
    with torch.no_grad():
        weights_of(model)[1].fill_(1e200)  # the slope at the outputs is finite still
    with pytest.raises(StateNotFinite):
        model.rehearse(Example(features(1), 0), 1.0, (drawn([1], None, shares={0: 1.0}),))


def _linear() -> Linear:
    return Linear(preprocessing.StandardScaler() | linear_model.LogisticRegression(optim.SGD(0.1)))


PAIRWISE = {
    "linear": _linear,
    "ftrl": lambda: Ftrl().model_for("binary"),
    "sgd": lambda: Estimator(_sgd_classifier(), INPUTS).model_for("binary"),
}


def _sgd_classifier() -> Any:
    from sklearn.linear_model import SGDClassifier

    return SGDClassifier(loss="log_loss", learning_rate="constant", eta0=0.1)


@pytest.mark.parametrize("name", PAIRWISE)
def test_pairs_are_learned_again_and_counted_in_no_moment(name: str) -> None:
    model, plain = PAIRWISE[name](), PAIRWISE[name]()
    again = drawn([True, False], None)
    for i in range(6):
        example = Example(features(i), i % 2 == 0)
        learn_example(model, example, 1.0, (again,))
        learn_example(plain, example)
    cut, bare = model.cut(), plain.cut()
    assert cut.keys() == bare.keys()
    for name in (name for name in cut if name.startswith("scaler")):
        assert cut[name] == bare[name]
    assert any(name.startswith("scaler") for name in cut)
    assert cut != bare
    ahead = model.predict(features(51)).probabilities  # what was drawn each time: label False
    behind = plain.predict(features(51)).probabilities
    assert ahead is not None
    assert behind is not None
    assert ahead[False] > behind[False]


def trained(**settings: Any) -> NetworkModel:
    model = served(1, "binary")
    model.train(Training(**settings))
    return model


def plain_steps(n: int, shape: Any) -> tuple[list[torch.Tensor], list[list[torch.Tensor]]]:
    net = module(1)
    optimizer, loss = _sgd(net.parameters()), torch.nn.BCEWithLogitsLoss()
    seen = []
    for i in range(n):
        x = torch.tensor([[features(i)[name] for name in INPUTS]], dtype=torch.float64)
        optimizer.zero_grad()
        loss(net(x), number(float(i % 2 == 0))).backward()
        shape(i, net, optimizer)
        optimizer.step()
        seen.append([p.detach().clone() for p in net.parameters()])
    return list(net.parameters()), seen


def learn(model: NetworkModel, first: int, n: int) -> None:
    for i in range(first, first + n):
        model.learn(features(i), i % 2 == 0, 1.0)


def test_gradients_are_cut_to_a_length() -> None:
    def shape(i: int, net: Any, optimizer: Any) -> None:
        length = math.sqrt(sum(float(p.grad.square().sum()) for p in net.parameters()))
        for p in net.parameters():
            p.grad *= min(1.0, 0.05 / length)

    model = trained(clip=0.05)
    learn(model, 0, 8)
    for got, want in zip(weights_of(model), plain_steps(8, shape)[0], strict=True):
        assert torch.allclose(got, want, rtol=1e-5)


def test_penalties() -> None:
    def shape(i: int, net: Any, optimizer: Any) -> None:
        for p in net.parameters():
            p.grad += 0.03 * p.detach() + 0.01 * p.detach().sign()

    model = trained(l1=0.01, l2=0.03)
    learn(model, 0, 8)
    same(model, plain_steps(8, shape)[0])


def test_the_rate_warms_up_over_all_replicas() -> None:
    def shape(i: int, net: Any, optimizer: Any) -> None:
        optimizer.param_groups[0]["lr"] = 0.1 * min((i + 1) / 6, 1.0)

    model, other = trained(warm_up=6), trained(warm_up=6)
    learn(model, 0, 3)
    values: Blocks = {}
    algebra.merge(values, model.cut())
    other.reset(algebra.copy(values))
    learn(other, 3, 6)
    same(other, plain_steps(9, shape)[0])


def test_the_average_answers_and_what_learns_is_as_without_it() -> None:
    model, plain = trained(average=0.75), served(1, "binary")
    learn(model, 0, 10)
    learn(plain, 0, 10)
    same(model, weights_of(plain))
    averages = [p.detach().clone() for p in module(1).parameters()]
    for weights in plain_steps(10, lambda *_: None)[1]:
        averages = [0.75 * a + 0.25 * w for a, w in zip(averages, weights, strict=True)]
    for got, want in zip(model.answering.parameters(), averages, strict=True):
        assert torch.allclose(got, want, rtol=0, atol=1e-12)
    ends = [p.detach() for p in weights_of(plain)]
    apart = sum(float((a - w).square().sum()) for a, w in zip(averages, ends, strict=True))
    length = sum(float(w.square().sum()) for w in ends)
    assert model.gap == pytest.approx(math.sqrt(apart / length))
    assert plain.gap is None
    assert model.predict(features(3)) != plain.predict(features(3))


def test_training_is_part_of_the_spec_and_only_if_it_is_on() -> None:
    options: Any = {"task": "binary", "classes": None, "key": b"k", "base_dir": None}
    found = [
        load("mlp", {"inputs": INPUTS}, **options, training=training).spec_hash
        for training in (Training(), Training(clip=0), Training(clip=1.0), Training(l2=1e-3))
    ]
    assert found[0] == found[1] == load("mlp", {"inputs": INPUTS}, **options).spec_hash
    assert len(set(found[1:])) == 3
    rehearsing = load("mlp", {"inputs": INPUTS}, **options, rehearses=True).spec_hash
    given = Training(average=0.5, clip=1)
    assert load("mlp", {"inputs": INPUTS}, **options, training=given).spec_hash == rehearsing


def test_training_of_another_model_is_refused() -> None:
    options: Any = {"task": "binary", "classes": None, "key": b"k", "base_dir": None}
    with pytest.raises(LearnerUnusable, match=r"training\.clip is for torch networks"):
        load("logreg", {}, **options, training=Training(clip=1.0))
    assert load("logreg", {}, **options, rehearses=True).model.mergeable


def test_outputs_that_are_no_numbers_leave_an_error() -> None:
    model = served(1, "binary")
    with torch.no_grad():
        weights_of(model)[0].fill_(math.inf)
    with pytest.raises(StateNotFinite):
        model.rehearse(Example(features(1), True), 1.0, (drawn([False], None),))


def test_an_unknown_label_is_refused_before_anything_is_learned() -> None:
    model = served(3, "multiclass")
    before = copy.deepcopy(weights_of(model))
    with pytest.raises(Exception, match="label"):
        model.rehearse(Example(features(1), 9), 1.0, (drawn([1], None),))
    assert all(map(torch.equal, weights_of(model), before))
    assert list(itertools.chain(model.cut())) == []


def test_exports_are_of_what_answers() -> None:
    from online.edge.lowering.ir import Mlp
    from online.edge.lowering.networks import lower_network

    model = trained(average=0.75)
    learn(model, 0, 10)
    body = lower_network(model, "binary").body
    assert isinstance(body, Mlp)
    answers = list(model.answering.parameters())
    assert body.layers[0].weights.tolist() == answers[0].tolist()
    assert body.layers[0].weights.tolist() != weights_of(model)[0].tolist()
