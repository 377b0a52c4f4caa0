"""Scores by key: both stores by the same checks, reads that share an exchange, and the answers."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import replica_world as worlds
import rescore_world as rescored

from benchmarks.fixtures.redis_server import Server, find_binary
from online.errors import ConfigError
from online.http.app import App, ModelExtras
from online.rescore.errors import RunRefused, StoreFailed
from online.rescore.published import Current, Run
from online.rescore.stores import (
    Part,
    Read,
    RedisReads,
    RedisScores,
    Scores,
    SqliteScores,
    open_store,
)
from online.serving.scores import Reader, threaded
from online.serving.serving import Serving
from online.settings.config import environment
from online.settings.limits import Limits

Open = Callable[[], Scores]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server | None]:
    binary = find_binary(environment())
    if binary is None:
        yield None
        return
    made = Server(tmp_path_factory.mktemp("redis"), binary)
    yield made
    made.kill()


class Waiting(RedisScores):
    """Read as the service reads: by an event loop, without a thread."""

    def __init__(self, url: str, model: str, closed: list[Callable[[], None]]) -> None:
        super().__init__(url, model, ttl_s=60)
        self._runner, self._reads = asyncio.Runner(), RedisReads(url, model)
        closed.append(self._end)

    def get(self, keys: Sequence[str], now_s: float) -> Read:
        return self._runner.run(self._reads.get(keys, now_s))

    def _end(self) -> None:
        self._runner.run(self._reads.close())
        self._runner.close()


@pytest.fixture(params=["sqlite", "redis", "redis, waiting"])
def opened(request: Any, tmp_path: Path, server: Server | None) -> Iterator[Open]:
    if request.param == "sqlite":
        yield lambda: SqliteScores(tmp_path / "scores", "m")
        return
    if server is None:
        pytest.skip("no Redis or Valkey server is here")
    url, name, closed = server.url, request.node.name, list[Callable[[], None]]()
    if request.param == "redis":
        yield lambda: RedisScores(url, name)
    else:
        yield lambda: Waiting(url, name, closed)
    for close in closed:
        close()


def run(name: str, as_of: float = 1.0, **more: Any) -> Run:
    return Run(name, "m", "1.5", 10.0, as_of, 3, **more)


def part(name: str, *rows: tuple[str, str | None, float]) -> Part:
    return Part(name, lambda: list(rows))


def publish(store: Scores, made: Run, *parts: Part, force: bool = False) -> Current:
    store.load(made, parts)
    return store.point(lambda current: current.to(made, force=force))


def test_nothing_is_there_before_it_is_published(opened: Open) -> None:
    store, reader = opened(), opened()
    assert reader.get(["a"], 0.0) == Read(None, [None])
    assert store.load(run("1"), [part("x", ("a", "true", 0.75)), part("y", ("b", None, -2.5))]) == 2
    assert reader.get(["a"], 0.0) == Read(None, [None])
    assert store.load(run("1"), [part("x", ("a", "no", 0.0))]) == 0  # it is there: not read again
    store.point(lambda current: current.to(run("1"), force=False))
    assert reader.get(["b", "c", "a"], 0.0) == Read(run("1"), [(None, -2.5), None, ("true", 0.75)])
    assert reader.get([], 0.0).scores == []


def test_any_text_comes_back(opened: Open) -> None:
    odd = [(f"k{i} ü\n", "one\ntwo", float(i)) for i in range(600)]
    store = opened()
    publish(store, run("1"), part("x", *odd), part("none"))
    assert store.get([key for key, *_ in odd], 0.0).scores == [tuple(row) for _, *row in odd]


def test_a_reader_follows_the_pointer(opened: Open) -> None:
    store, reader = opened(), opened()
    publish(store, run("1"), part("x", ("a", "1", 0.1), ("b", "1", 0.1)))
    assert reader.get(["a"], 0.0).scores == [("1", 0.1)]
    publish(store, run("2", 2.0), part("x", ("a", "2", 0.2)))
    assert reader.get(["a", "b"], 0.0) == Read(run("2", 2.0), [("2", 0.2), None])
    store.point(lambda current: current.back(None))
    assert reader.get(["a", "b"], 0.0).scores == [("1", 0.1), ("1", 0.1)]
    with pytest.raises(RunRefused, match="no run was published before"):
        store.point(lambda current: current.back(None))
    store.point(lambda current: current.back("2"))
    names = store.current().removable(1)
    assert names == ["1"]
    store.point(lambda current: current.without(frozenset(names)))
    store.remove(names)
    with pytest.raises(RunRefused, match="not among"):
        store.point(lambda current: current.back("1"))
    assert opened().get(["a"], 0.0).scores == [("2", 0.2)]


def test_older_features_and_expired_scores(opened: Open) -> None:
    store = opened()
    publish(store, run("new", 5.0, expires_at=100.0), part("x", ("a", None, 1.0)))
    with pytest.raises(RunRefused, match="older"):
        publish(store, run("old", 4.0), part("x", ("a", None, 2.0)))
    assert store.get(["a"], 99.0).scores == [(None, 1.0)]
    assert store.get(["a"], 101.0).scores == [None]
    publish(store, run("old", 4.0), part("x", ("a", None, 2.0)), force=True)
    assert store.get(["a"], 101.0).scores == [(None, 2.0)]


def test_no_answer_is_of_two_runs(opened: Open) -> None:
    """Readers poll while runs are published one after the other."""
    keys = [f"k{i}" for i in range(50)]
    store, stop, wrong, seen = opened(), threading.Event(), list[Any](), set[float]()

    def poll() -> None:
        reader = opened()
        while not stop.is_set():
            found = {score[1] for score in reader.get(keys, 0.0).scores if score is not None}
            seen.update(found)
            if len(found) > 1:
                wrong.append(found)

    threads = [threading.Thread(target=poll) for _ in range(2)]
    for thread in threads:
        thread.start()
    for i in range(25):
        publish(store, run(f"r{i}", i), part("x", *((key, None, float(i)) for key in keys)))
    deadline = time.monotonic() + 240
    while 24.0 not in seen and time.monotonic() < deadline:
        time.sleep(0.001)
    stop.set()
    for thread in threads:
        thread.join()
    assert not wrong
    assert 24.0 in seen


def test_a_store_that_is_gone(tmp_path: Path) -> None:
    lost = RedisScores("redis://:secret@127.0.0.1:1/0", "m")
    path = rescored.write(tmp_path / "t.parquet", rescored.table(200))
    with pytest.raises(StoreFailed) as caught:
        rescored.run([path], tmp_path / "out", store=lost)
    assert "secret" not in str(caught.value)
    assert not (tmp_path / "out" / "current.json").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreFailed):
        publish(SqliteScores(tmp_path / "file", "m"), run("1"), part("x"))
    with pytest.raises(StoreFailed) as caught, asyncio.Runner() as runner:
        runner.run(RedisReads("redis://:secret@127.0.0.1:1/0", "m").get(["a"], 0.0))
    assert "secret" not in str(caught.value)
    with pytest.raises(ConfigError, match="names no store"):
        open_store("http://x", "m")


def test_a_store_that_is_lost_on_the_way(tmp_path: Path, server: Server | None) -> None:
    """Nobody is pointed to what is half there; the same command goes on."""
    if server is None:
        pytest.skip("no Redis or Valkey server is here")
    store = RedisScores(server.url, "lost", timeout_s=30.0)
    publish(store, run("1"), part("x", ("a", None, 1.0)))

    def dies() -> list[tuple[str, str | None, float]]:
        server.kill()
        return [("b", None, 2.0)]

    parts = [part("x", ("a", None, 2.0)), Part("y", dies)]
    closed: list[Callable[[], None]] = []
    reader = Waiting(server.url, "lost", closed)
    assert reader.get(["a"], 0.0).scores == [(None, 1.0)]
    with pytest.raises(StoreFailed, match=r"redis://127\.0\.0\.1"):
        publish(store, run("2", 2.0), *parts)
    for _ in range(2):
        with pytest.raises(StoreFailed):
            reader.get(["a"], 0.0)
    server.start()
    for asked in (store, reader):  # both connect again by themselves
        assert asked.get(["a", "b"], 0.0) == Read(run("1"), [(None, 1.0), None])
    parts[1] = part("y", ("b", None, 2.0))
    publish(store, run("2", 2.0), *parts)
    for asked in (store, reader):
        assert asked.get(["a", "b"], 0.0) == Read(run("2", 2.0), [(None, 2.0), (None, 2.0)])
    for close in closed:
        close()


def test_a_run_fills_the_store(tmp_path: Path, opened: Open) -> None:
    path = rescored.write(tmp_path / "t.parquet", rescored.table(250))
    store = opened()
    outcome = rescored.run([path], tmp_path / "out", store=store)
    assert outcome.stored == 250
    found = store.get(["0", "249", "250"], 1_000.0)
    assert found.run is not None
    assert found.run.name == outcome.run
    assert [score is None for score in found.scores] == [False, False, True]
    assert rescored.run([path], tmp_path / "out", store=store).was_published


# -- reading together ------------------------------------------------------------------------


class Slow:
    """A store that waits for leave; it notes what it was asked."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []
        self.leave = threading.Semaphore(0)

    def get(self, keys: list[str], now_s: float) -> Read:
        self.asked.append(list(keys))
        self.leave.acquire()
        if "bad" in keys:
            raise StoreFailed("slow", "bad")
        return Read(run("1"), [(key, 1.0) for key in keys])


