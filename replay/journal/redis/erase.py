"""Removes payloads from the Redis journal permanently: copies streams, rewrites server files."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, Final

from replay.errors import JournalDamaged, JournalUnavailable
from replay.journal.base import Half, Stored
from replay.journal.redis import scripts

_PAGE: Final = 256  # entries per script, so that other callers do not wait long
_AGAIN: Final = 10  # attempts to copy a stream while another process copies it, too


class RedisErasing:
    """A :class:`replay.journal.erasing.Erasing` of one journal.

    ``command`` and ``run`` send commands and scripts to its server; ``tag`` is its key prefix.
    """

    def __init__(self, command: Callable[..., Any], run: Callable[..., Any], tag: bytes) -> None:
        self._command, self._run, self._tag = command, run, tag

    def rows(self, partition: int, offsets: Sequence[int], payload: bytes) -> int:
        """Replace the payload of rows, see :class:`replay.journal.erasing.Erasing`.

        The partition is copied, for which the server needs memory.
        """
        if not (stale := self._stale(f"rows:{partition}", offsets, payload)):
            return 0
        values = {"payload": payload, "event_id": b""}
        self._copy(f"rows:{partition}", f"row {partition} ", stale, values)
        return len(stale)

    def _stale(self, stream: str, ids: Sequence[int], payload: bytes) -> list[int]:
        """Return the ids of those entries that have another payload."""
        key, stale = self._tag + b":" + stream.encode(), []
        wanted = sorted(ids)
        for start in range(0, len(wanted), _PAGE):
            some = set(wanted[start : start + _PAGE])
            after = min(some) - 1
            while after < max(some):
                page = self._command("XRANGE", key, f"({after}-0", f"{max(some)}-0", "COUNT", _PAGE)
                for id_, fields in page:
                    after = int(id_.split(b"-")[0])
                    if after in some and fields.get(b"payload") != payload:
                        stale.append(after)
                if len(page) < _PAGE:
                    break
        return stale

    def _copy(self, stream: str, place: str, ids: Sequence[int], values: dict[str, bytes]) -> None:
        """Replace the stream by a copy in which these entries have the given values."""
        given = [word for pair in values.items() for word in pair]
        for _ in range(_AGAIN):
            status, after = b"more", b"0"
            while status == b"more":
                # the ids of a page are not known in advance: pass all that can be in it
                near = [i for i in ids if i > int(after)][:_PAGE]
                words = (stream, place, after, _PAGE, len(values), *given, *near)
                status, *rest = self._run(scripts.COPY, *words)
                if status == b"damaged":
                    raise JournalDamaged(f"{place}{rest[0].decode()}")
                after = rest[0] if rest else b"0"
            if status == b"done":
                return
        raise JournalUnavailable("another process copies the same stream again and again")

    def halves(self, model: str) -> Iterator[tuple[bytes, Stored]]:
        """Yield the model's halves, read page by page."""
        cursor = b"0"
        while True:
            cursor, page = self._run(scripts.HALVES, model, cursor, _PAGE)
            for key, half, event_id, source, payload, at in page:
                if not half:
                    raise JournalDamaged(f"the half of key {key.hex()}")
                named = (Half(half.decode()), event_id.decode(), source.decode())
                yield key, Stored(*named, payload, float(at))
            if cursor == b"0":
                return

    def replace_half(self, model: str, key: bytes, over: Stored, by: Stored | None) -> bool:
        """Replace a half by another one, or remove it."""
        words: tuple[str | bytes, ...] = ("", "", "", "", "")
        if by is not None:
            words = (by.half.value, by.event_id, by.source, by.payload, repr(by.at))
        return bool(self._run(scripts.REPLACE_HALF, model, key, over.payload, *words))

    def texts(self, model: str, kind: str, keys: Collection[str], payload: bytes) -> int:
        """Replace the payload of control rows."""
        named = {key.encode() for key in keys}
        after, seqs = 0, list[int]()
        stream = f"controls:{model}"
        while page := self._command(
            "XRANGE", self._tag + b":" + stream.encode(), f"({after}-0", "+", "COUNT", _PAGE
        ):
            for id_, fields in page:
                after = int(id_.split(b"-")[0])
                if fields.get(b"kind") == kind.encode() and fields.get(b"key") in named:
                    seqs.append(after)
        if seqs := self._stale(stream, seqs, payload):
            self._copy(stream, f"control {model} ", seqs, {"payload": payload})
        return len(seqs)

    def settle(self) -> Iterator[int]:
        """Make the server rewrite its append-only file, and its dump if it makes one."""
        for key in self._left_behind():
            self._command("DEL", key)
        yield from self._have("BGREWRITEAOF", "aof_last_bgrewrite_status")
        if any(self._command("CONFIG", "GET", "save")[1::2]):
            yield from self._have("BGSAVE", "rdb_last_bgsave_status")

    def _left_behind(self) -> Iterator[bytes]:
        """Yield the keys of copies that a process began and did not finish."""
        start, cursor = self._tag + b":erasing:", b"0"
        pattern = re.sub(rb"([\[\]*?\\])", rb"\\\1", start) + b"*"
        while True:
            cursor, keys = self._command("SCAN", cursor, "MATCH", pattern, "COUNT", 1000)
            yield from keys
            if int(cursor) == 0:
                return

    def _have(self, command: str, outcome: str) -> Iterator[int]:
        while self._is_writing():
            yield 0
        self._command(command)
        yield 0
        while self._is_writing():
            yield 0
        if (status := self._command("INFO", "persistence").get(outcome)) != "ok":
            raise JournalUnavailable(f"{command} has failed ({status})")

    def _is_writing(self) -> bool:
        persistence = self._command("INFO", "persistence")
        names = ("aof_rewrite_in_progress", "aof_rewrite_scheduled", "rdb_bgsave_in_progress")
        return any(int(persistence.get(name, 0)) for name in names)
