"""Rollback, freeze and learning again over HTTP and by command, while processes are killed."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from benchmarks.fixtures.service import Running, launch, write_settings

pytestmark = pytest.mark.ray

_SETTINGS = {
    "replicas": 2,
    "models": [
        {
            "name": "clicks", "task": "binary", "learner": "logreg",
            "classes": {"negative": "no", "positive": "yes"},
            "snapshots": {"interval_s": 3600},
        }
    ],
}  # fmt: skip
_PROBES = [{"a": 0.25 * i, "b": 1.0 - i} for i in range(8)]


class Clicks:
    """A running service and one client of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.running: Running = launch(folder)

    def url(self, path: str = "") -> str:
        return f"{self.running.url}/v1/models/clicks{path}"

    def post(self, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        answer = httpx.post(self.url(path), json=body, timeout=240)
        assert answer.status_code == 200, answer.text
        data: dict[str, Any] = answer.json()
        return data

    def status(self) -> dict[str, Any]:
        data: dict[str, Any] = httpx.get(self.url(), timeout=120).json()
        return data

    def feedback(
        self, i: int, label: str, *, source: str = "default"
    ) -> tuple[int, dict[str, Any]]:
        features = {"a": float(i % 7), "b": (i % 5) - 1.5}
        body = {"features": features, "label": label, "source": source}
        answer = httpx.post(self.url("/feedback"), json={**body, "event_id": str(i)}, timeout=120)
        data: dict[str, Any] = answer.json()
        return answer.status_code, data

    def learn(self, first: int, n: int, *, poisoned: bool = False) -> None:
        """Acknowledged one by one, over both replicas."""
        for i in range(first, first + n):
            label = ("no", "yes")[(i % 3 == 0) ^ poisoned]
            status, receipt = self.feedback(i, label)
            assert (status, receipt["status"]) == (200, "learned"), receipt

    def everywhere(self, learned: int) -> None:
        """Until every replica that lives holds so many events, and nothing is in flight."""
        deadline = time.monotonic() + 240
        for url in self.running.replica_urls().values():
            while True:
                found = httpx.get(f"{url}/v1/models/clicks", timeout=120).json()
                own = max(r.get("own", 0) for r in found["replicas"].values())
                if (found["learned"], own) == (learned, 0) and found["server"]:
                    break
                assert time.monotonic() < deadline, (found["learned"], learned, own)
                time.sleep(0.1)

    def answers(self) -> list[list[float]]:
        """Probability of "yes" for each probe row, by each replica."""
        out = []
        for url in self.running.replica_urls().values():
            path = f"{url}/v1/models/clicks/predict"
            rows = httpx.post(path, json={"instances": _PROBES}, timeout=120).json()["predictions"]
            out.append([row["probabilities"]["yes"] for row in rows])
        return out

    def events(self, status: str) -> Counter[str]:
        """How many events of the list have which status."""
        found = json.loads(
            self.command("rollback", "--undone", "--limit", "10000", "--json")[1]
            if status == "undone"
            else self.command("freeze", "--list", "--limit", "10000", "--json")[1]
        )
        return Counter(event["status"] for event in found["events"])

    def command(self, *words: str) -> tuple[int, str, str]:
        at = [*words, "--state-dir", str(self.folder / "state")]
        if words[0] == "fsck":
            at = [*words, "--config", str(self.folder / "online.yaml")]
        done = subprocess.run(
            [sys.executable, "-m", "online", *at], capture_output=True, text=True, timeout=240,
            stdin=subprocess.DEVNULL, cwd=self.folder,
        )  # fmt: skip
        assert "Traceback" not in done.stderr, done.stderr
        return done.returncode, done.stdout, done.stderr

    def said(self, *words: str) -> dict[str, Any]:
        code, out, err = self.command(*words, "--json")
        assert code == 0, out + err
        data: dict[str, Any] = json.loads(out)
        return data

    def good(self, learned: int, **counts: int) -> None:
        """A snapshot now, and what fsck says of it."""
        self.post("/snapshots")
        code, out, err = self.command("fsck", "--json")
        (found,) = json.loads(out)
        assert code == 0, out + err
        assert (found["good"], found["digest_equal"]) == (True, True)
        assert found["learned"] == found["expected"] == learned
        assert {name: found[name] for name in counts} == counts

    def kill_server(self) -> None:
        """SIGKILL the parameter server; until another one serves."""
        before = self.status()["server"]["pid"]
        os.kill(before, signal.SIGKILL)
        self._serves(before)

    def _serves(self, before: int | None) -> None:
        deadline = time.monotonic() + 240
        while True:
            server = self.status()["server"]
            if server and server["state"] == "serving" and server["pid"] != before:
                return
            assert time.monotonic() < deadline, server
            time.sleep(0.1)

    def kill_all(self) -> None:
        """SIGKILL every process at once, and start again."""
        processes = self.running.processes()
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):  # it has ended with one before it
                process.kill()
        psutil.wait_procs(processes, timeout=120)
        self.running.process.wait(240)
        self.running = launch(self.folder)


