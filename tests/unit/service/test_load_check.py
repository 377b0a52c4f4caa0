"""Before another replica starts: would its models load, and who is told that they would not?"""

from __future__ import annotations

import threading
import time
from pathlib import Path

import psutil
import pytest

from online.models.loading.from_settings import load_model
from online.rows.prediction_ids import Keys
from online.service.on_ray import next_replica, rollout, would_load
from online.service.on_ray.next_replica import NextReplica
from online.service.on_ray.would_load import why_not
from online.service.processes import runs
from online.settings import config
from online.settings.config import Settings

LEARNER = "from benchmarks.fixtures.learners import counting\n"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    (tmp_path / "learner.py").write_text(LEARNER)
    model = {"name": "counting", "task": "regression", "learner": "learner.py:counting"}
    data = {"models": [model], "state_dir": str(tmp_path / "state")}
    path = tmp_path / "online.yaml"
    path.write_text("")
    (tmp_path / "state").mkdir()
    return config.load(path, data, {})


def specs_of(settings: Settings) -> dict[str, str]:
    """By model: hash of its spec, as the code is now."""
    keys = Keys.from_file(settings.key_path)
    return {m.name: load_model(m, settings, keys.secret).spec_hash for m in settings.models}


def test_the_reason_is_what_a_replica_would_have_said(settings: Settings, tmp_path: Path) -> None:
    specs, learner = specs_of(settings), tmp_path / "learner.py"
    assert why_not(settings, specs) is None
    learner.write_text("print('told nobody')\nraise RuntimeError('broken on purpose')\n")
    assert "broken on purpose" in str(why_not(settings, specs))
    learner.write_text(LEARNER + "changed = True\n")
    assert "its code has changed since the service started" in str(why_not(settings, specs))
    learner.write_text("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\n")
    assert str(why_not(settings, specs)).endswith("ended by signal 11")
    learner.write_text(LEARNER)
    assert why_not(settings, specs) is None


def test_who_answers_is_told_until_the_model_loads_again(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    reasons: list[str | None] = ["broken", "broken", "otherwise", None]
    told: list[str | None] = []
    mended = threading.Event()

    def note(why: str | None) -> None:
        told.append(why)
        if why is None:
            mended.set()

    monkeypatch.setattr(next_replica, "why_not", lambda *_: reasons.pop(0))
    monkeypatch.setattr(next_replica, "_AGAIN_S", 0.01)
    monkeypatch.setattr(rollout, "note_absence", note)
    monkeypatch.setattr(rollout, "complete", lambda replicas: False)
    NextReplica(lambda: (settings, {"counting": "spec"})).find_out()
    assert mended.wait(240)
    assert told == ["broken", "otherwise", None]


def test_when_all_replicas_run_no_reason_is_told_and_nothing_is_loaded_any_more(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The settings want fewer by now, or another model: the code that was broken may stay so."""
    told: list[str | None] = []
    run = iter([False, True])
    monkeypatch.setattr(next_replica, "why_not", lambda *_: "broken")
    monkeypatch.setattr(next_replica, "_AGAIN_S", 0.01)
    monkeypatch.setattr(rollout, "note_absence", told.append)
    monkeypatch.setattr(rollout, "complete", lambda replicas: next(run))
    looks = NextReplica(lambda: (settings, {"counting": "spec"}))
    looks.find_out()
    thread = looks._thread
    assert thread is not None
    thread.join(240)
    assert told == ["broken", None]
    assert looks._thread is None


def test_each_look_is_of_what_serves_by_then_and_a_failed_one_ends_nothing(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = iter(["old", "new"])
    asked: list[str] = []

    def why(_: Settings, specs: dict[str, str]) -> str | None:
        asked.append(specs["counting"])
        if specs["counting"] == "new":
            raise OSError("no more processes")
        return "broken"

    monkeypatch.setattr(next_replica, "why_not", why)
    monkeypatch.setattr(next_replica, "_AGAIN_S", 0.01)
    monkeypatch.setattr(rollout, "note_absence", lambda why: None)
    monkeypatch.setattr(rollout, "complete", lambda replicas: False)
    looks = NextReplica(lambda: (settings, {"counting": next(served)}))
    looks.find_out()
    while looks._thread is not None:
        looks._thread.join(1)
    assert asked == ["old", "new"]


def test_what_the_code_starts_and_says_holds_up_nobody(settings: Settings, tmp_path: Path) -> None:
    """Bytes that are no text; a process that goes on, and holds the error output open."""
    specs, noted = specs_of(settings), tmp_path / "pid"
    (tmp_path / "learner.py").write_text(
        "import subprocess, sys\n"
        "started = subprocess.Popen(['/bin/sleep', '600'])\n"
        f"open({str(noted)!r}, 'w').write(str(started.pid))\n"
        "sys.stdout.buffer.write(b'\\xff' * 10)\n"
        "sys.stderr.buffer.write(b'\\xff' * 100_000 + b'\\n')\n"
        "raise RuntimeError('broken on purpose')\n"
    )
    begun_s = time.monotonic()
    assert "broken on purpose" in str(why_not(settings, specs))
    assert time.monotonic() < begun_s + would_load._WAIT_S
    started = int(noted.read_text())
    deadline_s = time.monotonic() + 240
    while psutil.pid_exists(started) and runs(psutil.Process(started)):
        assert time.monotonic() < deadline_s
