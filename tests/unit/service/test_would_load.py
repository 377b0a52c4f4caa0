"""Before another replica starts: would its models load, and who is told that they would not?"""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from online.models.loading.from_settings import load_model
from online.rows.prediction_ids import Keys
from online.service.on_ray import next_replica, rollout
from online.service.on_ray.next_replica import NextReplica
from online.service.on_ray.would_load import why_not
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
    NextReplica().find_out(settings, {"counting": "spec"})
    assert mended.wait(240)
    assert told == ["broken", "otherwise", None]
