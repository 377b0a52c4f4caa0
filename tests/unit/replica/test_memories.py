"""Memories of served models: made from settings, filled from a journal, and put back exactly."""

from __future__ import annotations

import math
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import msgspec
import pytest
import torch
from buffer_checks import state_of

from online.errors import StartRefused
from online.learning.merged import Learner
from online.models.loading.from_settings import merge_rule
from online.models.loading.load import load
from online.models.network import Network, NetworkModel
from online.replica.memory_settings import POLICIES, fill, memory_for, why_no_replay
from online.rows.history import Decisions
from online.settings.model import ModelSettings, Policy, Training
from paramserver.core import rewrites, wire
from replay import codec
from replay.example import Example
from replay.journal.base import NewRow, Row, Verdict
from replay.journal.sqlite.journal import SqliteJournal
from replay.memory import Memory
from replay.rehearsal import Rehearsal

SPEC = "s" * 64
INPUTS = ["a", "b"]


def settings(learner: str, **more: Any) -> ModelSettings:
    data: dict[str, Any] = {"name": "m", "task": "binary", "learner": learner, **more}
    return ModelSettings.model_validate(data)


def model(setting: ModelSettings) -> Any:
    return load(
        setting.learner, setting.params, task=setting.task, classes=None, key=b"k",
        base_dir=Path(__file__).parents[3], training=setting.training, rehearses=setting.replay.on,
    ).model  # fmt: skip


def made(learner: str, **more: Any) -> Memory | None:
    setting = settings(learner, **more)
    loaded = model(setting)
    return memory_for(setting, loaded, merge_rule(setting, loaded))


def test_every_policy_of_the_settings_has_a_buffer_of_its_own() -> None:
    assert {"none", *POLICIES} == {*get_args(Policy)}


@pytest.mark.parametrize("policy", POLICIES)
def test_each_policy_keeps_its_capacity(policy: str) -> None:
    memory = made("logreg", replay={"policy": policy, "capacity": 50})
    assert memory is not None
    assert memory.buffer.capacity == 50
    assert memory.distil == 0.0  # a linear model keeps pairs only
    network = made("mlp", params={"inputs": INPUTS}, replay={"policy": policy})
    assert network is not None
    assert (network.buffer.capacity, network.distil) == (1_000, 0.1)


def test_without_a_policy_there_is_none() -> None:
    assert made("logreg") is None
    assert made("examples/forest.py:build") is None


ON = {"policy": "reservoir"}
REFUSED = [
    ({"learner": "examples/forest.py:build"}, "would count those that are learned again twice"),
    ({"learner": "softmax", "task": "multiclass"}, "takes no weights"),
    ({"learner": "logreg", "sync": {"merge": "ordered"}}, "merge is ordered"),
    (
        {"learner": "linreg", "task": "regression", "replay": {"policy": "balanced"}},
        "regression has no classes",
    ),
]


@pytest.mark.parametrize("learner", ["linear", "auto"])
@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
def test_experts_rehearse(learner: str, task: str) -> None:
    assert made(learner, task=task, replay=ON) is not None


@pytest.mark.parametrize(("more", "reason"), REFUSED)
def test_what_can_not_learn_again_is_refused_with_its_reason(more: Any, reason: str) -> None:
    with pytest.raises(StartRefused, match=reason):
        made(**{"replay": ON, **more})


def test_a_model_that_can_not_learn_again_is_refused() -> None:
    nothing: Any = SimpleNamespace()
    why = why_no_replay(nothing, "compensated")
    assert why == "it learns a row once"


# -- filling ---------------------------------------------------------------------------------------


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[SqliteJournal]:
    store = SqliteJournal(tmp_path / "journal.db")
    yield store
    store.close()


def write(journal: SqliteJournal, n: int, *, verdict: Verdict = Verdict.ACCEPTED) -> int:
    partition = journal.register("m", "r", SPEC, 0.0).id
    rows = [
        NewRow(
            bytes([partition]) + i.to_bytes(15, "big"), f"{partition} {i}", "s", verdict,
            codec.encode(Example({"x": float(i)}, i % 2 == 0, score={"true": 0.8, "false": 0.2})),
            at=0.0,
        )
        for i in range(n)
    ]  # fmt: skip
    for first in range(0, n, 64):
        journal.append(partition, first, rows[first : first + 64])
    return partition


