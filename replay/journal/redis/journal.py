"""A journal in one Redis or Valkey server, for several nodes; each partition is a stream."""

from __future__ import annotations

import logging
import math
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from replay.errors import (
    EpochLost,
    JournalDamaged,
    JournalFormat,
    JournalUnavailable,
    LineTaken,
    PartitionUnknown,
    RowInvalid,
    ServerFull,
)
from replay.journal.base import (
    Appended,
    Control,
    Examined,
    Followed,
    Half,
    Head,
    Journal,
    Line,
    NewRow,
    Outcome,
    Partition,
    Predicted,
    Row,
    Stored,
    Usage,
)
from replay.journal.batch import BOUNDS, Bounds, check_batch
from replay.journal.redis import proof, scripts
from replay.journal.redis.arguments import fields_of, outcome_of, refusal_of, words_of
from replay.journal.redis.check import Examination, restore_ids
from replay.journal.redis.erase import RedisErasing
from replay.journal.redis.proof import Fields
from replay.journal.redis.server import Durability, RedisServer

log = logging.getLogger(__name__)

FORMAT = 5
"""Number of the layout of keys; a newer one is refused, an older one is read unchanged.

Rows of a layout before 3 have no commit order, so :meth:`RedisJournal.follow` skips them; rows of a
layout before 4 have no checksum; a layout before 5 has no log of decisions.
"""

_READ_PAGE = 1024
_FOLLOW_PAGE = 256  # rows looked up by one script


