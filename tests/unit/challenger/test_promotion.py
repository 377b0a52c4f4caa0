"""Which model serves follows from the settings file and the newest promotion."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from servers_without_ray import answers_for_ray

from online.challenger import promotion
from online.challenger.promotion import decision
from online.errors import StartRefused
from online.models.loading.from_settings import load_model
from online.service.on_ray.challengers import Challengers
from online.service.service import Service
from online.service.state import parameter_servers
from online.service.state.check_state import Models
from online.service.state.deadline import StartDeadline
from online.settings.config import Settings
from online.settings.model import ModelSettings
from online.settings.places import open_journal
from paramserver.core import rewrites
from paramserver.core.standing_decisions import UPGRADE, Upgrade
from paramserver.errors import PromoteRefused
from paramserver.process.actor import ParameterServer, ServerSettings
from paramserver.process.lineage import Lineage
from replay.journal.base import Journal

A, B, C = "logreg", "linear", "ftrl"


def settings(folder: Path, learner: str, challenger: str | None, **more: Any) -> Settings:
    given = None if challenger is None else {"learner": challenger, "promote": "auto"}
    model = ModelSettings.model_validate(
        {"name": "m", "task": "binary", "learner": learner, "challenger": given, **more}
    )
    return Settings(state_dir=folder, base_dir=folder, models=(model,))


def spec(folder: Path, learner: str) -> str:
    made = settings(folder, learner, None)
    return load_model(made.models[0], made, b"\0" * 32).spec_hash


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    with contextlib.closing(open_journal(settings(tmp_path, A, None))) as found:
        yield found


def promote(folder: Path, journal: Journal, before: str, after: str) -> int:
    """As a server of the lineage that serves decides it."""
    server = ParameterServer(
        Lineage("m", spec(folder, before), "{}", "sum"),
        lambda: open_journal(settings(folder, A, None)),
        str(folder / "snapshots"),
        ServerSettings(),
        background=False,
    )
    assert server.restore()
    model = settings(folder, before, after).models[0]
    note = decision(model, spec(folder, before), spec(folder, after), "operator", {})
    done = server.promote(note)
    assert server.promote(note) == done, "a repeat"
    assert server.status()["state"] == "serving", "it goes on until it is replaced"
    other = decision(model, spec(folder, C), spec(folder, after), "operator", {})
    with pytest.raises(PromoteRefused, match=spec(folder, before)[:12]):
        server.promote(other)
    return int(done["control"])


def served(given: Settings, journal: Journal) -> tuple[str, str | None]:
    found, _ = promotion.as_served(given, journal)
    challenger = found.models[0].challenger
    return found.models[0].learner, None if challenger is None else challenger.learner


def test_the_newest_promotion_decides_who_serves(tmp_path: Path, journal: Journal) -> None:
    given = settings(tmp_path, A, B)
    assert served(given, journal) == (A, B)
    seq = promote(tmp_path, journal, A, B)
    found, lines = promotion.as_served(given, journal)
    assert served(given, journal) == (B, A)
    assert found.models[0].challenger is not None
    assert found.models[0].challenger.promote == "auto", "what decides is not what learns"
    assert f"promoted by control row {seq}; the settings file says {A}" in lines[0]
    assert f"learner: {B}" in lines[1]
    assert served(settings(tmp_path, A, None), journal) == (B, None)
    assert served(settings(tmp_path, A, C), journal) == (B, C)
    assert served(settings(tmp_path, B, A), journal) == (B, A), "made permanent"
    assert served(settings(tmp_path, C, B), journal) == (C, B), "a third one"
    promote(tmp_path, journal, B, A)
    assert served(given, journal) == (A, B), "and back"
    assert promote(tmp_path, journal, A, B) > seq
    assert served(given, journal) == (B, A)


def test_one_that_has_changed_since_is_refused(tmp_path: Path, journal: Journal) -> None:
    code = "from river import linear_model\ndef build(l2=0.0):\n"
    code += "    return linear_model.LogisticRegression(l2=l2)\n"
    (tmp_path / "own.py").write_text(code)
    given = settings(tmp_path, A, "own.py:build")
    promote(tmp_path, journal, A, "own.py:build")
    assert served(given, journal)[0] == "own.py:build"
    (tmp_path / "own.py").write_text(code.replace("=0.0", "=0.5"))
    with pytest.raises(StartRefused, match="have changed since"):
        promotion.as_served(given, journal)
    promotion.follow_file(given, journal)  # --relearn, --fresh
    newest = rewrites.promoted(journal.controls("m", 0))
    assert newest is not None
    assert newest[1].epoch == journal.head("m", newest[1].before).epoch
    assert newest[1].epoch <= journal.head("m", newest[1].after).epoch
    assert served(given, journal) == (A, "own.py:build")


def test_a_promotion_that_failed_is_taken_back(tmp_path: Path, journal: Journal) -> None:
    """And nobody goes over to what serves already."""
    given = settings(tmp_path, A, B)
    a, b = spec(tmp_path, A), spec(tmp_path, B)
    service = Challengers()
    assert not service.promoted(journal, {"m": a})
    promote(tmp_path, journal, A, B)
    assert service.promoted(journal, {"m": a})
    assert service.promoted(journal, {"m": a}), "until it has gone over"
    assert not service.promoted(journal, {"m": b})
    promotion.lift_epoch(journal, "m", a, b)
    assert journal.head("m", b).epoch >= journal.head("m", a).epoch > 0
    promotion.take_back_all(journal, {"m": a})
    promotion.take_back_all(journal, {"m": a})
    assert not service.promoted(journal, {"m": a})
    assert served(given, journal) == (A, B)
    newest = rewrites.promoted(journal.controls("m", 0))
    assert newest is not None
    assert newest[1].why == "failed"
    assert msgspec.json.decode(msgspec.json.encode(newest[1]), type=rewrites.Promote) == newest[1]


def test_a_service_is_told_once_that_an_upgrade_was_decided(
    tmp_path: Path, journal: Journal
) -> None:
    challengers, serving = Challengers(), {"m": spec(tmp_path, A)}
    assert not challengers.promoted(journal, serving)
    assert not challengers.upgraded()
    journal.write_control("m", UPGRADE, "upgrade:0", msgspec.json.encode(Upgrade(on=True)))
    assert not challengers.promoted(journal, serving), "it is no promotion"
    assert challengers.upgraded()
    assert not challengers.promoted(journal, serving)
    assert not challengers.upgraded()


def test_a_service_begins_and_ends_todays_defaults_beside_a_model(
    tmp_path: Path, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = settings(tmp_path, A, None, params={"scale": "plain"})
    deployed: list[Any] = []
    begun: list[Any] = []

    def deploy(replica: object, settings: Settings, *_: object) -> None:
        deployed.append(settings.models[0].challenger)

    def start(self: Challengers, settings: Settings) -> None:
        begun.append(settings.models[0].challenger)

    monkeypatch.setattr("online.service.on_ray.rollout.deploy", deploy)
    monkeypatch.setattr(parameter_servers, "start", lambda *_: None)
    monkeypatch.setattr(Service, "_wait_http", lambda self: None)
    monkeypatch.setattr(Challengers, "start", start)
    monkeypatch.setattr("online.service.processes.note", lambda *_: None)
    service = Service(given, lambda _: None)
    service._loaded = Models(given, lambda _: None).load()
    service._upkeep = SimpleNamespace(journal=journal)  # type: ignore[assignment]
    assert service.decided() is None
    for number, on in enumerate((True, False)):
        note = msgspec.json.encode(Upgrade(on))
        journal.write_control("m", UPGRADE, f"upgrade:{number}", note)
        decided = service.decided()
        assert decided is not None
        what, step = decided
        assert (what, step()[0]) == ("upgraded", "models.m.challenger changed")
        assert service.decided() is None, "once"
    for found in (deployed, begun):
        assert found[0].params == {"scale": "limited"}
        assert found[1] is None


def test_a_challenger_that_is_the_same_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StartRefused, match="its challenger is the same model"):
        Models(settings(tmp_path, A, A), lambda line: None).load()


def test_the_servers_of_models_that_are_not_promoted_are_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[str] = []
    answers_for_ray(monkeypatch, lambda name: partial(started.append, name))
    monkeypatch.setattr(parameter_servers, "_wait_serving", lambda name, get, *_: get())
    models = tuple(
        ModelSettings.model_validate({"name": name, "task": "binary", "learner": "logreg"})
        for name in ("prices", "mails")
    )
    settings = Settings(state_dir=tmp_path, models=models)
    loaded = {model.name: load_model(model, settings, b"0" * 32) for model in models}
    for only, wanted in ((None, 2), ({"mails"}, 1)):
        started.clear()
        parameter_servers.start(settings, loaded, lambda line: None, StartDeadline(1.0), only=only)
        assert len(started) == wanted
        assert any("mails" in name for name in started)


def two(folder: Path, learner: str, challenger: str) -> Settings:
    """Models m, which has a challenger, and n, which has none."""
    one = settings(folder, learner, challenger).models[0]
    other = ModelSettings.model_validate({"name": "n", "task": "binary", "learner": A})
    return Settings(state_dir=folder, base_dir=folder, models=(one, other))


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Models whose servers were started, in order, without Ray."""
    names: list[str] = []

    def begun(name: str) -> Callable[[], str]:
        names.append(name.split(":")[1])
        return lambda: name

    answers_for_ray(monkeypatch, begun)
    monkeypatch.setattr(parameter_servers, "_wait_serving", lambda *_: None)
    return names


