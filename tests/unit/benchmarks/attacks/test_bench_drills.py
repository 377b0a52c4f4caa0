"""The drills of the robustness bench in small: bundled streams, no service."""

from __future__ import annotations

import asyncio
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest

from benchmarks.attacks import poisoned, turning, undo
from benchmarks.attacks.honest import source_of
from benchmarks.fixtures.single_replica import NAME
from evaluation.streams import open_stream
from online.settings.model import ModelSettings, Replay
from online.settings.sync import Sync

ROWS = list(islice(iter(open_stream("phishing", None).rows), 700))


def test_lies_are_undone_and_honest_rows_stay() -> None:
    found = undo.drill("phishing", "binary", "logreg", share=1.0, seed=1, rows=len(ROWS))
    assert found.needed, "lies that do no harm show nothing"
    assert found.good, found
    assert found.harm < found.clean - 20
    assert found.rollbacks > 1, "lies go on after the first one"


def test_lies_are_wrong_and_as_many_as_asked() -> None:
    given = undo.course("phishing", "binary", "logreg", 0.5, 0, len(ROWS))
    held = {id(x) for x, _ in given.root + given.asked}
    lies = [post for post in given.posts if post[0] in undo.LIARS]
    assert len(lies) == undo.LIES
    assert given.posts[given.ended - 1] == lies[-1]
    true = {id(x): y for s, x, y in given.posts if s not in undo.LIARS}
    assert all(true[id(x)] is not y for _, x, y in lies)
    assert not held & {id(x) for _, x, _ in given.posts}


@pytest.mark.parametrize(("late", "rows"), [(0, 100), (150, 245)])
def test_recovery_counts_from_the_turn_to_what_it_settles_to(late: int, rows: int) -> None:
    plain = [True] * 500 + [True] * 500
    other = [True] * 500 + [False] * late + [True] * (500 - late)
    assert turning.recovered(plain, other, [500]) == (rows, 100)


def test_honest_sources_differ() -> None:
    from random import Random

    draw = Random(0)
    sent = Counter(source_of("by size", turning.SOURCES, n, True, draw) for n, _ in enumerate(ROWS))
    assert max(sent.values()) > 5 * min(sent.values())
    with_label = {source_of("by label", 12, n, True, draw) for n in range(20)}
    assert len(with_label) < 12
    blocks = [source_of("one after another", 12, n, True, draw) for n in range(400)]
    assert set(blocks[:200]) == {"s0"}
    assert set(blocks[200:]) == {"s1"}


def test_a_world_that_turns_is_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [(x, y is (n < 350)) for n, (x, y) in enumerate(ROWS)]
    found = turning.turned(turning.Turning("phishing", "binary", "logreg", rows, [350]), "alike")
    assert found.recovery >= found.without > 100, "the turn is one"
    assert found.drifts > 0
    assert found.good == (found.quarantined == 0), "pardoned ones count, too"


@pytest.mark.parametrize("guard", ["none", "ban"])
def test_a_ban_takes_lies_out_of_the_buffer(tmp_path: Path, guard: str) -> None:
    settings = ModelSettings(
        name=NAME, task="binary", learner="logreg", sync=Sync(interval_ms=5), filters="none",
        replay=Replay(policy="balanced", capacity=100),
    )  # fmt: skip
    found = asyncio.run(poisoned._scene(tmp_path, settings, "phishing", ROWS, guard, 0))
    assert found.poisoned > 10
    assert (found.stopped == 0) == (guard == "ban")
    assert found.caught == (6 if guard == "ban" else 0)
