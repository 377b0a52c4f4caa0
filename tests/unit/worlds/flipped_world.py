"""A small journal with something of everything, what it says, and what it does next."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from replay.errors import ReplayError
from replay.journal.base import Half, Journal, NewRow, Verdict

MODELS = ("m", "other")
SPECS = ("a" * 64, "b" * 64)


def row(n: int, half: Half | None = None, at: float = 5.0) -> NewRow:
    """A row, or a half, with its number in all that it has."""
    verdict = (Verdict.ACCEPTED, Verdict.CLIPPED, Verdict.QUARANTINED)[n % 3]
    factor = 0.5 if verdict is Verdict.CLIPPED else 1.0
    payload = b"\x01" + n.to_bytes(2, "big") * (20 + n % 30)
    key = n.to_bytes(2, "big") * 8
    return NewRow(key, f"event {n}", f"source {n % 5}", verdict, payload, at + n, factor, half)


def fill(journal: Journal, rows: int = 120) -> list[int]:
    """Write it; the numbers of its partitions."""
    partitions = [journal.register(MODELS[i == 2], f"r{i}", SPECS[0], 1.0).id for i in range(3)]
    for model in MODELS:
        journal.begin_epoch(model, SPECS[0], 0)
        journal.move_head(model, SPECS[0], 1, "1-1")
        journal.run(model, SPECS[0], 1, 1234)
    journal.begin_epoch("m", SPECS[1], 0)
    journal.begin_epoch("m", SPECS[0], 1)
    ends = dict.fromkeys(partitions, 0)
    for start in range(0, rows, 6):
        p = partitions[start // 6 % 3]
        batch = [row(n) for n in range(start, start + 6)]
        ends[p] = journal.append(p, ends[p], batch).end
        journal.run("m", SPECS[0], 2, 10)
    journal.append(partitions[0], ends[partitions[0]], [row(900 + n, Half.LABEL) for n in range(5)])
    for n in range(4):
        journal.write_control("m", "failed", f"failed:{n}", b"why" * n)
    journal.write_control("other", "freeze", "freeze", b"")
    for offset in (0, 3, 3, 2**40):
        journal.claim(partitions[1], offset)
    journal.trim("m", SPECS[0], 2, {partitions[0]: 4}, 1e9, 4)
    journal.seal(partitions[1])
    return partitions


def told(journal: Journal, partitions: list[int]) -> list[Any]:
    """All that it answers, without a change."""
    answers: list[Any] = []
    for model in MODELS:
        answers += [journal.partitions(model), journal.controls(model, 0), journal.lineages(model)]
        answers += [journal.head(model, spec) for spec in SPECS]
        answers += [journal.follow(model, 0, 9999), journal.usage(model).halves]
        answers += [journal.find(model, row(n).key) for n in (0, 3, 50, 77, 119, 901, 5000)]
    return answers + [journal.read(p, first, 999) for p in partitions for first in (1, 5)]


def done(journal: Journal, partitions: list[int]) -> list[Any]:
    """What it does next: repeats of everything, new rows, joins, claims, trims, a new epoch."""
    answers: list[Any] = []
    for p in (partitions[0], partitions[2]):
        state = journal.partition(p)
        known = state.end if state else 0
        for start in range(0, 130, 65):
            batch = [row(n) for n in range(start, start + 65)]
            answer = journal.append(p, known, batch)
            known = answer.end
            answers.append(answer)
        answers.append(journal.append(p, known, [row(900 + n, Half.PREDICTION) for n in range(9)]))
    answers += [journal.claim(partitions[1], offset) for offset in (0, 3, 2**40, 7)]
    answers += [journal.run("m", SPECS[0], 2, 5), journal.expire("m", 1e9, 99, ran=1e9)]
    answers.append(journal.write_control("m", "failed", "failed:1", b"other"))
    answers.append(journal.write_control("m", "x", "new", b"other"))
    answers.append(journal.trim("m", SPECS[0], 2, {partitions[0]: 20}, 1e9, 9, ran=1300))
    answers.append(journal.register("m", "next", SPECS[0], 1.0).model)
    answers += [journal.begin_epoch("m", SPECS[0], 2), journal.seal(partitions[0])]
    return answers


def refusals(journal: Journal, partitions: list[int]) -> list[ReplayError]:
    """Errors of reading and of going on; there may be none."""
    errors = []
    for step in (told, done):
        with suppress(AssertionError):
            try:
                step(journal, partitions)
            except ReplayError as error:
                errors.append(error)
    return errors
