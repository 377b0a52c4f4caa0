"""Words in which the journal's checks say what they expect."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

from replay.errors import ReplayError
from replay.journal.base import Appended, Half, Journal, NewRow, Verdict

Open = Callable[[], AbstractContextManager[Journal]]
"""Opens the journal under test; once more, as after a restart or as another process."""


def new(
    name: str,
    payload: bytes = b"\x01payload",
    verdict: Verdict = Verdict.ACCEPTED,
    *,
    half: Half | None = None,
    at: float = 17.25,
) -> NewRow:
    """A row, or a half, whose key and event id come from the name."""
    factor = 0.5 if verdict is Verdict.CLIPPED else 1.0
    key = name.encode().ljust(16, b".")
    return NewRow(key, name, f"src-{name}", verdict, payload, at, factor, half)


def batch(names: str) -> list[NewRow]:
    """A row for each word."""
    return [new(name) for name in names.split()]


def same(got: object, expected: object, what: str) -> None:
    """Raise AssertionError unless both are equal."""
    if got != expected:
        raise AssertionError(f"{what}: {got!r}, expected {expected!r}")


def refused(error: type[ReplayError], call: Callable[[], object], what: str) -> ReplayError:
    """The definite refusal that the call must end with."""
    try:
        result = call()
    except error as refusal:
        same(refusal.definite, True, f"{what}: definite")
        return refusal
    raise AssertionError(f"{what}: answered {result!r}, expected {error.__name__}")


def offsets(answer: Appended) -> list[tuple[bool, int, int]]:
    """New or not, partition and offset of each outcome; 0, 0 without a row."""
    rows = [(o.new, o.row) for o in answer.outcomes]
    return [(n, row.partition, row.offset) if row else (n, 0, 0) for n, row in rows]


def register(journal: Journal, model: str = "m", replica: str = "r") -> int:
    """Number of a new partition."""
    return journal.register(model, replica, "spec", 1.0).id
