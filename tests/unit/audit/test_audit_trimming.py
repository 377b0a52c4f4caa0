"""The log of decisions is trimmed as lines are written; a signed line stands for what has gone."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from test_audit import KEY, OTHER, decide, entries, faults, key_file, newest, opened

from online.audit import log as log_module
from online.audit.chain import ANCHOR, Entry, Signer
from online.audit.checking import SeenHead, check
from online.audit.log import Audited, note_start
from replay.errors import LineTaken
from replay.journal.base import Line


def test_lines_are_trimmed_as_they_are_written_and_a_signed_anchor_stands_for_them(
    tmp_path: Path,
) -> None:
    key_file(tmp_path)
    with contextlib.closing(opened(tmp_path, lines_max=10)) as journal:
        note_start(journal, ["m", "n"])
        decide(journal, *(f"k{i}" for i in range(10)))
        assert (len(entries(journal)), check(journal, [KEY], ["m"], ()).trimmed) == (11, 0)
        before = newest(journal)
        for i in range(10, 30):
            decide(journal, f"k{i}")
            assert len(entries(journal)) <= 11, "beyond the bound at no time"
        decide(journal, "x", model="n")
        found = entries(journal)
        assert (found[0].act, found[0].who) == (ANCHOR, "the service")
        trimmed = check(journal, [KEY], ["m", "n"], ()).trimmed
        assert found[0].about["controls"] == {"m": trimmed - 1, "n": 0}, "line 1 was the start"
        assert faults(journal, before, SeenHead("0-1", 5, "0" * 64)) == []
        decide(journal, *(f"l{i}" for i in range(30)))
        assert entries(journal)[0].about["controls"]["n"] == 1
        assert faults(journal) == []
        forged = Signer([OTHER]).anchor(
            Entry(1.0, ANCHOR, "x", about={"controls": {"m": 99}}), journal.newest_line()
        )
        journal.trim_lines(forged)
        assert faults(journal) == [
            f"line {forged.number}: it is the last one, and by a key that is not known"
        ]


def test_without_trimming_the_log_grows_beyond_its_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key_file(tmp_path)
    monkeypatch.setattr(Audited, "_trim", lambda *given: None)
    with contextlib.closing(opened(tmp_path, lines_max=10)) as journal:
        decide(journal, *(f"k{i}" for i in range(30)))
        assert len(entries(journal)) == 30


def test_a_log_far_beyond_its_bound_is_trimmed_in_small_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key_file(tmp_path)
    monkeypatch.setattr(log_module, "_STEP", 2)
    with contextlib.closing(opened(tmp_path, lines_max=1000)) as journal:
        decide(journal, *(f"k{i}" for i in range(60)))
    with contextlib.closing(opened(tmp_path, lines_max=10)) as journal:
        left = []
        for i in range(4):
            decide(journal, f"l{i}")
            left.append(len(entries(journal)))
            assert faults(journal) == []
        assert left == [42, 24, 11, 11], "19 lines are replaced by an anchor each time, at most"


def test_a_trimming_that_another_process_did_is_fine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key_file(tmp_path)
    with contextlib.closing(opened(tmp_path, lines_max=8)) as journal:
        decide(journal, *(f"k{i}" for i in range(8)))

        def taken(anchor: Line) -> None:
            raise LineTaken(anchor.number, 9)

        monkeypatch.setattr(journal._journal, "trim_lines", taken)
        decide(journal, "l0", "l1")
        assert len(entries(journal)) == 10
    with (
        contextlib.closing(opened(tmp_path, lines_max=8)) as one,
        contextlib.closing(opened(tmp_path, lines_max=8)) as two,
    ):
        decide(one, "m0", "m1", "m2")
        decide(two, "n0")
        assert (len(entries(one)), faults(one)) == (9, [])