def test_requests_that_wait_share_an_exchange() -> None:
    store = Slow()

    async def ask() -> list[Any]:
        reader = Reader(threaded(store, ThreadPoolExecutor(1)), lambda: 0.0)  # type: ignore[arg-type]
        first = asyncio.create_task(reader.get(["a"]))
        while not store.asked:
            await asyncio.sleep(0)
        others = [asyncio.create_task(reader.get([key, "z"])) for key in "bcd"]
        others[1].cancel()
        await asyncio.sleep(0)
        store.leave.release(2)
        assert (await first).scores == [("a", 1.0)]
        found = await asyncio.gather(*others, return_exceptions=True)
        store.leave.release()
        with pytest.raises(StoreFailed):
            await reader.get(["bad"])
        store.leave.release()
        assert (await reader.get(["a"])).scores == [("a", 1.0)]
        return found

    found = asyncio.run(ask())
    assert found[0].scores == [("b", 1.0), ("z", 1.0)]
    assert isinstance(found[1], asyncio.CancelledError)
    assert store.asked[:2] == [["a"], ["b", "z", "d"]]  # nobody waits for c


# -- answers ---------------------------------------------------------------------------------


def play(tmp_path: Path, scene: Any, *, published: bool = True) -> None:
    store = SqliteScores(tmp_path / "scores", "m")
    if published:
        publish(store, run("r"), part("x", ("k 1/2", "true", 0.75), ("b", "false", 0.25)))

    async def inside(world: Any) -> None:
        replica = await world.replica()
        reader = Reader(threaded(store, ThreadPoolExecutor(1)), lambda: 0.0)
        limits = Limits(rows_max=8)
        some = ModelExtras({"m": reader})
        app: Any = App({"m": world.serving(replica)}, None, limits, None, some)  # type: ignore[arg-type]
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://m") as client:
            await scene(client)
        await replica.stop(1)

    worlds.play(tmp_path / "world", inside)


