"""An event whose content was erased is known, and nobody learns it, shows it or believes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import replica_world as worlds
import test_quarantine as quarantine
from msgspec.structs import replace

from online.learning import base
from online.rebuild.rebuild import NOBODY, Method, Rebuild, nothing
from online.rows.history import Decisions
from online.rows.journal_rows import JournalRows
from online.settings.model import ModelSettings
from replay import codec
from replay.example import Example
from replay.journal.base import NewRow, Verdict


async def erased(world: Any) -> None:
    replica = await world.replica("r1")
    one, serving = quarantine.cluster(world, replica), world.serving(replica)
    await quarantine.set_aside(replica, "x", "y", source="bot")
    _, receipt = await serving.feedback(quarantine.event("a"))
    assert receipt.status == "learned"
    journal, partition = world.journal(), replica.writer.partition
    assert journal.erasing().rows(partition, [1, 3], codec.ERASED) == 2
    page = await one.events("m", "quarantined", None, 100)
    assert [(e["status"], e["label"]) for e in page["events"]] == [
        ("erased", None), ("quarantined", 1e9),
    ]  # fmt: skip
    done = await one.decide_source("m", "released", "bot", None, 100)
    assert done["learned"] == 1, "the other one"
    await worlds.until(lambda: world.weight(replica, "y") == 1)
    assert world.weight(replica, "x") == 0
    for label in (1e9, 2.0):
        _, receipt = await serving.feedback(replace(quarantine.event("a"), label=label))
        assert (receipt.status, receipt.first_outcome) == ("duplicate", "learned")
    for label, status in ((1e9, "duplicate"), (2.0, "conflict")):
        request = replace(quarantine.event("b"), label=label)
        await serving.feedback(quarantine.event("b"))
        assert (await serving.feedback(request))[1].status == status, "where it is known"
    rows = JournalRows(journal, ModelSettings(name="m", task="regression", learner="linreg"))
    assert sum(len(page.time) for page in rows) == 2, "y and b"
    await replica.stop(5)


def test_an_erased_event_is_known_and_never_learned(tmp_path: Path) -> None:
    worlds.play(tmp_path, erased)


@pytest.mark.parametrize(
    "place",
    [
        "online.rows.history.codec",
        "online.serving.feedback.receipts.codec",
        "online.rows.journal_rows",
    ],
)
def test_who_does_not_look_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    if place.endswith("codec"):
        monkeypatch.setattr(codec, "is_erased", lambda payload: False)
    else:
        monkeypatch.setattr(f"{place}.is_erased", lambda payload: False)
    with pytest.raises((AssertionError, TimeoutError, ValueError)):
        worlds.play(tmp_path, erased)


@pytest.mark.parametrize("looks", [True, False])
def test_a_learner_that_comes_later_takes_it_for_one_that_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, looks: bool
) -> None:
    journal = worlds.World(tmp_path).journal()
    partition = journal.register("m", "r", worlds.SPEC, 0.0).id
    row = NewRow(bytes(16), "", "bot", Verdict.ACCEPTED, codec.ERASED, 0.0)
    (outcome,) = journal.append(partition, 0, [row]).outcomes
    assert outcome.row is not None
    start = nothing("m", worlds.SPEC, "{}", {})
    method = Method(worlds.counting, "regression")
    learner = Rebuild(journal, Decisions(worlds.SPEC), NOBODY, start, method)._learner
    if not looks:
        monkeypatch.setattr(base.codec, "is_erased", lambda payload: False)
    failed = learner.learn(outcome.row)
    assert failed is not None
    assert (failed.reason == "its content was erased") is looks
    assert learner.tally.digest == (0, 0)


def test_the_bytes_of_an_erased_row_are_those_of_an_example_without_features() -> None:
    assert codec.decode(codec.ERASED) == Example({}, "", notes=b"erased")
    assert codec.is_erased(codec.ERASED)
    assert not codec.is_erased(codec.encode(Example({}, "")))
