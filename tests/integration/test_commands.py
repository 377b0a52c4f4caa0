"""Commands and pages of a real service."""

from __future__ import annotations

import json
import re
import signal
import time
from collections.abc import Iterator
from html.parser import HTMLParser
from typing import Any
from urllib.parse import urljoin

import httpx
import operated
import pytest
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.fixtures.service import Running, status
from online.edge import on_device

pytestmark = pytest.mark.ray


everywhere: Any = operated.everywhere
good: Any = operated.good
online: Any = operated.online
refused: Any = operated.refused
stop_s: Any = operated.stop_s
Traces: Any = operated.Traces


@pytest.fixture(scope="module")
def service() -> Iterator[Running]:
    with operated.serving(devices={"buffer": 2}, root_set="root.csv") as running:
        yield running


# -- commands --------------------------------------------------------------------------------


def test_status(service: Running) -> None:
    at = ("--state-dir", str(service.state_dir))
    data = json.loads(good("status", *at, "--json"))
    assert data["url"] == service.url
    assert [model["model"] for model in data["models"]] == ["clicks"]
    assert data["models"][0]["server"]["state"] == "serving"
    text = good("status", *at)
    assert "clicks" in text
    assert "parameter server: serving" in text
    assert "rollback reaches back" in text or data["models"][0]["server"]["reach_s"] is None
    assert "growth: measuring" in text
    room = data["models"][0]["journal"]
    assert room["rows"] >= 40
    assert 0 < room["used_ratio"] < 1
    assert room["alarm"] is None


def test_snapshots(service: Running) -> None:
    at = ("--state-dir", str(service.state_dir))
    made = json.loads(good("snapshot", "create", *at, "--json"))
    listed = json.loads(good("snapshot", "list", *at, "--json"))
    names = [snapshot["name"] for snapshot in listed]
    assert made["name"] in names
    assert "snapshot" in good("snapshot", "list", *at)
    for off, pinned in ((), True), (("--off",), False):
        said = good("snapshot", "pin", made["name"], *off, *at)
        assert (
            said.strip() == f"clicks: snapshot {made['name']} is {'' if pinned else 'not '}pinned"
        )
        listed = json.loads(good("snapshot", "list", *at, "--json"))
        assert [s["pinned"] for s in listed if s["name"] == made["name"]] == [pinned]
    said = good("snapshot", "create", "--pin", *at)
    assert re.fullmatch(r"clicks: snapshot \d+-\d+, pinned\n", said), said
    assert "no snapshot" in refused("snapshot", "pin", "none", *at)
    (file,) = service.state_dir.glob(f"snapshots/clicks/*/{made['name']}*")
    shown = json.loads(good("snapshot", "show", str(file)))
    assert shown["model"] == "clicks"
    assert {"weights", "scaler0", "digest"} <= shown["blocks"].keys()
    damaged = service.folder / "damaged"
    damaged.write_bytes(file.read_bytes()[:-1])
    assert "corrupt" in refused("snapshot", "show", str(damaged))
    config = ("--config", str(service.folder / "online.yaml"))
    assert "no snapshot" in refused("snapshot", "show", "none", *config)
    shown = json.loads(good("snapshot", "show", made["name"], "--lineage", *config))
    assert shown["lineage"][0] == made["name"]
    assert shown["parent"] in {*shown["lineage"], None}


def test_stream(service: Running) -> None:
    at = ("--state-dir", str(service.state_dir))
    before = status(service, "clicks")["learned"]
    played = json.loads(good("stream", "phishing", "--rows", "50", "--rate", "max", "--json", *at))
    assert (played["stream"].lower(), played["rows"]) == ("phishing", 50)
    assert 0 <= played["accuracy"] <= 1
    assert {"majority", "no_change", "kappa_m", "kappa_t"} <= played.keys()
    everywhere(service, before + 50)
    assert "row     50/50" in good("stream", "phishing", "--rows", "50", "--rate", "max", *at)
    everywhere(service, before + 100)
    assert "--rate" in refused("stream", "phishing", "--rate", "0", *at)
    assert "no-such-stream" in refused("stream", "no-such-stream", *at)
    assert "--model" in refused("stream", "phishing", "--model", "none", *at)


