"""One bit of what a Redis journal stores changes: it is seen, or nothing that is said changes."""

from __future__ import annotations

import random
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "unit" / "worlds"))

import flipped_world as worlds

from replay.errors import ReplayError
from replay.journal.redis import proof as redisproof
from replay.journal.redis.journal import RedisJournal


class Copies:
    """A filled journal, and copies of it in which one thing is another."""

    def __init__(self, url: str, client: Any) -> None:
        self.url, self.client, self.n = url, client, 0
        with closing(RedisJournal(url, prefix="made")) as journal:
            self.partitions = worlds.fill(journal)
        self.keys = sorted(client.keys("{made}:*"))
        self.entries = [
            (key, id_, i, name)
            for key in self.keys
            if key.startswith(b"{made}:rows:")
            for id_, fields in client.xrange(key)
            for name in fields
            for i in range(8 * len(fields[name]))
        ]

    def copy(self, flipped: tuple[bytes, bytes, int, bytes] | None) -> str:
        """Prefix of a new copy; ``flipped``: stream, entry, bit and name of the field."""
        self.n += 1
        prefix = f"copy{self.n}"
        for key in self.keys:
            name = key.replace(b"made", prefix.encode(), 1)
            if flipped is None or key != flipped[0]:
                self.client.restore(name, 0, self.client.dump(key))
                continue
            for id_, fields in self.client.xrange(key):
                if id_ == flipped[1]:
                    value = bytearray(fields[flipped[3]])
                    value[flipped[2] // 8] ^= 1 << flipped[2] % 8
                    fields[flipped[3]] = bytes(value)
                self.client.xadd(name, fields, id=id_)
        return prefix

    def drop(self, prefix: str) -> None:
        self.client.delete(*self.client.keys(f"{{{prefix}}}:*"))

    def verdict(self, flipped: tuple[bytes, bytes, int, bytes], whole: Any) -> str:
        prefix = self.copy(flipped)
        try:
            with closing(RedisJournal(self.url, prefix=prefix)) as journal:
                if journal.examine(lambda done, total: None).damage:
                    return "seen by fsck"
                same = self.answers(journal) == whole
            return "harmless" if same else "silent"
        except ReplayError:
            return "refused when it is used"
        finally:
            self.drop(prefix)

    def answers(self, journal: Any) -> Any:
        told, done = worlds.told(journal, self.partitions), worlds.done(journal, self.partitions)
        return told, done


def flip(copies: Copies, n: int, seed: int) -> Counter[str]:
    prefix = copies.copy(None)
    with closing(RedisJournal(copies.url, prefix=prefix)) as journal:
        assert journal.examine(lambda done, total: None).damage == ()
        whole = copies.answers(journal)
    copies.drop(prefix)
    found = Counter[str]()
    for flipped in random.Random(seed).sample(copies.entries, n):
        found[what := copies.verdict(flipped, whole)] += 1
        assert what != "silent", flipped
    return found


@pytest.fixture(scope="module")
def copies(redis_node: Any) -> Iterator[Copies]:
    with closing(redis_node.client()) as client:
        yield Copies(redis_node.url, client)


def test_a_flipped_bit_of_a_row_is_seen(copies: Copies) -> None:
    assert flip(copies, 40, 0) == {"seen by fsck": 40}


@pytest.mark.long
def test_many_flipped_bits_of_rows_are_seen(copies: Copies) -> None:
    assert flip(copies, 1000, 1) == {"seen by fsck": 1000}


def test_without_checksums_a_flip_is_silent(
    copies: Copies, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redisproof, "proves", lambda place, fields: True)
    with pytest.raises((AssertionError, ValueError)):
        flip(copies, 40, 0)


def test_a_damaged_row_is_named_to_whoever_asks(copies: Copies) -> None:
    stream = f"{{made}}:rows:{copies.partitions[0]}".encode()
    place = next(e for e in copies.entries if e[0] == stream and e[3] == b"payload")
    prefix = copies.copy(place)
    number, offset = int(stream.split(b":")[-1]), int(place[1].split(b"-")[0])
    with closing(RedisJournal(copies.url, prefix=prefix)) as journal:
        with pytest.raises(ReplayError, match=f"row {offset} of partition {number}") as refusal:
            journal.read(number, offset, 1)
        assert refusal.value.definite
        key = copies.client.xrange(stream, place[1], place[1])[0][1][b"key"]
        given = next(row for n in range(120) if (row := worlds.row(n)).key == key)
        other = worlds.row(7000)
        state = journal.partition(copies.partitions[0])
        assert state is not None
        answer = journal.append(state.id, state.end, [given, other])
        assert answer.outcomes[0].damaged is not None
        assert answer.outcomes[1].new, "others of the batch are written"
    copies.drop(prefix)
