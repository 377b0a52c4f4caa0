"""Checks of erasing: payloads go, all else of rows stays, and it may be done again."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

from journal_words import Open, batch, new, register, same
from msgspec.structs import replace

from replay.journal.base import Half, Journal, NewRow, Row, Verdict

GONE: Final = b"\x01erased"
_STEPS_MAX: Final = 100_000


def _all(journal: Journal, *partitions: int) -> list[Row]:
    return [row for p in partitions for row in journal.read(p, 1, 2_000)]


def _erased(row: Row) -> Row:
    return replace(row, payload=GONE, event_id="")


def _is_sound(journal: Journal) -> None:
    same(journal.examine(lambda done, total: None).damage, (), "damage")


def erases_payloads_and_nothing_else(open_: Open) -> None:
    with open_() as journal:
        p, q = register(journal), register(journal)
        for start in range(0, 700, 100):
            names = [new(f"a{i}", b"secret %d" % i) for i in range(start, start + 100)]
            journal.append(p, start, [replace(row, verdict=Verdict.QUARANTINED) for row in names])
        journal.append(q, 0, batch("x y"))
        before = _all(journal, p, q)
        wanted = [1, 2, 300, 650, 700, 900]
        same(journal.erasing().rows(p, wanted, GONE), 5, "rows that had another payload")
        after = [_erased(r) if r.partition == p and r.offset in wanted else r for r in before]
        same(_all(journal, p, q), after, "all rows")
        _is_sound(journal)
    with open_() as journal:
        same(_all(journal, p, q), after, "all rows after a restart")
        same(journal.erasing().rows(p, wanted, GONE), 0, "rows, when it is done again")
        same([r.offset for r in journal.follow("m", 0, 9).rows], list(range(1, 10)), "the order")
        same(journal.find("m", before[0].key), after[0], "the row of a key")
        again = journal.append(p, 700, [new("a0", b"secret 0"), *batch("b")])
        same(again.outcomes[0].row, after[0], "a repeat's first row")
        same((again.outcomes[0].new, again.end), (False, 701), "a repeat, and a new row")
        journal.begin_epoch("m", "spec", 0)
        journal.trim("m", "spec", 1, {p: 2}, math.inf, 9)
        same(journal.erasing().rows(p, [1, 3], GONE), 1, "a row, and one that was trimmed")
        same((journal.partition(p).trimmed, journal.partition(p).end), (2, 701), "the ends")  # type: ignore[union-attr]
        same(journal.seal(p), 701, "the end of the sealed one")
        same(journal.erasing().rows(p, [701], GONE), 1, "a row of the sealed one")
        _is_sound(journal)


def erases_halves(open_: Open) -> None:
    def half(name: str, payload: bytes) -> NewRow:
        return new(name, payload, half=Half.LABEL, at=3.5)

    with open_() as journal:
        p = register(journal)
        journal.append(p, 0, [half("a", b"one"), half("b", b"two"), half("c", b"three")])
        erasing = journal.erasing()
        found = dict(erasing.halves("m"))
        same(sorted(s.payload for s in found.values()), [b"one", b"three", b"two"], "halves")
        same(list(erasing.halves("another")), [], "halves of another model")
        a, b, c = (new(name).key for name in "abc")
        less = replace(found[b], payload=b"less", source="other", event_id="B")
        same(erasing.replace_half("m", a, found[b], None), False, "over another half")
        same(erasing.replace_half("m", a, found[a], None), True, "a half that goes")
        same(erasing.replace_half("m", b, found[b], less), True, "a half that is replaced")
        same(erasing.replace_half("m", a, found[a], None), False, "a half that is gone")
        same(dict(erasing.halves("m")), {b: less, c: found[c]}, "halves that are left")
        same(journal.usage("m").halves, 2, "halves that are counted")
        _is_sound(journal)
    with open_() as journal:
        same(dict(journal.erasing().halves("m")), {b: less, c: found[c]}, "after a restart")
        met = journal.append(p, 0, [replace(half("b", b"x"), half=Half.PREDICTION)]).outcomes[0]
        same(met.met, less, "what a second half meets")
        same(journal.expire("m", 4.0, 9), 2, "halves that are old")


def erases_texts_of_decisions(open_: Open) -> None:
    with open_() as journal:
        for i in range(300):
            journal.write_control("m", "failed", f"failed:{i}", b"could not read 17.25")
        journal.write_control("m", "freeze", "failed", b"17.25")
        before = journal.controls("m", 0)
        keys = ["failed:0", "failed:299", "failed", "failed:300"]
        same(journal.erasing().texts("m", "failed", keys, GONE), 2, "decisions")
        after = journal.controls("m", 0)
        same([c for c in after if c.payload != GONE], list(before[1:299] + before[300:]), "others")
        same([(c.seq, c.key) for c in after], [(c.seq, c.key) for c in before], "their order")
        same(journal.erasing().texts("m", "failed", keys, GONE), 0, "when it is done again")
        same(journal.write_control("m", "failed", "failed:0", b"")[0], after[0], "the first stands")
        same(journal.write_control("m", "freeze", "f", b"")[0].seq, 302, "the next decision")
        _is_sound(journal)


def settles_with_all_as_it_was(open_: Open) -> None:
    with open_() as journal:
        p = register(journal)
        journal.append(p, 0, batch("a b c"))
        journal.append(p, 3, [new("d", b"x" * 20_000), *batch("e")])
        before = _all(journal, p)
        for _, _ in zip(journal.erasing().settle(), range(_STEPS_MAX), strict=False):
            pass
        same(_all(journal, p), before, "rows")
        same(journal.append(p, 5, batch("f")).end, 6, "the next row")
        _is_sound(journal)


CHECKS: tuple[Callable[[Open], None], ...] = (
    erases_payloads_and_nothing_else,
    erases_halves,
    erases_texts_of_decisions,
    settles_with_all_as_it_was,
)
