"""Releases as the service serves them: what caches may keep, and no name that becomes a path."""

from __future__ import annotations

import gzip
import json
import re
from hashlib import sha256
from pathlib import Path
from typing import Final

import edge_world as worlds
import httpx
import pytest
from edge_world import Asked

from online.http.routes import edge as served

NOW: Final = 1_800_000_000.0


def test_what_is_served_and_what_a_cache_may_keep(tmp_path: Path) -> None:
    world = worlds.World(tmp_path)
    world.publish(1, NOW)
    asked = Asked(tmp_path)
    for path, data in world.served().items():
        answer = asked.get(f"/v1/models/m/edge/{path}")
        assert answer.content == data, path
        forever = path.startswith("files/")
        cache = "public, max-age=31536000, immutable" if forever else "public, no-cache"
        assert answer.headers["cache-control"] == cache
        if forever:
            assert sha256(answer.content).hexdigest() in answer.headers["etag"]
        for had in (answer.headers["etag"], f'"x", {answer.headers["etag"]}', "*"):
            again = asked.get(f"/v1/models/m/edge/{path}", headers={"if-none-match": had})
            assert (again.status_code, again.content) == (304, b""), path
        other = asked.get(f"/v1/models/m/edge/{path}", headers={"if-none-match": '"x"'})
        assert other.status_code == 200
    private = Asked(tmp_path, guarded=True).get("/v1/models/m/edge/manifest.json")
    assert private.headers["cache-control"] == "private, no-cache"
    before = {"if-none-match": asked.get("/v1/models/m/edge/manifest.json").headers["etag"]}
    world.publish(2, NOW)
    assert asked.get("/v1/models/m/edge/manifest.json", headers=before).status_code == 200


PATHS: Final = (
    "manifest", "channel.json", "lock", "head", "files/", "files/secret", "files/..",
    "files/%2e%2e%2fchannel.json", "files/..%2fchannel.json", "..%2f..%2fsecret",
    "files/%00", "files/" + "0" * 64, "files/" + "A" * 64, "roots.json.part", "%2e%2e/m/edge/head",
)  # fmt: skip


def test_no_name_becomes_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = worlds.World(tmp_path / "edge")
    world.publish(1, NOW)
    for place in (tmp_path, tmp_path / "edge", world.folder.path / "files"):
        (place / "secret").write_bytes(b"secret")
    asked = Asked(tmp_path / "edge")
    for path in PATHS:
        answer = asked.get(f"/v1/models/m/edge/{path}")
        assert answer.status_code == 404, path
        assert b"secret" not in answer.content.replace(b"files/secret", b"")
    assert asked.get("/v1/models/..%2fm/edge/manifest.json").status_code == 404
    assert asked.get("/v1/models/other/edge/manifest.json").json()["code"] == "unknown_model"
    monkeypatch.setattr(served, "_DIGEST", re.compile(".*"))
    assert asked.get("/v1/models/m/edge/files/secret").content == b"secret", "the rule is needed"


def test_nothing_published_and_a_file_that_has_grown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for place in (None, tmp_path):
        for path in ("manifest.json", "manifest.sig", "roots.json"):
            answer = Asked(place).get(f"/v1/models/m/edge/{path}")
            assert (answer.status_code, answer.json()["code"]) == (404, "nothing_published")
    world = worlds.World(tmp_path)
    world.publish(1, NOW)
    monkeypatch.setattr(served, "FILE_BYTES_MAX", 10)
    named = json.loads(world.folder.head()[0])["targets"]["edgepack"]["sha256"]
    assert Asked(tmp_path).get(f"/v1/models/m/edge/files/{named}").status_code == 404


def test_the_page_and_its_scripts(tmp_path: Path) -> None:
    asked = Asked(None)
    page = asked.get("/edge/demo")
    assert page.headers["content-type"].startswith("text/html")
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', page.text)
    assert policy is not None
    assert "default-src 'none'" in policy[1]
    assert "script-src 'self';" in policy[1]
    for text in (page.text, *(served.shipped(n).decode() for n in served.PARTS)):
        assert not re.findall(r"https?://|innerHTML|insertAdjacentHTML|\beval\(", text)
    for name in served.PARTS:
        answer: httpx.Response = asked.get(f"/edge/{name}")
        assert answer.headers["content-encoding"] == "gzip"
        assert answer.content == served.shipped(name)
        refused = asked.get(f"/edge/{name}", headers={"accept-encoding": "gzip;q=0"})
        assert "content-encoding" not in refused.headers
    assert asked.get("/edge/routes.py").status_code == 404


def test_the_client_with_its_runtime_is_small() -> None:
    sizes = {
        name: len(gzip.compress(served.shipped(name), 9, mtime=0))
        for name in ("edge.js", "trust.js", "client.js")
    }
    assert sum(sizes.values()) <= 8192, sizes