def test_a_release_for_devices_is_served(service: Running) -> None:
    config = ("--config", str(service.folder / "online.yaml"))
    url = f"{service.url}/v1/models/clicks/edge"
    assert httpx.get(f"{url}/manifest.json", timeout=120).json()["error"]["code"] == (
        "nothing_published"
    )
    good("snapshot", "create", "--state-dir", str(service.state_dir))  # of what was learned
    good("edge", "keygen", *config)
    assert (
        json.loads(good("edge", "publish", "--percent", "100", "--json", *config))["sequence"] == 1
    )
    answer = httpx.get(f"{url}/manifest.json", timeout=120)
    named = answer.json()["targets"]["edgepack"]
    pack = httpx.get(f"{url}/files/{named['sha256']}", timeout=120)
    assert len(pack.content) == named["size"]
    again = httpx.get(
        f"{url}/manifest.json", headers={"if-none-match": answer.headers["etag"]}, timeout=120
    )
    assert again.status_code == 304
    assert "default-src 'none'" in httpx.get(f"{service.url}/edge/demo", timeout=120).text
    assert "release 1.0" in good("edge", "status", *config)

    told = answer.json()
    assert {"trained_through", "quality", "rows_since"} <= told["freshness"].keys()
    rows = [({"a": float(i % 7), "b": i % 5 - 1.5}, ("no", "yes")[i % 3 == 0]) for i in range(20)]
    learned = on_device.learn(pack.content, rows, told["learn"]["rate"])
    push = learned.clipped(told["learn"]["clip"]).body("device-1", 1, told["sequence"])
    before = status(service, "clicks")["learned"]
    first = httpx.post(f"{url}/deltas", json=push, timeout=120)
    assert (first.status_code, first.json()["status"]) in ((200, "learned"), (200, "clipped"))
    for _ in range(4):  # whichever replica answers
        again = httpx.post(f"{url}/deltas", json=push, timeout=120)
        assert (again.status_code, again.json()["status"]) == (200, "duplicate")
    everywhere(service, before + 1)
    late = httpx.post(f"{url}/deltas", json={**push, "event": 2, "sequence": 9}, timeout=120)
    assert (late.status_code, late.json()["error"]["code"]) == (409, "stale")
    bad = {**push, "event": 3, "bias": {"float32": "AADAfw=="}}
    refusal = httpx.post(f"{url}/deltas", json=bad, timeout=120)
    assert (refusal.status_code, refusal.json()["error"]["code"]) == (422, "invalid_value")


# -- what is read ----------------------------------------------------------------------------


def test_metrics_of_both_replicas(service: Running) -> None:
    deadline = time.monotonic() + 240
    while True:
        answer = httpx.get(f"{service.url}/metrics", timeout=120)
        assert answer.headers["content-type"].startswith("text/plain")
        families = {f.name: f for f in text_string_to_metric_families(answer.text)}
        replicas = {s.labels["replica"] for s in families["online_behind_rows"].samples}
        if len(replicas) >= 2:
            break
        assert time.monotonic() < deadline, replicas
    assert len(replicas) == 2
    assert families["online_behind_rows"].type == "gauge"
    assert {s.labels["model"] for s in families["online_learned_events"].samples} == {"clicks"}
    assert families["online_learned_events"].samples[0].value > 0
    assert families["online_server_up"].samples[0].value == 1
    for name in ("frozen", "undone_rows", "journal_used_ratio", "journal_bytes", "journal_rows"):
        assert families[f"online_{name}"].type == "gauge"
    assert "accuracy" in {s.labels["metric"] for s in families["online_prequential"].samples}


class _References(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        loads = {"script": "src", "link": "href", "img": "src", "iframe": "src"}
        self.found += [value or "" for name, value in attrs if name == loads.get(tag)]


_ELSEWHERE = re.compile(r"cdn\.|unpkg|jsdelivr|googleapis|gstatic|tiangolo")


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_pages_work_offline(service: Running, path: str) -> None:
    page = httpx.get(service.url + path, timeout=120)
    assert page.status_code == 200
    assert not _ELSEWHERE.search(page.text)
    references = _References(page.text).found
    if path == "/docs":
        assert any(reference.endswith(".js") for reference in references)
    for reference in references:
        if reference.startswith("data:"):
            continue
        url = urljoin(service.url + path, reference)
        assert url.startswith(service.url), reference
        asset = httpx.get(url, timeout=120)
        assert asset.status_code == 200, reference
        if reference.endswith(".css"):
            assert not re.search(r"url\(['\"]?https?:|@import", asset.text)


def test_openapi(service: Running) -> None:
    document = httpx.get(f"{service.url}/openapi.json", timeout=120).json()
    assert document["openapi"].startswith("3.")
    for action, statuses in ("predict", {"200", "422"}), ("feedback", {"200", "409", "410"}):
        operation = document["paths"][f"/v1/models/{{model}}/{action}"]["post"]
        assert statuses <= operation["responses"].keys()
        schema = operation["requestBody"]["content"]["application/json"]["schema"]
        properties = resolve(document, schema["$ref"])["properties"]
        assert {"features"} <= properties.keys()
    references = set(re.findall(r'"\$ref": "([^"]*)"', json.dumps(document)))
    assert len(references) >= 5
    for reference in references:
        assert resolve(document, reference)
    assert {"/livez", "/readyz", "/metrics", "/v1/models"} <= document["paths"].keys()
    for action in ("rollback", "freeze", "unfreeze", "relearn", "events"):
        (operation,) = document["paths"][f"/v1/models/{{model}}/{action}"].values()
        assert operation["responses"]["200"]["content"]["application/json"]["example"]


def resolve(document: dict[str, Any], reference: str) -> dict[str, Any]:
    assert reference.startswith("#/")
    node = document
    for part in reference[2:].split("/"):
        node = node[part]
    return node


# -- last: it ends ---------------------------------------------------------------------------


def test_a_second_signal_ends_it_at_once(service: Running) -> None:
    """Whatever it would still do, and nothing is left."""
    running, log = service, service.folder / "serve.log"
    traces = Traces.of(running)
    running.process.send_signal(signal.SIGINT)
    while "stopping" not in log.read_text():
        time.sleep(0.005)
    begun = time.monotonic()
    running.process.send_signal(signal.SIGINT)
    assert running.process.wait(240) == 130
    bound_s = stop_s(running.started_s) / 2
    assert time.monotonic() - begun < bound_s, "sooner than by itself"
    assert traces.left() == []
    assert "Traceback" not in log.read_text()
