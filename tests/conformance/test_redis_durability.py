"""What a Redis server must be, and what happens when it dies, forgets, is full or loses answers."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from redis.backoff import NoBackoff
from redis.retry import Retry

from replay.errors import (
    EpochLost,
    JournalBehind,
    JournalFormat,
    JournalFull,
    JournalNotDurable,
    JournalUnavailable,
    PartitionUnknown,
    ServerFull,
)
from replay.journal import redisscripts, redisserver
from replay.journal.base import Appended, NewRow, Verdict
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

pytestmark = pytest.mark.skipif(
    redis_server.find_binary() is None, reason=str(redis_server.NO_SERVER)
)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Any]:
    with redis_server.running(tmp_path / "redis") as server:
        yield server


@pytest.fixture
def client(server: Any) -> Iterator[Any]:
    with closing(server.client()) as client:
        yield client


def batch(names: str) -> list[NewRow]:
    return [
        NewRow(n.encode().ljust(16, b"."), n, "s", Verdict.ACCEPTED, n.encode(), 1.0)
        for n in names.split()
    ]


def offsets(answer: Appended) -> list[tuple[bool, int]]:
    return [(o.new, o.row.offset) for o in answer.outcomes]


def refused(url: str, **options: Any) -> JournalNotDurable:
    with pytest.raises(JournalNotDurable) as refusal:
        RedisJournal(url, **options)
    assert refusal.value.definite
    return refusal.value


# -- what a server must be -------------------------------------------------------------------------

UNFIT = [
    ("appendonly", "no", "yes"),
    ("appendfsync", "everysec", "always"),
    ("appendfsync", "no", "always"),
    ("no-appendfsync-on-rewrite", "yes", "no"),
    ("maxmemory-policy", "allkeys-lru", "noeviction"),
    ("maxmemory-policy", "volatile-ttl", "noeviction"),
]


def test_a_server_that_forgets_is_refused(server: Any, client: Any) -> None:
    for setting, unfit, needed in UNFIT:
        client.config_set(setting, unfit)
        for durability in ("checked", "assumed"):  # what can be read is never assumed
            refusal = refused(server.url, durability=durability)
            assert refusal.args[:3] == (setting, unfit, needed)
            assert setting in str(refusal)
        client.config_set(setting, needed)
    RedisJournal(server.url).close()


@pytest.mark.parametrize("denied", ["-config", "-config|get"])
def test_settings_that_cannot_be_read_are_assumed_only_when_asked(
    server: Any, client: Any, denied: str
) -> None:
    client.execute_command("ACL", "SETUSER", "svc", "on", ">pw", "~*", "+@all", denied)
    url = server.url.replace("//", "//svc:pw@")
    assert refused(url).args[:2] == ("appendonly", "unreadable")
    RedisJournal(url, durability="assumed").close()
    client.config_set("maxmemory-policy", "allkeys-lru")  # INFO tells that, too
    assert refused(url, durability="assumed").setting == "maxmemory-policy"


def test_a_setting_changed_later_holds_new_rows(server: Any, client: Any) -> None:
    now = [0.0]
    with closing(RedisJournal(server.url, monotonic_s=lambda: now[0])) as journal:
        p = journal.register("m", "r", "x", 1.0).id
        journal.append(p, 0, batch("a"))
        client.config_set("appendfsync", "everysec")
        assert offsets(journal.append(p, 1, batch("b"))) == [(True, 2)]  # looks once a second
        now[0] = 1.0
        with pytest.raises(JournalNotDurable) as refusal:
            journal.append(p, 2, batch("b c"))
        assert refusal.value.definite
        assert offsets(journal.append(p, 2, batch("b a"))) == [(False, 2), (False, 1)]
        client.config_set("appendfsync", "always")
        now[0] = 2.0
        assert offsets(journal.append(p, 2, batch("c"))) == [(True, 3)]


def test_a_server_that_may_be_taken_over_from_is_refused(
    tmp_path: Path, server: Any, client: Any
) -> None:
    with redis_server.running(tmp_path / "b", replicaof=f"127.0.0.1 {server.port}") as replica:
        redis_server.wait_for(lambda: client.info("replication")["connected_slaves"])
        assert refused(server.url).args[:2] == ("connected replicas", "1")
        RedisJournal(server.url, accept_loss=True).close()
        assert refused(replica.url, accept_loss=True).args[:2] == ("role", "slave")
    cluster = {"cluster_enabled": "yes", "cluster_port": str(redis_server.free_port())}
    with redis_server.running(tmp_path / "c", **cluster) as node:
        assert refused(node.url).args[:2] == ("mode", "cluster")
    with pytest.raises(JournalNotDurable):
        redisserver._check_topology({"redis_mode": "sentinel", "role": "master"}, True)


def test_a_newer_layout_and_wrong_arguments_are_refused(server: Any, client: Any) -> None:
    client.set("{online}:format", 2)
    with pytest.raises(JournalFormat) as refusal:
        RedisJournal(server.url)
    assert refusal.value.found == 2
    for options in ({"prefix": ""}, {"prefix": "a}b"}, {"durability": "hoped"}):
        with pytest.raises(ValueError):
            RedisJournal(server.url, **options)  # type: ignore[arg-type]


# -- a server that dies, forgets or is replaced ----------------------------------------------------


def test_what_was_acknowledged_survives_a_kill(server: Any) -> None:
    with closing(RedisJournal(server.url)) as journal:
        p = journal.register("m", "r", "x", 1.0).id
        end, rows = 0, []
        for i in range(20):
            answer = journal.append(p, end, batch(f"a{i} b{i}"))
            rows += [o.row for o in answer.outcomes]
            end = answer.end
        server.kill()
        with pytest.raises(JournalUnavailable) as refusal:
            journal.append(p, end, batch("c"))
        assert not refusal.value.definite
        server.start()
        assert list(journal.read(p, 1, 99)) == rows
        assert offsets(journal.append(p, end, batch("a0 c"))) == [(False, 1), (True, 41)]


def test_a_kill_takes_what_is_in_no_file(tmp_path: Path) -> None:
    """The negative control: CONFIG can't be read, the operator's assumption is wrong."""
    rename = {"rename_command": 'CONFIG ""', "appendonly": "no"}
    with (
        redis_server.running(tmp_path / "redis", **rename) as server,
        closing(RedisJournal(server.url, durability="assumed")) as journal,
    ):
        p = journal.register("m", "r", "x", 1.0).id
        journal.append(p, 0, batch("a b"))
        server.kill()
        server.start()
        assert journal.read(p, 1, 9) == ()
        with pytest.raises(JournalBehind):
            journal.append(p, 2, batch("c"))


def test_a_server_restarted_empty_is_noticed(server: Any) -> None:
    with closing(RedisJournal(server.url)) as journal:
        p, q = (journal.register("m", "r", "x", 1.0).id for _ in range(2))
        journal.begin_epoch("m", "x", 0)
        journal.append(p, 0, batch("a b"))
        server.empty()
        with pytest.raises(JournalBehind) as behind:
            journal.append(p, 2, batch("c"))
        assert behind.value.args == (p, 0, 2)
        assert behind.value.definite
        fresh = [journal.register("m", "r", "x", 1.0).id for _ in range(2)]
        journal.append(fresh[0], 0, batch("d e f"))
        assert not {p, q} & set(fresh)  # or their old clocks would call new rows repeats
        with pytest.raises(JournalBehind):
            journal.append(p, 2, batch("c"))  # also when others have written since
        with pytest.raises(PartitionUnknown):
            journal.append(q, 0, batch("c"))
        with pytest.raises(EpochLost):
            journal.move_head("m", "x", 1, "snapshot")
        with pytest.raises(EpochLost):
            journal.begin_epoch("m", "x", 1)


def test_numbers_without_random_bits_are_given_again(
    server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The negative control of the last test: the old writer writes into the new partition."""
    script = redisscripts.REGISTER
    assert script.count("+ tonumber(ARGV[5])") == 1
    monkeypatch.setattr(redisscripts, "REGISTER", script.replace("+ tonumber(ARGV[5])", ""))
    with closing(RedisJournal(server.url)) as journal:
        p = journal.register("m", "r", "x", 1.0).id
        journal.append(p, 0, batch("a b"))
        server.empty()
        q = journal.register("m", "other", "x", 1.0).id
        journal.append(q, 0, batch("d e f"))
        assert q == p
        assert journal.append(p, 2, batch("c")).end == 4


