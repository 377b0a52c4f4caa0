"""RedisJournal passes the journal's suite on a real server; with one rule less it does not."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from replay.errors import JournalBehind, JournalUnavailable
from replay.journal import redisscripts
from replay.journal.base import Journal, NewRow, Verdict
from replay.journal.checks import check_journal, yield_checks
from replay.journal.redis import RedisJournal


def _load(path: Path) -> Any:
    """The module in a file of the tests (they are no package)."""
    if path.stem not in sys.modules:
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None
        assert spec.loader is not None
        sys.modules[path.stem] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules[path.stem]


redis_server: Any = _load(Path(__file__).with_name("redis_server.py"))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    if redis_server.find_binary() is None:
        pytest.skip(redis_server.NO_SERVER)
    with redis_server.running(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def make(server: Any) -> Callable[[Path], Journal]:
    return lambda path: RedisJournal(server.url, prefix=path.parent.name)


@pytest.mark.parametrize("name", [name for name, _ in yield_checks(lambda _: None)])  # type: ignore[arg-type, return-value]
def test_redis_journal(make: Callable[[Path], Journal], name: str) -> None:
    dict(yield_checks(make))[name]()


def test_a_cluster_finds_all_keys_in_one_slot(tmp_path: Path, server: Any) -> None:
    settings = {"cluster_enabled": "yes", "cluster_port": str(redis_server.free_port())}
    with redis_server.running(tmp_path, **settings) as node, closing(node.client()) as client:
        client.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
        redis_server.wait_for(lambda: client.cluster("INFO")["cluster_state"] == "ok")
        check_journal(
            lambda path: RedisJournal(node.url, prefix=path.parent.name, accept_loss=True)
        )


MUTANTS = [
    ("APPEND", "if stop < known then", "if false then", "nobody asks what is known"),
    ("APPEND", "if of[2] then", "if false then", "no seal"),
    ("APPEND", "local seq = int(", "if n > 1 then stop = stop + 1 end local seq = int(", "holes"),
    ("APPEND", "local i = 4 + (n - 1) * 7\n  stop = stop + 1", "local i = 4 + (n - 1) * 7\n"
     "  stop = last(rows) + n", "offsets before dedupe"),
    ("APPEND", "tonumber(offset) > known", "false", "own row is a duplicate"),
    ("APPEND", "tonumber(offset) > known", "true", "old row is an own row"),
    ("APPEND", "if first[key] then", "if false then", "key twice in a batch"),
    ("APPEND", "P .. ':ids:' .. of[1]", "P .. ':ids'", "keys unique in the whole store"),
    ("APPEND", "P .. ':head:' .. of[1], 'newest'", "P .. ':head:', 'newest'", "no epoch"),
    ("APPEND", "redis.call('INCR', P .. ':seq')", "redis.call('INCR', P .. ':seq') % 3", "seq"),
    ("SEAL", "'sealed', '1'", "'closed', '1'", "seal forgotten"),
    ("BEGIN_EPOCH", "if epoch ~= tonumber(ARGV[3]) then", "if false then", "epoch without compare"),
    ("BEGIN_EPOCH", "changes, ARGV[2])", "0, ARGV[2])", "lineages unordered"),
    ("BEGIN_EPOCH", "math.max(epoch, tonumber(found[2] or '0'))", "epoch", "newest is last"),
    ("PARTITIONS", "':rows:' .. number", "':rows:'", "no end"),
    ("MOVE_HEAD", "if epoch ~= ARGV[3] then", "if false then", "head without epoch"),
    ("WRITE_CONTROL", "if not seq then", "if true then", "any control row wins"),
    ("WRITE_CONTROL", "P .. ':controls:' .. ARGV[1]", "P .. ':controls'", "controls of all models"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("script", "rule", "without"), [pytest.param(*m[:3], id=m[3]) for m in MUTANTS]
)
def test_the_suite_rejects_a_missing_rule(
    make: Callable[[Path], Journal],
    script: str,
    rule: str,
    without: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = getattr(redisscripts, script)
    assert whole.count(rule) == 1
    monkeypatch.setattr(redisscripts, script, whole.replace(rule, without))
    with pytest.raises((AssertionError, JournalUnavailable)):
        check_journal(make)


def _row(name: str) -> NewRow:
    return NewRow(name.encode() * 16, name, "s", Verdict.ACCEPTED, name.encode(), 1.0)


XADD = "  redis.call('XADD', rows,"
HSET = "  redis.call('HSET', ids, ARGV[i], number .. ':' .. int(stop))\n"
FAULT = "  if redis.call('GET', P .. ':fault') == ARGV[i] then error('XADD has failed') end\n"


def _after_a_failing_write(server: Any, prefix: str, script: str) -> list[tuple[bool, int, str]]:
    """What the writer learns and what stands, when the entry of b failed at the first try."""
    rows = [_row("a"), _row("b"), _row("c")]
    with (
        closing(RedisJournal(server.url, prefix=prefix)) as journal,
        closing(server.client()) as client,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr(redisscripts, "APPEND", script)
        partition = journal.register("m", "r", "x", 1.0).id
        client.set(f"{{{prefix}}}:fault", rows[1].key)
        with pytest.raises(JournalUnavailable) as refusal:
            journal.append(partition, 0, rows)
        assert not refusal.value.definite
        client.delete(f"{{{prefix}}}:fault")
        answer = journal.append(partition, 0, rows)
        stored = [row.event_id for row in journal.read(partition, 1, 9)]
        assert len(stored) == answer.end
        return [(o.new, o.row.offset, stored[o.row.offset - 1]) for o in answer.outcomes]


def test_an_entry_comes_before_its_key(server: Any) -> None:
    script = redisscripts.APPEND
    assert (script.count(XADD), script.count(HSET)) == (1, 1)
    failing = script.replace(XADD, FAULT + XADD)
    expected = [(True, 1, "a"), (True, 2, "b"), (True, 3, "c")]
    assert _after_a_failing_write(server, "order", failing) == expected
    early = failing.replace(HSET, "").replace(FAULT, HSET + FAULT)
    with pytest.raises(JournalBehind):  # b has a key that leads to no entry: for ever a repeat
        _after_a_failing_write(server, "early", early)
