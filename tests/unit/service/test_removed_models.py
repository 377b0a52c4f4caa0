"""A model that is gone from the settings: its server ends after the replicas, the others go on."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
from servers_without_ray import answers_for_ray

from online.errors import StartRefused
from online.service import processes
from online.service.on_ray import rollout
from online.service.on_ray.challengers import Challengers
from online.service.service import Service
from online.service.state import parameter_servers
from online.service.state.check_state import Models
from online.settings.config import Settings
from online.settings.model import ModelSettings
from online.settings.places import open_journal
from paramserver.snapshots.views import lineage_folder
from replay.errors import JournalUnavailable


def settings(folder: Path, *names: str) -> Settings:
    models = [{"name": name, "task": "binary", "learner": "logreg"} for name in names]
    return Settings(state_dir=folder, models=tuple(map(ModelSettings.model_validate, models)))


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is done to servers, challengers and replicas, in order."""
    steps: list[str] = []

    def snapshots(servers: dict[str, str], within_s: float) -> list[str]:
        assert within_s > 10
        steps.extend(f"snapshot of {name}" for name in servers)
        return []

    monkeypatch.setattr(parameter_servers, "last_snapshots", snapshots)
    monkeypatch.setattr(
        parameter_servers, "end", lambda servers: steps.extend(f"end of {n}" for n in servers)
    )
    return steps


def test_a_server_ends_when_the_replicas_that_served_it_have_sealed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, done: list[str]
) -> None:
    given = settings(tmp_path, "m", "n")
    monkeypatch.setattr(rollout, "_LOOK_S", 0.0)
    with contextlib.closing(open_journal(given)) as journal:
        partition = journal.register("m", "r1", "spec", 0.0).id
        journal.register("m", "killed long ago", "spec", 0.0)

        def recent(name: str, spec: str) -> set[str]:
            assert (name, spec) == ("m", "spec")
            done.append("asked")
            if done.count("asked") == 3:
                journal.seal(partition)
            return {"r1"}

        monkeypatch.setattr(parameter_servers, "recent_replicas", recent)
        (line,) = rollout.end_servers(given, {"m": "spec"})
    assert done == ["asked"] * 4 + ["snapshot of m", "end of m"]
    assert "model m is no longer served" in line
    assert str(tmp_path) in line


def test_a_replica_that_never_seals_is_not_waited_for_forever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, done: list[str]
) -> None:
    given = settings(tmp_path, "m", "n")
    with contextlib.closing(open_journal(given)) as journal:
        journal.register("m", "r1", "spec", 0.0)
    monkeypatch.setattr(rollout, "_SEALED_S", 0.0)
    monkeypatch.setattr(parameter_servers, "recent_replicas", lambda *_: {"r1"})
    monkeypatch.setattr(processes, "shared_dir", lambda state: tmp_path / "shm")
    tables = lineage_folder(str(tmp_path / "shm"), "m", "spec")
    tables.mkdir(parents=True)
    rollout.end_servers(given, {"m": "spec"})
    assert done == ["snapshot of m", "end of m"]
    assert not tables.exists()


@pytest.mark.parametrize("fails", [False, True])
def test_a_model_leaves_a_running_service(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, done: list[str], fails: bool
) -> None:
    given = settings(tmp_path, "m", "n")

    def deploy(replica: Any, settings: Settings, *_: object) -> None:
        done.append(f"replicas with {[model.name for model in settings.models]}")
        if fails:
            raise StartRefused("no replica starts", "Mend it")

    monkeypatch.setattr("online.service.on_ray.rollout.deploy", deploy)
    monkeypatch.setattr("online.service.processes.note", lambda *_: None)
    monkeypatch.setattr(Service, "_wait_http", lambda self: None)
    monkeypatch.setattr(Challengers, "start", lambda self, settings: None)
    monkeypatch.setattr(
        Challengers, "end_challengers",
        lambda self, models: done.extend(f"challenger of {name}" for name in models),
    )  # fmt: skip
    monkeypatch.setattr(parameter_servers, "recent_replicas", lambda *_: set())
    answers_for_ray(monkeypatch, lambda name: lambda: name)
    monkeypatch.setattr(parameter_servers, "_wait_serving", lambda *_: None)
    service = Service(given, lambda _: None)
    service._loaded = Models(given, lambda _: None).load()
    with pytest.raises(StartRefused) if fails else contextlib.nullcontext():
        assert "every replica was replaced" in service.reload(settings(tmp_path, "n"))
    ended = ["challenger of m", "snapshot of m", "end of m"]
    assert done == ["replicas with ['n']", *([] if fails else ended)]
    assert set(service._specs()) == ({"m", "n"} if fails else {"n"})


@pytest.mark.parametrize("error", [StartRefused("it is held", "Stop it"), JournalUnavailable("no")])
def test_servers_end_although_the_journal_can_not_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, done: list[str], error: Exception
) -> None:
    def unreadable(settings: Settings) -> Any:
        raise error

    monkeypatch.setattr(rollout, "open_journal", unreadable)
    rollout.end_servers(settings(tmp_path, "m", "n"), {"m": "spec"})
    assert done == ["snapshot of m", "end of m"]
