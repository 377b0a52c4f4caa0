"""The adapter of torch modules beside a plain loop, and what it refuses."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from river import preprocessing

from evaluation.streams import open_stream
from online.models.errors import LabelUnknown, LearnerUnusable, StateNotFinite
from online.models.loading.checks import check_model
from online.models.loading.load import load
from online.models.network import Network, NetworkModel
from paramserver.core.blocks import array_of
from replay.example import Features, Label

INPUTS = ["1", "2"]


def rows(n: int) -> list[tuple[Features, Label]]:
    return list(itertools.islice(open_stream("bananas").rows, n))


def layers(*sizes: int) -> Any:
    torch.manual_seed(5)
    linear = [torch.nn.Linear(a, b) for a, b in itertools.pairwise(sizes)]
    parts = [part for layer in linear for part in (layer, torch.nn.ReLU())]
    return torch.nn.Sequential(*parts[:-1])


def model(*sizes: int, **options: Any) -> NetworkModel:
    return Network(layers(*sizes), INPUTS, **options).model_for("binary")


def test_a_plain_loop_gives_the_very_same_probabilities() -> None:
    served, module = model(2, 8, 1), layers(2, 8, 1)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.05)
    loss, scaler = torch.nn.BCEWithLogitsLoss(), preprocessing.StandardScaler()
    learned = 0
    for features, label in rows(400):
        if scaler.counts:
            z = scaler.transform_one(features)
            with torch.no_grad():
                raw = module(torch.tensor([[z["1"], z["2"]]]))[0, 0]
            answer = served.predict(features).probabilities
            assert answer is not None
            assert answer[True] == pytest.approx(float(torch.sigmoid(raw.double())), abs=1e-15)
        served.learn(features, label, 1.0)
        scaler.learn_one(features)
        z = scaler.transform_one(features)
        optimizer.zero_grad()
        error = loss(module(torch.tensor([[z["1"], z["2"]]])), torch.tensor([[float(label)]]))
        error.backward()
        optimizer.step()
        learned += 1
    assert learned == 400


def test_what_the_factory_builds_is_part_of_the_spec() -> None:
    options: Any = {"task": "binary", "classes": None, "key": b"k", "base_dir": Path()}
    specs = [
        load("mlp", {"inputs": INPUTS, "seed": seed}, **options).spec_hash for seed in (0, 0, 1)
    ]
    assert specs[0] == specs[1] != specs[2]


def test_a_factory_without_a_seed_builds_the_same_twice(tmp_path: Path) -> None:
    (tmp_path / "learner.py").write_text(
        "import torch\nfrom online.models.network import Network\n\n\n"
        "def build():\n    return Network(torch.nn.Linear(2, 1), ['1', '2'])\n"
    )
    options: Any = {"task": "binary", "classes": None, "key": b"k", "base_dir": tmp_path}
    torch.manual_seed(1)
    one = load("learner.py:build", {}, **options)
    torch.manual_seed(2)
    assert load("learner.py:build", {}, **options).spec_hash == one.spec_hash
    assert one.build().structure == one.model.structure


def test_a_row_that_makes_the_loss_no_number_is_refused_and_put_back() -> None:
    served = model(2, 1, scale=False, optimizer=partial(torch.optim.SGD, lr=0.5))
    for features, label in rows(20):
        served.learn(features, label, 1.0)
    values = served.cut()
    before = served.predict({"1": 0.5, "2": 0.5})
    with pytest.raises(StateNotFinite):
        served.learn({"1": 1e300, "2": -1e300}, True, 1.0)
    served.reset(values)
    assert served.predict({"1": 0.5, "2": 0.5}) == before
    assert served.cut() == {}


def test_a_module_that_answers_nan_says_so() -> None:
    class Broken(torch.nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) * math.nan

    served = Network(Broken(2, 1), INPUTS).model_for("binary")
    answer = served.predict({"1": 1.0, "2": 1.0}).probabilities
    assert answer is not None
    assert math.isnan(sum(answer.values()))
    with pytest.raises(StateNotFinite):
        served.learn({"1": 1.0, "2": 1.0}, True, 1.0)


def test_labels_and_rows_that_it_has_no_place_for() -> None:
    served = Network(layers(2, 3), INPUTS, labels=["a", "b", "c"]).model_for("multiclass")
    with pytest.raises(LabelUnknown, match="'d' is none of 'a', 'b', 'c'"):
        served.learn({"1": 1.0}, "d", 1.0)
    assert served.cut() == {}
    served.learn({"1": 1.0, "x": 3.0}, "a", 1.0)
    assert served.predict({"x": 5.0}).probabilities == served.predict({}).probabilities
    before = served.predict({}).probabilities
    served.learn({"x": 1.0}, "a", 1.0)  # as it is answered: a row of means
    after = served.predict({}).probabilities
    assert before is not None
    assert after is not None
    assert after["a"] > before["a"]


@pytest.mark.parametrize(
    ("network", "task", "problem"),
    [
        (lambda: Network(layers(3, 1), INPUTS), "binary", "a row of 2 inputs raises"),
        (lambda: Network(layers(2, 1), ["1", "1"]), "binary", "inputs"),
        (lambda: Network(layers(2, 1), []), "binary", "inputs"),
        (lambda: Network(layers(2, 3), INPUTS), "binary", "3 outputs"),
        (lambda: Network(layers(2, 1), INPUTS), "multiclass", "1 outputs"),
        (lambda: Network(layers(2, 2), INPUTS), "regression", "2 outputs"),
        (lambda: Network(layers(2, 3), INPUTS, labels="ab"), "multiclass", "2 labels for 3"),
        (lambda: Network(torch.nn.Flatten(), INPUTS), "binary", "no parameters"),
        (lambda: Network(torch.nn.Flatten(0), INPUTS), "binary", "no parameters"),
        (
            lambda: Network(torch.nn.Sequential(layers(2, 1), torch.nn.Flatten(0)), INPUTS),
            "binary",
            "shape",
        ),
    ],
)
def test_networks_that_do_not_fit_are_refused(network: Any, task: Any, problem: str) -> None:
    with pytest.raises(LearnerUnusable, match=problem):
        network().model_for(task)


def test_momentum_goes_on_where_the_values_say() -> None:
    """The optimizer's state is in the values: who starts from them learns as who went on."""

    def make() -> NetworkModel:
        return model(2, 4, 1, optimizer=partial(torch.optim.SGD, lr=0.05, momentum=0.9))

    one, given = make(), rows(60)
    for features, label in given[:30]:
        one.learn(features, label, 1.0)
    two = make()
    two.reset(one.cut())
    for served in (one, two):
        for features, label in given[30:]:
            served.learn(features, label, 1.0)
    assert one.predict(given[0][0]) == two.predict(given[0][0])