@pytest.fixture(scope="module")
def clicks() -> Iterator[Clicks]:
    with tempfile.TemporaryDirectory(prefix="online-rewrites-") as name:
        write_settings(Path(name), _SETTINGS)
        made = Clicks(Path(name))
        try:
            yield made
        finally:
            made.running.stop()


def close_to(expected: list[float]) -> Any:
    return pytest.approx(expected, rel=0, abs=1e-12)


def test_rollback(clicks: Clicks) -> None:
    clicks.learn(0, 60)
    clicks.everywhere(60)
    snapshot = clicks.post("/snapshots")["name"]
    clean = clicks.answers()[0]
    clicks.learn(60, 40, poisoned=True)
    clicks.everywhere(100)
    assert clicks.answers()[0] != close_to(clean)
    before = clicks.status()["server"]

    code, _, err = clicks.command("rollback", "--to", snapshot)
    assert code == 1
    assert "40 rows are undone" in err
    assert "--yes" in err
    code, _, err = clicks.command("rollback", "--to", "9-9", "--yes")
    assert code == 1
    assert clicks.status()["server"]["version"] == before["version"], "nothing was changed"

    done = clicks.said("rollback", "--to", snapshot, "--yes")
    assert (done["snapshot"], done["undone"]) == (snapshot, 40)
    server = clicks.status()["server"]
    assert server["version"] == done["version"] == [before["epoch"] + 1, before["count"] + 1]
    assert (done["complete"], done["missing"]) == (True, [])
    for answers in clicks.answers():
        assert answers == close_to(clean), "at once, everywhere"
    clicks.kill_server()  # before any snapshot was published: the control row is all there is
    clicks.everywhere(60)
    for answers in clicks.answers():
        assert answers == close_to(clean)
    status = clicks.status()
    assert status["rewrites"]["last"]["snapshot"] == snapshot
    assert status["rewrites"]["undone"] == 40
    assert clicks.events("undone") == {"undone": 40}
    clicks.good(60, undone=40, holes=0)


def test_after_a_rollback(clicks: Clicks) -> None:
    """What comes is learned; what was undone stays out, also when it is sent again."""
    status, receipt = clicks.feedback(70, ("no", "yes")[(70 % 3 == 0) ^ True])
    assert (status, receipt["status"], receipt["first_outcome"]) == (200, "duplicate", "undone")
    clicks.learn(100, 20)
    clicks.everywhere(80)
    clicks.good(80, undone=40)


