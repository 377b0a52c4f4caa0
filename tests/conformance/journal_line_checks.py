"""Checks of the log of decisions: lines that go with control rows, in one step, and are trimmed."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from journal_words import Open, refused, same

from replay.errors import EpochLost, LineTaken
from replay.journal.base import Journal, Line


def _line(number: int, text: bytes | None = None) -> Line:
    return Line(number, b"\x00line %d" % number if text is None else text)


def _numbers(journal: Journal) -> list[int]:
    return [line.number for line in journal.lines(0, 99)]


def numbers_lines_without_holes(open_: Open) -> None:
    with open_() as one, open_() as two:
        same((one.newest_line(), one.lines(0, 9)), (None, ()), "an empty log")
        refused(LineTaken, lambda: one.write_line(_line(2)), "a hole at the beginning")
        one.write_line(_line(1))
        refusal = refused(LineTaken, lambda: two.write_line(_line(1, b"other")), "a taken number")
        same(refusal.args, (1, 1), "the refusal's number and the newest one")
        refused(LineTaken, lambda: two.write_line(_line(3)), "a hole")
        two.write_line(_line(2))
        one.write_line(_line(3, b""))
        wanted = (_line(1), _line(2), _line(3, b""))
        same(one.lines(0, 9), wanted, "the lines in order")
        same((two.lines(1, 1), two.lines(3, 9)), (wanted[1:2], ()), "a page of them")
    with open_() as journal:
        same((journal.lines(0, 9), journal.newest_line()), (wanted, wanted[2]), "after a restart")
        same(journal.controls("m", 0), (), "control rows")


def a_line_goes_with_its_control_row(open_: Open) -> None:
    with open_() as one, open_() as two:
        one.begin_epoch("m", "spec", 0)
        write = partial(one.write_control, "m", "freeze", "freeze:0", b"x")
        refused(LineTaken, lambda: write(line=_line(2)), "a row whose line has a hole before it")
        same((one.controls("m", 0), one.lines(0, 9)), ((), ()), "nothing was written")
        refused(EpochLost, lambda: write(("spec", 2), _line(1)), "a row of another epoch")
        same((one.controls("m", 0), one.lines(0, 9)), ((), ()), "nothing was written")
        row, won = write(("spec", 1), _line(1))
        same((row.seq, won, one.lines(0, 9)), (1, True, (_line(1),)), "row and line")
        again = two.write_control("m", "freeze", "freeze:0", b"y", ("spec", 1), _line(2))
        same((again, two.lines(0, 9)), ((row, False), (_line(1),)), "a repeat has no line")
        again = two.write_control("m", "freeze", "freeze:0", b"y", None, _line(7))
        same(again, (row, False), "a repeat's line is not looked at")
        two.write_control("n", "freeze", "freeze:0", b"", None, _line(2))
        one.write_control("m", "unfreeze", "unfreeze:1", b"")
        same(_numbers(one), [1, 2], "one log for all models; a row may have no line")


def an_anchor_stands_for_what_was_trimmed(open_: Open) -> None:
    with open_() as journal:
        refused(LineTaken, lambda: journal.trim_lines(_line(1, b"anchor")), "an empty log")
        for number in range(1, 6):
            journal.write_line(_line(number))
        refused(LineTaken, lambda: journal.trim_lines(_line(6, b"anchor")), "beyond the newest")
        journal.trim_lines(_line(3, b"anchor"))
        left = (_line(3, b"anchor"), _line(4), _line(5))
        same(journal.lines(0, 9), left, "the anchor and what comes after it")
        same((journal.lines(0, 2), journal.lines(4, 9)), (left[:2], left[2:]), "pages of them")
        refused(LineTaken, lambda: journal.trim_lines(_line(3, b"another")), "a second anchor")
    with open_() as journal:
        same(journal.lines(0, 9), left, "after a restart")
        journal.trim_lines(_line(5, b"all"))
        same(journal.lines(0, 9), (_line(5, b"all"),), "nothing but the anchor")
        same(journal.newest_line(), _line(5, b"all"), "the newest is the anchor")
        refused(LineTaken, lambda: journal.write_line(_line(5)), "a number that was trimmed")
        journal.write_line(_line(6))
        same(_numbers(journal), [5, 6], "the log goes on")


CHECKS: tuple[Callable[[Open], None], ...] = (
    numbers_lines_without_holes,
    a_line_goes_with_its_control_row,
    an_anchor_stands_for_what_was_trimmed,
)