def test_a_deleted_stream_is_noticed_and_a_trimmed_one_keeps_its_end(
    server: Any, client: Any
) -> None:
    with closing(RedisJournal(server.url)) as journal:
        p, q = (journal.register("m", "r", "x", 1.0).id for _ in range(2))
        journal.append(p, 0, batch("a b"))
        client.xtrim(f"{{online}}:rows:{p}", maxlen=0, approximate=False)
        assert journal.partition(p).end == 2  # type: ignore[union-attr]
        assert offsets(journal.append(p, 2, batch("c"))) == [(True, 3)]
        client.delete(f"{{online}}:rows:{p}")
        for partition, known, names in ((p, 3, "d"), (q, 0, "a")):  # q: a key without its row
            with pytest.raises(JournalBehind) as behind:
                journal.append(partition, known, batch(names))
            assert behind.value.partition == p
        assert journal.find("m", batch("a")[0].key) is None


# -- lost answers ----------------------------------------------------------------------------------


def lose_an_answer(server: Any) -> tuple[int, list[tuple[bool, int]]]:
    """How often a batch was sent whose answers were lost, and what its sender learns in the end."""
    with (
        closing(redis_server.Proxy(server.port)) as proxy,
        closing(RedisJournal(f"redis://127.0.0.1:{proxy.port}/0")) as journal,
    ):
        p = journal.register("m", "r", "x", 1.0).id
        journal.append(p, 0, batch("a"))
        proxy.losing, before = True, proxy.scripts
        with pytest.raises(JournalUnavailable) as refusal:
            journal.append(p, 1, batch("b c"))
        assert not refusal.value.definite
        sent = proxy.scripts - before
        proxy.losing = False
        assert [r.event_id for r in journal.read(p, 1, 9)] == ["a", "b", "c"]
        return sent, offsets(journal.append(p, 1, batch("b c d")))


