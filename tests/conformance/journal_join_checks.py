"""Checks of the stored join: who brings the second half is told of the first, and a row joins them.

The row is appended over the half that it was made of: nothing is written if another one stands.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import product

from journal_words import Open, batch, new, offsets, refused, register, same
from msgspec.structs import replace

from replay.errors import PartitionSealed, RowInvalid
from replay.journal.base import Half, Journal, NewRow, Outcome, Predicted, Stored, Verdict

OTHER = {Half.PREDICTION: Half.LABEL, Half.LABEL: Half.PREDICTION}
KEPT = (False, 0, 0)
GONE = Outcome(False, None, gone=True)


def _half(name: str, half: Half, at: float = 1.0, over: bytes | None = None) -> NewRow:
    """A half whose payload, source and event id say which one it is."""
    row = new(name, f"{half} of {name} at {at}".encode(), half=half, at=at)
    return replace(row, event_id=f"{name}/{half}", source=f"from {half}", over=over)


def _row(name: str, over: bytes | None, at: float = 9.0) -> NewRow:
    """The row that joins two halves, as whoever brings the second has decided about it."""
    return replace(new(name, f"joined {name}".encode(), Verdict.CLIPPED, at=at), over=over)


def _stored(half: NewRow) -> Stored:
    assert half.half is not None
    return Stored(half.half, half.event_id, half.source, half.payload, half.at)


def _met(half: NewRow) -> Outcome:
    """Return the outcome that another half gets while this one stands."""
    return Outcome(False, None, half.at, _stored(half))


def _one(journal: Journal, partition: int, known: int, row: NewRow) -> Outcome:
    return journal.append(partition, known, [row]).outcomes[0]


def the_second_half_is_told_of_the_first(open_: Open) -> None:
    for first in Half:
        with open_() as journal:
            p, q = register(journal, first), register(journal, first)
            one, two = _half(first, first, 3.5), _half(first, OTHER[first], 4.25)
            answer = journal.append(p, 0, [one])
            same((answer.outcomes, answer.end), ((Outcome(False, None, 3.5),), 0), "the first half")
        with open_() as journal:  # a restart, and another writer
            for row in (two, two, replace(two, at=5.0)):
                answer = journal.append(q, 0, [*batch("before"), row])
                same(answer.outcomes[1], _met(one), "the second half")
                same(answer.end, 1, "offsets of the second half")
            same(journal.find(first, one.key), None, "a row that nobody has decided about")
            same(journal.usage(first).halves, 1, "halves: the second one is not kept")
            same(_one(journal, p, 0, one), Outcome(False, None, 3.5), "the first half again")
            same(_one(journal, p, 0, replace(one, at=7.0)), Outcome(False, None, 3.5), "later")


def the_row_takes_the_place_of_its_half(open_: Open) -> None:
    for first in Half:
        with open_() as journal:
            p, q = register(journal), register(journal)
            one, joined = _half(first, first), _row(first, None)
            _one(journal, p, 0, one)
            joined = replace(joined, over=one.payload)
            answer = journal.append(q, 0, [joined])
            row = answer.outcomes[0].row
            same((offsets(answer), answer.end), ([(True, q, 1)], 1), "the joined row")
            assert row is not None
            same((row.payload, row.verdict, row.at), (joined.payload, Verdict.CLIPPED, 9.0), "it")
            same(journal.find("m", one.key), row, "the joined row by its key")
            same(journal.read(q, 1, 1), (row,), "the joined row as read")
            same(journal.usage("m").halves, 0, "halves after the join")
            same(journal.append(q, 0, [joined]), answer, "the same again after a lost answer")
            same(_one(journal, q, 1, joined), Outcome(False, row), "a repeat")
            for side in Half:
                same(_one(journal, p, 0, _half(first, side)), Outcome(False, row), "a late half")
            same(journal.usage("m").halves, 0, "halves after repeats")


def a_row_is_written_only_over_the_half_that_it_was_made_of(open_: Open) -> None:
    with open_() as one, open_() as two:
        p, q = register(one), register(two)
        first, other = _half("a", Half.LABEL), _half("a", Half.LABEL, 2.0)
        same(_one(one, p, 0, _row("a", first.payload)), GONE, "over nothing")
        _one(one, p, 0, first)
        for journal, number in ((one, p), (two, q)):
            same(_one(journal, number, 0, _row("a", other.payload)), _met(first), "over another")
        same((one.find("m", first.key), one.usage("m").halves), (None, 1), "what was written")
        both = [_row("a", first.payload), _row("a", first.payload)]
        same(offsets(two.append(q, 0, both)), [(True, q, 1), (False, q, 1)], "over it, twice")
        same(offsets(one.append(p, 0, both[:1])), [(False, q, 1)], "and by another writer")


def a_half_takes_the_place_of_exactly_one(open_: Open) -> None:
    """How several labels wait under one key: whoever adds one has seen the others."""
    with open_() as one, open_() as two:
        p, q = register(one), register(two)
        first = _half("a", Half.LABEL, 1.0)
        second = _half("a", Half.LABEL, 2.0, first.payload)
        third = _half("a", Half.LABEL, 3.0, first.payload)
        same(_one(one, p, 0, second), GONE, "over nothing")
        _one(one, p, 0, first)
        same(_one(one, p, 0, replace(second, over=None)), _met(first), "over nothing given")
        same(_one(two, q, 0, second), Outcome(False, None, 2.0), "over the first")
        same(_one(two, q, 0, second), Outcome(False, None, 2.0), "again after a lost answer")
        same(_one(one, p, 0, third), _met(second), "over what stands no more")
        same(one.usage("m").halves, 1, "halves")
        prediction = _half("a", Half.PREDICTION, 4.0)
        same(_one(one, p, 0, prediction), _met(second), "what the other side is told")
        same(one.expire("m", 2.0, 9), 0, "it is as old as the newest of them")
        same(one.append(p, 0, [_row("a", second.payload)]).end, 1, "the row")


def an_empty_half_removes_what_stands(open_: Open) -> None:
    with open_() as journal:
        p = register(journal)
        first = _half("a", Half.LABEL)
        refused(
            RowInvalid, partial(journal.append, p, 0, [replace(first, payload=b"")]), "empty"
        )  # fmt: skip
        remove = replace(first, payload=b"", over=first.payload, at=5.0)
        other = replace(remove, over=b"another")
        _one(journal, p, 0, first)
        same(_one(journal, p, 0, other), _met(first), "another")
        for _ in range(2):
            same(_one(journal, p, 0, remove), Outcome(False, None, 5.0), "removed")
            same(journal.usage("m").halves, 0, "halves")
        same(_one(journal, p, 0, first), Outcome(False, None, 1.0), "kept anew")


def halves_take_no_offsets(open_: Open) -> None:
    with open_() as journal:
        p = register(journal)
        rows = [
            *batch("x"), _half("a", Half.PREDICTION), _half("b", Half.LABEL), *batch("y"),
            _half("a", Half.LABEL), _half("b", Half.PREDICTION, 2.0), *batch("z"),
        ]  # fmt: skip
        answer = journal.append(p, 0, rows)
        expected = [(True, p, 1), KEPT, KEPT, (True, p, 2), KEPT, KEPT, (True, p, 3)]
        same(offsets(answer), expected, "halves and rows in one batch")
        same([bool(o.met) for o in answer.outcomes], [i in (4, 5) for i in range(7)], "met")
        same(journal.append(p, 0, rows), answer, "the same batch after a lost answer")
        joined = [_row("a", rows[1].payload), *batch("w"), _row("b", rows[2].payload)]
        again = journal.append(p, 3, joined)
        same(offsets(again), [(True, p, n) for n in (4, 5, 6)], "their rows")
        same(journal.append(p, 3, joined), again, "the same after a lost answer")
        same([r.offset for r in journal.read(p, 1, 9)], [1, 2, 3, 4, 5, 6], "offsets as read")
        seqs = [r.seq for r in journal.read(p, 1, 9)]
        same(seqs, sorted(set(seqs)), "seq of joined rows")
        same(journal.usage("m").halves, 0, "halves after their joins")


def a_lost_batch_is_answered_again(open_: Open) -> None:
    """Every batch of up to three halves with one key, after each half or none: the same twice."""
    with open_() as journal:
        p, q = register(journal), register(journal)
        batches = [b for n in (1, 2, 3) for b in product(Half, repeat=n)]
        for i, (before, chosen) in enumerate(product((None, *Half), batches)):
            if before:
                journal.append(q, 0, [_half(f"k{i}", before, 0.5)])
            rows = [_half(f"k{i}", side, float(at)) for at, side in enumerate(chosen, 1)]
            answer = journal.append(p, 0, rows)
            same(journal.append(p, 0, rows), answer, f"{chosen} again after {before}")
            same(answer.end, 0, f"the end after {chosen}, {before}")
            first = before or chosen[0]
            told = [o.met.half if o.met else None for o in answer.outcomes]
            others = [first if side is not first else None for side in chosen]
            same([t for t, o in zip(told, others, strict=True) if o], [o for o in others if o], "")


def a_half_of_a_key_with_a_row_is_a_duplicate(open_: Open) -> None:
    with open_() as journal:
        p, q = register(journal), register(journal)
        journal.append(p, 0, batch("a"))
        for half in Half:
            for number, known in ((q, 0), (p, 1), (p, 0)):
                same(
                    offsets(journal.append(number, known, [_half("a", half)])), [(False, p, 1)], ""
                )
        same(journal.usage("m").halves, 0, "halves of a key with a row")
        journal.append(q, 0, [_half("b", Half.LABEL)])
        same(offsets(journal.append(p, 1, batch("b"))), [(True, p, 2)], "a whole row beside a half")
        same(journal.usage("m").halves, 0, "the half of a key that a whole row took")
        answer = journal.append(q, 0, [_half("b", Half.PREDICTION)])
        same(offsets(answer), [(False, p, 2)], "the other half, too late")


def halves_belong_to_a_model(open_: Open) -> None:
    with open_() as journal:
        p, q = register(journal, "m"), register(journal, "n")
        journal.append(p, 0, [_half("a", Half.PREDICTION)])
        labels = [_half("b", Half.LABEL), _half("a", Half.LABEL)]
        same(offsets(journal.append(q, 0, labels)), [KEPT, KEPT], "another model")
        same([journal.usage(m).halves for m in ("m", "n", "nobody")], [1, 2, 0], "halves by model")
        same(_one(journal, p, 0, _half("a", Half.LABEL)).met is None, False, "the model's")
        over = _half("a", Half.PREDICTION).payload
        same(offsets(journal.append(p, 0, [_row("a", over)])), [(True, p, 1)], "the model's row")
        over = _half("a", Half.LABEL).payload
        same(offsets(journal.append(q, 0, [_row("a", over)])), [(True, q, 1)], "the other model's")
        same((journal.expire("m", 9.0, 9), journal.expire("n", 9.0, 9)), (0, 1), "halves that go")
        journal.seal(p)
        call = partial(journal.append, p, 1, [_half("b", Half.LABEL)])
        refused(PartitionSealed, call, "a half for a sealed partition")
        same(journal.usage("m").halves, 0, "halves after a refusal")


def halves_expire(open_: Open) -> None:
    with open_() as journal:
        p = register(journal)
        rows = [_half(n, Half.PREDICTION, at) for n, at in (("c", 3.0), ("a", 1.0), ("b", 2.0))]
        journal.append(p, 0, rows)
        same(journal.expire("m", 1.0, 9), 0, "halves as old as the bound stay")
        same(journal.expire("m", 3.0, 1), 1, "at most n go")
        same(journal.append(p, 0, rows[2:]).outcomes[0].since, 2.0, "the youngest of them stays")
        same((journal.expire("m", 3.0, 9), journal.expire("m", 3.0, 9)), (1, 0), "the others")
        same(journal.usage("m").halves, 1, "halves that are left")
        labels = [_half(n, Half.LABEL, 4.0) for n in "abc"]
        told = [o.met is not None for o in journal.append(p, 0, labels).outcomes]
        same(told, [False, False, True], "labels after their predictions went")
        same(journal.expire("nobody", 9.0, 9), 0, "halves of an unknown model")


def predictions_that_wait_are_listed(open_: Open) -> None:
    with open_() as journal:
        p = register(journal)
        rows = [_half(n, Half.PREDICTION, at) for n, at in (("c", 3.0), ("a", 1.0), ("b", 2.0))]
        journal.append(p, 0, [*rows, _half("d", Half.LABEL, 1.5)])

        def told(after: float, before: float, n: int = 9) -> list[tuple[bytes, bytes, float]]:
            return [
                (key, half.payload, half.at)
                for key, half in journal.predicted("m", after, before, n).waiting
            ]

        c, a, b = ((row.key, row.payload, row.at) for row in rows)
        same(told(0.0, 9.0), [a, b, c], "all, the oldest first")
        same((told(1.0, 3.0), told(3.0, 9.0)), ([b], []), "between two times")
        same(told(0.0, 9.0, 1), [a], "at most n")
        unknown = journal.predicted("nobody", 0.0, 9.0, 9)
        same(unknown, Predicted((), None), "predictions of an unknown model")
        journal.append(p, 0, [_row("a", rows[1].payload)])
        same(told(0.0, 9.0), [b, c], "what has its label waits no longer")
        whole = _row("b", None)
        same(journal.append(p, 1, [whole]).outcomes[0].new, True, "a row that says no half")
        same(told(0.0, 9.0), [c], "what a row took the place of")
        late = _one(journal, p, 2, replace(_row("b", rows[2].payload), at=9.0))
        same((late.new, late.row is not None), (False, True), "a row over a half that has gone")


def predictions_that_wait_say_for_how_long_the_servers_have_run_since(open_: Open) -> None:
    with open_() as journal:
        epoch = journal.begin_epoch("m", "spec", 0)
        p = register(journal)
        journal.append(p, 0, [_half("a", Half.PREDICTION, 1.0)])
        journal.run("m", "spec", epoch, 700)
        journal.append(p, 0, [_half("b", Half.PREDICTION, 2.0), _half("c", Half.LABEL, 2.5)])
        journal.run("m", "spec", epoch, 300)
        same(journal.predicted("m", 0.0, 9.0, 9).ran_ms, (1000, 300), "running time since")


def labels_that_wait_do_not_hide_the_predictions_behind_them(open_: Open) -> None:
    with open_() as journal:
        p = register(journal)
        labels = [_half(f"label-{i}", Half.LABEL, 1.0 + i / 8) for i in range(4)]
        behind = _half("a", Half.PREDICTION, 2.0)
        journal.append(p, 0, [*labels, behind])
        looks, after = [], 0.0
        while (page := journal.predicted("m", after, 9.0, 2)).upto is not None:
            after = page.upto
            looks.append((after, [key for key, _ in page.waiting]))
        same(looks, [(1.125, []), (1.375, []), (2.0, [behind.key])], "looks in steps of two")


def a_trimmed_join_starts_anew(open_: Open) -> None:
    with open_() as journal:
        journal.begin_epoch("m", "spec", 0)
        p = register(journal)
        halves = [_half("a", Half.PREDICTION), _half("b", Half.PREDICTION)]
        journal.append(p, 0, halves)
        journal.append(p, 0, [_row("a", halves[0].payload, 17.25), *batch("b")])
        same(journal.trim("m", "spec", 1, {p: 2}, 99.0, 9), 2, "rows that went")
        labels = [_half("a", Half.LABEL, 2.0), _half("b", Half.LABEL, 2.0)]
        answer = journal.append(p, 2, labels)
        same(answer.outcomes, (Outcome(False, None, 2.0),) * 2, "nothing is left of the halves")
        same(journal.usage("m").halves, 2, "halves kept anew")


CHECKS: tuple[Callable[[Open], None], ...] = (
    the_second_half_is_told_of_the_first,
    the_row_takes_the_place_of_its_half,
    a_row_is_written_only_over_the_half_that_it_was_made_of,
    a_half_takes_the_place_of_exactly_one,
    an_empty_half_removes_what_stands,
    halves_take_no_offsets,
    a_lost_batch_is_answered_again,
    a_half_of_a_key_with_a_row_is_a_duplicate,
    halves_belong_to_a_model,
    halves_expire,
    predictions_that_wait_are_listed,
    predictions_that_wait_say_for_how_long_the_servers_have_run_since,
    labels_that_wait_do_not_hide_the_predictions_behind_them,
    a_trimmed_join_starts_anew,
)
