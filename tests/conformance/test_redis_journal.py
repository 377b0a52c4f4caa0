"""RedisJournal passes the journal's suite on a real server; with one rule less it does not."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import redis_server
from journal_checks import check_journal, yield_checks
from msgspec.structs import replace

from replay.errors import JournalBehind, JournalUnavailable
from replay.journal.base import Half, Journal, NewRow, Verdict
from replay.journal.redis import scripts as redisscripts
from replay.journal.redis.journal import RedisJournal


@pytest.fixture
def make(redis_node: Any) -> Callable[[Path], Journal]:
    return lambda path: RedisJournal(redis_node.url, prefix=path.parent.name)


@pytest.mark.parametrize("name", [name for name, _ in yield_checks(lambda _: None)])  # type: ignore[arg-type, return-value]
def test_redis_journal(make: Callable[[Path], Journal], name: str) -> None:
    dict(yield_checks(make))[name]()


def test_a_cluster_finds_all_keys_in_one_slot(tmp_path: Path, redis_node: Any) -> None:
    settings = {"cluster_enabled": "yes", "cluster_port": str(redis_server.free_port())}
    with redis_server.running(tmp_path, **settings) as node, closing(node.client()) as client:
        client.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
        redis_server.wait_for(lambda: client.cluster("INFO")["cluster_state"] == "ok")
        check_journal(
            lambda path: RedisJournal(node.url, prefix=path.parent.name, accept_loss=True)
        )


MUTANTS = [
    ("WRITE_LINE", "~= newest + 1", "< newest", "any line is the next"),
    ("WRITE_CONTROL", "~= newest + 1", "< newest", "a control row with any line"),
    ("WRITE_CONTROL", "    write_line(ARGV[7], ARGV[8])\n", "", "a control row without its line"),
    ("TRIM_LINES", "int(tonumber(ARGV[1]) + 1)", "9", "all lines are trimmed"),
    ("TRIM_LINES", "if tonumber(ARGV[1]) > newest then", "if false then", "a future anchor"),
    ("APPEND", "if stop < known then", "if false then", "nobody asks what is known"),
    ("APPEND", "if of[2] then", "if false then", "no seal"),
    ("APPEND", "  stop = stop + 1", "  stop = stop + 1 + (stop > 1 and 1 or 0)", "holes"),
    ("APPEND", "  stop = stop + 1", "  stop = last(rows) + new.n", "offsets before dedupe"),
    ("APPEND", "tonumber(offset) > known", "false", "own row is a duplicate"),
    ("APPEND", "tonumber(offset) > known", "true", "old row is an own row"),
    ("APPEND", "  if first[key] then", "  if false then", "key twice in a batch"),
    ("APPEND", "P .. ':ids:' .. of[1]", "P .. ':ids'", "keys unique in the whole store"),
    ("APPEND", "P .. ':head:' .. of[1], 'newest'", "P .. ':head:', 'newest'", "no epoch"),
    ("APPEND", "redis.call('INCR', P .. ':seq')", "redis.call('INCR', P .. ':seq') % 3", "seq"),
    ("APPEND", "P .. ':halves:' .. of[1]", "P .. ':halves'", "halves unique in the whole store"),
    ("APPEND", "if had[1] == half and had[4] == payload then", "if false then",
     "a half is told of itself"),
    ("APPEND", "if had[1] == half and had[4] == payload then", "if had[1] == half then",
     "a half is told of none of its own side"),
    ("APPEND", "and over ~= had[4] then", "and false then", "over any half"),
    ("APPEND", "(half ~= '' or over ~= '')", "over ~= ''", "a half takes the place of any other"),
    ("APPEND", "    return {'gone'}\n", "", "over a half that has gone"),
    ("APPEND", "    if payload == '' then return {'half', ARGV[i + 6]} end\n", "",
     "what is removed twice"),
    ("APPEND", "kept[key] = payload ~= '' and {", "kept[key] = {", "an empty half is kept"),
    ("APPEND", "own = half == '' and where", "own = where", "a half is its row's writer"),
    ("APPEND", "if payload ~= '' then count = count + 1 end", "stop = stop + 1",
     "offset taken by a half that is kept"),
    ("APPEND", "    redis.call('HDEL', halves, key)", "", "half stays after its join"),
    ("APPEND", "redis.call('ZADD', waiting, half[5], key)", "", "half never expires"),
    ("APPEND", "    kept[key] = false\n", "", "half of a row kept in its batch"),
    ("APPEND", "absent ~= '' and (", "false and (", "a row beside one that is to be absent"),
    ("APPEND", "first[absent] or", "false or", "beside one of its batch"),
    ("APPEND", "' .. field(control[2], 'kind') .. '", " ", "after a control row of any kind"),
    ("APPEND", "if string.find(since,", "if false and string.find(since,", "whatever was decided"),
    ("SEAL", "'sealed', '1'", "'closed', '1'", "seal forgotten"),
    ("APPEND", "if tonumber(newest) < tonumber(ARGV[5]) then", "if false then", "lost epochs"),
    ("BEGIN_EPOCH", "if epoch ~= tonumber(ARGV[3]) then", "if false then", "epoch without compare"),
    ("BEGIN_EPOCH", "changes, ARGV[2])", "0, ARGV[2])", "lineages unordered"),
    ("BEGIN_EPOCH", "math.max(epoch, tonumber(found[2] or '0'))", "epoch", "newest is last"),
    ("PARTITIONS", "int(last(rows))", "'0'", "no end"),
    ("PARTITIONS", "int(trimmed(rows))", "'0'", "nobody knows what was trimmed"),
    ("MOVE_HEAD", "if epoch ~= ARGV[3] then", "if false then", "head without epoch"),
    ("WRITE_CONTROL", "if not seq then", "if true then", "any control row wins"),
    ("WRITE_CONTROL", "P .. ':controls:' .. ARGV[1]", "P .. ':controls'", "controls of all models"),
    ("WRITE_CONTROL", "if epoch ~= ARGV[6] then", "if false then", "fence ignored"),
    ("CLAIM", "int(tonumber(n) + 1)", "n", "claim not counted"),
    ("CLAIM", "return {'ok', n}", "return {'ok', after}", "claim counts itself"),
    ("CLAIM", "if redis.call('EXISTS', P .. ':partition:' .. ARGV[1]) == 0 then", "if false then",
     "claim in no partition"),
    ("TRIM", "if epoch ~= ARGV[3] then", "if false then", "trim without epoch"),
    ("TRIM", "if newest ~= ARGV[2] then", "if false then", "trim by an older lineage"),
    ("TRIM", "ARGV[i + 1] .. '-0'", "'+'", "trim past the floor"),
    ("TRIM", "if good and not is_old(row[2]) then break end", "", "trim ignores both clocks"),
    ("TRIM", "(at < before or at > ahead) and", "", "trim by the running time alone"),
    ("TRIM", " or at > ahead", "", "a wrong future stops the trim"),
    ("TRIM", " and tonumber(field(fields, 'ran') or '0') < ran", "", "trim by the wall clock"),
    ("RUN", "ms = ms + tonumber(ARGV[4])", "ms = tonumber(ARGV[4])", "running time not summed"),
    ("RUN", "if epoch ~= ARGV[3] then", "if false then", "running time without epoch"),
    ("RUN", "-1, -1)[1] == ARGV[2] then", "-1, -1)[1] then", "running time of any lineage"),
    ("TRIM", "int(left - removed)", "int(left)", "trim of more than asked for"),
    ("TRIM", "redis.call('HDEL', P .. ':ids:' .. model, key)", "",
     "trim leaves ids"),
    ("TRIM", "if upto then redis.call('XTRIM'", "if false then redis.call('XTRIM'",
     "trim removes ids only"),
    ("TRIM", "'MINID', int(upto + 1)", "'MINID', int(upto)", "trim leaves the last one"),
    ("TRIM", "for i = 0, 2 do", "for i = 1, 2 do", "claims stay"),
    ("TRIM", "for i = 0, 2 do", "for i = 0, 2, 2 do", "ends of claims stay"),
    ("TRIM", "for i = 0, 2 do", "for i = 0, 1 do", "claims of rows not learned stay"),
    ("TRIM", "'model') == model", "'model')", "trim of other models"),
    ("EXPIRE", "'(' .. ARGV[2]", "ARGV[2]", "a half as old as the bound expires"),
    ("EXPIRE", "0, int(most - removed))", "0, -1)", "more halves expire than asked for"),
    ("EXPIRE", "redis.call('HDEL', halves, key)", "", "expired halves stay"),
    ("EXPIRE", "if written(key) < ran then", "if true then", "halves by the wall clock alone"),
    ("EXPIRE", ", {'(' .. ARGV[4], '+inf'}", "", "halves of a wrong future stay"),
    ("EXPIRE", "P .. ':waiting:' .. ARGV[1]", "P .. ':waiting:m'", "halves of all models"),
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
    with pytest.raises((AssertionError, JournalUnavailable, JournalBehind)) as failure:
        check_journal(make)
    assert "compiling" not in str(failure.value)


def _row(name: str) -> NewRow:
    return NewRow(name.encode() * 16, name, "s", Verdict.ACCEPTED, name.encode(), 1.0)


XADD = "  redis.call('XADD', rows,"
HSET = "  redis.call('HSET', ids, new.key, number .. ':' .. int(stop), '', seq)\n"
FAULT = "  if redis.call('GET', P .. ':fault') == new.key then error('XADD has failed') end\n"


def _after_a_failing_write(
    redis_node: Any, prefix: str, script: str
) -> list[tuple[bool, int, str]]:
    """What the writer learns and what stands, when the entry of b failed at the first try."""
    rows = [_row("a"), _row("b"), _row("c")]
    with (
        closing(RedisJournal(redis_node.url, prefix=prefix)) as journal,
        closing(redis_node.client()) as client,
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
        rows_ = [(o.new, o.row.offset) for o in answer.outcomes if o.row]
        return [(new, offset, stored[offset - 1]) for new, offset in rows_]


def test_an_entry_comes_before_its_key(redis_node: Any) -> None:
    script = redisscripts.APPEND
    assert (script.count(XADD), script.count(HSET)) == (1, 1)
    failing = script.replace(XADD, FAULT + XADD)
    expected = [(True, 1, "a"), (True, 2, "b"), (True, 3, "c")]
    assert _after_a_failing_write(redis_node, "order", failing) == expected
    early = failing.replace(HSET, "").replace(FAULT, HSET + FAULT)
    with pytest.raises(JournalBehind):  # b has a key that leads to no entry: for ever a repeat
        _after_a_failing_write(redis_node, "early", early)


# Not HSET: it can't fail once a script has written, and an entry without its key is a row twice.
WRITES = re.compile(r"redis\.call\(('(?:XADD|HDEL|ZADD|ZREM|INCR|XTRIM)')")
COUNTED = """
local left = tonumber(redis.call('GET', KEYS[1] .. ':left') or '0')
local function write(...)
  left = left - 1
  if left == 0 then error('a write has failed') end
  return redis.call(...)
