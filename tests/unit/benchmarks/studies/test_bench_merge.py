"""The table of merge rules: its simulation does what the server and the models do."""

from __future__ import annotations

import json
from itertools import islice
from typing import Any

import pytest
from river import linear_model, optim, preprocessing
from typer.testing import CliRunner

from benchmarks.commands.cli import app
from benchmarks.studies import merge as bench
from evaluation.errors import StreamUnusable
from evaluation.streams import Row, open_stream
from online.models.adapters.linear import Linear
from online.settings.config import data_dir
from paramserver.core import wire
from paramserver.core.blocks import from_wire, to_wire
from paramserver.core.server import MergeRule, Server

SPEC = "s" * 64


def logistic(rate: float) -> Linear:
    final = linear_model.LogisticRegression(optim.SGD(rate), intercept_lr=rate)
    return Linear(preprocessing.StandardScaler() | final)


class Info:
    end, sealed, trimmed = 10**9, False, 0


class Replica:
    """A model and its exchanges with a server."""

    def __init__(self, server: Server, partition: int, rate: float) -> None:
        self.server, self.partition, self.model = server, partition, logistic(rate)
        self.model.compensate()
        self.base: wire.Version = (1, 0)
        self.first = self.rows = 0

    def learn(self, features: Any, label: Any) -> None:
        self.model.learn(features, label, 1.0)
        self.rows += 1

    def exchange(self) -> None:
        curved, blocks = self.model.curved(), self.model.cut()
        curved = {name: keys for name, keys in curved.items() if name in blocks}
        first, last = self.first + 1, self.first + self.rows
        push = wire.Push(1, SPEC, self.partition, first, last, self.rows, self.base,
                         to_wire(blocks), curved)  # fmt: skip
        assert self.server.push(push, lambda _: Info).status == "applied"  # type: ignore[arg-type,return-value]
        self.model.reset(from_wire(to_wire(self.server.values)))
        self.base, self.first, self.rows = self.server.version, last, 0


def served(rows: list[Row], cell: bench.Cell, rule: MergeRule, rate: float) -> float:
    """Accuracy of the project's own server and models in the cell, dealt in turns."""
    server, n = Server("m", SPEC, "", rule, 1), cell.replicas
    replicas = [Replica(server, i + 1, rate) for i in range(n)]
    own = [i * cell.every // n for i in range(n)]
    right = 0
    for i, (features, label) in enumerate(rows):
        replica = replicas[i % n]
        right += replica.model.predict(features).label == label
        replica.learn(features, label)
        own[i % n] += 1
        if own[i % n] == cell.every:
            own[i % n] = 0
            replica.exchange()
    return right / len(rows)


@pytest.mark.parametrize("rule", ["sum", "average", "compensated"])
def test_simulation_is_what_server_and_models_do(rule: MergeRule) -> None:
    """The scaler differs a little: a replica has not the others' newest rows in its moments."""
    rows = list(islice(open_stream("phishing").rows, 1000))
    cell = bench.Cell("turns", 4, 4)
    found, _ = bench.simulate(bench.prepare("phishing", rows), cell, [rule], [0.05])
    assert served(rows, cell, rule, 0.05) == pytest.approx(float(found[0, 0]), abs=0.012)


@pytest.mark.data
def test_simulation_on_elec2() -> None:
    try:
        rows = list(islice(open_stream("elec2", data_dir()).rows, 4000))
    except StreamUnusable as error:
        pytest.skip(f"Elec2 is absent: {error}")
    cell = bench.Cell("turns", 4, 16)
    rules: list[MergeRule] = ["sum", "average", "compensated"]
    found, _ = bench.simulate(bench.prepare("elec2", rows), cell, rules, [0.2])
    for rule, accuracy in zip(rules, found[:, 0].tolist(), strict=True):
        assert served(rows, cell, rule, 0.2) == pytest.approx(accuracy, abs=0.01)


def test_quick_form() -> None:
    done = CliRunner().invoke(app, ["merge", "--quick", "--rows", "400", "--json"])
    assert done.exit_code == 0, done.output
    lines = json.loads(done.stdout.splitlines()[-1])
    assert [(line["dealing"], line["replicas"]) for line in lines] == [
        ("turns", 4), ("random", 4), ("lone", 4),
    ]  # fmt: skip
    for line in lines:
        assert set(line["scores"]) == {"single", "late", "ordered", *bench.RULES}
        assert all(0.5 < s["unchanged"] <= s["best"] <= 1 for s in line["scores"].values())
    alone = lines[-1]["scores"]
    for rule in ("sum", "average", "compensated"):
        assert alone[rule] == alone["single"], "a lone busy replica learns as a single learner"


def test_markdown_has_a_line_for_each_cell() -> None:
    data = bench.prepare("bananas", islice(open_stream("bananas").rows, 300))
    lines = bench.run(data, [bench.Cell("busy", 2, 4, timer=True)], [0.05, 0.1])
    head, rule, line = bench.markdown(lines).splitlines()
    assert head.count("|") == rule.count("|") == line.count("|")
    assert line.startswith("| bananas | busy | 2 | 4 (timer) | ")


def test_rows_late_is_what_a_prediction_lacks() -> None:
    """Others' rows come after S rows of theirs in the mean, each of N − 1."""
    data = bench.prepare("bananas", islice(open_stream("bananas").rows, 2000))
    _, behind = bench.simulate(data, bench.Cell("turns", 4, 16), ["sum"], [0.05])
    assert behind == pytest.approx(16 * 3, rel=0.05)
