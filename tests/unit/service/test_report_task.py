"""Reports for whoever asks by HTTP: one at a time, for so long, and why there is none."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

import online
from online.errors import RequestError
from online.http.middleware.refusing import answer_errors
from online.http.routes.past import report_routes
from online.service.on_ray.trigger_task import SearchResult, forgotten
from online.service.parts.command_settings import clear, settings_file
from online.service.parts.report_task import Reporting
from online.settings.config import Settings, load
from online.settings.tokens import ROLES, digest
from online.trust.triggers import Trigger


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    data = {
        "models": [{"name": "m", "task": "binary", "learner": "logreg"}],
        "state_dir": str(tmp_path),
        "limits": {"report_wait_s": 7},
    }  # fmt: skip
    return load(None, data, {})


def named(command: Sequence[str], option: str) -> str:
    (found,) = [word.partition("=")[2] for word in command if word.startswith(f"--{option}=")]
    return found


def test_the_command_is_given_the_span_the_settings_and_the_time(
    settings: Settings, tmp_path: Path
) -> None:
    seen: list[Any] = []

    def run(command: Sequence[str], wait_s: float) -> str:
        file = Path(named(command, "config"))
        seen.append((file.stat().st_mode & 0o777, json.loads(file.read_text())["models"][0]))
        seen.append((named(command, "since"), named(command, "until"), wait_s))
        Path(named(command, "out")).write_text("a page")
        return ""

    assert Reporting(settings, run)("m", 1790000000.0, 1790000600.0) == b"a page"
    (mode, model), span = seen
    assert (mode, model["name"]) == (0o600, "m")
    assert span == ("1790000000.000", "1790000600.000", 7.0)
    assert not list(tmp_path.glob("report-*")), "nothing is left"


def refused(reporting: Callable[[str, float, float], bytes]) -> RequestError:
    with pytest.raises(RequestError) as caught:
        reporting("m", 1.0, 2.0)
    return caught.value


def test_one_is_made_at_a_time(settings: Settings) -> None:
    inside: list[RequestError] = []

    def run(command: Sequence[str], wait_s: float) -> str:
        inside.append(refused(reporting))
        Path(named(command, "out")).write_text("a page")
        return ""

    reporting = Reporting(settings, run)
    assert reporting("m", 1.0, 2.0) == b"a page"
    assert (inside[0].status, inside[0].code, inside[0].headers["retry-after"]) == (
        429, "report_busy", "5",
    )  # fmt: skip
    assert reporting("m", 1.0, 2.0) == b"a page", "and then the next one"


def test_a_report_that_takes_too_long_is_ended_and_the_next_may_begin(settings: Settings) -> None:
    def late(command: Sequence[str], wait_s: float) -> str:
        raise subprocess.TimeoutExpired(list(command), wait_s)

    reporting = Reporting(settings, late)
    for _ in range(2):
        error = refused(reporting)
        assert (error.status, error.code) == (503, "report_late")
        assert "more than 7 s" in str(error)


def test_why_there_is_none_comes_from_the_command(settings: Settings) -> None:
    error = refused(Reporting(settings, lambda *_: "the journal has nothing of a model m\n"))
    assert (error.status, error.code) == (503, "report_refused")
    assert "nothing of a model m" in str(error)


def test_a_package_that_is_missing_is_to_be_installed_where_the_service_runs(
    settings: Settings,
) -> None:
    said = "online: the report needs a package that is missing: matplotlib. pip install it"
    error = refused(Reporting(settings, lambda *_: said))
    assert error.hint == (
        "Install it where the service runs: "
        "pip install -c constraints.txt -e '.[report]' in the checkout"
    )
    error = refused(Reporting(settings, lambda *_: "there is no journal"))
    assert error.hint == "Run online report on the machine that has the journal"


def test_what_is_not_there_is_said_by_the_real_command(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ONLINE_PORT", "what the command does not read")
    error = refused(Reporting(settings.model_copy(update={"limits": settings.limits.model_copy(
        update={"report_wait_s": 300.0})})))  # fmt: skip
    assert error.code == "report_refused"
    assert "there is no journal" in str(error)


def with_files_of_tokens(folder: Path) -> Settings:
    files = {}
    for role in ROLES:
        files[f"{role}_file"] = str(folder / role)
        (folder / role).touch(mode=0o600)
        (folder / role).write_text(f"{role}-0123456789abcdefghijkl\n")
    models = [{"name": "m", "task": "binary", "learner": "logreg"}]
    return load(None, {"models": models, "state_dir": str(folder), "tokens": files}, {})


def test_a_command_reads_the_settings_where_tokens_come_from_files(tmp_path: Path) -> None:
    settings = with_files_of_tokens(tmp_path)
    with settings_file(settings, "report-") as file:
        again = load(file, {}, {})
    for role in ROLES:
        assert list(map(digest, settings.tokens.of(role))) == list(again.tokens.of(role))
        assert f"{role}-0123456789abcdefghijkl" in settings.tokens.of(role)


def test_sources_are_forgotten_where_tokens_come_from_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []

    def run(command: Sequence[str], *, env: Mapping[str, str], **_: Any) -> Any:
        seen.append((load(Path(named(command, "config")), {}, {}).models[0].name, env))
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setenv("ONLINE_STATE_DIR", "elsewhere")
    monkeypatch.setattr(subprocess, "run", run)
    trigger = Trigger({"a": 1.0}, True, ("liar",), 9, 1.0, 1.0, 0.0, 0.0)
    looked = SearchResult(9, 2, (trigger,))
    assert forgotten(with_files_of_tokens(tmp_path), "m", looked).forgotten == ("liar",)
    ((model, env),) = seen
    assert model == "m"
    assert "PATH" in env
    assert "ONLINE_STATE_DIR" not in env


def test_settings_that_a_killed_process_left_are_removed_and_no_others(
    settings: Settings, tmp_path: Path
) -> None:
    left = [tmp_path / f"{name}-left" for name in ("report", "forget", "kept")]
    for folder in left:
        folder.mkdir()
        (folder / "online.yaml").write_text("a password")
    with settings_file(settings, "report-") as file:
        clear(tmp_path)
        assert file.exists(), "another process of the folder is making a report"
        assert [folder.exists() for folder in left] == [False, False, True]


def test_a_service_that_starts_removes_them(tmp_path: Path) -> None:
    left = tmp_path / "report-left"
    left.mkdir()
    (left / "online.yaml").write_text("a password")
    with online.serve("logreg", state_dir=tmp_path, say=lambda _: None):
        assert not left.exists()


def ask(app: FastAPI, path: str) -> httpx.Response:
    import asyncio

    async def asked() -> httpx.Response:
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://m") as client:
            return await client.get(path)

    return asyncio.run(asked())


def test_the_page_comes_whole_and_loads_nothing() -> None:
    spans: list[tuple[str, float, float]] = []
    app = FastAPI()
    answer_errors(app)

    def make(model: str, since: float, until: float) -> bytes:
        spans.append((model, since, until))
        return b"<!doctype html><p>ok"

    app.include_router(report_routes(make))
    answer = ask(app, "/v1/models/m/report?since=10&until=20.5")
    assert (answer.status_code, answer.text) == (200, "<!doctype html><p>ok")
    assert answer.headers["content-type"].startswith("text/html")
    assert answer.headers["cache-control"] == "no-store"
    for rule in ("default-src 'none'", "frame-ancestors 'none'"):
        assert rule in answer.headers["content-security-policy"]
    assert spans == [("m", 10.0, 20.5)]
    ask(app, "/v1/models/m/report?until=100000")
    assert spans[1] == ("m", 100000 - 86400.0, 100000.0)
    for odd in ("since=20&until=10", "since=nan", "since=x"):
        assert ask(app, f"/v1/models/m/report?{odd}").status_code == 422
    assert len(spans) == 2
    assert ask(app, "/v1/models/m/report?since=-inf&until=1e308").status_code == 200
    assert spans[2] == ("m", -6e10, 6e10)