def kept(
    journal: SqliteJournal, rows: int = 10_000, capacity: int = 5_000
) -> list[tuple[int, int]]:
    decisions = Decisions(SPEC)
    decisions.read(journal, "m")
    setting = settings(
        "mlp", params={"inputs": ["x"]}, replay={"policy": "recent", "capacity": capacity}
    )
    loaded = model(setting)
    memory = memory_for(setting, loaded, merge_rule(setting, loaded))
    assert memory is not None
    n = fill(memory, journal, "m", rows, decisions)
    assert n == len(memory.buffer) or n > capacity
    for item in memory.buffer:
        assert item.logits is not None
        assert item.logits["true"] == pytest.approx(math.log(4) / 2)
    return sorted((item.key[0], int(item.features["x"])) for item in memory.buffer)  # type: ignore[arg-type]


def test_a_memory_is_filled_with_the_newest_rows(journal: SqliteJournal) -> None:
    first, second = write(journal, 150), write(journal, 2_500)
    both = [(first, i) for i in range(150)] + [(second, i) for i in range(2_500)]
    assert kept(journal) == both
    assert kept(journal, rows=1_200) == [(second, i) for i in range(1_300, 2_500)]
    assert kept(journal, rows=0) == []
    assert kept(journal, capacity=10) == [(second, i) for i in range(2_490, 2_500)]


def test_rows_that_the_model_has_not_learned_are_left_out(journal: SqliteJournal) -> None:
    partition = write(journal, 10)
    write(journal, 5, verdict=Verdict.FROZEN)
    key = bytes([partition]) + (3).to_bytes(15, "big")
    journal.write_control("m", "failed", f"failed:{SPEC[:16]}:{key.hex()}", b"reason")
    assert kept(journal) == [(partition, i) for i in range(10) if i != 3]


def test_rows_that_a_lineage_began_without_are_left_out(journal: SqliteJournal) -> None:
    partition = write(journal, 10)
    note = msgspec.json.encode(rewrites.Begun(SPEC, {partition: 7}))
    journal.write_control("m", "fresh", f"fresh:{SPEC}:2", note)
    assert kept(journal) == [(partition, i) for i in range(7, 10)]


# -- a row that raises -----------------------------------------------------------------------------


class Picky(NetworkModel):
    """Raises in the middle of what it learns."""

    def rehearse(self, example: Any, weight: float, lesson: Any) -> None:
        super().rehearse(example, weight, lesson)
        if example.features["a"] > 100:
            raise ValueError("too large")


def build() -> Picky:
    torch.manual_seed(1)
    net = torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1))
    made = Picky(Network(net.double(), INPUTS), "binary")
    made.train(Training(average=0.5, clip=1.0, warm_up=20))
    return made


def learner(memory: Memory) -> Learner:
    one = Learner(build, task="binary", spec=SPEC, retain_bytes=1 << 20, rows_max=64, memory=memory)
    one.open_partition(1)
    one.on_reply(
        wire.SyncReply(
            wire.FORMAT, spec=SPEC, epoch=1, count=1, acks=[], kind="all", blocks={}, clock={},
            closed=[], durable={}, orphans=[], confirmed_ms=0.0,
        )
    )  # fmt: skip
    return one


def row(offset: int, a: float) -> Row:
    example = Example({"a": a, "b": math.cos(offset)}, offset % 2 == 0)
    key = offset.to_bytes(16, "big")
    payload = codec.encode(example)
    return Row(offset, 1, offset, key, f"e{offset}", "s", Verdict.ACCEPTED, 1.0, payload, 0.0)


def test_after_a_row_that_raised_everything_is_as_it_was() -> None:
    setting = settings("mlp", params={"inputs": INPUTS}, replay={"policy": "balanced"})
    loaded = model(setting)
    memory = memory_for(setting, loaded, "average")
    assert memory is not None
    memory.rule = Rehearsal(rows_short=2, rows_long=2)
    one = learner(memory)
    for i in range(1, 30):
        assert one.learn(row(i, math.sin(i))) is None
    asked = [{"a": math.sin(i / 3), "b": 0.3} for i in range(20)]
    before = [one.predict(x) for x in asked]
    buffer = deepcopy(state_of(memory.buffer))
    failed = one.learn(row(30, 1e3))
    assert failed is not None
    assert "too large" in failed.reason
    assert [one.predict(x) for x in asked] == before
    assert state_of(memory.buffer) == buffer
    assert one.learn(row(31, 0.5)) is None
    assert [one.predict(x) for x in asked] != before
