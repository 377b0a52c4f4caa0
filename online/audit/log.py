"""A journal wrapper that writes a line of the audit log with each control row, in the same step.

The openers of :mod:`online.settings.places` apply it, so code that writes control rows does not
know about the log.  Other acts (a pinned snapshot, reloaded settings, a start) are recorded by
:func:`note` before they are carried out.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar, cast

import msgspec

from online.audit.chain import ANCHOR, Entry, Signer
from paramserver.process.acting import acting
from replay.errors import LineTaken, ReplayError
from replay.journal.base import Control, Journal, Line
from replay.plain import plain

log = logging.getLogger(__name__)

T = TypeVar("T")

ITSELF: Final = "the service"
START: Final = "start"
CONTROLS: Final = "controls"
"""Key in a line's ``about``: the newest control row, by model, that is older than the line."""

_TRIES: Final = 20  # another process may write the next line first
_PAGE: Final = 1_000
_SLACK: Final = 0.1
"""Share of the bound by which lines may exceed it before they are trimmed, ..."""

_STEP: Final = 1_000
"""... at most this many lines.  A log that is far beyond a lowered bound loses at most ten times as
many per written line, because the writer waits for it."""

_TEXT_MAX: Final = 200


OF_ROWS: Final = ("failed",)
"""Kinds of control rows without a line: they are no decisions, and senders of feedback could flood
the log with rows that the model raises on."""


class Audited:
    """A journal with its audit log.

    Parameters:
        journal: The wrapped journal, which does everything else.
        key_file: The file of the service's keys.  No lines are written before the first start
            creates it.
        lines_max: Lines that are kept.  When there are a tenth more (at most 1,000), the oldest
            ones are trimmed and replaced by an anchor while a line is written.
        now_s: POSIX seconds for the lines.
    """

    def __init__(
        self,
        journal: Journal,
        key_file: Path,
        lines_max: int,
        now_s: Callable[[], float] = time.time,
    ) -> None:
        self._journal, self._key_file, self._now_s = journal, key_file, now_s
        self._lines_max = lines_max
        self._most = lines_max + max(min(int(lines_max * _SLACK), _STEP), 1)
        self._before = 0  # number of the newest line that is known to be trimmed
        self._signer: Signer | None = None
        self.append = journal.append  # called for each batch: __getattr__ would be slower

    def __getattr__(self, name: str) -> Any:
        return getattr(self._journal, name)

    def write_control(
        self, model: str, kind: str, key: str, payload: bytes, fence: tuple[str, int] | None = None
    ) -> tuple[Control, bool]:
        """Append a control row and its line: see :class:`replay.journal.base.Journal`."""
        if kind in OF_ROWS or (signer := self._signs()) is None:
            return self._journal.write_control(model, kind, key, payload, fence)
        entry = self._entry(kind, model, _short(payload), key)
        return self._next(
            signer, entry, lambda line: self._journal.write_control(
                model, kind, key, payload, fence, line
            )
        )  # fmt: skip

    def note(self, act: str, model: str | None, about: dict[str, Any]) -> None:
        """Write a line about an act without a control row.  Raises ReplayError."""
        if (signer := self._signs()) is not None:
            self._next(signer, self._entry(act, model, about), self._journal.write_line)

    def started(self, models: list[str]) -> None:
        """Record that a service starts, and the newest control row of each model."""
        controls = {name: self._journal.controls(name, 0) for name in models}
        newest = {name: max((one.seq for one in of), default=0) for name, of in controls.items()}
        self.note(START, None, {CONTROLS: newest, "nonce": secrets.token_hex(8)})

    def _signs(self) -> Signer | None:
        if self._signer is None and (keys := keys_of(self._key_file)):
            self._signer = Signer(keys)
        return self._signer

    def _entry(self, act: str, model: str | None, about: dict[str, Any], key: str = "") -> Entry:
        who, _, origin = acting.get().partition("\n")
        return Entry(self._now_s(), act, who or ITSELF, model, origin, key, about)

    def _next(self, signer: Signer, entry: Entry, write: Callable[[Line], T]) -> T:
        """Write the entry as the next line; retry if another process writes one meanwhile."""
        for left in reversed(range(_TRIES)):
            try:
                line = signer.line(entry, self._journal.newest_line())
                written = write(line)
            except LineTaken:
                if not left:
                    raise
                continue
            if line.number - self._before > self._most:
                self._trim(signer, line.number)
            return written
        raise AssertionError("the loop returns or raises")

    def _trim(self, signer: Signer, newest: int) -> None:
        """Trim lines beyond the bound; failures are logged, as the new line is already written."""
        try:
            (first,) = self._journal.lines(0, 1)
            self._before = first.number - 1
            if newest - self._before <= self._most:  # another process has trimmed
                return
            # more than that are left for the lines that are written next: see _STEP
            last = min(newest - self._lines_max, self._before + 10 * _STEP)
            (upto,) = self._journal.lines(last - 1, 1)
            about = {CONTROLS: self._contained(last), "trimmed": last}
            anchor = Entry(self._now_s(), ANCHOR, ITSELF, about=about)
            self._journal.trim_lines(signer.anchor(anchor, upto))
            self._before = last - 1
        except ReplayError as error:
            log.info("the log of decisions was not trimmed this time: %s", error)

    def _contained(self, upto: int) -> dict[str, int]:
        """By model, the newest control row that lines up to a number refer to."""
        out: dict[str, int] = {}
        keys: dict[str, dict[str, int]] = {}
        after = 0
        while page := self._journal.lines(after, _PAGE):
            for line in page:
                if line.number > upto:
                    return out
                entry = entry_of(line)
                for model, seq in entry.about.get(CONTROLS, {}).items():
                    out[model] = max(out.get(model, 0), seq)
                if (of := entry.model) is not None and entry.key:
                    if of not in keys:
                        keys[of] = {c.key: c.seq for c in self._journal.controls(of, 0)}
                    out[of] = max(out.get(of, 0), keys[of].get(entry.key, 0))
            after = page[-1].number
        return out


