"""After a drift a fresh model, taught by recent rows alone, serves if it is better."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest
import replica_world as worlds

import online.rebuild.relearn as relearning
from online.errors import StartRefused
from online.learning.counters import event_hash
from online.rebuild.rebuild import Method
from online.rows.history import Decisions
from online.rows.prediction_ids import event_key
from online.settings.model import Drift
from paramserver.process.actor import ParameterServer, ServerSettings
from paramserver.process.lineage import Lineage
from paramserver.snapshots.history import SnapshotHistory
from paramserver.snapshots.places import lineage_place, open_snapshots
from paramserver.snapshots.store import Retention
from replay import codec
from replay.example import Example
from replay.journal.base import NewRow, Verdict
from replay.journal.sqlite.journal import SqliteJournal

SPEC = worlds.SPEC
DRIFT = Drift(on_rise="relearn", relearn_rows=400)


class Aside:
    """What a task does, in a thread: the outcomes as they are told."""

    def __init__(self, world: Any, *, ordered: bool) -> None:
        self.world, self.ordered = world, ordered
        self.told: list[str] = []
        self.begun = asyncio.Event()
        self.go_on = asyncio.Event()
        self.go_on.set()

    async def ask(self, question: str, *args: Any) -> Any:
        return getattr(self.world.server, question)(*args)

    async def relearn(self, rewrite: int, since: float) -> str:
        self.begun.set()
        await self.go_on.wait()
        done = await asyncio.to_thread(self._taught, rewrite, since)
        self.told.append(done)
        return done

    def _taught(self, rewrite: int, since: float) -> str:
        world = self.world
        place = lineage_place(str(world.folder / "snapshots"), "m", SPEC)
        history = SnapshotHistory(open_snapshots(place), Retention())
        journal, decisions = world.journal(), Decisions(SPEC)
        decisions.read(journal, "m")
        head = journal.head("m", SPEC).snapshot
        window = relearning.window_of(journal, "m", decisions, since, DRIFT.relearn_rows)
        work = relearning.Relearning(
            journal, decisions, window, None if head is None else history.load(head),
            Method(worlds.counting, "regression", self.ordered), model="m", spec_text="{}",
        )  # fmt: skip
        name = f"aside-{len(self.told)}"
        swap = world.server.relearn
        return str(relearning.relearn(work, window, history, swap, name, rewrite, 5.0))


async def send(replica: Any, label: float, first: int, n: int) -> list[str]:
    """Events with one feature and this label, answered before they are learned; their statuses."""
    told = []
    for start in range(first, first + n, 20):
        numbers = range(start, min(start + 20, first + n))
        answer = float(replica.learner.predict({"x": 1.0}).label)
        example = Example({"x": 1.0}, label, score={"": answer})
        rows = [
            NewRow(
                event_key("event", "s", str(i)), str(i), "s", Verdict.ACCEPTED,
                codec.encode(example), time.time(),
            )
            for i in numbers
        ]  # fmt: skip
        told += [one.status for one in await replica.writer.record(rows)]
    return told


async def drifted(world: Any, ordered: bool, after: float) -> tuple[Aside, list[Any]]:
    """Two replicas that have learned 1e9, until with the alarm it is another label.

    Each row moves the prediction by about 1/512, up or down.
    """
    aside = Aside(world, ordered=ordered)
    replicas = [
        await world.replica(
            name, ordered=ordered, ask=aside.ask, relearn=aside.relearn, drift=DRIFT
        )
        for name in ("a", "b")
    ]
    first, second = replicas
    await asyncio.gather(send(first, 1e9, 0, 600), send(second, 1e9, 1000, 600))
    await worlds.until(lambda: all(r.learner.tally.digest[0] == 1200 for r in replicas))
    world.server.snapshot()
    before = time.time()
    await send(first, after, 2000, 1)
    for replica in replicas:  # both have seen it, in their own rows
        replica._on_rise("alarm", before)
    await send(first, after, 3000, 200)
    await asyncio.wait_for(aside.begun.wait(), 240)
    return aside, replicas


@pytest.mark.parametrize("ordered", [False, True])
def test_what_recent_rows_have_taught_takes_the_place(tmp_path: Path, ordered: bool) -> None:
    async def scene(world: Any) -> None:
        aside, replicas = await drifted(world, ordered, 0.0)
        await worlds.until(lambda: all(r.learner.rewrite for r in replicas))
        await worlds.until(lambda: not any(r._reactions.rise.pending for r in replicas))
        [told] = [said for r in replicas for said in r.incidents]
        assert "1,200 older rows undone" in told
        await send(replicas[1], 0.0, 4000, 10)
        await worlds.until(lambda: all(r.learner.tally.digest[0] == 211 for r in replicas))
        for replica in replicas:
            assert abs(replica.learner.predict({"x": 1.0}).label) < 0.01, "as it never was 1e9"
            assert not [k for k in replica.learner.tally.counters if k.startswith("versus/")]
        assert await send(replicas[1], 1e9, 0, 1) == ["undone"], "a repeat"
        replicas[1]._on_rise("alarm", time.time())  # too soon
        await send(replicas[1], 1e9, 5000, 200)
        await worlds.until(lambda: not replicas[1]._reactions.rise.pending)
        assert len(aside.told) == 1, "one, whoever has seen it, and no second one within the pause"

        restarted = ParameterServer(
            Lineage("m", SPEC, "{}", "sum"), world.journal, str(world.folder / "snapshots"),
            ServerSettings(), background=False,
        )  # fmt: skip
        assert restarted.restore(), "from before the row: the state aside is loaded again"
        world.client.server = restarted
        await worlds.until(lambda: all(r.learner.version[0] == 3 for r in replicas))
        journal, decisions = world.journal(), Decisions(SPEC)
        decisions.read(journal, "m")
        rows = [row for p in journal.partitions("m") for row in journal.read(p.id, 1, 9999)]
        learned = [row for row in rows if decisions.learned(row)]
        expected = (len(learned), sum(event_hash(row.key) for row in learned) % 2**64)
        await worlds.until(lambda: replicas[0].learner.tally.digest == expected)
        assert decisions.undone.count == 1200
        for replica in replicas:
            await replica.stop(5)

    worlds.play(tmp_path, scene)


@pytest.mark.parametrize("guarded", [True, False])
def test_it_does_not_serve_if_it_is_no_better(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, guarded: bool
) -> None:
    if not guarded:
        monkeypatch.setattr(relearning, "DEVIATIONS", -1e9)
        monkeypatch.setattr(relearning.Standing, "held_back", lambda *_: None)

    async def scene(world: Any) -> None:
        aside, replicas = await drifted(world, False, 1e9)  # there was no drift
        await worlds.until(lambda: bool(aside.told))
        await worlds.until(lambda: not any(r._reactions.rise.pending for r in replicas))
        told = [said for r in replicas for said in r.incidents]
        served = world.server.status()["rewrite"] > 0
        assert served is not guarded
        assert not guarded or "it is not better" in told[0]
        if not guarded:  # it has forgotten what was right
            await worlds.until(
                lambda: all(abs(r.learner.predict({"x": 1.0}).label) < 1 for r in replicas)
            )
        for replica in replicas:
            await replica.stop(5)

    worlds.play(tmp_path, scene)


def test_the_newest_rows_of_the_model_since_then(tmp_path: Path) -> None:
    journal = SqliteJournal(tmp_path / "journal.db", synchronous="OFF", disk_low_mb=0)
    first, second, other = (
        journal.register(model, replica, SPEC, 0.0).id
        for model, replica in (("m", "a"), ("m", "b"), ("another", "a"))
    )
    ends = dict.fromkeys((first, second, other), 0)
    for i in range(40):  # the other model's are half of all
        p = (first, other, second, other)[i % 4]
        payload = codec.encode(Example({"x": 1.0}, 1.0))
        key = event_key("event", "s", str(i))
        row = NewRow(key, str(i), "s", Verdict.ACCEPTED, payload, float(i))
        ends[p] = journal.append(p, ends[p], [row]).end
    decisions = Decisions(SPEC)

    def found(since: float, rows_max: int) -> tuple[dict[int, int], float, int]:
        window = relearning.window_of(journal, "m", decisions, since, rows_max)
        half = sum(window.judges(row.seq) for row in journal.follow("m", window.after, 99).rows)
        assert half == window.rows // 2
        return dict(window.clock), window.since, window.rows

    assert found(0.0, 100) == ({first: 0, second: 0}, 0.0, 20)
    assert found(21.0, 100) == ({first: 6, second: 5}, 22.0, 9)
    assert found(21.0, 4) == ({first: 8, second: 8}, 32.0, 4)
    decisions.without = {first: 9}
    assert found(0.0, 100)[0] == {first: 9, second: 0}, "what it began without stays out"
    with pytest.raises(StartRefused, match="no rows since"):
        found(100.0, 100)