def test_one_key(tmp_path: Path) -> None:
    async def scene(client: httpx.AsyncClient) -> None:
        answer = await client.get("/v1/models/m/scores/k%201%2F2")
        assert answer.json() == {
            "key": "k 1/2", "source": "batch", "prediction": "true", "score": 0.75,
            "version": "1.5", "model": "m", "run": "r", "scored_at": 10.0,
        }  # fmt: skip
        missing = await client.get("/v1/models/m/scores/nobody")
        assert (missing.status_code, missing.json()["error"]["code"]) == (404, "unknown_key")
        assert (await client.get("/v1/models/x/scores/a")).status_code == 404
        assert (await client.post("/v1/models/m/scores/a")).status_code == 405

    play(tmp_path, scene)


def test_many_keys_and_what_is_missing_is_scored_now(tmp_path: Path) -> None:
    async def scene(client: httpx.AsyncClient) -> None:
        body = {"keys": ["b", "new", "none"], "features": {"new": {"a": 1.0}, "b": {"a": 1.0}}}
        answer = (await client.post("/v1/models/m/scores", json=body)).json()
        assert (answer["run"], answer["version"], answer["scored_at"]) == ("r", "1.5", 10.0)
        batch, live, none = answer["scores"]
        assert batch == {"key": "b", "source": "batch", "prediction": "false", "score": 0.25}
        assert live["source"] == "live"
        asked = (await client.post("/v1/models/m/predict", json={"features": {"a": 1.0}})).json()
        assert live["score"] == asked["prediction"]  # a regression
        assert none == {"key": "none", "source": "none"}
        for wrong, field in (
            ({"keys": []}, "keys"), ({"keys": ["a"] * 9}, "keys"), ({"keys": [""]}, "keys[0]"),
            ({"keys": ["a"], "features": {"b": {}}}, "features.b"),
            ({"keys": ["new"], "features": {"new": {"a": "x"}}}, "features.new.a"),
        ):  # fmt: skip
            refused = await client.post("/v1/models/m/scores", json=wrong)
            assert (refused.status_code, refused.json()["error"]["field"]) == (422, field)
        assert (await client.post("/v1/models/m/scores", content=b"{")).status_code == 400

    play(tmp_path, scene)


def test_a_key_that_is_named_again_is_scored_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scored, original = [], Serving.score

    def score(self: Serving, value: Any, field: str) -> tuple[str | None, float, str]:
        scored.append(field)
        return original(self, value, field)

    async def scene(client: httpx.AsyncClient) -> None:
        body = {"keys": ["new", "b", "new", "other", "new"], "features": {"new": {"a": 1.0}}}
        answer = (await client.post("/v1/models/m/scores", json=body)).json()
        assert [one["key"] for one in answer["scores"]] == body["keys"]
        sources = [one["source"] for one in answer["scores"]]
        assert sources == ["live", "batch", "live", "none", "live"]
        assert scored == ["features.new"]

    monkeypatch.setattr(Serving, "score", score)
    play(tmp_path, scene)


def test_nothing_published(tmp_path: Path) -> None:
    async def scene(client: httpx.AsyncClient) -> None:
        answer = await client.get("/v1/models/m/scores/a")
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "no_scores")
        body = {"keys": ["a"], "features": {"a": {"a": 1.0}}}
        many = (await client.post("/v1/models/m/scores", json=body)).json()
        assert many["run"] is None
        assert many["scores"][0]["source"] == "live"

    play(tmp_path, scene, published=False)
