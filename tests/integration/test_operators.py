"""Operators of a whole service in this process: who did what is logged, and others are told."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from alert_receivers import Hook, hook
from river import linear_model

import online
from online.audit.checking import all_lines
from online.audit.log import entry_of
from online.monitoring import recording
from online.rebuild.soundness import check_log
from online.service.embedded import Embedded
from online.settings.places import open_journal

ADMIN = "admin-0123456789abcdefghijkl"
TOKENS = {
    "predict": "ask-0123456789abcdefghijkl", "feedback": "say-0123456789abcdefghijkl",
    "admin": {"name": "alice", "token": ADMIN},
}  # fmt: skip


@pytest.fixture(scope="module")
def told() -> Iterator[Hook]:
    with hook() as found:
        yield found


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, told: Hook) -> Iterator[Embedded]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(recording, "EVERY_S", 0.05)
        settings: dict[str, Any] = {
            "tokens": {**TOKENS, "admin": [TOKENS["admin"]]},
            "alerts": {"webhooks": [{"url": told.url, "on": ["decision"]}]},
        }
        state = tmp_path_factory.mktemp("operated") / "state"
        with online.serve(
            linear_model.LogisticRegression(), name="m", task="binary", state_dir=state,
            settings=settings, say=lambda _: None,
        ) as running:  # fmt: skip
            yield running


def acts(service: Embedded) -> list[tuple[str, str, str]]:
    """Who did what, and from where, oldest first."""
    with contextlib.closing(open_journal(service._parts.settings)) as journal:
        return [(e.act, e.who, e.origin) for e in map(entry_of, all_lines(journal))]


def test_each_act_leaves_its_line_and_somebody_is_told(service: Embedded, told: Hook) -> None:
    headers = {"authorization": f"Bearer {ADMIN}"}
    with httpx.Client(base_url=f"{service.url}/v1/models/m", headers=headers, timeout=240) as ask:

        def act(path: str, **body: Any) -> Any:
            done = ask.post(path, json=body or None)
            assert done.is_success, done.text
            return done.json()

        for i in range(5):
            act("/feedback", features={"x": float(i)}, label=i % 2 == 0, event_id=f"e{i}")
        name = act("/snapshots")["name"]
        act(f"/snapshots/{name}/pin")
        act("/freeze")
        assert act("/feedback", features={"x": 9.0}, label=True, event_id="k")["status"] == "frozen"
        act("/unfreeze")
        act("/relearn", status="frozen")
        act("/sources", source="bot", banned=True)
        act("/feedback", features={"x": 7.0}, label=True, event_id="q", source="bot")
        (held,) = ask.get("/quarantine").json()["events"]
        act("/quarantine/release", rows=[held["row"]])
        act("/rollback", to=name)
        assert ask.get("/snapshots").status_code == 200  # asking leaves nothing

    found = acts(service)
    assert [one[0] for one in found] == [
        "start", "pin", "freeze", "unfreeze", "relearn", "source", "decide", "rollback",
    ]  # fmt: skip
    assert found[0][1] == "the service", "a program started it, and says not who it is"
    assert {one[1:] for one in found[1:]} == {("alice", "127.0.0.1")}

    heard = [json.loads(told.next()[1])]
    while heard[-1]["text"] != "rollback":
        heard.append(json.loads(told.next()[1]))
    assert {(one["kind"], one["state"], one["model"]) for one in heard} == {
        ("decision", "happened", "m")
    }
    assert heard[-1]["service"] == service.url


def test_the_log_is_as_it_was_written(service: Embedded) -> None:
    found = check_log(service._parts.settings)
    assert (found.good, found.faults, found.lines) == (True, (), len(acts(service)))


def test_answers_and_labels_are_seen_by_operators(service: Embedded) -> None:
    def ask(token: str, path: str) -> httpx.Response:
        url = f"{service.url}/v1/models/m{path}"
        return httpx.get(url, headers={"authorization": f"Bearer {token}"}, timeout=240)

    assert ask(str(TOKENS["predict"]), "/live").status_code == 403
    begun = ask(ADMIN, "/live").json()
    assert begun["events"] == []
    asked = service.client.predict("m", {"x": 3.0})
    service.client.feedback("m", True, id=asked.id)
    found = ask(ADMIN, f"/live?after={begun['cursor']}@{begun['replica']}").json()
    assert [(e["kind"], e.get("status")) for e in found["events"]] == [
        ("answer", None), ("label", "learned"),
    ]  # fmt: skip
    assert found["events"][0]["features"] == {"x": 3.0}
    assert asked.id.startswith(found["events"][1]["id"])


def test_a_snapshot_says_how_many_rows_came_after_it(service: Embedded) -> None:
    url, headers = f"{service.url}/v1/models/m/snapshots", {"authorization": f"Bearer {ADMIN}"}
    before = httpx.post(url, headers=headers, timeout=240).json()["name"]
    for i in range(3):
        service.client.feedback("m", True, features={"x": float(i)})
    httpx.post(url, headers=headers, timeout=240).raise_for_status()
    listed = httpx.get(url, headers=headers, timeout=240).json()["snapshots"]
    since = {one["name"]: one["since"] for one in listed}
    assert since[before] == 3
