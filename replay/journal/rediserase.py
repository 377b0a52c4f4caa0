"""Payloads are removed from the Redis journal for good: streams copied, the server's files anew."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, Final

from replay.errors import JournalDamaged, JournalUnavailable
from replay.journal.base import Half, Stored
from replay.journal.redisscripts import COMMON

_PAGE: Final = 256  # entries of one script: no other caller waits for long
_AGAIN: Final = 10  # times that a copy is begun, if another process copies, too

# ARGV: name of a stream, what comes before an entry's id in the place of its checksum, the id after
# which this page begins, most entries, how many pairs of a field and its value follow, these, and
# the ids of the entries that get them.  A stream takes nothing between two entries, so a copy grows
# page by page, and takes the place of the stream in the step that finds nothing more to copy: what
# was appended meanwhile is in it, and what was trimmed is not.
COPY: Final = (
    COMMON
    + """
local source, spare = P .. ':' .. ARGV[1], P .. ':erasing:' .. ARGV[1]
local place, after, most, pairs_n = ARGV[2], ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5])
local values, wanted = {}, {}
for i = 6, 5 + 2 * pairs_n, 2 do values[ARGV[i]] = ARGV[i + 1] end
for i = 6 + 2 * pairs_n, #ARGV do wanted[ARGV[i]] = true end
if after == '0' then redis.call('DEL', spare)
elseif int(last(spare)) ~= after then return {'moved'} end
local page = redis.call('XRANGE', source, '(' .. after .. '-0', '+', 'COUNT', most)
for _, row in ipairs(page) do
  local id, fields = string.match(row[1], '^%d+'), row[2]
  if wanted[id] then
    local n = #fields
    if fields[n - 1] == 'sum' then
      n = n - 2
      if fields[n + 2] ~= proof(place .. id, {unpack(fields, 1, n)}) then return {'damaged', id} end
    end
    for i = 1, n, 2 do fields[i + 1] = values[fields[i]] or fields[i + 1] end
    if fields[n + 1] then fields[n + 2] = proof(place .. id, {unpack(fields, 1, n)}) end
  end
  redis.call('XADD', spare, row[1], unpack(fields))
  after = id
end
if #page == most then return {'more', after} end
local oldest = redis.call('XRANGE', source, '-', '+', 'COUNT', 1)[1]
if oldest then
  redis.call('XTRIM', spare, 'MINID', oldest[1])
  redis.call('RENAME', spare, source)
else
  redis.call('DEL', spare)
end
return {'done', after}
"""
)

# ARGV: model, cursor, about how many.
HALVES: Final = (
    COMMON
    + """
