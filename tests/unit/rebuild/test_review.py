"""Verdicts about others, derived again without a source that is forgotten."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import replica_world as worlds
from msgspec.structs import replace
from river import linear_model, optim

from online.learning.ordered import OrderedLearner
from online.models.adapters.linear import Linear
from online.rebuild.rebuild import ForgetScope, Method, Rebuild, nothing
from online.rebuild.verdicts_again import Review
from online.rows.history import Decisions
from online.settings.model import ModelSettings
from online.trust.filtering import filtering_for
from replay import codec
from replay.example import Example, Judged
from replay.journal.base import NewRow, Verdict

SPEC = worlds.SPEC
HONEST = [f"user-{i}" for i in range(11)]
MODEL = ModelSettings(name="m", task="binary", learner="logreg")


def logistic() -> Linear:
    return Linear(linear_model.LogisticRegression(optim.SGD(0.1)))


def reviewing(learner: OrderedLearner) -> Review | None:
    filters = filtering_for(MODEL, learner, None, sources_max=100, vouched=False)
    return None if filters is None else Review(filters, learner)


def row(i: int, source: str, *, lies: bool = False, **more: Any) -> NewRow:
    x = 1.0 if i % 2 else -1.0
    example = Example(
        {"x": x, "z": (i % 97) / 97}, (x > 0) != lies, score={"true": 0.5, "false": 0.5},
        judged=Judged(0.0, more.pop("reason", ""), {}),
    )  # fmt: skip
    plain = worlds.row(f"e{i}")
    return replace(plain, source=source, payload=codec.encode(example), at=float(i), **more)


def reviewed(folder: Path, rows: list[NewRow], wanted: str) -> Review:
    journal = worlds.World(folder).journal()
    partition = journal.register("m", "r", SPEC, 0.0).id
    journal.append(partition, 0, rows)
    rebuild = Rebuild(
        journal, Decisions(SPEC), ForgetScope(wanted), nothing("m", SPEC, "{}", {}),
        Method(logistic, "binary"), review=reviewing,
    )  # fmt: skip
    rebuild.run()
    assert rebuild.review is not None
    return rebuild.review


def stream(n: int) -> list[NewRow]:
    """Honest rows of eleven sources, and one that lies, whom nobody has noticed."""
    dealt = np.random.default_rng(1).integers(0, 12, n)
    sources = ("liar" if k == 11 else HONEST[k] for k in dealt)
    return [row(i, source, lies=source == "liar") for i, source in enumerate(sources)]


def test_who_was_hidden_by_the_source_is_named(tmp_path: Path) -> None:
    review = reviewed(tmp_path, stream(1000), "bot")
    assert {c.row.source for c in review.changed} == {"liar"}
    assert review.counts[Verdict.ACCEPTED, Verdict.QUARANTINED] > 50
    shown = review.summary()
    assert shown["changed"] == review.counts.total() == len(shown["events"])


def test_who_was_set_aside_because_of_it_is_named(tmp_path: Path) -> None:
    rows = [r for r in stream(600) if r.source != "liar"]
    aside = {"verdict": Verdict.QUARANTINED, "reason": "surprise"}
    rows.append(row(600, HONEST[0], **aside))
    review = reviewed(tmp_path, rows, "bot")
    (event,) = review.summary()["events"]
    assert event == {
        "row": f"1:{len(rows)}", "event_id": rows[-1].event_id, "source": HONEST[0],
        "was": "quarantined", "now": "accepted", "reason": "surprise",
    }  # fmt: skip


def test_rows_of_the_source_and_of_banned_ones_are_not_judged(tmp_path: Path) -> None:
    rows = stream(1000)
    banned = replace(
        row(1000, HONEST[1], verdict=Verdict.QUARANTINED),
        payload=codec.encode(Example({"x": 1.0}, True, score={"true": 0.5, "false": 0.5})),
    )
    review = reviewed(tmp_path, [*rows, banned], "liar")
    assert review.changed == []
