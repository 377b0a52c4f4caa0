"""New access tokens reach running replicas, or these are replaced; alerts go on by the new ones."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Mapping
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from servers_without_ray import answers_for_ray

from online.monitoring import recording
from online.monitoring.recording import Recording
from online.service import processes
from online.service.embedded import Embedded
from online.service.on_ray import rollout
from online.service.on_ray.challengers import Challengers
from online.service.service import Service
from online.service.state import parameter_servers
from online.service.state.changes import UNCHANGED
from online.service.state.check_state import Models
from online.service.state.deadline import StartDeadline
from online.settings.config import Settings, load

OLD, NEW = "old-token-0123456789abcdefgh", "new-token-0123456789abcdefgh"
MODEL = {"name": "m", "task": "binary", "learner": "logreg"}
WAIT_S = 240


def settings(folder: Path, token: str, **more: Any) -> Settings:
    tokens = {role: token for role in ("predict", "feedback", "admin")}
    data = {"state_dir": str(folder), "models": [MODEL], "tokens": tokens, **more}
    return load(None, data, {})


@pytest.mark.parametrize("taken", [True, False])
def test_replicas_that_have_not_taken_new_tokens_are_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, taken: bool
) -> None:
    done: list[Any] = []

    def deploy(_: Any, given: Settings, origin: Any, version: int) -> None:
        done.append((given.tokens.of("admin"), version))

    def renewed(given: Settings) -> bool:
        done.append("renewed")
        return taken

    monkeypatch.setattr(rollout, "deploy", deploy)
    monkeypatch.setattr(rollout, "renew_tokens", renewed)
    noted: list[bool] = []
    monkeypatch.setattr(processes, "note", lambda _, facts: noted.append("changing" in facts))
    monkeypatch.setattr(Service, "_wait_http", lambda self: self._deadline.check("HTTP"))
    monkeypatch.setattr(Challengers, "start", lambda self, settings: None)
    answers_for_ray(monkeypatch, lambda name: lambda: name)
    monkeypatch.setattr(parameter_servers, "_wait_serving", lambda *_: done.append("servers"))
    before = settings(tmp_path, OLD)
    service = Service(before, lambda _: None)
    service._loaded = Models(before, lambda _: None).load()
    service._deadline = StartDeadline(0.0)  # the start is long ago
    lines = service.reload(settings(tmp_path, NEW))
    replaced = [((NEW,), 1)]
    assert done == [((NEW,), 0), "renewed", *([] if taken else replaced)]
    assert noted == [True, False], "`online status` tells it meanwhile"
    assert lines == ["tokens changed", *([] if taken else ["every replica was replaced"])]
    assert service.reload(settings(tmp_path, NEW)) == [UNCHANGED]


def test_one_process_takes_new_tokens_on_open_connections(tmp_path: Path) -> None:
    before = settings(tmp_path, OLD, cluster="embedded", port=0)
    with Embedded(before, lambda _: None) as service:
        service.start()
        host, _, port = service.url.removeprefix("http://").partition(":")
        connection = http.client.HTTPConnection(host, int(port), timeout=WAIT_S)

        def ask(token: str) -> int:
            headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
            body = json.dumps({"features": {"x": 1.0}})
            connection.request("POST", "/v1/models/m/predict", body, headers)
            answer = connection.getresponse()
            answer.read()
            return answer.status

        assert [ask(OLD), ask(OLD), ask(NEW)] == [200, 200, 401]
        after = settings(tmp_path, NEW, cluster="embedded", port=0)
        assert service.reload(after) == ["tokens changed"]
        assert [ask(OLD), ask(NEW), ask(NEW)] == [401, 200, 200]
        assert service.reload(after) == [UNCHANGED]
        other = settings(tmp_path, OLD, cluster="embedded", port=0, limits={"rows_max": 5})
        assert service.reload(other)[0] == "limits needs a restart of the service"
        assert [ask(OLD), ask(NEW)] == [401, 200], "all or nothing"
        connection.close()


def test_one_process_says_that_a_models_new_code_needs_a_restart(tmp_path: Path) -> None:
    file = tmp_path / "learner.py"
    text = "from river import linear_model\n\n\ndef made():\n    return linear_model.{}()\n"
    file.write_text(text.format("LogisticRegression"))
    model = {**MODEL, "learner": f"{file}:made"}
    given = settings(tmp_path / "state", OLD, cluster="embedded", port=0, models=[model])
    with Embedded(given, lambda _: None) as service:
        service.start()
        assert service.reload(given) == [UNCHANGED]
        file.write_text(text.format("Perceptron"))
        assert service.reload(given)[0] == "models.m: its code needs a restart of the service"


def test_the_history_goes_on_by_the_present_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was asked with the token of the start: after a rotation nothing was recorded, or told."""
    monkeypatch.setattr(recording, "EVERY_S", 0.001)
    present, polled = [OLD], threading.Event()

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            known = self.headers["Authorization"] == f"Bearer {NEW}"
            data = json.dumps({"models": []}).encode()
            self.send_response(200 if known else 401)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)
            if not known:
                present[0] = NEW

        def log_message(self, *_: object) -> None: ...

    def heard(look: recording.Look | None) -> None:
        if look is not None and look.failed is None:
            polled.set()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    made = Recording(tmp_path, heard)
    made.of(f"http://127.0.0.1:{server.server_port}", lambda: present[0])
    assert polled.wait(WAIT_S)
    made.stop()
    server.shutdown()
    server.server_close()


def test_all_running_replicas_have_taken_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray import serve

    class Replies:
        def results(self, timeout_s: float) -> list[None]:
            return [None, None]

    class Handle:
        is_initialized = True

        def broadcast(self, method: str, tokens: Mapping[str, Any]) -> Replies:
            assert method == "renew"
            assert NEW not in json.dumps(tokens), "only digests are sent"
            return Replies()

    def found(states: Mapping[str, int]) -> Any:
        deployments = {"Replica": SimpleNamespace(replica_states=states)}
        return SimpleNamespace(applications={"online": SimpleNamespace(deployments=deployments)})

    monkeypatch.setattr(serve, "get_deployment_handle", lambda *_: Handle())
    given = settings(tmp_path, NEW)
    for states, all_of_them in (
        ({"RUNNING": 2}, True), ({"RUNNING": 3}, False), ({"RUNNING": 2, "STARTING": 1}, False),
    ):  # fmt: skip
        monkeypatch.setattr(serve, "status", partial(found, states))
        assert rollout.renew_tokens(given) is all_of_them
    monkeypatch.setattr(serve, "get_deployment_handle", lambda *_: None)
    assert not rollout.renew_tokens(given), "it does not answer"
