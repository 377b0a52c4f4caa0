"""Ids that are gone from a Redis journal, while its rows are there, lead to them again."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from online.rows.prediction_ids import event_key
from online.service.state.check_state import Models
from online.settings import config
from replay import codec
from replay.errors import JournalBehind, JournalUnavailable
from replay.example import Example
from replay.journal.base import NewRow, Verdict
from replay.journal.redis import scripts
from replay.journal.redis.journal import RedisJournal

_ROWS = 600  # more than two pages


def event(n: int) -> NewRow:
    payload = codec.encode(Example({}, True))
    key = event_key("event", "s", str(n))
    return NewRow(key, str(n), "s", Verdict.ACCEPTED, payload, 9.0)


def filled(journal: RedisJournal, model: str = "m") -> list[int]:
    """Two partitions that share the events, and another model's."""
    made = [journal.register(model, "r", "spec", 0.0).id for _ in range(2)]
    for start in range(0, _ROWS, 100):
        rows = [event(n) for n in range(start, start + 100)]
        journal.append(made[start // 100 % 2], 0, rows)
    other = journal.register("other", "r", "spec", 0.0).id
    journal.append(other, 0, [event(0)])
    return made


def repeats(journal: RedisJournal, model: str = "m") -> int:
    """How many of the events another writer is told to be repeats, if it gets them again."""
    p, rows = journal.register(model, "again", "spec", 0.0).id, [event(n) for n in range(_ROWS)]
    pages = [rows[start : start + 100] for start in range(0, _ROWS, 100)]
    return sum(not one.new for page in pages for one in journal.append(p, 0, page).outcomes)


def test_a_repeat_is_known_again_after_the_ids_were_deleted(
    tmp_path: Path, redis_node: Any
) -> None:
    with closing(RedisJournal(redis_node.url, prefix=tmp_path.name)) as journal:
        filled(journal)
        key = f"{{{tmp_path.name}}}:ids:m"
        with closing(redis_node.client()) as client:
            before = client.hgetall(key)
            assert journal.restore_ids("m") == 0
            client.delete(key)
            damaged = journal.examine(lambda done, total: None).damage
            assert "leads elsewhere, or nowhere" in damaged[0]
            assert journal.restore_ids("m") == _ROWS
            assert client.hgetall(key) == before
            client.hdel(key, *[field for field in before if field][:7])
            assert journal.restore_ids("m") == 7
            assert client.hgetall(key) == before
        assert journal.examine(lambda done, total: None).damage == ()
        assert repeats(journal) == _ROWS
        assert journal.restore_ids("m") == journal.restore_ids("nobody") == 0


def test_a_running_service_knows_repeats_after_the_ids_were_deleted(
    tmp_path: Path, redis_node: Any
) -> None:
    """The next batch finds that they are gone, and has them taken from the rows first."""
    with closing(RedisJournal(redis_node.url, prefix=tmp_path.name)) as journal:
        filled(journal)
        with closing(redis_node.client()) as client:
            client.delete(f"{{{tmp_path.name}}}:ids:m")
        assert repeats(journal) == _ROWS
        new = journal.register("new", "r", "spec", 0.0).id
        assert journal.append(new, 0, [event(0)]).outcomes[0].new, "another model has none yet"


@pytest.mark.parametrize("trimmed", [0, 200])
def test_a_running_service_knows_repeats_after_an_older_index_was_put_back(
    tmp_path: Path, redis_node: Any, trimmed: int
) -> None:
    """It lacks the newest ids, and has those of rows that were removed since."""
    with (
        closing(RedisJournal(redis_node.url, prefix=tmp_path.name)) as journal,
        closing(redis_node.client()) as client,
    ):
        key = f"{{{tmp_path.name}}}:ids:m"
        p = journal.register("m", "r", "spec", 0.0).id
        journal.begin_epoch("m", "spec", 0)
        for start in range(0, _ROWS, 100):
            journal.append(p, start, [event(n) for n in range(start, start + 100)])
            if start == _ROWS - 300:
                older = client.dump(key)
        while client.xlen(f"{{{tmp_path.name}}}:rows:{p}") > _ROWS - trimmed:
            journal.trim("m", "spec", 1, {p: trimmed}, 1e9, 100)
        whole = client.hgetall(key)
        client.restore(key, 0, older, replace=True)
        assert journal.find("m", event(_ROWS - 1).key) is not None
        assert client.hgetall(key) == whole
        client.restore(key, 0, older, replace=True)
        assert repeats(journal) == _ROWS - trimmed
        assert journal.usage("m").rows == _ROWS
        assert journal.examine(lambda done, total: None).damage == ()


def test_rows_of_a_writer_of_an_older_release_are_found_without_reading_all(
    tmp_path: Path, redis_node: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It writes their ids, and does not say how far the index reaches."""
    with closing(RedisJournal(redis_node.url, prefix=tmp_path.name)) as journal:
        p, _ = filled(journal)
        end = _ROWS // 2
        with monkeypatch.context() as older:
            said = scripts.APPEND.replace(", '', seq)", ")")
            assert said != scripts.APPEND
            older.setattr(scripts, "APPEND", said)
            journal.append(p, end, [event(_ROWS + n) for n in range(3)])
        monkeypatch.setattr(scripts, "RESTORE_IDS", "error('all rows are read')")
        monkeypatch.setattr(scripts, "DROP_IDS", "error('all ids are read')")
        found = journal.append(p, end + 3, [event(_ROWS + n) for n in range(4)])
        assert [one.new for one in found.outcomes] == [False, False, False, True]


@pytest.mark.parametrize("older", [True, False])
def test_the_first_decision_stands_after_its_key_was_removed(
    tmp_path: Path, redis_node: Any, older: bool
) -> None:
    with (
        closing(RedisJournal(redis_node.url, prefix=tmp_path.name)) as journal,
        closing(redis_node.client()) as client,
    ):
        key = f"{{{tmp_path.name}}}:decided:m"
        journal.write_control("m", "ban", "first", b"1")
        kept = client.dump(key)
        journal.write_control("m", "decide", "decide:e", b"release")
        client.delete(key)
        if older:
            client.restore(key, 0, kept)
        found, won = journal.write_control("m", "decide", "decide:e", b"discard")
        assert (found.payload, won) == (b"release", False)
        assert journal.write_control("m", "ban", "next", b"2")[1]
        assert [row.key for row in journal.controls("m", 0)] == ["first", "decide:e", "next"]
        assert journal.examine(lambda done, total: None).damage == ()


_MUTANTS = [
    (
        "APPEND", "if lacks_ids(of[1]) then", "if false then",
        test_a_running_service_knows_repeats_after_the_ids_were_deleted,
    ),
    (
        "APPEND", "if lacks_ids(of[1]) then",
        "if redis.call('HLEN', ids) == 0 and last(P .. ':order:' .. of[1]) > 0 then",
        partial(test_a_running_service_knows_repeats_after_an_older_index_was_put_back, trimmed=0),
    ),
    (
        "DROP_IDS", "if not row or moved then", "if false then",
        partial(
            test_a_running_service_knows_repeats_after_an_older_index_was_put_back, trimmed=200
        ),
    ),
    (
        "WRITE_CONTROL", "if not seq and tonumber(", "if not seq and -1 > tonumber(",
        partial(test_the_first_decision_stands_after_its_key_was_removed, older=False),
    ),
    (
        "WRITE_CONTROL", "tonumber(redis.call('HGET', decided, '') or '0') < last(controls)",
        "redis.call('HLEN', decided) == 0",
        partial(test_the_first_decision_stands_after_its_key_was_removed, older=True),
    ),
]  # fmt: skip


@pytest.mark.parametrize(("script", "rule", "without", "test"), _MUTANTS)
def test_a_missing_rule_is_noticed(
    script: str,
    rule: str,
    without: str,
    test: Callable[..., None],
    tmp_path: Path,
    redis_node: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = getattr(scripts, script)
    assert whole.count(rule) == 1
    monkeypatch.setattr(scripts, script, whole.replace(rule, without))
    with pytest.raises((AssertionError, JournalUnavailable, JournalBehind)) as failure:
        test(tmp_path, redis_node)
    assert "compiling" not in str(failure.value)


def test_an_index_from_before_it_told_how_far_it_reaches_is_taken_over(
    tmp_path: Path, redis_node: Any
) -> None:
    with closing(RedisJournal(redis_node.url, prefix=tmp_path.name)) as journal:
        filled(journal)
        key = f"{{{tmp_path.name}}}:ids:m"
        with closing(redis_node.client()) as client:
            before = client.hgetall(key)
            client.hdel(key, "")
            assert journal.restore_ids("m") == 0
            assert client.hgetall(key) == before


def test_a_row_that_was_changed_gives_no_id(tmp_path: Path, redis_node: Any) -> None:
    with closing(RedisJournal(redis_node.url, prefix=tmp_path.name)) as journal:
        first, _ = filled(journal)
        with closing(redis_node.client()) as client:
            rows, ids = (f"{{{tmp_path.name}}}:{name}" for name in (f"rows:{first}", "ids:m"))
            (last, fields), *_ = client.xrevrange(rows, count=1)
            client.xdel(rows, last)
            client.xadd(rows, {**fields, b"key": b"another"}, id=b"%d-0" % (_ROWS // 2 + 1))
            client.delete(ids)
            assert journal.restore_ids("m") == _ROWS - 1
            assert not client.hexists(ids, b"another")


def test_a_start_finds_them_and_says_so(tmp_path: Path, redis_node: Any) -> None:
    given = {"state_dir": str(tmp_path / "state"), "journal": redis_node.url,
             "journal_prefix": tmp_path.name, "journal_accept_loss": True}  # fmt: skip
    settings, said = config.load(None, given, {}), list[str]()
    settings.state_dir.mkdir()
    name = settings.models[0].name
    with closing(RedisJournal(redis_node.url, prefix=tmp_path.name, accept_loss=True)) as journal:
        filled(journal, name)
        with closing(redis_node.client()) as client:
            client.delete(f"{{{tmp_path.name}}}:ids:{name}")
        Models(settings, said.append).check(fresh=True, relearn=False)
        assert f"model {name}: {_ROWS} ids were gone from the journal" in " ".join(said)
        assert repeats(journal, name) == _ROWS
    said.clear()
    Models(settings, said.append).check(fresh=True, relearn=False)
    assert "ids were gone" not in " ".join(said)
