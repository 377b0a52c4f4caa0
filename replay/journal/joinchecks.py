"""Checks of the stored join: two halves under one key become one row, whoever brings the second."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import product

from msgspec.structs import replace

from replay import codec
from replay.errors import PartitionSealed
from replay.journal.base import Half, NewRow, Outcome, Row, Verdict
from replay.journal.expect import Open, batch, new, offsets, refused, register, same

OTHER = {Half.PREDICTION: Half.LABEL, Half.LABEL: Half.PREDICTION}
KEPT = (False, 0, 0)


def _half(name: str, half: Half, at: float = 1.0, verdict: Verdict = Verdict.ACCEPTED) -> NewRow:
    """A half whose payload, source and event id say which one it is."""
    row = new(name, f"{half} of {name} at {at}".encode(), verdict, half=half, at=at)
    return replace(row, event_id=f"{name}/{half}", source=f"from {half}")


def the_second_half_writes_the_row(open_: Open) -> None:
    for first, verdict in product(Half, (Verdict.CLIPPED, Verdict.QUARANTINED)):
        with open_() as journal:
            p, q = register(journal), register(journal)
            one = _half(f"{first}{verdict}"[:16], first, 3.5)
            two = replace(_half(one.event_id, OTHER[first], 4.25, verdict), key=one.key)
            answer = journal.append(p, 0, [one])
            same((answer.outcomes, answer.end), ((Outcome(False, None, 3.5),), 0), "the first half")
            same(journal.find("m", one.key), None, "the row of a half")
        with open_() as journal:  # a restart, and another writer
            answer = journal.append(q, 0, [*batch("before"), two, *batch("after")])
            label, prediction = (two, one) if two.half is Half.LABEL else (one, two)
            row = answer.outcomes[1].row
            expected = Row(
                row.seq if row else 0, q, 1 + len([o for o in answer.outcomes[:1] if o.new]),
                one.key, label.event_id, label.source, verdict, two.factor,
                codec.join(prediction.payload, label.payload), 4.25,
            )  # fmt: skip
            same(answer.outcomes[1], Outcome(True, expected), "the joined row")
            same(journal.find("m", one.key), expected, "the joined row by its key")
            same(journal.read(q, expected.offset, 1), (expected,), "the joined row as read")
            same(journal.usage("m").halves, 0, "halves after the join")
            same(journal.append(p, 0, [one, two]).outcomes[0].row, expected, "a repeat of a half")
            same(journal.usage("m").halves, 0, "halves after repeats")


def the_first_half_of_a_side_wins(open_: Open) -> None:
    with open_() as one, open_() as two:
        p, q = register(one), register(one)
        first = _half("a", Half.PREDICTION, 1.0)
        one.append(p, 0, [first])
        later = _half("a", Half.PREDICTION, 2.0)
        for journal, number in ((one, p), (two, q)):
            answer = journal.append(number, 0, [later, later])
            same(answer.outcomes, (Outcome(False, None, 1.0),) * 2, "the same half again")
            same(journal.usage("m").halves, 1, "halves kept")
        label = _half("a", Half.LABEL, 3.0)
        row = two.append(q, 0, [label]).outcomes[0].row
        joined = codec.join(first.payload, label.payload)
        same(row and row.payload, joined, "the joined payload has the first half")


def halves_take_no_offsets(open_: Open) -> None:
    with open_() as journal:
        p = register(journal)
        rows = [
            *batch("x"), _half("a", Half.PREDICTION), _half("b", Half.LABEL), *batch("y"),
            _half("a", Half.LABEL), _half("b", Half.LABEL), _half("b", Half.PREDICTION),
            *batch("z"),
        ]  # fmt: skip
        answer = journal.append(p, 0, rows)
        expected = [(True, p, 1), KEPT, KEPT, (True, p, 2), (True, p, 3), KEPT]
        expected += [(True, p, 4), (True, p, 5)]
        same(offsets(answer), expected, "halves and rows in one batch")
        same(answer.end, 5, "the end counts rows only")
        same([r.offset for r in journal.read(p, 1, 9)], [1, 2, 3, 4, 5], "offsets as read")
        seqs = [r.seq for r in journal.read(p, 1, 9)]
        same(seqs, sorted(set(seqs)), "seq of joined rows")
        same(journal.append(p, 0, rows), answer, "the same batch after a lost answer")
        same(journal.usage("m").halves, 0, "halves after their joins")


def a_lost_join_is_answered_again(open_: Open) -> None:
    """Every batch of up to three with one key, after each half or none: the same answer twice."""
    sides = (None, *Half)
    with open_() as journal:
        p, q, end = register(journal), register(journal), 0
        batches = [b for n in (1, 2, 3) for b in product(sides, repeat=n)]
        for i, (before, chosen) in enumerate(product(sides, batches)):
            if before:
                journal.append(q, 0, [_half(f"k{i}", before, 0.5)])
            rows = [
                _half(f"k{i}", side, float(at)) if side else new(f"k{i}", b"whole", at=float(at))
                for at, side in enumerate(chosen, 1)
            ]
            answer = journal.append(p, end, rows)
            same(journal.append(p, end, rows), answer, f"{chosen} again after {before}")
            fresh = sum(o.new for o in answer.outcomes)
            whole = None in chosen or len({before, *chosen} - {None}) == 2
            same((fresh, answer.end), (int(whole), end + whole), f"new rows of {chosen}, {before}")
            end = answer.end


def a_half_of_a_key_with_a_row_is_a_duplicate(open_: Open) -> None:
    with open_() as journal:
        p, q = register(journal), register(journal)
        journal.append(p, 0, batch("a"))
        for half in Half:
            same(offsets(journal.append(q, 0, [_half("a", half)])), [(False, p, 1)], "elsewhere")
            same(offsets(journal.append(p, 1, [_half("a", half)])), [(False, p, 1)], "known")
            same(offsets(journal.append(p, 0, [_half("a", half)])), [(True, p, 1)], "own row")
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
        same(offsets(journal.append(p, 0, [_half("a", Half.LABEL)])), [(True, p, 1)], "the model's")
        predictions = [_half("a", Half.PREDICTION)]
        same(offsets(journal.append(q, 0, predictions)), [(True, q, 1)], "the other model's")
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
        answer = journal.append(p, 0, labels)
        same(offsets(answer), [KEPT, KEPT, (True, p, 1)], "labels after their predictions went")
        same(journal.expire("nobody", 9.0, 9), 0, "halves of an unknown model")


def a_trimmed_join_starts_anew(open_: Open) -> None:
    with open_() as journal:
        journal.begin_epoch("m", "spec", 0)
        p = register(journal)
        halves = [_half("a", Half.PREDICTION), _half("b", Half.PREDICTION)]
        journal.append(p, 0, halves)
        journal.append(p, 0, [_half("a", Half.LABEL), *batch("b")])
        same(journal.trim("m", "spec", 1, {p: 2}, 99.0, 9), 2, "rows that went")
        labels = [_half("a", Half.LABEL, 2.0), _half("b", Half.LABEL, 2.0)]
        answer = journal.append(p, 2, labels)
        same(answer.outcomes, (Outcome(False, None, 2.0),) * 2, "nothing is left of the halves")
        same(journal.usage("m").halves, 2, "halves kept anew")


CHECKS: tuple[Callable[[Open], None], ...] = (
    the_second_half_writes_the_row,
    the_first_half_of_a_side_wins,
    halves_take_no_offsets,
    a_lost_join_is_answered_again,
    a_half_of_a_key_with_a_row_is_a_duplicate,
    halves_belong_to_a_model,
    halves_expire,
    a_trimmed_join_starts_anew,
)