@pytest.mark.parametrize("name", ["weights.pt", "weights.safetensors"])
def test_a_network_starts_from_an_artifact(tmp_path: Path, name: str) -> None:
    from safetensors.torch import save_file

    torch.manual_seed(8)
    trained = torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.ReLU(), torch.nn.Linear(4, 1))
    if name.endswith(".pt"):
        torch.save(trained.state_dict(), tmp_path / name)
    else:
        save_file(trained.state_dict(), tmp_path / name)
    options: Any = {"task": "binary", "classes": None, "key": b"k", "base_dir": tmp_path}
    params = {"inputs": INPUTS, "hidden": 4, "scale": False}
    loaded = load("mlp", params, artifact=Path(name), **options)
    answer = loaded.model.predict({"1": 1.0, "2": -1.0}).probabilities
    with torch.no_grad():
        raw = trained(torch.tensor([[1.0, -1.0]]))[0, 0]
    assert answer is not None
    assert answer[True] == pytest.approx(float(torch.sigmoid(raw.double())), abs=1e-15)
    assert loaded.model.cut() == {}
    assert load("mlp", params, **options).spec_hash != loaded.spec_hash
    with pytest.raises(LearnerUnusable, match="No such file"):
        load("mlp", params, artifact=Path("gone.pt"), **options)
    with pytest.raises(LearnerUnusable, match="It takes: lr, l2, scale"):
        load("logreg", {}, artifact=Path(name), **options)


def test_an_artifact_that_holds_code_is_not_read(tmp_path: Path) -> None:
    torch.save({"0.weight": math.sqrt}, tmp_path / "weights.pt")
    options: Any = {"task": "binary", "classes": None, "key": b"k", "base_dir": tmp_path}
    with pytest.raises(LearnerUnusable, match="Weights only load failed"):
        load("mlp", {"inputs": INPUTS}, artifact=Path("weights.pt"), **options)