class RedisJournal(Journal):
    """A journal in a Redis or Valkey server (version 6.2 or newer).

    It may be used by several threads, processes and nodes.  No command is retried automatically.
    ``Row.seq`` comes from one counter of the journal; it grows with each commit and has gaps only
    after failed scripts.  Partition numbers grow, contain 24 random bits and are below 2^53.  So a
    server that came back empty or older does not assign a number again: earlier writers get
    JournalBehind or PartitionUnknown, never another writer's partition.

    Parameters:
        prefix: Name of the journal in the server; its keys start with it, in braces.
        bounds: Greatest number of rows in one append, and of halves for each model.

    The other parameters are those of :class:`replay.journal.redis.server.RedisServer`.  Its errors
    are raised, and JournalFormat if a newer version has written the prefix's keys.
    """

    def __init__(
        self,
        url: str,
        *,
        prefix: str = "online",
        memory_mb_max: float | None = None,
        bounds: Bounds = BOUNDS,
        timeout_s: float = 5.0,
        durability: Durability = "checked",
        accept_loss: bool = False,
        monotonic_s: Callable[[], float] = time.monotonic,
    ) -> None:
        if not prefix or set(prefix) & set("{}"):
            raise ValueError(f"prefix is {prefix!r}; give a name without braces")
        self._bounds = bounds
        self._tag = f"{{{prefix}}}".encode()
        self._server = RedisServer(
            url,
            timeout_s=timeout_s,
            durability=durability,
            accept_loss=accept_loss,
            memory_mb_max=memory_mb_max,
            monotonic_s=monotonic_s,
        )
        try:
            if (stored_format := int(self._run(scripts.SET_FORMAT, FORMAT))) > FORMAT:
                raise JournalFormat(stored_format, FORMAT)
        except BaseException:
            self._server.close()
            raise

    @property
    def batch_rows_max(self) -> int:
        return self._bounds.batch_rows

    def close(self) -> None:
        self._server.close()

    def _key(self, *names: str | int) -> bytes:
        return b":".join((self._tag, *(str(name).encode() for name in names)))

    def _command(self, *words: str | bytes | int) -> Any:
        try:
            return self._server.command(*words)
        except ServerFull as error:  # only append reports it; other callers just retry
            raise JournalUnavailable(error.reason) from error

    def _run(self, script: str, *words: str | bytes | int) -> Any:
        try:
            return self._server.run(script, self._tag, *words)
        except ServerFull as error:
            raise JournalUnavailable(error.reason) from error

    def _fenced(self, epoch: int, script: str, model: str, *words: str | int) -> Any:
        """Run a script that takes effect only in the lineage's newest epoch; return its result."""
        status, *reply = self._run(script, model, *words)
        if status == b"damaged":
            what = "the running time" if script is scripts.RUN else "a head"
            raise JournalDamaged(f"{what} of model {model}")
        if status == b"lost":
            raise EpochLost(model, epoch, int(reply[0]))
        return reply[0]

    # -- partitions and rows -------------------------------------------------------------------

    def register(self, model: str, replica: str, spec: str, at: float) -> Partition:
        if not math.isfinite(at):
            raise RowInvalid("at", repr(at), "give POSIX seconds")
        given = (model, replica, spec, repr(float(at)), secrets.randbits(24))
        return Partition(int(self._run(scripts.REGISTER, *given)), model, replica, spec, 0, False)

    def register_lost(self, model: str, spec: str, number: int, end: int, seq: int) -> None:
        self._run(scripts.REGISTER_LOST, model, spec, number, end, seq)

    def append(
        self, partition: int, known: int, rows: Sequence[NewRow], epoch: int = 0
    ) -> Appended:
        """Append a batch; JournalBehind is also raised if a key leads to a missing row."""
        check_batch(rows, self._bounds.batch_rows)
        held = self._server.held()
        words = [word for row in rows for word in words_of(row)]
        head = (partition, known, int(held is not None), self._bounds.halves, epoch)
        answer = _remembered(self, scripts.APPEND, self._tag, *head, *words)
        if answer[0] == b"held" and held is not None:
            raise type(held)(*held.args)  # a new exception with its own traceback
        if (refusal := refusal_of(answer, partition, known, epoch)) is not None:
            raise refusal
        outcomes: list[Outcome] = []
        for row, reply in zip(rows, answer[3], strict=True):
            outcomes.append(outcome_of(partition, row, reply, outcomes))
        return Appended(tuple(outcomes), int(answer[1]), int(answer[2]))

    def seal(self, partition: int) -> int:
        answer = self._run(scripts.SEAL, partition)
        if answer[0] == b"unknown":
            raise PartitionUnknown(partition)
        return int(answer[1])

    def partition(self, partition: int) -> Partition | None:
        reply = self._run(scripts.PARTITIONS, "number", partition)
        return proof.as_partition(reply[0]) if reply else None

    def partitions(self, model: str) -> tuple[Partition, ...]:
        return tuple(map(proof.as_partition, self._run(scripts.PARTITIONS, "model", model)))

    def read(self, partition: int, first: int, n: int) -> tuple[Row, ...]:
        """Read rows in several commands, so that none blocks the server for long."""
        rows: list[Row] = []
        stream = self._key("rows", partition)
        for start in range(first, first + n, _READ_PAGE):
            last = min(start + _READ_PAGE, first + n) - 1
            page = self._entries(stream, start, last)
            if not page or page[0][0] != first + len(rows):
                break  # trimmed rows are missing: stop at the gap
            rows += (proof.as_row(partition, offset, fields) for offset, fields in page)
        return tuple(rows)

    def _entries(self, stream: bytes, first: int, last: int) -> list[tuple[int, Fields]]:
        entries = self._command("XRANGE", stream, f"{first}-0", f"{last}-0")
        return [(int(id_.split(b"-")[0]), fields) for id_, fields in entries]

    def follow(self, model: str, after: int, n: int) -> Followed:
        rows: list[Row] = []
        while True:  # several scripts, so that none blocks the server for long
            size = min(_FOLLOW_PAGE, n - len(rows))
            newest, entries, looked_at, trimmed = self._run(scripts.FOLLOW, model, after, size)
            rows += (
                proof.as_row(int(p), int(offset), fields_of(flat)) for p, offset, flat in entries
            )
            after = int(newest)
            if len(rows) >= n or looked_at < size:
                return Followed(tuple(rows), after, int(trimmed))

    def find(self, model: str, key: bytes) -> Row | None:
        reply = _remembered(self, scripts.FIND, self._tag, model, key)
        if not reply:
            return None
        row = proof.as_row(int(reply[0]), int(reply[1]), fields_of(reply[2]))
        if row.key != key:
            raise JournalDamaged(f"the place of an id of model {model}", "another event is there")
        return row

    def restore_ids(self, model: str) -> int:
        return restore_ids(self._command, self._run, self._tag, model)

    # -- epochs, heads and control rows --------------------------------------------------------

    def head(self, model: str, spec: str) -> Head:
        names = (f"epoch:{spec}", f"snapshot:{spec}", f"sum:{spec}")
        epoch, snapshot, stored = self._command("HMGET", self._key("head", model), *names)
        words = (epoch or b"", snapshot or b"")
        if stored is not None and stored != proof.proof(f"head {model} {spec}", words):
            raise JournalDamaged(f"a head of model {model}")
        return Head(int(epoch or 0), None if snapshot is None else snapshot.decode())

    def lineages(self, model: str) -> tuple[str, ...]:
        specs = self._command("ZRANGE", self._key("lineages", model), 0, -1)
        return tuple(spec.decode() for spec in specs)

    def begin_epoch(self, model: str, spec: str, expected: int) -> int:
        return int(self._fenced(expected, scripts.BEGIN_EPOCH, model, spec, expected))

    def move_head(self, model: str, spec: str, epoch: int, snapshot: str) -> None:
        self._fenced(epoch, scripts.MOVE_HEAD, model, spec, epoch, snapshot)

    def write_control(
        self,
        model: str,
        kind: str,
        key: str,
        payload: bytes,
        fence: tuple[str, int] | None = None,
        line: Line | None = None,
    ) -> tuple[Control, bool]:
        with_it = ("", "") if line is None else (line.number, bytes(line.text))
        given = (model, kind, key, bytes(payload), *(fence or ("", "")), *with_it)
        answer = self._run(scripts.WRITE_CONTROL, *given)
        if fence is not None and answer[0] == b"lost":
            raise EpochLost(model, fence[1], int(answer[1]))
        if line is not None:
            self._take(line, answer)
        won, seq, row = answer
        stored = proof.as_control(model, int(seq), fields_of(row))
        if stored.key != key:
            raise JournalDamaged(f"the place of a decision of model {model}", "another is there")
        return stored, won == b"1"

    def controls(self, model: str, after: int) -> tuple[Control, ...]:
        rows: list[Control] = []
        stream = self._key("controls", model)
        while page := self._entries(stream, after + 1, after + _READ_PAGE):
            rows += (proof.as_control(model, seq, fields) for seq, fields in page)
            after += _READ_PAGE
        return tuple(rows)

    def write_line(self, line: Line) -> None:
        self._take(line, self._run(scripts.WRITE_LINE, line.number, bytes(line.text)))

    def newest_line(self) -> Line | None:
        entries = self._command("XREVRANGE", self._tag + b":lines", "+", "-", "COUNT", 1)
        return proof.lines(entries)[0] if entries else self._anchor()

    def lines(self, after: int, n: int) -> tuple[Line, ...]:
        anchor = self._anchor()
        begin = [] if anchor is None or anchor.number <= after else [anchor]
        first = after if anchor is None else max(after, anchor.number)
        span = (f"({first}-0", "+", "COUNT", n)
        return (*begin, *proof.lines(self._command("XRANGE", self._tag + b":lines", *span)))[:n]

    def trim_lines(self, anchor: Line) -> None:
        text = bytes(anchor.text)
        checksum = proof.proof(f"line {anchor.number}", (b"text", text))
        self._take(anchor, self._run(scripts.TRIM_LINES, anchor.number, text, checksum))

    def _anchor(self) -> Line | None:
        reply = self._command("HMGET", self._tag + b":anchor", "number", "text", "sum")
        number, text, stored = reply
        fields = {b"text": text or b"", b"sum": stored or b""}
        return None if number is None else proof.as_line(int(number), fields)

    @staticmethod
    def _take(line: Line, answer: Any) -> None:
        if answer[0] == b"taken":
            raise LineTaken(line.number, int(answer[1]))

    # -- claims and retention ------------------------------------------------------------------

    def claim(self, partition: int, offset: int) -> int:
        answer = self._run(scripts.CLAIM, partition, offset, 1)
        if answer[0] == b"unknown":
            raise PartitionUnknown(partition)
        return int(answer[1])

    def claims(self, partition: int, offset: int) -> int:
        answer = self._run(scripts.CLAIM, partition, offset, 0)
        return 0 if answer[0] == b"unknown" else int(answer[1])

    def run(self, model: str, spec: str, epoch: int, ms: int) -> int:
        return int(self._fenced(epoch, scripts.RUN, model, spec, epoch, ms))

    def trim(
        self,
        model: str,
        spec: str,
        epoch: int,
        upto: Mapping[int, int],
        before: float,
        n: int,
        *,
        ahead: float = math.inf,
        ran: float = math.inf,
    ) -> int:
        """Trim rows in one script, which blocks all other callers: give a small ``n``."""
        bounds = [word for p in sorted(upto) if upto[p] > 0 for word in (p, upto[p])]
        head = (model, spec, epoch, repr(float(before)), n, repr(float(ahead)), repr(float(ran)))
        return int(self._fenced(epoch, scripts.TRIM, *head, *bounds))

    def expire(
        self, model: str, before: float, n: int, *, ahead: float = math.inf, ran: float = math.inf
    ) -> int:
        bounds = (repr(float(before)), n, repr(float(ahead)), repr(float(ran)))
        return int(self._run(scripts.EXPIRE, model, *bounds))

    def predicted(self, model: str, after: float, before: float, n: int) -> Predicted:
        since, until = repr(float(after)), repr(float(before))
        return _predicted(*self._run(scripts.PREDICTED, model, since, until, n))

    def stand_in(self, partition: int, offset: int, row: NewRow) -> bool:
        """Replace a damaged row; the script copies the partition and blocks all other callers."""
        status = self._run(scripts.STAND_IN, partition, offset, *words_of(row)[:7])
        if status == b"missing":
            raise JournalDamaged(f"row {offset} of partition {partition}", "nothing stands there")
        return bool(status == b"ok")

    def examine(self, progress: Callable[[int, int], None]) -> Examined:
        return Examination(self._command, self._run, self._tag).all(progress)

    def erasing(self) -> RedisErasing:
        return RedisErasing(self._command, self._run, self._tag)

    def usage(self, model: str) -> Usage:
        ids, halves, *_ = map(int, self._run(scripts.COUNT_IDS, model))
        return Usage(*self._server.memory(), ids, halves)


def _remembered(journal: RedisJournal, script: str, *given: Any) -> Any:
    """Run a script that looks up ids; again, with those of its model restored, if some are gone.

    Somebody has deleted the index then, or put back an older one, and repeats would not be known.
    """
    answer = journal._server.run(script, *given)
    if not answer or answer[0] != b"forgotten":
        return answer
    restored = journal.restore_ids(model := answer[1].decode())
    log.error("%d ids of model %s were gone, and are taken from its rows", restored, model)
    if (answer := journal._server.run(script, *given)) and answer[0] == b"forgotten":
        raise JournalDamaged(f"the ids of model {model}", "they are gone again")
    return answer


def _predicted(entries: Sequence[Any], upto: Any, now: Any) -> Predicted:
    waiting = tuple(
        (key, Stored(Half(half.decode()), named.decode(), source.decode(), payload, float(at)))
        for key, half, named, source, payload, at, _ in entries
    )
    ran_ms = tuple(max(int(now) - int(one[6]), 0) if one[6] else 0 for one in entries)
    return Predicted(waiting, float(upto) if upto else None, ran_ms)
