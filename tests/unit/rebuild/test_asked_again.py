"""A forgotten source does not live on in what others' rows say of the answers of its time."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

import msgspec
import pytest
from forgetting_world import SPEC, built

import online.rebuild.rebuild
from evaluation.metrics import Task
from evaluation.streams import open_stream
from online.learning.scores import score_of
from online.models.base import learn_example
from online.models.choices.scores import Served, served_of, unanswered
from online.models.selfrate import SelfRate
from online.rebuild.rebuild import ForgetScope, asked_again
from online.rows.prediction_ids import event_key
from paramserver.core.blocks import Blocks
from replay import codec
from replay.example import Example
from replay.journal.base import NewRow, Verdict
from replay.journal.sqlite.journal import SqliteJournal

STREAMS: dict[Task, str] = {
    "binary": "phishing",
    "multiclass": "image_segments",
    "regression": "phishing",
}


def build(task: Task) -> Any:
    return SelfRate().model_for(task)


def served(task: Task, liar: bool) -> tuple[list[tuple[str, bytes]], Blocks]:
    """Rows of two sources, each asked and then learned; and what the model has then.

    The second sends each fifth row, the label of the row before it, which is wrong or far off.
    """
    model, rows, before = build(task), list[tuple[str, bytes]](), None
    for i, (x, y) in enumerate(islice(open_stream(STREAMS[task]).rows, 400)):
        wrong = i % 5 == 4
        label: Any = sum(x.values()) + 0.1 * i if task == "regression" else y
        if wrong:
            label = {"binary": not y, "multiclass": before, "regression": 90.0}[task]
        before = y
        if wrong and not liar:
            continue
        answer = model.predict(x)
        told = Example(dict(x), label, score=score_of(task, answer), notes=answer.notes)
        payload = codec.encode(told)
        learn_example(model, codec.decode(payload))
        rows.append(("liar" if wrong else "honest", payload))
    return rows, model.cut()


def forgotten(folder: Path, task: Task) -> tuple[Blocks, Blocks]:
    """The values without the liar, and those of a model to which it had never sent anything."""
    rows, _ = served(task, liar=True)
    journal = SqliteJournal(folder / "journal.db", synchronous="OFF", disk_low_mb=0)
    partition = journal.register("m", "r", SPEC, 0.0).id
    made = [
        NewRow(event_key("e", source, str(i)), str(i), source, Verdict.ACCEPTED, payload, float(i))
        for i, (source, payload) in enumerate(rows)
    ]
    journal.append(partition, 0, made)
    state, _ = built(
        journal, folder / "snapshots", ForgetScope("liar"), lambda: build(task), task=task
    )
    journal.close()
    _, clean = served(task, liar=False)
    return {name: state.state.values[name] for name in clean}, clean


@pytest.mark.parametrize("task", list(STREAMS))
def test_experts_are_judged_by_what_they_answer_without_it(tmp_path: Path, task: Task) -> None:
    found, clean = forgotten(tmp_path, task)
    assert found == clean


def test_the_control(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Judged by what was answered then, they remember who had lied."""
    monkeypatch.setattr(online.rebuild.rebuild, "asked_again", lambda example, model: example)
    found, clean = forgotten(tmp_path, "binary")
    assert found != clean


def test_a_choice_keeps_how_likely_it_was() -> None:
    notes = msgspec.msgpack.encode(Served(0.25, b"1234", b"abcd", {"greedy": 0.5}))
    example = Example({"a": 1.0}, 1.0, score={"": 0.5}, notes=notes, choice=b"chosen")
    again = asked_again(example, build("regression"))
    assert again.notes is not None
    assert served_of(again.notes) == Served(0.25, b"", b"abcd", {"greedy": 0.5})
    assert unanswered(b"another model's") is None


def test_a_row_that_says_nothing_of_answers_stays() -> None:
    example = Example({"a": 1.0}, True, score={"true": 0.5, "false": 0.5})
    assert asked_again(example, build("binary")) is example
