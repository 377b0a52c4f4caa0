"""What every journal has to pass: plain functions over a factory, for any test runner.

``make(path)`` opens the journal that is kept at ``path`` (which does not exist at first) and
opens the same journal again when it is called again, as after a restart.  Each check raises
AssertionError with what was found.  :func:`yield_checks` is for parametrised tests,
:func:`check_journal` runs all.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing
from functools import partial
from pathlib import Path

from replay.errors import (
    BatchSize,
    EpochLost,
    JournalBehind,
    PartitionSealed,
    PartitionUnknown,
    ReplayError,
    RowInvalid,
)
from replay.journal.base import Appended, Head, Journal, NewRow, Partition, Row, Verdict

Make = Callable[[Path], Journal]
Open = Callable[[], AbstractContextManager[Journal]]


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


def _new(name: str, payload: bytes = b"\x01payload", verdict: Verdict = Verdict.ACCEPTED) -> NewRow:
    factor = 0.5 if verdict is Verdict.CLIPPED else 1.0
    return NewRow(
        name.encode().ljust(16, b"."), name, f"src-{name}", verdict, payload, 17.25, factor
    )


def _batch(names: str) -> list[NewRow]:
    return [_new(name) for name in names.split()]


def _same(got: object, expected: object, what: str) -> None:
    if got != expected:
        raise AssertionError(f"{what}: {got!r}, expected {expected!r}")


def _refused(error: type[ReplayError], call: Callable[[], object], what: str) -> ReplayError:
    try:
        result = call()
    except error as refusal:
        _same(refusal.definite, True, f"{what}: definite")
        return refusal
    raise AssertionError(f"{what}: answered {result!r}, expected {error.__name__}")


def _offsets(answer: Appended) -> list[tuple[bool, int, int]]:
    return [(o.new, o.row.partition, o.row.offset) for o in answer.outcomes]


def _register(journal: Journal, model: str = "m", replica: str = "r") -> int:
    return journal.register(model, replica, "spec", 1.0).id


def registers_distinct_partitions(open_: Open) -> None:
    with open_() as journal:
        made = [journal.register("m", "r", "spec", 1.0), journal.register("n", "r", "spec", 2.0)]
    with open_() as journal:
        made += [journal.register("m", "r", "spec", 1.0), journal.register("m", "s", "other", 1.0)]
        _same(len({p.id for p in made}), 4, "distinct partition numbers")
        first = made[0]
        _same(first, Partition(first.id, "m", "r", "spec", 0, False), "a new partition")
        _same(journal.partitions("m"), (made[0], made[2], made[3]), "partitions of a model by id")
        _same(journal.partition(first.id), first, "the partition by its number")
        _same(journal.partitions("nobody"), (), "partitions of an unknown model")


def knows_no_other_partition(open_: Open) -> None:
    with open_() as journal:
        other = _register(journal) + 1
        _same(journal.partition(other), None, "an unknown partition")
        _same(journal.read(other, 1, 9), (), "rows of an unknown partition")
        _refused(PartitionUnknown, lambda: journal.append(other, 0, _batch("a")), "append")
        _refused(PartitionUnknown, lambda: journal.seal(other), "seal")


def numbers_new_rows_without_holes(open_: Open) -> None:
    with open_() as journal:
        p, q = _register(journal), _register(journal)
        _same(_offsets(journal.append(p, 0, _batch("a b"))), [(True, p, 1), (True, p, 2)], "first")
        answer = journal.append(q, 0, _batch("a c b d"))
        expected = [(False, p, 1), (True, q, 1), (False, p, 2), (True, q, 2)]
        _same(_offsets(answer), expected, "offsets are given after the duplicates are out")
        _same(answer.end, 2, "end after two new rows")
        answer = journal.append(p, 2, _batch("c e"))
        _same(_offsets(answer), [(False, q, 1), (True, p, 3)], "offsets go on")
        _same([r.offset for r in journal.read(p, 1, 9)], [1, 2, 3], "offsets as read")
        _same([x.end for x in journal.partitions("m")], [3, 2], "ends of the partitions")
        seqs = [r.seq for r in (*journal.read(p, 1, 2), *journal.read(q, 1, 2))]
        seqs += [r.seq for r in journal.read(p, 3, 1)]
        _same(seqs, sorted(set(seqs)), "seq is the order of the commits")


def gives_a_duplicate_its_first_row(open_: Open) -> None:
    with open_() as journal:
        p, q = _register(journal), _register(journal)
        first = journal.append(p, 0, [_new("a", b"\x01one", Verdict.CLIPPED)]).outcomes[0].row
        answer = journal.append(q, 0, [_new("a", b"\x01two", Verdict.QUARANTINED)])
        _same(answer.outcomes[0].new, False, "a repeat elsewhere is new")
        _same(answer.outcomes[0].row, first, "a duplicate's row is the first one, unchanged")
        _same(answer.end, 0, "duplicates do not move the end")
        answer = journal.append(p, 1, [_new("a", b"\x01three")])
        _same((answer.outcomes[0].new, answer.outcomes[0].row), (False, first), "at or below known")
        _same(journal.find("m", first.key), first, "the stored row")


def knows_the_writers_own_rows(open_: Open) -> None:
    with open_() as journal:
        p = _register(journal)
        journal.append(p, 0, _batch("a"))
        lost = journal.append(p, 1, _batch("b c"))
        again = journal.append(p, 1, _batch("b c"))
        _same(again, lost, "the same batch after a lost answer is the writer's own")
        _same(_offsets(again), [(True, p, 2), (True, p, 3)], "own rows keep their offsets")
        answer = journal.append(p, 2, _batch("b c d"))
        expected = [(False, p, 2), (True, p, 3), (True, p, 4)]
        _same(_offsets(answer), expected, "known divides duplicates from own rows")


def writes_a_key_once_within_a_batch(open_: Open) -> None:
    with open_() as journal:
        p = _register(journal)
        batch = [_new("a", b"\x01one"), _new("a", b"\x01two"), _new("b")]
        expected = [(True, p, 1), (False, p, 1), (True, p, 2)]
        answer = journal.append(p, 0, batch)
        _same(_offsets(answer), expected, "a key twice in a batch")
        _same(answer.outcomes[1].row.payload, b"\x01one", "the row that was first in the batch")
        _same(_offsets(journal.append(p, 0, batch)), expected, "and after a lost answer")


def keeps_models_apart(open_: Open) -> None:
    with open_() as journal:
        p, q = _register(journal, "m"), _register(journal, "n")
        journal.append(p, 0, _batch("a"))
        _same(_offsets(journal.append(q, 0, _batch("a"))), [(True, q, 1)], "same key, other model")
        key = _new("a").key
        found = (journal.find("m", key), journal.find("n", key), journal.find("nobody", key))
        _same([r and r.partition for r in found], [p, q, None], "find within the model")
        _same(journal.find("m", b"?" * 16), None, "an unknown key")


def seals_for_good(open_: Open) -> None:
    with open_() as journal:
        p, q, r = (_register(journal) for _ in range(3))
        journal.append(p, 0, _batch("a b"))
        _same((journal.seal(p), journal.seal(p)), (2, 2), "end at the seal and at its repeat")
        _same(journal.seal(r), 0, "end of an empty partition")
    with open_() as journal:
        for names in ("c", "a", "a c"):  # with a batch of duplicates only, too
            call = partial(journal.append, p, 2, _batch(names))
            refusal = _refused(PartitionSealed, call, f"append of {names} to a sealed partition")
            _same(refusal.args, (p, 2), "the refusal's partition and end")
        _refused(PartitionSealed, lambda: journal.append(p, 7, _batch("c")), "sealed and behind")
        _same(journal.find("m", _new("c").key), None, "a row that was refused")
        _same(journal.seal(p), 2, "end after refusals")
        sealed = [x.sealed for x in journal.partitions("m")]
        _same(sealed, [True, False, True], "which partitions are sealed")
        answer = journal.append(q, 0, _batch("b c"))
        _same(_offsets(answer), [(False, p, 2), (True, q, 1)], "the batch in a new partition")


def notices_that_it_is_behind(open_: Open) -> None:
    with open_() as journal:
        p = _register(journal)
        journal.append(p, 0, _batch("a b"))
        for names in ("c", "a"):
            call = partial(journal.append, p, 3, _batch(names))
            refusal = _refused(JournalBehind, call, "append with known beyond the end")
            _same(refusal.args, (p, 2, 3), "the refusal's partition, end and known")
        _same(journal.append(p, 2, _batch("c")).end, 3, "known at the end is fine")


def refuses_a_wrong_batch_whole(open_: Open) -> None:
    with open_() as journal:
        p = _register(journal)
        bound = journal.batch_rows_max
        rows = [_new(f"k{i}") for i in range(bound + 1)]
        _refused(BatchSize, lambda: journal.append(p, 0, rows), "one row above the bound")
        _refused(BatchSize, lambda: journal.append(p, 0, []), "no row")
        for bad in (
            NewRow(b"short", "e", "s", Verdict.ACCEPTED, b"", 1.0),
            NewRow(b"k" * 16, "e", "s", Verdict.CLIPPED, b"", 1.0, factor=0.0),
            NewRow(b"k" * 16, "e", "s", Verdict.CLIPPED, b"", 1.0, factor=1.5),
            NewRow(b"k" * 16, "e", "s", Verdict.ACCEPTED, b"", float("nan")),
            NewRow(b"k" * 16, "\ud800", "s", Verdict.ACCEPTED, b"", 1.0),
        ):
            call = partial(journal.append, p, 0, [*_batch("a b"), bad])
            _refused(RowInvalid, call, f"a batch with {bad}")
        _same(journal.read(p, 1, 9), (), "rows of refused batches")
        _same(journal.append(p, 0, rows[:bound]).end, bound, "a batch at the bound")


def keeps_every_field(open_: Open) -> None:
    payload = bytearray(range(256))
    rows = [
        NewRow(bytes(range(16)), "é\x00☃ 𝄞", "", Verdict.FROZEN, bytes(payload), 1e9 + 0.1),
        NewRow(bytes(16), "", "s" * 999, Verdict.CLIPPED, b"", -0.5, factor=0.1),
        NewRow(b"\xff" * 16, "e", "s", Verdict.QUARANTINED, payload, 0.0),  # type: ignore[arg-type]
    ]
    with open_() as journal:
        p = _register(journal)
        answered = [o.row for o in journal.append(p, 0, rows).outcomes]
        payload[:] = bytes(256)  # the caller's buffer is no longer the journal's
    with open_() as journal:
        read = journal.read(p, 1, 9)
        _same(list(read), answered, "rows as answered and as read after a restart")
        for offset, (row, given) in enumerate(zip(read, rows, strict=True), 1):
            kept = bytes(range(256)) if offset == 3 else given.payload
            values = (given.key, given.event_id, given.source, given.verdict, given.factor, kept)
            expected = Row(row.seq, p, offset, *values, given.at)
            _same(row, expected, "a row's fields")
            _same(type(row.payload), bytes, "a payload's type")
            _same(journal.find("m", given.key), row, "the row by its key")


def survives_a_restart(open_: Open) -> None:
    with open_() as journal:
        p = _register(journal)
        journal.append(p, 0, _batch("a b"))
        journal.begin_epoch("m", "spec", 0)
        journal.move_head("m", "spec", 1, "snap-1")
        journal.write_control("m", "freeze", "k", b"x")
    with open_() as journal:
        answer = journal.append(p, 2, _batch("a c"))
        _same(_offsets(answer), [(False, p, 1), (True, p, 3)], "append after a restart")
        _same(answer.epoch, 1, "epoch after a restart")
        _same(journal.head("m", "spec"), Head(1, "snap-1"), "head after a restart")
        _same([c.key for c in journal.controls("m", 0)], ["k"], "control rows after a restart")
    with open_() as one, open_() as two:
        _same(one.append(p, 3, _batch("d")).end, 4, "append beside another process")
        _same([r.offset for r in two.read(p, 4, 9)], [4], "its row as the other one reads it")
        _same(_offsets(two.append(p, 4, _batch("d"))), [(False, p, 4)], "its repeat at the other")


def reads_pages(open_: Open) -> None:
    with open_() as journal:
        p, q = _register(journal), _register(journal)
        for start in range(0, 2500, 500):
            names = [_new(f"k{i}") for i in range(start, start + 500)]
            journal.append(p, start, names)
        journal.append(q, 0, _batch("a"))
        _same(journal.read(q, 1, 0), (), "a page of no rows")
        _same([r.event_id for r in journal.read(p, 2, 3)], ["k1", "k2", "k3"], "a page")
        _same([r.offset for r in journal.read(p, 2499, 99)], [2499, 2500], "the last page")
        _same(journal.read(p, 2501, 1), (), "a page beyond the end")
        _same([r.offset for r in journal.read(p, 1, 9999)], list(range(1, 2501)), "all rows")


def gives_each_epoch_once(open_: Open) -> None:
    with open_() as one, open_() as two:
        _same(one.head("m", "spec"), Head(0, None), "head before the first server")
        _same(one.begin_epoch("m", "spec", 0), 1, "the first epoch")
        refusal = _refused(EpochLost, lambda: two.begin_epoch("m", "spec", 0), "a slower server")
        _same(refusal.args, ("m", 0, 1), "the refusal's model, expected and found epoch")
        _refused(EpochLost, lambda: two.begin_epoch("m", "spec", 5), "an epoch of the future")
        _same(two.begin_epoch("m", "spec", 1), 2, "the next epoch")
        _same(one.begin_epoch("m", "other", 0), 1, "another lineage has its own epoch")
        _same(one.begin_epoch("n", "spec", 0), 1, "another model has its own epoch")
        answer = one.append(_register(one), 0, _batch("b"))
        _same(answer.epoch, 2, "the newest epoch is the highest, not the last one")
        _same(one.lineages("m"), ("spec", "other"), "lineages, the newest change last")
        two.begin_epoch("m", "spec", 2)
        _same(one.lineages("m"), ("other", "spec"), "lineages after another change")
        _same(one.lineages("nobody"), (), "lineages of an unknown model")
        p, q = _register(one, "m"), _register(one, "fresh")
        _same(one.append(p, 0, _batch("a")).epoch, 3, "the newest epoch comes with an append")
        _same(one.append(q, 0, _batch("a")).epoch, 0, "no server yet")


def moves_the_head_for_the_newest_epoch_only(open_: Open) -> None:
    with open_() as journal:
        _refused(EpochLost, lambda: journal.move_head("m", "spec", 0, "s"), "no server yet")
        journal.begin_epoch("m", "spec", 0)
        journal.begin_epoch("m", "other", 0)
        journal.move_head("m", "spec", 1, "s1")
        journal.move_head("m", "spec", 1, "s2")
        _same(journal.head("m", "spec"), Head(1, "s2"), "head after two snapshots")
        journal.begin_epoch("m", "spec", 1)
        _same(journal.head("m", "spec"), Head(2, "s2"), "a new epoch keeps the snapshot")
        call = partial(journal.move_head, "m", "spec", 1, "zombie")
        _same(_refused(EpochLost, call, "an old server").args, ("m", 1, 2), "the refusal")
        _refused(EpochLost, lambda: journal.move_head("m", "spec", 3, "s"), "a future epoch")
        _same(journal.head("m", "spec"), Head(2, "s2"), "head after refusals")
        _same(journal.head("m", "other"), Head(1, None), "head of the other lineage")


def keeps_the_first_control_row(open_: Open) -> None:
    with open_() as one, open_() as two:
        first, won = one.write_control("m", "release", "decide:a", b"\x00yes")
        values = (first.seq, first.model, first.kind, first.key, first.payload, won)
        _same(values, (1, "m", "release", "decide:a", b"\x00yes", True), "the first control row")
        again, won = two.write_control("m", "discard", "decide:a", b"no")
        _same((again, won), (first, False), "the first with a key wins")
        third, won = two.write_control("m", "freeze", "freeze:1", b"")
        _same((third.seq, won), (2, True), "control rows are numbered without holes")
        other, won = one.write_control("n", "discard", "decide:a", b"no")
        _same((other.seq, won), (1, True), "another model counts for itself")
        _same(one.controls("m", 0), (first, third), "control rows in order")
        _same(one.controls("m", 1), (third,), "control rows after a position")
        _same((one.controls("m", 2), one.controls("nobody", 0)), ((), ()), "no control rows")


def checkpoints_keep_everything(open_: Open) -> None:
    with open_() as journal:
        p = _register(journal)
        journal.append(p, 0, _batch("a b"))
        _same(journal.checkpoint(), 0, "bytes left with nobody reading")
        _same(_offsets(journal.append(p, 2, _batch("a c"))), [(False, p, 1), (True, p, 3)], "after")
        journal.checkpoint()
        _same([r.event_id for r in journal.read(p, 1, 9)], ["a", "b", "c"], "rows afterwards")
        journal.close()  # and a second time as the block ends


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
    reads_pages,
    gives_each_epoch_once,
    moves_the_head_for_the_newest_epoch_only,
    keeps_the_first_control_row,
    checkpoints_keep_everything,
)