end
"""


def counted(script: str) -> str:
    """The script with a fault at the write whose number is in ``P:left``; what it wrote stays."""
    assert WRITES.search(script)
    return COUNTED + WRITES.sub(r"write(\1", script)


def half(name: str, side: Half) -> NewRow:
    return replace(_row(name), half=side, payload=side.encode(), event_id=side)


def ends_anywhere(redis_node: Any, prefix: str, script: str) -> list[int]:
    """At which write of a join a fault makes its repeat end otherwise than as one row."""
    wrong: list[int] = []
    over = Half.PREDICTION.encode()
    batch = [
        _row("a"), replace(_row("b"), over=over), replace(_row("c"), over=over),
        half("d", Half.LABEL),
    ]  # fmt: skip
    with closing(redis_node.client()) as client, pytest.MonkeyPatch.context() as patch:
        for n in range(1, 99):
            with closing(RedisJournal(redis_node.url, prefix=f"{prefix}{n}")) as journal:
                p = journal.register("m", "r", "x", 1.0).id
                journal.append(p, 0, [half("b", Half.PREDICTION), half("c", Half.PREDICTION)])
                client.set(f"{{{prefix}{n}}}:left", n)
                patch.setattr(redisscripts, "APPEND", counted(script))
                try:
                    journal.append(p, 0, batch)
                    return wrong
                except JournalUnavailable as error:
                    told = str(error)
                assert "a write has failed" in told
                patch.undo()
                try:
                    answer = journal.append(p, 0, batch)
                except JournalBehind:  # a key without its row
                    wrong.append(n)
                    continue
                events = [row.event_id for row in journal.read(p, 1, 9)]
                whole = [o.new for o in answer.outcomes] == [True, True, True, False]
                kept = journal.append(p, 0, batch[3:]).outcomes[0].since
                journal.expire("m", 9.0, 9)
                left = journal.usage("m").halves
                if (whole, events, kept, left) != (True, ["a", "b", "c"], 1.0, 0):
                    wrong.append(n)
    raise AssertionError("no append without a fault")


KEYS = "    redis.call('ZADD', waiting, half[5], key)\n"
HALVES = "    redis.call('HSET', halves, key, cmsgpack.pack(half))\n"
IDS = "  redis.call('HSET', ids, new.key, number .. ':' .. int(stop), '', seq)\n"
ROWS = "  redis.call('XADD', rows, int(stop) .. '-0', unpack(new.fields))\n"


_SCRIPT = redisscripts.APPEND
DROPS = _SCRIPT[
    _SCRIPT.index("for key, had in pairs(touched)") : _SCRIPT.index("return {'ok', int(st")
]
FRESH = "for _, new in ipairs(fresh) do\n"


def test_a_join_may_end_at_any_write(redis_node: Any) -> None:
    assert ends_anywhere(redis_node, "any", redisscripts.APPEND) == []


@pytest.mark.parametrize(("what", "moved", "behind"), [("keys", KEYS, HALVES), ("ids", ROWS, IDS)])
def test_a_join_in_another_order_is_noticed(
    redis_node: Any, what: str, moved: str, behind: str
) -> None:
    script = redisscripts.APPEND
    assert (script.count(moved), script.count(behind)) == (1, 1)
    changed = script.replace(moved, "").replace(behind, behind + moved)
    assert ends_anywhere(redis_node, what, changed) != []


def trims_anywhere(redis_node: Any, prefix: str, script: str) -> list[int]:
    """At which write of a trim a fault leaves an id that leads nowhere."""
    wrong: list[int] = []
    batch = [_row("a"), _row("b"), _row("c")]
    with closing(redis_node.client()) as client, pytest.MonkeyPatch.context() as patch:
        for n in range(1, 99):
            with closing(RedisJournal(redis_node.url, prefix=f"{prefix}{n}")) as journal:
                p, q = (journal.register("m", "r", "x", 1.0).id for _ in range(2))
                journal.begin_epoch("m", "x", 0)
                journal.append(p, 0, batch)
                client.set(f"{{{prefix}{n}}}:left", n)
                patch.setattr(redisscripts, "TRIM", counted(script))
                try:
                    assert journal.trim("m", "x", 1, {p: 2}, 9.0, 9) == 2
                    return wrong
                except JournalUnavailable as error:
                    told = str(error)
                assert "a write has failed" in told
                patch.undo()
                try:
                    journal.append(q, 0, batch)
                except JournalBehind:
                    wrong.append(n)
                journal.trim("m", "x", 1, {p: 2}, 9.0, 9)
                assert [row.event_id for row in journal.read(p, 3, 9)] == ["c"]
    raise AssertionError("no trim without a fault")


def test_a_trim_may_end_at_any_write(redis_node: Any) -> None:
    assert trims_anywhere(redis_node, "trim", redisscripts.TRIM) == []


def test_a_trim_of_rows_before_their_ids_is_noticed(redis_node: Any) -> None:
    script = redisscripts.TRIM
    ids = "          redis.call('HDEL', P .. ':ids:' .. model, key)\n"
    early = "      redis.call('XTRIM', rows, 'MINID', int(upto + 1) .. '-0')\n"
    assert script.count(ids) == 1
    assert trims_anywhere(redis_node, "rows", script.replace(ids, early + ids)) != []
