"""Every journal has to pass these checks: plain functions over a factory, for any test runner.

``make(path)`` opens the journal that is kept at ``path`` (which does not exist at first) and
opens the same journal again when it is called again, as after a restart.  Each check raises
AssertionError with what was found.  :func:`yield_checks` is for parametrised tests,
:func:`check_journal` runs all.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path

import journal_erase_checks
import journal_join_checks
import journal_line_checks
import journal_trim_checks
from journal_words import Open, batch, new, offsets, refused, register, same
from msgspec.structs import replace

from replay.errors import (
    BatchSize,
    EpochBehind,
    EpochLost,
    JournalBehind,
    JournalDamaged,
    PartitionSealed,
    PartitionUnknown,
    RowInvalid,
)
from replay.journal.base import Head, Journal, NewRow, Only, Partition, Row, Verdict

Make = Callable[[Path], Journal]


def check_journal(make: Make) -> None:
    """Run every check; the first that fails raises AssertionError."""
    for _, run in yield_checks(make):
        run()


def yield_checks(make: Make) -> Iterator[tuple[str, Callable[[], None]]]:
    """Name and body of each check; each run works in a fresh temporary folder."""
    for check in _CHECKS:
        yield check.__name__, partial(_run, check, make)


def _run(check: Callable[[Open], None], make: Make) -> None:
    with tempfile.TemporaryDirectory() as folder:
        check(lambda: closing(make(Path(folder) / "journal")))


def registers_distinct_partitions(open_: Open) -> None:
    with open_() as journal:
        made = [journal.register("m", "r", "spec", 1.0), journal.register("n", "r", "spec", 2.0)]
    with open_() as journal:
        made += [journal.register("m", "r", "spec", 1.0), journal.register("m", "s", "other", 1.0)]
        same(len({p.id for p in made}), 4, "distinct partition numbers")
        first = made[0]
        same(first, Partition(first.id, "m", "r", "spec", 0, False), "a new partition")
        same(journal.partitions("m"), (made[0], made[2], made[3]), "partitions of a model by id")
        same(journal.partition(first.id), first, "the partition by its number")
        same(journal.partitions("nobody"), (), "partitions of an unknown model")


def knows_no_other_partition(open_: Open) -> None:
    with open_() as journal:
        other = register(journal) + 1
        same(journal.partition(other), None, "an unknown partition")
        same(journal.read(other, 1, 9), (), "rows of an unknown partition")
        refused(PartitionUnknown, lambda: journal.append(other, 0, batch("a")), "append")
        refused(PartitionUnknown, lambda: journal.seal(other), "seal")


def numbers_new_rows_without_holes(open_: Open) -> None:
    with open_() as journal:
        p, q = register(journal), register(journal)
        same(offsets(journal.append(p, 0, batch("a b"))), [(True, p, 1), (True, p, 2)], "first")
        answer = journal.append(q, 0, batch("a c b d"))
        expected = [(False, p, 1), (True, q, 1), (False, p, 2), (True, q, 2)]
        same(offsets(answer), expected, "offsets are given after the duplicates are out")
        same(answer.end, 2, "end after two new rows")
        answer = journal.append(p, 2, batch("c e"))
        same(offsets(answer), [(False, q, 1), (True, p, 3)], "offsets go on")
        same([r.offset for r in journal.read(p, 1, 9)], [1, 2, 3], "offsets as read")
        same([x.end for x in journal.partitions("m")], [3, 2], "ends of the partitions")
        seqs = [r.seq for r in (*journal.read(p, 1, 2), *journal.read(q, 1, 2))]
        seqs += [r.seq for r in journal.read(p, 3, 1)]
        same(seqs, sorted(set(seqs)), "seq is the order of the commits")


def gives_a_duplicate_its_first_row(open_: Open) -> None:
    with open_() as journal:
        p, q = register(journal), register(journal)
        first = journal.append(p, 0, [new("a", b"\x01one", Verdict.CLIPPED)]).outcomes[0].row
        answer = journal.append(q, 0, [new("a", b"\x01two", Verdict.QUARANTINED)])
        same(answer.outcomes[0].new, False, "a repeat elsewhere is new")
        same(answer.outcomes[0].row, first, "a duplicate's row is the first one, unchanged")
        same(answer.end, 0, "duplicates do not move the end")
        answer = journal.append(p, 1, [new("a", b"\x01three")])
        same((answer.outcomes[0].new, answer.outcomes[0].row), (False, first), "at or below known")
        same(journal.find("m", new("a").key), first, "the stored row")


def knows_the_writers_own_rows(open_: Open) -> None:
    with open_() as journal:
        p = register(journal)
        journal.append(p, 0, batch("a"))
        lost = journal.append(p, 1, batch("b c"))
        again = journal.append(p, 1, batch("b c"))
        same(again, lost, "the same batch after a lost answer is the writer's own")
        same(offsets(again), [(True, p, 2), (True, p, 3)], "own rows keep their offsets")
        answer = journal.append(p, 2, batch("b c d"))
        expected = [(False, p, 2), (True, p, 3), (True, p, 4)]
        same(offsets(answer), expected, "known divides duplicates from own rows")


def writes_a_key_once_within_a_batch(open_: Open) -> None:
    with open_() as journal:
        p = register(journal)
        rows = [new("a", b"\x01one"), new("a", b"\x01two"), new("b")]
        expected = [(True, p, 1), (False, p, 1), (True, p, 2)]
        answer = journal.append(p, 0, rows)
        same(offsets(answer), expected, "a key twice in a batch")
        same(answer.outcomes[1].row, answer.outcomes[0].row, "the row that was first in the batch")
        same(journal.read(p, 1, 1)[0].payload, b"\x01one", "its payload")
        same(offsets(journal.append(p, 0, rows)), expected, "and after a lost answer")
        many = [new(f"k{i}") for i in range(300)]
        answer = journal.append(p, 2, [*many, new("k0", b"\x01again"), new("a")])
        same(answer.end, 302, "the end after a batch of 300 rows and two repeats")
        same([o.new for o in answer.outcomes], [True] * 300 + [False] * 2, "repeats far behind")
        seqs = [row.seq for row in journal.read(p, 3, 300)]
        same([o.row and o.row.seq for o in answer.outcomes[:300]], seqs, "places in the order")


def keeps_models_apart(open_: Open) -> None:
    with open_() as journal:
        p, q = register(journal, "m"), register(journal, "n")
        journal.append(p, 0, batch("a"))
        same(offsets(journal.append(q, 0, batch("a"))), [(True, q, 1)], "same key, other model")
        key = new("a").key
        found = (journal.find("m", key), journal.find("n", key), journal.find("nobody", key))
        same([r and r.partition for r in found], [p, q, None], "find within the model")
        same(journal.find("m", b"?" * 16), None, "an unknown key")


def seals_for_good(open_: Open) -> None:
    with open_() as journal:
        p, q, r = (register(journal) for _ in range(3))
        journal.append(p, 0, batch("a b"))
        same((journal.seal(p), journal.seal(p)), (2, 2), "end at the seal and at its repeat")
        same(journal.seal(r), 0, "end of an empty partition")
    with open_() as journal:
        for names in ("c", "a", "a c"):  # with a batch of duplicates only, too
            call = partial(journal.append, p, 2, batch(names))
            refusal = refused(PartitionSealed, call, f"append of {names} to a sealed partition")
            same(refusal.args, (p, 2), "the refusal's partition and end")
        refused(PartitionSealed, lambda: journal.append(p, 7, batch("c")), "sealed and behind")
        same(journal.find("m", new("c").key), None, "a row that was refused")
        same(journal.seal(p), 2, "end after refusals")
        sealed = [x.sealed for x in journal.partitions("m")]
        same(sealed, [True, False, True], "which partitions are sealed")
        answer = journal.append(q, 0, batch("b c"))
        same(offsets(answer), [(False, p, 2), (True, q, 1)], "the batch in a new partition")


def notices_that_it_is_behind(open_: Open) -> None:
    with open_() as journal:
        p = register(journal)
        journal.append(p, 0, batch("a b"))
        for names in ("c", "a"):
            call = partial(journal.append, p, 3, batch(names))
            refusal = refused(JournalBehind, call, "append with known beyond the end")
            same(refusal.args, (p, 2, 3), "the refusal's partition, end and known")
        same(journal.append(p, 2, batch("c")).end, 3, "known at the end is fine")


def refuses_a_wrong_batch_whole(open_: Open) -> None:
    with open_() as journal:
        p = register(journal)
        bound = journal.batch_rows_max
        rows = [new(f"k{i}") for i in range(bound + 1)]
        refused(BatchSize, lambda: journal.append(p, 0, rows), "one row above the bound")
        refused(BatchSize, lambda: journal.append(p, 0, []), "no row")
        for bad in (
            NewRow(b"short", "e", "s", Verdict.ACCEPTED, b"", 1.0),
            NewRow(b"k" * 16, "e", "s", Verdict.CLIPPED, b"", 1.0, factor=0.0),
            NewRow(b"k" * 16, "e", "s", Verdict.CLIPPED, b"", 1.0, factor=1.5),
            NewRow(b"k" * 16, "e", "s", Verdict.ACCEPTED, b"", float("nan")),
            NewRow(b"k" * 16, "\ud800", "s", Verdict.ACCEPTED, b"", 1.0),
        ):
            call = partial(journal.append, p, 0, [*batch("a b"), bad])
            refused(RowInvalid, call, f"a batch with {bad}")
        same(journal.read(p, 1, 9), (), "rows of refused batches")
        same(journal.append(p, 0, rows[:bound]).end, bound, "a batch at the bound")


def keeps_every_field(open_: Open) -> None:
    payload = bytearray(range(256))
    rows = [
        NewRow(bytes(range(16)), "é\x00☃ 𝄞", "", Verdict.FROZEN, bytes(payload), 1e9 + 0.1),
        NewRow(bytes(16), "", "s" * 999, Verdict.CLIPPED, b"", -0.5, factor=0.1),
        NewRow(b"\xff" * 16, "e", "s", Verdict.QUARANTINED, payload, 0.0),  # type: ignore[arg-type]
    ]
    with open_() as journal:
        p = register(journal)
        answered = [o.row for o in journal.append(p, 0, rows).outcomes]
        payload[:] = bytes(256)  # the caller's buffer is no longer the journal's
    with open_() as journal:
        read = journal.read(p, 1, 9)
        same(list(read), answered, "rows as answered and as read after a restart")
        for offset, (row, given) in enumerate(zip(read, rows, strict=True), 1):
            kept = bytes(range(256)) if offset == 3 else given.payload
            values = (given.key, given.event_id, given.source, given.verdict, given.factor, kept)
            expected = Row(row.seq, p, offset, *values, given.at)
            same(row, expected, "a row's fields")
            same(type(row.payload), bytes, "a payload's type")
            same(journal.find("m", given.key), row, "the row by its key")


def survives_a_restart(open_: Open) -> None:
    with open_() as journal:
        p = register(journal)
        journal.append(p, 0, batch("a b"))
        journal.begin_epoch("m", "spec", 0)
        journal.move_head("m", "spec", 1, "snap-1")
        journal.write_control("m", "freeze", "k", b"x")
    with open_() as journal:
        answer = journal.append(p, 2, batch("a c"))
        same(offsets(answer), [(False, p, 1), (True, p, 3)], "append after a restart")
        same(answer.epoch, 1, "epoch after a restart")
        same(journal.head("m", "spec"), Head(1, "snap-1"), "head after a restart")
        same([c.key for c in journal.controls("m", 0)], ["k"], "control rows after a restart")
        found = journal.examine(lambda done, total: None)
        same((found.damage, found.unchecked), ((), 0), "what is damaged or unchecked")
        same(found.good >= 6, True, "rows, partition, model or running time, head, control row")
    with open_() as one, open_() as two:
        same(one.append(p, 3, batch("d")).end, 4, "append beside another process")
        same([r.offset for r in two.read(p, 4, 9)], [4], "its row as the other one reads it")
        same(offsets(two.append(p, 4, batch("d"))), [(False, p, 4)], "its repeat at the other")


def reads_pages(open_: Open) -> None:
    with open_() as journal:
        p, q = register(journal), register(journal)
        for start in range(0, 2500, 500):
            names = [new(f"k{i}") for i in range(start, start + 500)]
            journal.append(p, start, names)
        journal.append(q, 0, batch("a"))
        same(journal.read(q, 1, 0), (), "a page of no rows")
        same([r.event_id for r in journal.read(p, 2, 3)], ["k1", "k2", "k3"], "a page")
        same([r.offset for r in journal.read(p, 2499, 99)], [2499, 2500], "the last page")
        same(journal.read(p, 2501, 1), (), "a page beyond the end")
        same([r.offset for r in journal.read(p, 1, 9999)], list(range(1, 2501)), "all rows")


def follows_commits_in_their_order(open_: Open) -> None:
    with open_() as journal:
        p, q, other = register(journal), register(journal), register(journal, "n")
        same(journal.follow("m", 0, 9).rows, (), "no rows yet")
        journal.append(p, 0, batch("a b"))
        journal.append(other, 0, batch("x"))
        journal.append(q, 0, batch("c a"))
        journal.append(p, 2, batch("d"))
        journal.append(other, 1, batch("y"))
        whole = journal.follow("m", 0, 9)
        same([r.event_id for r in whole.rows], ["a", "b", "c", "d"], "rows of both partitions")
        expected = (*journal.read(p, 1, 2), *journal.read(q, 1, 1), *journal.read(p, 3, 1))
        same(whole.rows, expected, "each with all that it has")
        same(journal.follow("n", 0, 9).upto, whole.upto, "the newest seq is the store's")
        same(whole.trimmed, 0, "nothing was trimmed")
        same(whole.upto > whole.rows[-1].seq, True, "the newest row is another model's")
        first = journal.follow("m", 0, 3)
        same(first.rows, whole.rows[:3], "at most as many as asked for")
        same(first.upto, first.rows[-1].seq, "a full page ends at its last row")
        same(journal.follow("m", first.upto, 3).rows, whole.rows[3:], "it goes on from there")
        same(journal.follow("m", first.upto, 3).upto, whole.upto, "to the newest")
        same(journal.follow("m", whole.upto, 3).rows, (), "nothing is left")
        same(journal.follow("nobody", 0, 3).rows, (), "rows of an unknown model")
        names = [f"r{i}" for i in range(600)]
        journal.append(q, 1, batch(" ".join(names)))
        many = journal.follow("m", whole.upto, 590)
        same([r.event_id for r in many.rows], names[:590], "many rows")
        same(many.upto, many.rows[-1].seq, "a full page of many")
        rest = journal.follow("m", many.upto, 590)
        same([r.event_id for r in rest.rows], names[590:], "the rest of many")
    with open_() as journal:
        again = journal.follow("m", 0, 9)
        same([r.event_id for r in again.rows[:4]], ["a", "b", "c", "d"], "after a restart")


def gives_each_epoch_once(open_: Open) -> None:
    with open_() as one, open_() as two:
        same(one.head("m", "spec"), Head(0, None), "head before the first server")
        same(one.begin_epoch("m", "spec", 0), 1, "the first epoch")
        refusal = refused(EpochLost, lambda: two.begin_epoch("m", "spec", 0), "a slower server")
        same(refusal.args, ("m", 0, 1), "the refusal's model, expected and found epoch")
        refused(EpochLost, lambda: two.begin_epoch("m", "spec", 5), "an epoch of the future")
        same(two.begin_epoch("m", "spec", 1), 2, "the next epoch")
        same(one.begin_epoch("m", "other", 0), 1, "another lineage has its own epoch")
        same(one.begin_epoch("n", "spec", 0), 1, "another model has its own epoch")
        answer = one.append(register(one), 0, batch("b"))
        same(answer.epoch, 2, "the newest epoch is the highest, not the last one")
        same(one.lineages("m"), ("spec", "other"), "lineages, the newest change last")
        two.begin_epoch("m", "spec", 2)
        same(one.lineages("m"), ("other", "spec"), "lineages after another change")
        same(one.lineages("nobody"), (), "lineages of an unknown model")
        p, q = register(one, "m"), register(one, "fresh")
        same(one.append(p, 0, batch("a")).epoch, 3, "the newest epoch comes with an append")
        same(one.append(q, 0, batch("a")).epoch, 0, "no server yet")
        late = lambda: two.append(p, 1, batch("c"), 4)  # noqa: E731
        same(refused(EpochBehind, late, "values of a lost epoch").args, ("m", 3, 4), "its epochs")
        same([r.event_id for r in one.read(p, 1, 9)], ["a"], "nothing of a refused batch is there")
        same(offsets(two.append(p, 1, batch("c"), 3)), [(True, p, 2)], "the newest epoch, seen")


def moves_the_head_for_the_newest_epoch_only(open_: Open) -> None:
    with open_() as journal:
        refused(EpochLost, lambda: journal.move_head("m", "spec", 0, "s"), "no server yet")
        journal.begin_epoch("m", "spec", 0)
        journal.begin_epoch("m", "other", 0)
        journal.move_head("m", "spec", 1, "s1")
        journal.move_head("m", "spec", 1, "s2")
        same(journal.head("m", "spec"), Head(1, "s2"), "head after two snapshots")
        journal.begin_epoch("m", "spec", 1)
        same(journal.head("m", "spec"), Head(2, "s2"), "a new epoch keeps the snapshot")
        call = partial(journal.move_head, "m", "spec", 1, "zombie")
        same(refused(EpochLost, call, "an old server").args, ("m", 1, 2), "the refusal")
        refused(EpochLost, lambda: journal.move_head("m", "spec", 3, "s"), "a future epoch")
        same(journal.head("m", "spec"), Head(2, "s2"), "head after refusals")
        same(journal.head("m", "other"), Head(1, None), "head of the other lineage")


def keeps_the_first_control_row(open_: Open) -> None:
    with open_() as one, open_() as two:
        first, won = one.write_control("m", "release", "decide:a", b"\x00yes")
        values = (first.seq, first.model, first.kind, first.key, first.payload, won)
        same(values, (1, "m", "release", "decide:a", b"\x00yes", True), "the first control row")
        again, won = two.write_control("m", "discard", "decide:a", b"no")
        same((again, won), (first, False), "the first with a key wins")
        third, won = two.write_control("m", "freeze", "freeze:1", b"")
        same((third.seq, won), (2, True), "control rows are numbered without holes")
        other, won = one.write_control("n", "discard", "decide:a", b"no")
        same((other.seq, won), (1, True), "another model counts for itself")
        same(one.controls("m", 0), (first, third), "control rows in order")
        same(one.controls("m", 1), (third,), "control rows after a position")
        same((one.controls("m", 2), one.controls("nobody", 0)), ((), ()), "no control rows")


def checkpoints_keep_everything(open_: Open) -> None:
    with open_() as journal:
        p = register(journal)
        journal.append(p, 0, batch("a b"))
        same(journal.checkpoint(), 0, "bytes left with nobody reading")
        same(offsets(journal.append(p, 2, batch("a c"))), [(False, p, 1), (True, p, 3)], "after")
        journal.checkpoint()
        same([r.event_id for r in journal.read(p, 1, 9)], ["a", "b", "c"], "rows afterwards")
        journal.close()  # and a second time as the block ends


def goes_on_beyond_what_is_lost(open_: Open) -> None:
    with open_() as journal:
        p = register(journal)
        journal.append(p, 0, batch("a b"))
        seq = journal.follow("m", 2**62, 1).upto
        number = p + (p & ~0xFFFFFF or 1)  # as far as the numbers of a server grow in one step
        for _ in range(2):
            journal.register_lost("m", "spec", number, 5, seq + 70)
    with open_() as journal:
        lost = journal.partition(number)
        same(lost, Partition(number, "m", "lost", "spec", 5, True, 5), "a lost partition")
        same([q.id for q in journal.partitions("m")], [p, number], "it is listed")
        same(journal.read(number, 1, 9), (), "its rows are gone")
        refused(PartitionSealed, lambda: journal.append(number, 5, batch("c")), "sealed")
        later = register(journal)
        same(later > number, True, "a later partition has a later number")
        row = journal.append(later, 0, batch("c")).outcomes[0].row
        same(row is not None and row.seq > seq + 70, True, "a later row has a later place")
        journal.seal(later)
        journal.register_lost("m", "spec", p, 9, 0)
        same([r.event_id for r in journal.read(p, 1, 9)], ["a", "b"], "what is known stays")
        same([r.event_id for r in journal.follow("m", 0, 9).rows], ["a", "b", "c"], "in order")


def keeps_rows_that_stand_for_lost_ones(open_: Open) -> None:
    with open_() as journal:
        p = register(journal)
        journal.append(p, 0, [new("a"), new("gone", verdict=Verdict.LOST)])
    with open_() as journal:
        verdicts = [row.verdict for row in journal.read(p, 1, 9)]
        same(verdicts, [Verdict.ACCEPTED, Verdict.LOST], "verdicts")


def keeps_a_good_row_whatever_is_to_stand_there(open_: Open) -> None:
    with open_() as journal:
        p = register(journal)
        journal.append(p, 0, batch("a b"))
        rows = journal.read(p, 1, 9)
        same(journal.stand_in(p, 1, new("gone", verdict=Verdict.LOST)), False, "a good row")
        same(journal.read(p, 1, 9), rows, "rows")
        try:
            journal.stand_in(p, 3, new("gone", verdict=Verdict.LOST))
        except JournalDamaged:
            pass
        else:
            raise AssertionError("a row was put where none has been")
        same(journal.read(p, 1, 9), rows, "rows")


def writes_only_what_still_holds(open_: Open) -> None:
    with open_() as journal:
        p = register(journal)
        seen, _ = journal.write_control("m", "freeze", "one", b"")
        other = Only(absent=new("a").key)
        outcomes = journal.append(p, 0, [new("a"), replace(new("b"), only=other)]).outcomes
        same([(o.new, o.gone) for o in outcomes], [(True, False), (False, True)], "beside another")
        same(journal.find("m", new("b").key), None, "a row beside one that was to be absent")
        journal.write_control("m", "failed", "two", b"")
        journal.write_control("n", "freeze", "one", b"")
        still = Only(seen.seq, ("freeze", "source"), new("c").key)
        row = replace(new("d"), only=still)
        (first,) = journal.append(p, 1, [row]).outcomes
        same((first.new, first.gone), (True, False), "nothing has come of these kinds")
        journal.write_control("m", "source", "three", b"")
        (again,) = journal.append(p, 1, [row]).outcomes
        same((again.new, again.row), (True, first.row), "what was written before it came")
        late = replace(new("e"), only=still)
        (refused_one,) = journal.append(p, 2, [late]).outcomes
        same((refused_one.new, refused_one.gone), (False, True), "after a newer control row")
        same(journal.partitions("m")[0].end, 2, "the end after it")


_CHECKS: tuple[Callable[[Open], None], ...] = (
    registers_distinct_partitions,
    knows_no_other_partition,
    numbers_new_rows_without_holes,
    gives_a_duplicate_its_first_row,
    knows_the_writers_own_rows,
    writes_a_key_once_within_a_batch,
    keeps_models_apart,
    seals_for_good,
    notices_that_it_is_behind,
    refuses_a_wrong_batch_whole,
    keeps_every_field,
    survives_a_restart,
    gives_each_epoch_once,
    moves_the_head_for_the_newest_epoch_only,
    keeps_the_first_control_row,
    checkpoints_keep_everything,
    goes_on_beyond_what_is_lost,
    keeps_rows_that_stand_for_lost_ones,
    keeps_a_good_row_whatever_is_to_stand_there,
    writes_only_what_still_holds,
    *journal_join_checks.CHECKS,
    *journal_trim_checks.CHECKS,
    *journal_line_checks.CHECKS,
    *journal_erase_checks.CHECKS,
    follows_commits_in_their_order,  # these two write many rows: a journal that is wrong
    reads_pages,  # is found without them first
)