def open_audited(open_journal: Callable[[], Journal], key_file: Path, lines_max: int) -> Journal:
    """Open a journal with an audit log; can be pickled by the name of this function."""
    return cast(Journal, Audited(open_journal(), key_file, lines_max))


def note(journal: Journal, act: str, model: str | None, about: dict[str, Any]) -> None:
    """Record an act that is about to be done, if the journal has a log.  Raises ReplayError."""
    if isinstance(journal, Audited):
        journal.note(act, model, about)


def note_start(journal: Journal, models: list[str]) -> None:
    """Record that a service starts; if that fails, the start continues."""
    if isinstance(journal, Audited):
        try:
            journal.started(models)
        except ReplayError as error:
            log.warning("the start is not in the log of decisions: %s", error)


def started_with(journal: Journal) -> set[str]:
    """Names of the models of the newest recorded start, among the last thousand lines.

    The lines are read without verification.
    """
    with contextlib.suppress(ReplayError, msgspec.MsgspecError):
        newest = journal.newest_line()
        for line in reversed(journal.lines(max(newest.number - _PAGE, 0), _PAGE) if newest else ()):
            entry = entry_of(line)
            if entry.act == START:
                return set(entry.about.get(CONTROLS, ()))
    return set()


def keys_of(path: Path) -> list[bytes]:
    """Secrets of a key file, the first of which signs; empty if there is no such file yet."""
    try:
        return [bytes.fromhex(line) for line in path.read_text().split()]
    except (OSError, ValueError):  # users of the keys report problems
        return []


def entry_of(line: Line) -> Entry:
    """Read the entry of a line without verification."""
    (encoded, *_) = msgspec.msgpack.decode(line.text)
    return msgspec.msgpack.decode(encoded, type=Entry)


def _short(payload: bytes) -> dict[str, Any]:
    """Return a control row's short values, and the hash of its payload."""
    about: dict[str, Any] = {}
    try:
        body = msgspec.json.decode(payload)
    except msgspec.DecodeError:
        body = {"text": payload.decode(errors="replace")} if payload else {}
    if isinstance(body, dict):
        about = {
            name: plain(value[:_TEXT_MAX]) if isinstance(value, str) else value
            for name, value in body.items()
            if isinstance(value, str | int | float | bool) and value != ""
        }
    return {**about, "sha256": hashlib.sha256(payload).hexdigest()}