def test_learned_again_each_once(clicks: Clicks) -> None:
    page = clicks.post("/relearn", {"status": "undone", "limit": 15})
    assert (page["learned"], page["duplicate"]) == (15, 0)
    again = clicks.post("/relearn", {"status": "undone", "limit": 15})
    assert (again["learned"], again["duplicate"]) == (0, 15)
    both: list[dict[str, Any]] = []
    threads = [
        threading.Thread(
            target=lambda: both.append(clicks.said("rollback", "--relearn")), daemon=True
        )
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(240)
    assert sum(done["learned"] for done in both) == 25, both
    assert sum(done["learned"] + done["duplicate"] for done in both) == 80
    clicks.everywhere(120)
    assert clicks.said("rollback", "--relearn")["learned"] == 0
    assert clicks.events("undone") == {"learned_again": 40}
    _, receipt = clicks.feedback(70, ("no", "yes")[(70 % 3 == 0) ^ True])
    assert "learned_as" in receipt
    clicks.good(120, undone=0)


def test_freeze_under_load(clicks: Clicks) -> None:
    """Every event is acknowledged once, as learned or as frozen, and none is in between."""
    stop, found, problems = threading.Event(), Counter[str](), list[str]()
    predicted = Counter[int]()

    def send(first: int) -> None:
        for i in range(first, first + 4000):
            if stop.is_set():
                return
            status, receipt = clicks.feedback(i, "yes")
            if (status, receipt["status"]) not in ((200, "learned"), (202, "frozen")):
                problems.append(f"{status} {receipt}")
            found[receipt["status"]] += 1

    def predict() -> None:
        while not stop.is_set():
            answer = httpx.post(clicks.url("/predict"), json={"features": _PROBES[1]}, timeout=120)
            predicted[answer.status_code] += 1

    threads = [threading.Thread(target=send, args=(k,), daemon=True) for k in (1000, 5000)]
    threads.append(threading.Thread(target=predict, daemon=True))
    for thread in threads:
        thread.start()
    while found["learned"] < 20:
        time.sleep(0.01)
    done = clicks.post("/freeze")
    assert (done["complete"], done["missing"]) == (True, [])
    then = found["frozen"]
    while found["frozen"] < then + 40:
        time.sleep(0.01)
    stop.set()
    for thread in threads:
        thread.join(240)
    assert not problems
    assert set(predicted) == {200}
    assert clicks.status()["server"]["version"] == done["version"], "the version stands"
    learned = 120 + found["learned"]
    clicks.everywhere(learned)
    assert clicks.events("frozen") == {"frozen": found["frozen"]}
    refused = httpx.post(clicks.url("/relearn"), json={"status": "frozen"}, timeout=120)
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "still_frozen")
    clicks.good(learned, frozen=found["frozen"])
    assert clicks.status()["server"]["version"] == done["version"]


def test_still_frozen_after_a_kill_and_released_once(clicks: Clicks) -> None:
    learned = clicks.status()["learned"]
    frozen = clicks.events("frozen")["frozen"]
    assert frozen >= 40
    before = clicks.answers()[0]
    clicks.kill_all()
    clicks.everywhere(learned)
    status = clicks.status()
    assert status["rewrites"]["frozen"]
    assert status["server"]["frozen"]
    for answers in clicks.answers():
        assert answers == close_to(before)
    code, receipt = clicks.feedback(9000, "no")
    assert (code, receipt["status"]) == (202, "frozen")
    text = clicks.command("status")[1]
    assert "frozen: it learns nothing" in text

    done = clicks.said("unfreeze", "--release")
    assert (done["learned"], done["duplicate"], done["failed"]) == (frozen + 1, 0, 0)
    clicks.everywhere(learned + frozen + 1)
    assert clicks.said("unfreeze", "--release")["learned"] == 0
    assert clicks.events("frozen") == {"released": frozen + 1}
    clicks.learn(9100, 5)
    clicks.everywhere(learned + frozen + 6)
    clicks.good(learned + frozen + 6, frozen=0, undone=0)


def test_a_source_is_forgotten_while_it_answers(clicks: Clicks) -> None:
    learned = clicks.status()["learned"]
    clicks.post("/snapshots")
    clean = clicks.answers()[0]
    for i in range(20_000, 20_040):
        status, receipt = clicks.feedback(i, ("yes", "no")[i % 2], source="bot")
        assert (status, receipt["status"]) == (200, "learned"), receipt
    clicks.everywhere(learned + 40)
    poisoned = clicks.post("/snapshots")["name"]
    assert clicks.answers()[0] != close_to(clean)
    stop, predicted = threading.Event(), Counter[int]()

    def predict() -> None:
        while not stop.is_set():
            answer = httpx.post(clicks.url("/predict"), json={"features": _PROBES[1]}, timeout=120)
            predicted[answer.status_code] += 1

    thread = threading.Thread(target=predict, daemon=True)
    thread.start()
    done = clicks.said("forget", "--source", "bot", "--yes")
    stop.set()
    thread.join(240)
    assert set(predicted) == {200}
    assert (done["undone"], done["learned"], done["complete"]) == (40, 0, True)
    for answers in clicks.answers():
        assert answers == close_to(clean), "at once, everywhere"
    clicks.kill_all()  # before any snapshot was published: row and state aside are all there is
    clicks.everywhere(learned)
    for answers in clicks.answers():
        assert answers == close_to(clean)
    assert clicks.command("rollback", "--to", poisoned, "--yes")[0] == 1
    _, receipt = clicks.feedback(20_000, "yes", source="bot")
    assert (receipt["status"], receipt["first_outcome"]) == ("duplicate", "undone")
    clicks.good(learned, undone=40)

    table = clicks.folder / "history.csv"  # a backfill is the same swap, with a table on top
    rows = [f"{i % 7},{i % 5 - 1.5},{('yes', 'no')[i % 3 == 0]}" for i in range(300)]
    table.write_text("\n".join(["a,b,label", *rows]))
    done = clicks.said("backfill", "--input", str(table), "--label", "label")
    assert (done["learned"], done["missing"]) == (300, [])
    first, *others = clicks.answers()
    assert first != close_to(clean)
    assert all(answers == close_to(first) for answers in others)
    assert "very bytes" in clicks.command("backfill", "--input", str(table), "--label", "label")[2]
    listed = httpx.get(clicks.url("/snapshots"), timeout=120).json()["snapshots"]
    assert {row["name"]: row["pinned"] for row in listed}[done["snapshot"]]
    clicks.good(learned, undone=40)


