"""Commands that ask a running service: what they import, what they send, where they find it."""

from __future__ import annotations

import http.server
import json
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from online.client.simple_client import Answer, NoAnswer, SimpleClient
from online.commands import base
from online.commands.operate.status import status
from online.errors import ConfigError, StartRefused
from online.settings import config
from online.settings.glimpse import glimpse

_TOKEN = "t" * 24
# typer checks its arguments with pydantic.
_HEAVY = {
    "fastapi", "httpx", "matplotlib", "msgspec", "numpy", "pandas", "pyarrow", "ray", "river",
    "scipy", "sklearn", "torch",
}  # fmt: skip


class _Handler(http.server.BaseHTTPRequestHandler):
    """Answers each request with what it was."""

    def answer(self) -> None:
        """Send method, path, token and body back."""
        size = int(self.headers.get("Content-Length", 0))
        body = self.rfile.read(size).decode()
        said = {
            "method": self.command, "path": self.path, "body": body, "models": [],
            "token": self.headers.get("Authorization"), "type": self.headers.get("Content-Type"),
        }  # fmt: skip
        data = json.dumps(said).encode()
        self.send_response(404 if self.path.startswith("/none") else 200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_POST = answer

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@pytest.fixture
def url() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_status_imports_only_what_it_needs(tmp_path: Path, url: str) -> None:
    """Numbers of modules are what a question waits for: half a second with all that is here."""
    (tmp_path / "run.json").write_text(json.dumps({"url": url}))
    script = (
        "import sys\nfrom online.commands.cli import main\n"
        f"sys.argv = ['online', 'status', '--state-dir', {str(tmp_path)!r}]\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code\n"
        "print(*{name.partition('.')[0] for name in sys.modules}, file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=240, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert url in done.stdout
    found = set(done.stderr.split())
    assert {"online", "typer", "rich"} <= found
    assert found & _HEAVY == set()


@pytest.mark.parametrize("changing", [1.0, None])
def test_status_tells_that_new_settings_are_being_applied(
    tmp_path: Path, url: str, capsys: pytest.CaptureFixture[str], changing: float | None
) -> None:
    (tmp_path / "run.json").write_text(json.dumps({"url": url, "changing": changing}))
    for as_json in (False, True):
        status(state_dir=tmp_path, as_json=as_json)
        said = capsys.readouterr().out
        if as_json:
            assert json.loads(said)["changing"] == changing
        else:
            assert ("new settings are applied since" in said) is (changing is not None)


def test_what_is_sent(url: str) -> None:
    asking = SimpleClient(url, _TOKEN)
    got = asking.get("/v1/x", params={"pin": True, "n": 3, "a": "b c&"}).json()
    assert (got["method"], got["path"]) == ("GET", "/v1/x?pin=true&n=3&a=b+c%26")
    assert (got["token"], got["type"], got["body"]) == (f"Bearer {_TOKEN}", None, "")
    posted = asking.post("/v1/y", json={"to": None}).json()
    assert (posted["method"], posted["path"]) == ("POST", "/v1/y")
    assert (posted["type"], json.loads(posted["body"])) == ("application/json", {"to": None})
    assert asking.post("/v1/y").json()["body"] == ""
    assert SimpleClient(f"{url}/below/").get("/z").json()["path"] == "/below/z"
    assert SimpleClient(url).get("/").json()["token"] is None
    assert asking.get("/none").status_code == 404


def test_nobody_answers() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        with pytest.raises(NoAnswer, match="does not answer"):
            SimpleClient(f"http://127.0.0.1:{taken.getsockname()[1]}").get("/")


def test_silence_has_an_end() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        asking = SimpleClient(f"http://127.0.0.1:{silent.getsockname()[1]}", timeout_s=0.05)
        with pytest.raises(NoAnswer):
            asking.get("/")


_MODELS = "models: [{name: m, task: binary, learner: logreg}]\n"
_ROLES = f"predict: {_TOKEN}, feedback: {_TOKEN}"


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("", True),
        ("state_dir: elsewhere\n", True),
        (f"state_dir: a/../b\ntokens: {{{_ROLES}, admin: {'a' * 24}}}\n", True),
        (f"tokens: {{{_ROLES}, admin: [sha256:{'0' * 64}, {'b' * 24}]}}\n", True),
        (f"tokens: {{{_ROLES}, admin: [sha256:{'0' * 64}]}}\n", True),
        (f"tokens: {{{_ROLES}, admin_file: admins}}\n", False),
        (f"tokens: {{{_ROLES}, admin: [{{token: {'c' * 24}}}]}}\n", False),
    ],
)
@pytest.mark.parametrize("environ", [{}, {"ONLINE_STATE_DIR": "c"}, {"ONLINE_TOKEN": _TOKEN}])
@pytest.mark.parametrize("given", [None, Path("d")])
def test_a_glimpse_sees_what_the_settings_say(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    text: str,
    plain: bool,
    environ: dict[str, str],
    given: Path | None,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "admins").write_text("d" * 24)
    (tmp_path / "admins").chmod(0o600)
    path = tmp_path / "online.yaml"
    path.write_text(_MODELS + text)
    settings = config.load(path, {"state_dir": given}, environ)
    seen = glimpse(path, given, environ)
    assert (seen is not None) == (plain or "ONLINE_TOKEN" in environ)
    if seen is not None:
        assert seen.state_dir == settings.state_dir
        assert seen.token == config.own_token(settings, environ)


@pytest.mark.parametrize(
    "text", ["- a\n", "state_dir: 3\n", "tokens: 3\n", "tokens: {admin: short}\n", "a: [\n", "\0"]
)
def test_what_is_not_plain_is_left_to_the_settings(tmp_path: Path, text: str) -> None:
    path = tmp_path / "online.yaml"
    path.write_text(text)
    assert glimpse(path, None, {}) is None
    assert glimpse(tmp_path / "none.yaml", None, {}) is None
    assert glimpse(tmp_path / "model.py", None, {}) is None


def test_wrong_settings_are_said_where_no_service_is_found(tmp_path: Path, url: str) -> None:
    path = tmp_path / "online.yaml"
    path.write_text(f"state_dir: {tmp_path}\nreplica: 3\n")
    with pytest.raises(ConfigError, match="replicas"):
        base.service(path, None)
    (tmp_path / "run.json").write_text(json.dumps({"url": url}))
    assert base.service(path, None) == (url, None, None)
    with pytest.raises(StartRefused, match="no service"):
        base.service(None, tmp_path / "other")


def test_a_token_of_the_environment_that_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONLINE_TOKEN", "short")
    with pytest.raises(ConfigError, match="ONLINE_TOKEN"):
        base.service(None, None)


@pytest.mark.parametrize(
    ("status", "content"),
    [
        (302, b""), (200, b"<html>log in</html>"), (200, b"[1]"), (404, b"null"),
        (308, b'{"to": "elsewhere"}'), (502, b'{"error": "bad gateway"}'),
    ],
)  # fmt: skip
def test_what_another_program_answers_is_reported_in_one_line(status: int, content: bytes) -> None:
    with pytest.raises(StartRefused, match=rf"^{status} .*\nCheck the URL"):
        base.checked(Answer(status, content))


def test_an_error_of_the_service_is_reported_with_its_remedy() -> None:
    content = json.dumps({"error": {"code": "c", "message": "why", "hint": "do"}}).encode()
    with pytest.raises(StartRefused, match=r"^why\ndo$"):
        base.checked(Answer(422, content))