def test_servers_of_some_models_are_started(tmp_path: Path, started: list[str]) -> None:
    given = two(tmp_path, A, B)
    loaded = Models(given, lambda _: None).load()
    parameter_servers.start(given, loaded, lambda _: None, StartDeadline(1.0), only={"m"})
    assert started == ["m"]
    parameter_servers.start(given, loaded, lambda _: None, StartDeadline(1.0), only=())
    assert started == ["m"], "none of them"
    parameter_servers.start(given, loaded, lambda _: None, StartDeadline(1.0))
    assert started == ["m", "m", "n"]


@pytest.mark.parametrize("ends", ["exchanged", "replaced", "taken back"])
def test_a_promotion_leaves_the_servers_of_other_models_alone(
    tmp_path: Path, journal: Journal, started: list[str], monkeypatch: pytest.MonkeyPatch,
    ends: str,
) -> None:  # fmt: skip
    """Whether replicas exchange the model, are replaced, or do not start with it."""
    fails = ends == "taken back"
    given = two(tmp_path, A, B)
    ended: list[dict[str, str]] = []
    deployed: list[str] = []

    def deploy(replica: object, settings: Settings, *_: object) -> None:
        deployed.append(settings.models[0].learner)
        if fails and len(deployed) == 1:
            raise StartRefused("no replica starts", "Mend it")

    monkeypatch.setattr(parameter_servers, "end", lambda specs: ended.append(dict(specs)))
    monkeypatch.setattr(parameter_servers, "last_snapshots", lambda specs: [])
    monkeypatch.setattr("online.service.on_ray.rollout.deploy", deploy)
    monkeypatch.setattr(
        "online.service.on_ray.rollout.wait_swapped", lambda *_: ends == "exchanged"
    )
    monkeypatch.setattr(Service, "_wait_http", lambda self: None)
    monkeypatch.setattr(Challengers, "start", lambda self, settings: None)
    monkeypatch.setattr("online.service.processes.note", lambda *_: None)
    service = Service(given, lambda _: None)
    service._loaded = Models(given, lambda _: None).load()
    promote(tmp_path, journal, A, B)
    if fails:
        with pytest.raises(StartRefused, match="no replica starts"):
            service.switch_models()
        assert deployed == [B, A]
    else:
        (line,) = service.switch_models()
        assert "model m: linear serves now" in line
        assert deployed == ([] if ends == "exchanged" else [B])
    assert started == ["m"]
    assert ended == [{"m": spec(tmp_path, B if fails else A)}], "of the one that does not serve"
    assert service._specs()["m"] == spec(tmp_path, A if fails else B)