def test_a_writer_knows_its_rows_after_a_lost_answer(server: Any) -> None:
    assert lose_an_answer(server) == (1, [(True, 2), (True, 3), (True, 4)])


def test_a_client_that_sends_again_by_itself_would_be_seen(
    server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redisserver, "Retry", lambda *_: Retry(NoBackoff(), 2))
    assert lose_an_answer(server)[0] == 3


def test_no_answer_in_time_is_indefinite(server: Any, client: Any) -> None:
    with closing(RedisJournal(server.url, timeout_s=0.05)) as journal:
        p = journal.register("m", "r", "x", 1.0).id
        client.client_pause(200, all=False)  # writes wait
        with pytest.raises(JournalUnavailable) as refusal:
            journal.append(p, 0, batch("a"))
        assert not refusal.value.definite
        client.client_unpause()
        assert offsets(journal.append(p, 0, batch("a"))) == [(True, 1)]
    with pytest.raises(JournalUnavailable):
        journal.append(p, 1, batch("a"))  # closed
    with pytest.raises(JournalUnavailable):
        RedisJournal(f"redis://127.0.0.1:{redis_server.free_port()}/0")


# -- a server that is full -------------------------------------------------------------------------


def refuses_new_rows_only(journal: RedisJournal, p: int) -> str:
    """A definite refusal of new rows; what stands already is answered."""
    with pytest.raises(JournalFull) as refusal:
        journal.append(p, 2, batch("b c"))
    assert isinstance(refusal.value, ServerFull)
    assert refusal.value.definite
    assert offsets(journal.append(p, 1, batch("a b"))) == [(False, 1), (True, 2)]
    assert [r.event_id for r in journal.read(p, 1, 9)] == ["a", "b"]
    return refusal.value.reason


def test_memory_above_the_bound_holds_new_rows_only(server: Any, client: Any) -> None:
    now = [0.0]
    make = partial(RedisJournal, server.url, monotonic_s=lambda: now[0])
    with closing(make(memory_mb_max=1000)) as journal, closing(make()) as other:
        p = journal.register("m", "r", "x", 1.0).id
        journal.append(p, 0, batch("a b"))
        with closing(make(memory_mb_max=0.1)) as small:
            assert "rows may use 0 MB" in refuses_new_rows_only(small, p)
            assert small.write_control("m", "rollback", "k", b"")[1]  # there is room for these
        client.config_set("maxmemory", int(client.info("memory")["used_memory"] * 1.05))
        now[0] = 1.0
        refuses_new_rows_only(other, p)  # above 90 % of the server's bound
        client.config_set("maxmemory", "300mb")
        now[0] = 2.0
        assert offsets(other.append(p, 2, batch("c"))) == [(True, 3)]


def test_a_server_out_of_memory_refuses_for_certain(server: Any, client: Any) -> None:
    with closing(RedisJournal(server.url, memory_mb_max=1000)) as journal:
        p = journal.register("m", "r", "x", 1.0).id
        journal.append(p, 0, batch("a b"))
        client.config_set("maxmemory", "500kb")
        assert "OOM" in refuses_new_rows_only(journal, p)
        with pytest.raises(JournalUnavailable):  # only an append says that it is full
            journal.write_control("m", "rollback", "k", b"")
        client.config_set("maxmemory", 0)
        assert offsets(journal.append(p, 2, batch("c"))) == [(True, 3)]


def test_a_server_that_cannot_write_its_files_refuses_for_certain(server: Any, client: Any) -> None:
    with closing(RedisJournal(server.url)) as journal:
        p = journal.register("m", "r", "x", 1.0).id
        journal.append(p, 0, batch("a b"))
        (server.folder / "dump.rdb" / "in the way").mkdir(parents=True)
        client.config_set("save", "3600 1")
        client.bgsave()
        redis_server.wait_for(lambda: client.info("persistence")["rdb_last_bgsave_status"] == "err")
        assert "MISCONF" in refuses_new_rows_only(journal, p)


def test_a_server_that_became_a_replica_says_nothing_for_certain(server: Any, client: Any) -> None:
    with closing(RedisJournal(server.url)) as journal:
        p = journal.register("m", "r", "x", 1.0).id
        client.replicaof("127.0.0.1", str(redis_server.free_port()))
        with pytest.raises(JournalUnavailable) as refusal:
            journal.append(p, 0, batch("a"))
        assert not refusal.value.definite
        client.replicaof("NO", "ONE")
        assert offsets(journal.append(p, 0, batch("a"))) == [(True, 1)]