def test_a_banned_source_is_quarantined_and_released(clicks: Clicks) -> None:
    learned = clicks.status()["learned"]
    assert clicks.said("quarantine", "ban", "--source", "bot")["complete"]
    for i in range(21_000, 21_005):
        status, receipt = clicks.feedback(i, "no", source="bot")
        assert (status, receipt["status"]) == (202, "quarantined"), receipt
    page = clicks.said("quarantine", "list", "--source", "bot")
    assert [e["status"] for e in page["events"]] == ["quarantined"] * 5
    row = page["events"][0]["row"]
    shown = clicks.said("quarantine", "show", row)
    b = int(shown["event_id"]) % 5 - 1.5
    assert (shown["source"], shown["label"], shown["features"]["b"]) == ("bot", "no", b)
    assert clicks.said("quarantine", "discard", row)["discarded"] == 1
    done = clicks.said("quarantine", "release", "--source", "bot")
    assert (done["released"], done["discarded"], done["learned"]) == (4, 1, 4)
    clicks.everywhere(learned + 4)
    assert clicks.said("quarantine", "release", "--source", "bot")["learned"] == 0
    assert clicks.said("quarantine", "unban", "--source", "bot")["complete"]
    status, receipt = clicks.feedback(21_009, "no", source="bot")
    assert (status, receipt["status"]) == (200, "learned")
    clicks.everywhere(learned + 5)
    clicks.good(learned + 5)


def test_every_act_stands_in_the_log(clicks: Clicks) -> None:
    """Also those that a parameter server writes, in another process than the request came to."""
    code, out, err = clicks.command("audit", "list", "--limit", "10000", "--json")
    assert code == 0, out + err
    found = Counter((one["act"], one["who"]) for one in json.loads(out))
    for act in ("rollback", "freeze", "unfreeze", "forget", "source", "decide", "relearn"):
        assert found[act, "anybody"] > 0, found
    assert {one["origin"] for one in json.loads(out) if one["act"] == "freeze"} != {""}
    starts = [who for act, who in found if act == "start"]
    assert [who.split()[0] for who in starts] == ["user"], "whoever gave the command"


def test_bad_requests(clicks: Clicks) -> None:
    for path, body, status, field in (
        ("/rollback", {}, 422, "to"),
        ("/rollback", {"to": "none"}, 422, "to"),
        ("/rollback", {"to": "x", "more": 1}, 422, "more"),
        ("/relearn", {"status": "lost"}, 422, "status"),
        ("/relearn", {"status": "undone", "limit": 0}, 422, "limit"),
        ("/relearn", {"status": "undone", "after": "x"}, 422, "after"),
    ):
        answer = httpx.post(clicks.url(path), json=body, timeout=120)
        assert (answer.status_code, answer.json()["error"]["field"]) == (status, field), body
    for query in ("", "?status=x", "?status=undone&limit=0", "?status=undone&after=x"):
        assert httpx.get(clicks.url(f"/events{query}"), timeout=120).status_code == 422
    unknown = clicks.running.url + "/v1/models/none/"
    for path in ("freeze", "unfreeze"):
        assert httpx.post(unknown + path, timeout=120).status_code == 404
    assert clicks.command("rollback")[0] == 2
    assert clicks.command("rollback", "--undone", "--relearn")[0] == 2
    assert not clicks.status()["rewrites"]["frozen"]