@pytest.mark.parametrize(
    "optimizer", [torch.optim.Adam, partial(torch.optim.Adagrad, lr=0.1), torch.optim.NAdam]
)
def test_an_optimizer_whose_state_leaves_the_numbers_is_put_back(optimizer: Any) -> None:
    served = model(2, 1, scale=False, optimizer=optimizer)
    values = served.cut()
    before = served.predict({"1": 0.5, "2": 0.5})
    row: Features = {"1": 1e21, "2": -1e21}
    with pytest.raises(StateNotFinite):
        served.learn(row, not served.predict(row).label, 1.0)
    served.reset(values)
    assert served.predict({"1": 0.5, "2": 0.5}) == before
    served.learn({"1": 1.0, "2": 0.0}, True, 1.0)
    assert all(math.isfinite(x) for b in served.cut().values() for x in array_of(b.data))


@pytest.mark.parametrize(
    "optimizer",
    [
        partial(torch.optim.NAdam, lr=0.01),
        partial(torch.optim.Adagrad, lr=0.01),
        partial(torch.optim.ASGD, lr=0.01),
        partial(torch.optim.Adafactor, lr=0.01),
        partial(torch.optim.AdamW, lr=0.01, amsgrad=True),
    ],
)
def test_optimizers_with_state_keep_the_promises(optimizer: Any) -> None:
    check_model(lambda: model(2, 4, 1, optimizer=optimizer), rows(42))


def test_a_copy_that_gets_its_values_in_parts_has_the_optimizers_state() -> None:
    def make() -> NetworkModel:
        return model(2, 4, 1, optimizer=partial(torch.optim.Adam, lr=0.05))

    one, given = make(), rows(60)
    for features, label in given[:30]:
        one.learn(features, label, 1.0)
    two = make()
    two.reset({})
    for name, block in one.cut().items():
        two.rebase({name: block})
    for served in (one, two):
        for features, label in given[30:]:
            served.learn(features, label, 1.0)
    assert one.predict(given[0][0]) == two.predict(given[0][0])


def test_a_module_made_once_is_copied() -> None:
    network = Network(layers(2, 1), INPUTS)
    one, two = network.model_for("binary"), network.model_for("binary")
    before = two.predict({"1": 1.0, "2": 2.0})
    for features, label in rows(10):
        one.learn(features, label, 1.0)
    assert two.predict({"1": 1.0, "2": 2.0}) == before
    assert network.model_for("binary").structure == two.structure


def test_the_structure_has_no_addresses_and_all_weights() -> None:
    loss = torch.nn.functional.binary_cross_entropy_with_logits
    assert " at 0x" not in model(2, 1, loss=loss).structure

    def frozen(weight: float) -> NetworkModel:
        module = layers(2, 2, 1)
        module[0].weight.data.fill_(weight)
        module[0].weight.requires_grad_(False)
        return Network(module, INPUTS).model_for("binary")

    assert frozen(1.0).structure != frozen(9.0).structure


@pytest.mark.parametrize("part", [torch.nn.Dropout(0.5), torch.nn.BatchNorm1d(1)])
def test_modules_that_draw_or_need_many_rows_are_refused(part: Any) -> None:
    with pytest.raises(LearnerUnusable, match=type(part).__name__):
        Network(torch.nn.Sequential(layers(2, 1), part), INPUTS).model_for("binary")


class Noise(torch.nn.Linear):
    """A layer that draws anew for each row, though it is no layer of dropout."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the outputs for noisy inputs."""
        return super().forward(x + torch.randn_like(x))


class Recurrent(torch.nn.Module):
    """A network with dropout between recurrent layers."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = torch.nn.LSTM(2, 4, 2, dropout=0.3)
        self.last = torch.nn.Linear(4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the outputs of a row."""
        return self.last(self.lstm(x)[0])  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("module", "task", "why"),
    [
        (Noise(2, 1), "binary", "answers the same row differently"),
        (Recurrent(), "binary", "LSTM needs many rows"),
        (torch.nn.Sequential(layers(2, 1), torch.nn.Sigmoid()), "binary", "Sigmoid, and the loss"),
        (torch.nn.Sequential(layers(2, 2), torch.nn.Softmax(1)), "binary", "Softmax, and the loss"),
    ],
)
def test_modules_that_would_learn_something_else_are_refused(
    module: torch.nn.Module, task: Any, why: str
) -> None:
    with pytest.raises(LearnerUnusable, match=why):
        Network(module, INPUTS).model_for(task)


