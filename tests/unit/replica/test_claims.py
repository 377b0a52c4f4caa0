"""A row that kills whoever learns it is given up after it has killed; no other row ever is."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import replica_world as worlds

import online.replica.follower
from online.models.adapters.linear import Linear
from online.replica.killing_rows import ADOPTERS, DEATHS, ENDED, GIVEN_UP, LEFT, Claims
from replay.errors import JournalUnavailable
from replay.journal.base import Row, Verdict
from replay.journal.sqlite.journal import SqliteJournal


class Killed(BaseException):
    """The death of a process."""


class Store:
    """Claims as a store counts them; it may lose answers, and kill who asks."""

    def __init__(self, seed: int = 0, *, lost: float = 0.0, kill: float = 0.0) -> None:
        self.counts: Counter[tuple[int, int]] = Counter()
        self.random, self.lost, self.kill = random.Random(seed), lost, kill

    async def claim(self, partition: int, offset: int) -> int:
        if self.random.random() < self.kill:
            raise Killed
        before = self.counts[partition, offset]
        self.counts[partition, offset] += 1
        if self.random.random() < self.lost:
            raise JournalUnavailable("the answer was lost")
        return before

    async def claims(self, partition: int, offset: int) -> int:
        return self.counts[partition, offset]


def row(offset: int) -> Row:
    return Row(offset, 7, offset, bytes(16), "", "", Verdict.ACCEPTED, 1.0, b"", 0.0)


async def adopt(
    claims: Claims,
    rows: Sequence[int],
    deadly: int | None,
    chance: float,
    store: Store,
    within: float = 0.0,
) -> list[int]:
    """One adopter learns the rows; those that it gave up.

    ``chance`` kills between two rows, ``within`` in the middle of one.
    """
    given_up = []
    for offset in rows:
        if await claims.begin(row(offset)) is not None:
            given_up.append(offset)
        elif offset == deadly or store.random.random() < within:
            raise Killed
        await claims.end(learned=True)
        if store.random.random() < chance:
            raise Killed
    return given_up


def deaths_until_done(
    deadly: int | None, *, chance: float = 0.0, store: Store | None = None, kind: Any = Claims
) -> tuple[int, list[int]]:
    """Adopters one after the other, each from the first row; how many died, and what was lost."""
    store = store or Store()
    for died in range(1000):
        try:
            claims = kind(store.claim, store.claims)
            return died, asyncio.run(adopt(claims, range(1, 11), deadly, chance, store))
        except Killed:
            continue
    raise AssertionError("nobody gets through")


def test_who_gets_through_claims_only_the_partition() -> None:
    store = Store()
    for _ in range(ADOPTERS):
        assert deaths_until_done(None, store=store) == (0, [])
    assert store.counts == {(7, 0): ADOPTERS}
    assert deaths_until_done(None, store=store) == (0, []), "row by row, and nobody dies"
    assert store.counts[7, 4] == store.counts[7, 4 + ENDED] == 1


@pytest.mark.parametrize("deadly", [1, 5, 10])
def test_a_row_that_kills_is_given_up_after_two_adopters_and_three_more(deadly: int) -> None:
    store = Store()
    assert deaths_until_done(deadly, store=store) == (ADOPTERS + DEATHS, [deadly])
    for _ in range(5):
        assert deaths_until_done(deadly, store=store) == (0, [deadly]), "and stays given up"


def check_no_good_row_is_given_up(kind: Any) -> None:
    for seed in range(100):
        store = Store(seed)
        for _ in range(3):  # processes die between two rows, again and again
            _, given_up = deaths_until_done(None, chance=0.2, store=store, kind=kind)
            assert given_up == [], f"seed {seed}"


def test_deaths_between_rows_give_up_nothing() -> None:
    check_no_good_row_is_given_up(Claims)


def check_kills_in_the_middle_give_up_nothing() -> None:
    """A machine that ends each process soon, at any instant: a hundred times over ten rows."""
    for seed in range(20):
        store = Store(seed)
        for _ in range(100):
            claims, given_up = Claims(store.claim, store.claims), list[int]()
            try:
                given_up = asyncio.run(adopt(claims, range(1, 11), None, 0.0, store, 0.03))
            except Killed:
                continue
            assert given_up == [], f"seed {seed}"


def test_kills_in_the_middle_of_rows_give_up_nothing() -> None:
    check_kills_in_the_middle_give_up_nothing()


def test_counting_deaths_alone_would_give_up_good_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("online.replica.killing_rows.OUTLIVED", 0)
    with pytest.raises(AssertionError, match="seed"):
        check_kills_in_the_middle_give_up_nothing()


def given_up_beside_moves(learned: bool) -> int:
    """Processes until a row that kills is given up, where each second one is moved elsewhere."""
    store = Store()
    store.counts[7, 0] = ADOPTERS
    for i in range(20):
        claims = Claims(store.claim, store.claims)
        if asyncio.run(claims.begin(row(1))) is not None:
            return i
        if i % 2:  # another server's values have come before the row was learned
            asyncio.run(claims.end(learned=learned))
    return 20


def test_who_has_not_learned_the_row_has_not_outlived_it() -> None:
    assert given_up_beside_moves(learned=False) == 5
    assert given_up_beside_moves(learned=True) == 20, "else it kills for ever"


class WithoutEnds(Claims):
    """Counts claims of a row alone, as if each had been a death."""

    async def end(self, *, learned: bool) -> None:
        self._begun = None


def test_counting_claims_alone_would_give_up_good_rows() -> None:
    with pytest.raises(AssertionError, match="seed"):
        check_no_good_row_is_given_up(WithoutEnds)


@pytest.mark.parametrize("lost", [0.05, 0.2])
def test_lost_answers_give_up_nothing_good(lost: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("online.replica.killing_rows._PAUSE_S", 0.0)
    for seed in range(30):
        store = Store(seed, lost=lost)
        for _ in range(3):
            _, given_up = deaths_until_done(None, chance=0.2, store=store)
            assert given_up == [], f"seed {seed}"
        died, given_up = deaths_until_done(5, store=store)
        assert given_up in ([5], []), f"seed {seed}"
        assert died < 60, f"seed {seed}"


def test_a_learner_that_learns_again_is_not_dead() -> None:
    async def scene() -> None:
        store = Store()
        store.counts[7, 0] = ADOPTERS
        claims = Claims(store.claim, store.claims)
        for _ in range(5):  # the server has lost its place again and again
            assert await adopt(claims, range(1, 6), None, 0.0, store) == []

    asyncio.run(scene())


@pytest.mark.parametrize("told", [True, False])
def test_learning_the_journal_again_in_peace_is_no_death(told: bool) -> None:
    async def scene() -> None:
        store = Store()
        for _ in range(4 * ADOPTERS):
            claims = Claims(store.claim, store.claims)
            assert await adopt(claims, range(1, 6), None, 0.0, store) == []
            careful = claims.careful(7)
            if told:
                await claims.ended(7)
        assert careful is not told, "row by row"

    asyncio.run(scene())


def test_who_has_adopted_all_of_a_partition_says_that_it_lives(tmp_path: Path) -> None:
    async def scene(world: Any) -> None:
        owner = await world.replica("owner")
        partition = owner.writer.partition
        await owner.writer.record([worlds.row("a"), worlds.row("b")])
        await die(owner)
        adopter = await world.replica("adopter")
        await adopter.exchange._adopt(partition)
        claims = adopter.store.journal.claims
        await worlds.until(lambda: claims(partition, ENDED) == 1)
        assert claims(partition, 0) == 1
        await adopter.stop(5)

    worlds.play(tmp_path, scene)


def test_a_stop_before_the_row_is_learned_is_no_death() -> None:
    async def scene() -> None:
        store = Store()
        store.counts[7, 0] = ADOPTERS
        for _ in range(4):
            claims = Claims(store.claim, store.claims)
            assert await claims.begin(row(1)) is None
            await claims.end(learned=False)  # stopped in order
        assert store.counts[7, 1] == store.counts[7, 1 + LEFT] == 4
        assert store.counts[7, 1 + ENDED] == 0

    asyncio.run(scene())


class Deadly(Linear):
    """Kills its process on a marker."""

    def learn(self, features: Any, label: Any, weight: float) -> None:
        if "deadly" in features:
            raise Killed
        super().learn(features, label, weight)


def deadly() -> Linear:
    return Deadly(worlds.counting().estimator)


async def die(replica: Any) -> None:
    """What is left of a process whose learner has died: nothing goes on, nothing is said."""
    for task in replica._tasks:
        task.cancel()
    await asyncio.gather(*replica._tasks, return_exceptions=True)
    replica.store.close()


def test_the_row_fails_and_every_other_row_is_learned_once(tmp_path: Path) -> None:
    async def scene(world: Any) -> None:
        owner = await world.replica("owner", build=deadly)
        partition = owner.writer.partition
        rows = [worlds.row("a"), worlds.row("x", feature="deadly"), worlds.row("b")]
        sent = asyncio.create_task(owner.writer.record(rows))
        learning = owner._tasks[1]
        await worlds.until(learning.done)
        assert isinstance(learning.exception(), Killed)
        sent.cancel()
        await die(owner)
        died = 0
        while True:
            adopter = await world.replica(f"adopter{died}", build=deadly)
            await adopter.exchange._adopt(partition)
            learning = adopter._tasks[1]
            await worlds.until(
                lambda a=adopter, task=learning: (
                    task.done() or a.learner.clock.get(partition, 0) >= 3
                )
            )
            if not learning.done():
                break
            await die(adopter)
            died += 1
        assert died == ADOPTERS + DEATHS
        assert [world.weight(adopter, f) for f in ("a", "deadly", "b")] == [1, 0, 1]
        again = await adopter.writer.record([worlds.row("x", feature="deadly")])
        assert (again[0].status, again[0].repeat, again[0].reason) == ("failed", True, GIVEN_UP)
        assert worlds.statuses(await adopter.writer.record([worlds.row("c")])) == [
            ("learned", False)
        ]
        assert adopter.learner.tally.digest[0] == 3
        await adopter.stop(5)

    worlds.play(tmp_path, scene)


def test_a_failed_row_is_in_the_journal_before_its_range_is_pushed(tmp_path: Path) -> None:
    """Otherwise a death between the two leaves an event that is neither learned nor failed."""

    class Slow(SqliteJournal):
        def write_control(self, *args: Any, **kwargs: Any) -> Any:
            if args[1] == "failed" and blocked:
                raise JournalUnavailable("not now")
            return super().write_control(*args, **kwargs)

    blocked = [True]

    async def scene(world: Any) -> None:
        journal = Slow(world.folder / "journal.db", disk_low_mb=0)
        replica = await world.replica(
            build=lambda: worlds.Picky(worlds.counting().estimator), journal=journal
        )
        partition = replica.writer.partition
        sent = asyncio.create_task(replica.writer.record([worlds.row("x", feature="bad")]))
        await worlds.until(lambda: replica.learner.tracks[partition].next == 2)
        met = world.client.met
        await worlds.until(lambda: world.client.met > met + 3)
        assert replica.learner.clock.get(partition, 0) == 0
        assert not sent.done()
        blocked.clear()
        assert (await sent)[0].status == "failed"
        await worlds.until(lambda: replica.learner.clock.get(partition, 0) == 1)
        await replica.stop(5)

    worlds.play(tmp_path, scene)


def test_a_push_before_the_failure_is_written_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        online.replica.follower.Follower, "failure_unwritten",
        property(lambda self: False, lambda self, value: None),
        raising=False,
    )  # fmt: skip
    with pytest.raises(AssertionError):
        test_a_failed_row_is_in_the_journal_before_its_range_is_pushed(tmp_path)


def test_a_stop_waits_no_longer_for_the_journal_than_it_may(tmp_path: Path) -> None:
    class Away(SqliteJournal):
        def claims(self, partition: int, offset: int) -> int:
            raise JournalUnavailable("not now")

    async def scene(world: Any) -> None:
        journal = Away(world.folder / "journal.db", disk_low_mb=0)
        replica = await world.replica(journal=journal)
        replica._follower._claims._begun = row(1)
        async with asyncio.timeout(60):
            await replica.stop(0.5)

    worlds.play(tmp_path, scene)