local page, found = redis.call('HSCAN', P .. ':halves:' .. ARGV[1], ARGV[2], 'COUNT', ARGV[3]), {}
for i = 1, #page[2], 2 do
  local read, half = pcall(cmsgpack.unpack, page[2][i + 1])
  if not read or type(half) ~= 'table' then half = {} end
  found[#found + 1] =
    {page[2][i], half[1] or '', half[2] or '', half[3] or '', half[4] or '', half[5] or ''}
end
return {page[1], found}
"""
)

# ARGV: model, key, payload that stands, then half, event_id, source, payload and at of what takes
# its place (payload '': nothing does).
REPLACE_HALF: Final = (
    COMMON
    + """
local halves, waiting, key = P .. ':halves:' .. ARGV[1], P .. ':waiting:' .. ARGV[1], ARGV[2]
local packed = redis.call('HGET', halves, key)
local read, half = pcall(cmsgpack.unpack, packed or '')
if not packed or not read or type(half) ~= 'table' or half[4] ~= ARGV[3] then return 0 end
if ARGV[7] == '' then
  redis.call('HDEL', halves, key)
  redis.call('ZREM', waiting, key)
  return 1
end
local new = {ARGV[4], ARGV[5], ARGV[6], ARGV[7], ARGV[8], half[6]}
new[7] = proof('half ' .. ARGV[1] .. ' ' .. key, new)
redis.call('ZADD', waiting, ARGV[8], key)
redis.call('HSET', halves, key, cmsgpack.pack(new))
return 1
"""
)


class RedisErasing:
    """A :class:`replay.journal.erasing.Erasing` of one journal.

    ``command`` and ``run`` ask its server; ``tag`` is its prefix.
    """

    def __init__(self, command: Callable[..., Any], run: Callable[..., Any], tag: bytes) -> None:
        self._command, self._run, self._tag = command, run, tag

    def rows(self, partition: int, offsets: Sequence[int], payload: bytes) -> int:
        """Give rows this payload: see :class:`replay.journal.erasing.Erasing`.

        The partition is copied; the server needs the memory for that.
        """
        if not (stale := self._stale(f"rows:{partition}", offsets, payload)):
            return 0
        values = {"payload": payload, "event_id": b""}
        self._copy(f"rows:{partition}", f"row {partition} ", stale, values)
        return len(stale)

    def _stale(self, stream: str, ids: Sequence[int], payload: bytes) -> list[int]:
        """Those of the entries that have another payload."""
        key, found = self._tag + b":" + stream.encode(), []
        wanted = sorted(ids)
        for start in range(0, len(wanted), _PAGE):
            some = set(wanted[start : start + _PAGE])
            after = min(some) - 1
            while after < max(some):
                page = self._command("XRANGE", key, f"({after}-0", f"{max(some)}-0", "COUNT", _PAGE)
                for id_, fields in page:
                    after = int(id_.split(b"-")[0])
                    if after in some and fields.get(b"payload") != payload:
                        found.append(after)
                if len(page) < _PAGE:
                    break
        return found

    def _copy(self, stream: str, place: str, ids: Sequence[int], values: dict[str, bytes]) -> None:
        """Copy the stream, in which these entries get the values."""
        given = [word for pair in values.items() for word in pair]
        for _ in range(_AGAIN):
            status, after = b"more", b"0"
            while status == b"more":
                # which ids a page has is not known before: it gets those that can be in it
                near = [i for i in ids if i > int(after)][:_PAGE]
                words = (stream, place, after, _PAGE, len(values), *given, *near)
                status, *rest = self._run(COPY, *words)
                if status == b"damaged":
                    raise JournalDamaged(f"{place}{rest[0].decode()}")
                after = rest[0] if rest else b"0"
            if status == b"done":
                return
        raise JournalUnavailable("another process copies the same stream again and again")

    def halves(self, model: str) -> Iterator[tuple[bytes, Stored]]:
        """Return the model's halves, a page at a time."""
        cursor = b"0"
        while True:
            cursor, page = self._run(HALVES, model, cursor, _PAGE)
            for key, half, event_id, source, payload, at in page:
                if not half:
                    raise JournalDamaged(f"the half of key {key.hex()}")
                named = (Half(half.decode()), event_id.decode(), source.decode())
                yield key, Stored(*named, payload, float(at))
            if cursor == b"0":
                return

    def replace_half(self, model: str, key: bytes, over: Stored, by: Stored | None) -> bool:
        """Put another half, or none, in the place of one."""
        words: tuple[str | bytes, ...] = ("", "", "", "", "")
        if by is not None:
            words = (by.half.value, by.event_id, by.source, by.payload, repr(by.at))
        return bool(self._run(REPLACE_HALF, model, key, over.payload, *words))

    def texts(self, model: str, kind: str, keys: Collection[str], payload: bytes) -> int:
        """Give control rows this payload."""
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
        """Have the append-only file written anew, and the dump, if the server makes one."""
        for key in self._left_behind():
            self._command("DEL", key)
        yield from self._have("BGREWRITEAOF", "aof_last_bgrewrite_status")
        if any(self._command("CONFIG", "GET", "save")[1::2]):
            yield from self._have("BGSAVE", "rdb_last_bgsave_status")

    def _left_behind(self) -> Iterator[bytes]:
        """Copies that a process has begun and not ended."""
        start, cursor = self._tag + b":erasing:", b"0"
        pattern = re.sub(rb"([\[\]*?\\])", rb"\\\1", start) + b"*"
        while True:
            cursor, found = self._command("SCAN", cursor, "MATCH", pattern, "COUNT", 1000)
            yield from found
            if int(cursor) == 0:
                return

    def _have(self, command: str, outcome: str) -> Iterator[int]:
        while self._is_writing():
            yield 0
        self._command(command)
        yield 0
        while self._is_writing():
            yield 0
        if (found := self._command("INFO", "persistence").get(outcome)) != "ok":
            raise JournalUnavailable(f"{command} has failed ({found})")

    def _is_writing(self) -> bool:
        found = self._command("INFO", "persistence")
        names = ("aof_rewrite_in_progress", "aof_rewrite_scheduled", "rdb_bgsave_in_progress")
        return any(int(found.get(name, 0)) for name in names)
