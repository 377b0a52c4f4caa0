"""Who is named in the log of decisions: tokens, users of the machine, where a request is from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import server_world

from online.audit import log as logging_
from online.http.middleware.access import Access, origin
from online.settings.access_tokens import WITH_SECRETS
from online.settings.config import Settings, load
from paramserver.process.acting import acting, this_user

MODEL = {"name": "m", "task": "binary", "learner": "logreg"}


def test_a_token_has_a_name(tmp_path: Path) -> None:
    plain, named = ("admin-0123456789abcdefghijkl", "other-0123456789abcdefghijkl")
    tokens = {
        "predict": "p" * 24, "feedback": "f" * 24,
        "admin": [plain, {"name": "alice", "token": named}],
    }  # fmt: skip
    data = {"models": [MODEL], "state_dir": str(tmp_path), "tokens": tokens}
    given = load(None, data, {})
    travelled = Settings.model_validate(given.model_dump(mode="json", context=WITH_SECRETS)).tokens
    guard = Access({"admin": travelled.of("admin")}, travelled.grants)

    def name(token: str) -> str:
        headers = {b"authorization": f"Bearer {token}".encode()}
        return guard.name_of(guard.check(headers, frozenset({"admin"})))

    assert name(named) == "alice"
    assert name(plain).startswith("token ")
    assert len(name(plain)) == len("token ") + 8


def test_where_a_request_is_from() -> None:
    assert origin(("10.0.0.7", 1), {}) == "10.0.0.7"
    headers = {b"x-forwarded-for": b"1.2.3.4\x1b[0m" + b"x" * 999}
    assert origin(("127.0.0.1", 1), headers).startswith("127.0.0.1 for 1.2.3.4\\x1b[0m")
    assert len(origin(None, headers)) == 200


def test_this_user_has_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    assert this_user().startswith("user ")

    def nobody() -> str:
        raise KeyError("no such number")

    monkeypatch.setattr("getpass.getuser", nobody)
    assert this_user().startswith("user ")


def test_keys_that_are_none_are_no_keys(tmp_path: Path) -> None:
    assert logging_.keys_of(tmp_path / "none") == []
    (tmp_path / "bad").write_text("not hexadecimal")
    assert logging_.keys_of(tmp_path / "bad") == []


def test_a_parameter_server_decides_in_somebodys_name(tmp_path: Path) -> None:
    world = server_world.World(tmp_path)
    server, seen = world.serving(), list[str]()
    write = world.store.write_control

    def watched(*words: Any) -> Any:
        seen.append(acting.get())
        return write(*words)

    world.store.write_control = watched
    assert server.asked_by("alice", "freeze")["frozen"] > 0
    server.unfreeze()
    assert seen == ["alice", ""]
