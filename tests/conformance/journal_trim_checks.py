"""Checks of retention and of what guards it: trimming, claims, fences and the room taken."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from journal_words import Open, batch, new, offsets, refused, register, same

from replay.errors import EpochLost, JournalBehind, PartitionSealed, PartitionUnknown
from replay.journal.base import Half, Journal

NEVER = float("inf")


def _fill(journal: Journal, prefix: str, ages: tuple[float, ...], model: str = "m") -> int:
    """Number of a new partition with a row of each age, under the keys PREFIX1, PREFIX2 …"""
    p = register(journal, model)
    journal.append(p, 0, [new(f"{prefix}{i}", at=at) for i, at in enumerate(ages, 1)])
    return p


def _offsets_left(journal: Journal, *partitions: int) -> list[list[int]]:
    found = []
    for p in partitions:
        state = journal.partition(p)
        first = state.trimmed + 1 if state else 1
        same(journal.read(p, first - 1, 99) if first > 1 else (), (), "a read from a trimmed row")
        found.append([row.offset for row in journal.read(p, first, 99)])
    return found


def trims_the_oldest_rows(open_: Open) -> None:
    with open_() as journal:
        journal.begin_epoch("m", "spec", 0)
        p = _fill(journal, "p", (1.0, 2.0, 5.0, 2.0, 2.0))
        q = _fill(journal, "q", (1.0, 2.0, 3.0))
        trim = partial(journal.trim, "m", "spec", 1)
        same(trim({p: 0, q: 0}, NEVER, 9), 0, "nothing may go")
        same(trim({p: 5, q: 3}, 1.0, 9), 0, "nothing is old enough")
        same(_offsets_left(journal, p, q), [[1, 2, 3, 4, 5], [1, 2, 3]], "nothing went")
        same(trim({p: 1, q: 0}, NEVER, 9), 1, "up to the bound of each partition")
        same(trim({p: 5, q: 3}, 5.0, 2), 2, "at most n in all")
        same(sum(map(len, _offsets_left(journal, p, q))), 5, "rows that are left")
        trim({p: 5, q: 1}, 5.0, 9)
        same(_offsets_left(journal, p, q)[0], [3, 4, 5], "a row that must stay ends it: no holes")
        left = [(r.partition, r.offset) for r in journal.follow("m", 0, 99).rows]
        same([o for where, o in left if where == p], [3, 4, 5], "what is followed after it")
        same(journal.follow("m", 0, 9).trimmed in (2, 6, 7), True, "the newest that was trimmed")
        states = [journal.partition(p), *journal.partitions("m")[:1]]
        same([(s.end, s.trimmed) for s in states if s], [(5, 2)] * 2, "end and trimmed")
        same(trim({p: 99, q: 99}, NEVER, 9), len(left), "bounds beyond the end")
        after = journal.follow("m", 0, 99)
        same((after.rows, after.trimmed), ((), after.upto), "nothing is left to follow")
    with open_() as journal:
        same(_offsets_left(journal, p, q), [[], []], "nothing is left, after a restart")
        same([s.trimmed for s in journal.partitions("m")], [5, 3], "trimmed, after a restart")
        same(journal.trim("m", "spec", 1, {p: 5, q: 3}, NEVER, 9), 0, "nothing more goes")


def trimmed_ids_are_free_again(open_: Open) -> None:
    with open_() as journal:
        journal.begin_epoch("m", "spec", 0)
        p = _fill(journal, "p", (1.0, 1.0, 1.0))
        q = register(journal)
        same(journal.trim("m", "spec", 1, {p: 2}, 2.0, 9), 2, "rows removed")
        same([journal.find("m", new(f"p{i}").key) for i in (1, 2)], [None, None], "their ids")
        same(journal.usage("m").rows, 1, "rows that are counted")
        answer = journal.append(q, 0, batch("p1 p3"))
        same(offsets(answer), [(True, q, 1), (False, p, 3)], "a repeat after its row went is new")
        answer = journal.append(p, 3, batch("p2 p3 p1"))
        same(offsets(answer), [(True, p, 4), (False, p, 3), (False, q, 1)], "in its partition too")
        same(_offsets_left(journal, p, q), [[3, 4], [1]], "rows as read")
        seqs = [r.seq for r in (*journal.read(p, 3, 1), *journal.read(q, 1, 1))]
        same(seqs, sorted(set(seqs)), "seq goes on")


def a_trimmed_partition_goes_on(open_: Open) -> None:
    with open_() as journal:
        journal.begin_epoch("m", "spec", 0)
        p = _fill(journal, "p", (1.0, 1.0))
        journal.trim("m", "spec", 1, {p: 2}, NEVER, 9)
    with open_() as journal:
        same((journal.read(p, 1, 9), journal.read(p, 2, 9)), ((), ()), "trimmed rows")
        refused(JournalBehind, lambda: journal.append(p, 3, batch("c")), "known beyond the end")
        same(offsets(journal.append(p, 2, batch("c"))), [(True, p, 3)], "the next row")
        same(journal.read(p, 2, 9), (), "a hole is not skipped")
        same([r.offset for r in journal.read(p, 3, 9)], [3], "the row behind it")
        same((journal.seal(p), journal.trim("m", "spec", 1, {p: 3}, NEVER, 9)), (3, 1), "a seal")
        same(journal.seal(p), 3, "end of a sealed and trimmed partition")
        refused(PartitionSealed, lambda: journal.append(p, 3, batch("d")), "append after the seal")


def only_the_newest_server_trims(open_: Open) -> None:
    with open_() as one, open_() as two:
        p = _fill(one, "p", (1.0, 1.0))
        for epoch in (0, 1):
            call = partial(one.trim, "m", "spec", epoch, {p: 2}, NEVER, 9)
            refused(EpochLost, call, "trim before the first server")
        one.begin_epoch("m", "spec", 0)
        two.begin_epoch("m", "spec", 1)
        for epoch in (1, 3):
            call = partial(one.trim, "m", "spec", epoch, {p: 2}, NEVER, 9)
            same(refused(EpochLost, call, "an old server").args, ("m", epoch, 2), "the refusal")
        two.begin_epoch("m", "other", 0)
        same(one.trim("m", "spec", 2, {p: 2}, NEVER, 9), 0, "a lineage that is not the newest")
        refused(EpochLost, lambda: one.trim("m", "spec", 1, {p: 2}, NEVER, 9), "both")
        same(_offsets_left(one, p), [[1, 2]], "rows after refusals")
        two.begin_epoch("n", "spec", 0)  # of another model: changes nothing
        same(one.trim("m", "other", 1, {p: 1}, NEVER, 9), 1, "the newest lineage")
        one.begin_epoch("m", "spec", 2)
        same(one.trim("m", "spec", 3, {p: 2}, NEVER, 9), 1, "the newest again")


def trims_its_own_model_only(open_: Open) -> None:
    with open_() as journal:
        journal.begin_epoch("m", "spec", 0)
        p, q = _fill(journal, "a", (1.0,)), _fill(journal, "a", (1.0,), "n")
        bounds = {q: 1, p: 1, max(p, q) + 7: 1}
        same(journal.trim("m", "spec", 1, bounds, NEVER, 9), 1, "rows of the model")
        same(_offsets_left(journal, p, q), [[], [1]], "rows of both models")
        found = [journal.find(m, new("a1").key) for m in ("m", "n")]
        same([r and r.partition for r in found], [None, q], "ids of both models")
        same([journal.usage(m).rows for m in ("m", "n", "nobody")], [0, 1, 0], "rows by model")


def sums_the_running_time(open_: Open) -> None:
    with open_() as one, open_() as two:
        for epoch in (0, 1):
            call = partial(one.run, "m", "spec", epoch, 5)
            refused(EpochLost, call, "running time before the first server")
        one.begin_epoch("m", "spec", 0)
        same((one.run("m", "spec", 1, 0), one.run("m", "spec", 1, 700)), (0, 700), "the sum")
        two.begin_epoch("m", "spec", 1)
        refused(EpochLost, lambda: one.run("m", "spec", 1, 9), "an old server's")
        same(two.run("m", "spec", 2, 40), 740, "the next server goes on")
        two.begin_epoch("n", "spec", 0)
        same(two.run("n", "spec", 1, 3), 3, "another model's")
        two.begin_epoch("m", "other", 0)
        same(one.run("m", "spec", 2, 1000), 740, "of a lineage that is not the newest")
        same(one.run("m", "other", 1, 10), 750, "of the newest")
    with open_() as journal:
        same(journal.run("m", "other", 1, 0), 750, "after a restart")


def both_clocks_must_call_a_row_old(open_: Open) -> None:
    with open_() as journal:
        journal.begin_epoch("m", "spec", 0)
        p = _fill(journal, "p", (1.0, 1.0))
        journal.run("m", "spec", 1, 1000)
        journal.append(p, 2, [new("p3", at=1.0), new("p4", at=50.0)])
        trim = partial(journal.trim, "m", "spec", 1, {p: 4})
        same(trim(NEVER, 9, ran=0), 0, "written at the first running time")
        same(trim(1.0, 9, ran=NEVER), 0, "taken too lately")
    with open_() as journal:
        trim = partial(journal.trim, "m", "spec", 1, {p: 4})
        same(trim(40.0, 9, ran=1000), 2, "the running time ends it")
        same(trim(40.0, 9, ran=1001), 1, "the wall clock ends it")
        same(_offsets_left(journal, p), [[4]], "what stays")
        same(trim(40.0, 9, ran=NEVER, ahead=50.0), 0, "a stamp at the bound is believed")
        same(trim(40.0, 9, ran=1000, ahead=49.0), 0, "one of a wrong clock is, too, while young")
        same(trim(40.0, 9, ran=1001, ahead=49.0), 1, "by the running time alone")


def rows_of_a_wrong_future_stop_nothing(open_: Open) -> None:
    with open_() as journal:
        journal.begin_epoch("m", "spec", 0)
        p = _fill(journal, "p", (1.0, 9e9, 9e9, 2.0))
        trim = partial(journal.trim, "m", "spec", 1, {p: 4}, 40.0, 9)
        same((trim(), trim(ahead=100.0, ran=1)), (1, 3), "rows that went")
        same(_offsets_left(journal, p), [[]], "what stays")


def halves_go_by_both_clocks(open_: Open) -> None:
    with open_() as journal:
        journal.begin_epoch("m", "spec", 0)
        p = register(journal)
        waits = [new(n, half=Half.LABEL, at=at) for n, at in (("a", 1.0), ("b", 9e9))]
        journal.append(p, 0, waits)
        journal.run("m", "spec", 1, 1000)
        journal.append(p, 0, [new("c", half=Half.LABEL, at=1.0)])
        expire = partial(journal.expire, "m", 40.0, 9)
        same(expire(ran=0), 0, "written at the first running time")
        same(expire(ran=1000), 1, "taken and written long ago")
        same(expire(ran=1000, ahead=100.0), 1, "of a wrong clock")
        same(journal.usage("m").halves, 1, "the young one")
        same(expire(ran=1001), 1, "the last one")


def counts_claims(open_: Open) -> None:
    with open_() as one, open_() as two:
        p, q = _fill(one, "p", (1.0, 1.0)), register(one)
        same([j.claim(p, 1) for j in (one, two, one)], [0, 1, 2], "claims that were there before")
        same(
            [j.claims(p, 1) for j in (one, two)], [3, 3], "claims, which a look leaves as they are"
        )
        same([one.claims(p, 2), one.claims(q + 7, 1)], [0, 0], "claims of what nobody claimed")
        for end in (1 + 2**40, 1 + 2**41):
            same(one.claim(p, end), 0, "a claim may have its end far above")
        same([one.claim(p, 0), one.claim(p, 2), one.claim(q, 1)], [0, 0, 0], "other rows")
        refused(PartitionUnknown, lambda: one.claim(q + 7, 1), "an unknown partition")
    with open_() as journal:
        same(journal.claim(p, 1), 3, "claims after a restart")
        journal.begin_epoch("m", "spec", 0)
        journal.trim("m", "spec", 1, {p: 1}, NEVER, 9)
        same([journal.claim(p, 0), journal.claim(p, 2)], [1, 1], "claims of rows that stay")
        same(journal.claim(p, 1), 0, "claims of a trimmed row are gone")
        for end in (1 + 2**40, 1 + 2**41):
            same(journal.claim(p, end), 0, "their ends too")


def a_fence_stops_an_old_server(open_: Open) -> None:
    with open_() as one, open_() as two:
        write = partial(one.write_control, "m", "failed", "failed:a", b"x")
        for fence in (("spec", 0), ("spec", 1)):
            refused(EpochLost, partial(write, fence), "before the first server")
        one.begin_epoch("m", "spec", 0)
        two.begin_epoch("m", "other", 0)
        two.begin_epoch("m", "other", 1)
        for epoch in (0, 2):
            refusal = refused(EpochLost, partial(write, ("spec", epoch)), "another epoch")
            same(refusal.args, ("m", epoch, 1), "the refusal's model, expected and found epoch")
        same(one.controls("m", 0), (), "control rows after refusals")
        row, won = write(("spec", 1))
        same((row.seq, row.kind, row.payload, won), (1, "failed", b"x", True), "the fenced row")
        same(one.write_control("m", "q", "failed:a", b"y", ("other", 2)), (row, False), "repeat")
        refused(EpochLost, partial(write, ("other", 1)), "a repeat by an old server")
        same(two.write_control("m", "q", "b", b"")[0].seq, 2, "a row without a fence")


def tells_the_room_it_takes(open_: Open) -> None:
    with open_() as journal:
        same((journal.usage("m").rows, journal.usage("m").halves), (0, 0), "an empty journal")
        p = register(journal)
        journal.append(p, 0, [new(f"k{i}", bytes(1000)) for i in range(500)])
        usage = journal.usage("m")
        same(usage.rows, 500, "rows")
        if not 500_000 < usage.size < (usage.size_max or float("inf")):
            raise AssertionError(f"500 rows of 1,000 bytes take {usage}")
        journal.append(p, 500, [new(f"k{i}", bytes(1000)) for i in range(500)])
        same(journal.usage("m").rows, 500, "rows after duplicates")


CHECKS: tuple[Callable[[Open], None], ...] = (
    trims_the_oldest_rows,
    trimmed_ids_are_free_again,
    a_trimmed_partition_goes_on,
    only_the_newest_server_trims,
    trims_its_own_model_only,
    sums_the_running_time,
    both_clocks_must_call_a_row_old,
    rows_of_a_wrong_future_stop_nothing,
    halves_go_by_both_clocks,
    counts_claims,
    a_fence_stops_an_old_server,
    tells_the_room_it_takes,
)
