"""What a Redis server must be, and what happens when it dies, forgets, is full or loses answers."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import redis_server
from msgspec.structs import replace
from redis.backoff import NoBackoff
from redis.retry import Retry

from replay.errors import (
    EpochBehind,
    EpochLost,
    JournalBehind,
    JournalFormat,
    JournalFull,
    JournalNotDurable,
    JournalUnavailable,
    PartitionUnknown,
    ServerFull,
)
from replay.journal.base import Appended, Half, NewRow, Verdict
from replay.journal.batch import Bounds
from replay.journal.redis import scripts as redisscripts
from replay.journal.redis import server as redisserver
from replay.journal.redis.journal import FORMAT, RedisJournal

pytestmark = pytest.mark.skipif(
    redis_server.find_binary() is None, reason=str(redis_server.NO_SERVER)
)

SOON_S = 100.0  # a call that waits for ever is far beyond; what takes long is a machine at work


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
    return [(o.new, o.row.offset if o.row else 0) for o in answer.outcomes]


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
    client.set("{online}:format", FORMAT + 1)
    with pytest.raises(JournalFormat) as refusal:
        RedisJournal(server.url)
    assert refusal.value.found == FORMAT + 1
    client.set("{online}:format", FORMAT - 1)
    RedisJournal(server.url).close()
    assert int(client.get("{online}:format")) == FORMAT, "older versions refuse it from now on"
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
        with pytest.raises(EpochBehind):  # nor from a writer that has only values of before
            journal.append(fresh[1], 0, batch("g"), 1)
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


# -- an outage -------------------------------------------------------------------------------------


def halves(names: str, side: Half) -> list[NewRow]:
    return [replace(row, half=side, payload=side.encode()) for row in batch(names)]


def joined(names: str) -> list[NewRow]:
    """Rows over the predictions of these names."""
    return [replace(row, over=Half.PREDICTION.encode()) for row in batch(names)]


def test_an_outage_is_indefinite_at_once_and_the_same_batch_goes_on_once(server: Any) -> None:
    with closing(RedisJournal(server.url, timeout_s=30.0)) as journal:
        p = journal.register("m", "r", "x", 1.0).id
        journal.append(p, 0, [*batch("a"), *halves("h", Half.PREDICTION)])
        journal.begin_epoch("m", "x", 0)
        rows = [*batch("b"), *joined("h"), *batch("c")]
        server.kill()
        for call in (
            lambda: journal.append(p, 1, rows),
            lambda: journal.append(p, 1, rows),
            lambda: journal.claim(p, 1),
            lambda: journal.trim("m", "x", 1, {p: 1}, 9.0, 9),
            lambda: journal.expire("m", 9.0, 9),
            lambda: journal.usage("m"),
            lambda: journal.write_control("m", "freeze", "k", b"", ("x", 1)),
            lambda: journal.read(p, 1, 9),
        ):
            start_s = time.monotonic()
            with pytest.raises(JournalUnavailable) as refusal:
                call()
            assert not refusal.value.definite
            assert time.monotonic() - start_s < SOON_S, "bounded by timeout_s, twice at most"
        server.start()
        answer = journal.append(p, 1, rows)
        assert offsets(answer) == [(True, 2), (True, 3), (True, 4)]
        assert journal.append(p, 1, rows) == answer
        assert [r.event_id for r in journal.read(p, 1, 9)] == ["a", "b", "h", "c"]
        assert journal.usage("m").halves == 0


def test_a_server_that_hangs_is_left_after_the_timeout(server: Any) -> None:
    patient = partial(RedisJournal, server.url, timeout_s=60.0)
    impatient = partial(RedisJournal, server.url, timeout_s=1.0)
    with closing(patient()) as journal, closing(impatient()) as hasty:
        p = journal.register("m", "r", "x", 1.0).id
        journal.append(p, 0, batch("a"))
        server.process.send_signal(signal.SIGSTOP)
        try:
            start_s = time.monotonic()
            with pytest.raises(JournalUnavailable) as refusal:
                hasty.append(p, 1, batch("b c"))
            assert not refusal.value.definite
            assert time.monotonic() - start_s < SOON_S
        finally:
            server.process.send_signal(signal.SIGCONT)
        assert offsets(journal.append(p, 1, batch("b c"))) == [(True, 2), (True, 3)]
        assert [r.event_id for r in journal.read(p, 1, 9)] == ["a", "b", "c"]


def test_a_batch_for_a_server_that_came_back_empty_is_refused(server: Any) -> None:
    """Never a silent success: neither for who had an answer nor for who had none."""
    with closing(RedisJournal(server.url)) as journal:
        p, q = (journal.register("m", "r", "x", 1.0).id for _ in range(2))
        journal.begin_epoch("m", "x", 0)
        journal.append(p, 0, [*batch("a"), *halves("h", Half.PREDICTION)])
        server.empty()
        for partition, known, error in ((p, 1, JournalBehind), (q, 0, PartitionUnknown)):
            for rows in (batch("b"), batch("a"), halves("h", Half.LABEL)):
                with pytest.raises(error) as refusal:
                    journal.append(partition, known, rows)
                assert refusal.value.definite
        for call in (
            lambda: journal.trim("m", "x", 1, {p: 1}, 9.0, 9),
            lambda: journal.write_control("m", "failed", "k", b"", ("x", 1)),
        ):
            with pytest.raises(EpochLost):
                call()
        with pytest.raises(PartitionUnknown):
            journal.claim(p, 1)
        usage = journal.usage("m")
        assert (usage.rows, usage.halves, journal.controls("m", 0)) == (0, 0, ())


# -- retention -------------------------------------------------------------------------------------


def test_trimming_survives_a_kill_and_frees_memory(server: Any) -> None:
    with closing(RedisJournal(server.url)) as journal:
        p = journal.register("m", "r", "x", 1.0).id
        journal.begin_epoch("m", "x", 0)
        names = [f"k{i}" for i in range(1000)]
        rows = [replace(row, payload=bytes(2000)) for row in batch(" ".join(names))]
        journal.append(p, 0, rows)
        before = journal.usage("m")
        assert journal.trim("m", "x", 1, {p: 990}, 9.0, 1000) == 990
        server.kill()
        server.start()
        after = journal.usage("m")
        assert before.size - after.size > 990 * 2000
        assert (before.rows, after.rows, after.size_max) == (1000, 10, None)
        state = journal.partition(p)
        assert state is not None
        assert (state.end, state.trimmed) == (1000, 990)
        assert offsets(journal.append(p, 1000, batch("k0 k999"))) == [(True, 1001), (False, 1000)]


def test_a_server_without_memory_still_trims(server: Any, client: Any) -> None:
    with closing(RedisJournal(server.url, memory_mb_max=1000)) as journal:
        p = journal.register("m", "r", "x", 1.0).id
        journal.begin_epoch("m", "x", 0)
        journal.append(p, 0, [*batch("a b"), *halves("h", Half.LABEL)])
        client.config_set("maxmemory", "500kb")
        with pytest.raises(ServerFull):
            journal.append(p, 2, halves("i", Half.LABEL))
        assert journal.trim("m", "x", 1, {p: 1}, 9.0, 9) == 1
        assert journal.expire("m", 9.0, 9) == 1
        assert journal.usage("m").size_max == 1000 << 20
        client.config_set("maxmemory", "300mb")
    with closing(RedisJournal(server.url)) as journal:
        assert journal.usage("m").size_max == int(300 * 0.9 * (1 << 20))


def test_halves_above_their_bound_are_not_kept(server: Any) -> None:
    with closing(RedisJournal(server.url, bounds=Bounds(halves=2))) as journal:
        p, q = (journal.register(model, "r", "x", 1.0).id for model in ("m", "n"))
        labels = halves("a b c a", Half.LABEL)
        answer = journal.append(p, 0, labels)
        assert [o.since for o in answer.outcomes] == [1.0, 1.0, None, 1.0]
        assert journal.append(p, 0, labels) == answer
        assert journal.append(q, 0, labels[2:3]).outcomes[0].since == 1.0, "each model for itself"
        row = replace(batch("a")[0], over=Half.LABEL.encode())
        both = [*halves("c", Half.PREDICTION), row, *halves("c", Half.LABEL)]
        answer = journal.append(p, 0, both)
        assert [o.new for o in answer.outcomes] == [False, True, False]
        assert [o.since for o in answer.outcomes] == [None, None, 1.0], "a join makes room"
        assert journal.usage("m").halves == 2
        assert journal.expire("m", 9.0, 9) == 2


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
    patient = partial(RedisJournal, server.url, timeout_s=60.0)
    impatient = partial(RedisJournal, server.url, timeout_s=1.0)
    with closing(patient()) as journal, closing(impatient()) as hasty:
        p = journal.register("m", "r", "x", 1.0).id
        client.client_pause(600_000, all=False)  # writes wait
        with pytest.raises(JournalUnavailable) as refusal:
            hasty.append(p, 0, batch("a"))
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