def test_a_last_layer_of_probabilities_is_taken_with_its_loss() -> None:
    module = torch.nn.Sequential(layers(2, 1), torch.nn.Sigmoid())
    Network(module, INPUTS, loss=torch.nn.BCELoss()).model_for("binary")
    Network(module, INPUTS).model_for("regression")


def test_an_optimizer_that_needs_a_closure_is_refused() -> None:
    with pytest.raises(LearnerUnusable, match="a step of its optimizer raises"):
        model(2, 1, optimizer=torch.optim.LBFGS)


def test_a_module_that_keeps_a_tensor_of_its_first_answer_learns() -> None:
    class Keeps(torch.nn.Linear):
        kept: torch.Tensor | None = None

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if self.kept is None:
                self.kept = torch.ones(2)
            return super().forward(x * self.kept)

    served = Network(Keeps(2, 1), INPUTS).model_for("binary")
    served.learn({"1": 1.0, "2": 1.0}, True, 1.0)


IMPORTS_INSIDE = """
def build():
    import torch
    from online.models.network import Network

    return Network(torch.nn.Linear(2, 1), ["1", "2"])
"""


def test_a_factory_that_imports_torch_itself_builds_the_same_in_each_process(
    tmp_path: Path,
) -> None:
    (tmp_path / "learner.py").write_text(IMPORTS_INSIDE)
    code = (
        "from pathlib import Path\nfrom online.models.loading.load import load\n"
        "options = {'task': 'binary', 'classes': None, 'key': b'', 'base_dir': Path()}\n"
        "made = load('learner.py:build', {}, **options)\n"
        "made.build()\nprint(made.spec_hash)"
    )
    command = [sys.executable, "-c", code]
    found = [
        subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    ]
    assert found[0] == found[1] != ""


def test_a_factory_that_draws_is_found(tmp_path: Path) -> None:
    (tmp_path / "learner.py").write_text(
        "import random\nfrom river import linear_model\n\n\n"
        "def build():\n    return linear_model.LogisticRegression(l2=random.random())\n"
    )
    options: Any = {"task": "binary", "classes": None, "key": b"k", "base_dir": tmp_path}
    loaded = load("learner.py:build", {}, **options)
    with pytest.raises(LearnerUnusable, match="builds something else each time"):
        loaded.build()


def test_labels_of_a_binary_task() -> None:
    assert Network(layers(2, 2), INPUTS, labels=[1, 0]).model_for("binary").labels == [True, False]
    with pytest.raises(LearnerUnusable, match="names go into `classes`"):
        Network(layers(2, 2), INPUTS, labels=["no", "yes"]).model_for("binary")


def test_ids_are_rows_of_their_tables_and_never_standardised() -> None:
    """Modulo the rows, exact beyond float32, a missing one is row 0; the rest as without ids."""
    made = load(
        "mlp", {"inputs": ["a", "who"], "ids": {"who": 7}, "width": 3}, task="binary",
        classes=None, key=b"k" * 32, base_dir=Path(),
    ).model  # fmt: skip
    for i in range(60):
        made.learn({"a": float(i % 3), "who": i % 5}, i % 5 > 2, 1.0)

    def answer(**features: float) -> float:
        found = made.predict(features).probabilities
        assert found is not None
        return found[True]

    assert answer(a=1.0, who=3) == answer(a=1.0, who=3 + 7 * 2**40) == answer(a=1.0, who=-4)
    assert answer(a=1.0, who=3) > 0.6 > 0.4 > answer(a=1.0, who=1)
    assert answer(a=1.0) == answer(a=1.0, who=0)
    for ids in ({"other": 3}, {"who": 0}):
        with pytest.raises(LearnerUnusable, match="id '"):
            Network(layers(2, 1), ["a", "who"], ids=ids).model_for("binary")
