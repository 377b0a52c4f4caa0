"""When settings that are read again are taken: not while somebody writes them."""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path
from typing import Any

import pytest

from online.commands.base import Reached
from online.commands.operate import serve as command
from online.commands.operate.serve import _play_forever, _reload, _settled
from online.errors import ConfigError, StartRefused
from online.settings.config import Settings, load

MODELS = "models:\n- {name: m, task: binary, learner: linear}\n"
TOKENS = "tokens:\n" + "".join(
    f"  {role}: [{role}-{'0' * 24}]\n" for role in ("predict", "feedback", "admin")
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "online.yaml"


def read(path: Path) -> Settings:
    return load(path, {"state_dir": str(path.parent / "state")}, {})


def test_an_editor_that_has_written_half_is_waited_for(path: Path) -> None:
    whole = MODELS + TOKENS
    path.write_text(MODELS)
    assert not read(path).tokens
    later = iter([whole, whole])
    found = _settled(lambda: read(path), lambda s: path.write_text(next(later)) and None)
    assert len(found.tokens.of("admin")) == 1


def test_half_a_file_that_can_not_be_read_is_waited_for_too(path: Path) -> None:
    whole = MODELS + TOKENS
    path.write_text(whole[: whole.index("task")])
    with pytest.raises(ConfigError):
        read(path)
    later = iter([whole, whole])
    found = _settled(lambda: read(path), lambda s: path.write_text(next(later)) and None)
    assert len(found.tokens.of("admin")) == 1
    path.write_text(whole[: whole.index("task")])
    waits: list[float] = []
    with pytest.raises(ConfigError):
        _settled(lambda: read(path), waits.append)
    assert len(waits) == 1, "an error that stays is reported soon"


@pytest.mark.parametrize("cut", range(len(MODELS), len(MODELS + TOKENS)))
def test_a_file_that_stays_cut_is_refused_or_has_fewer_tokens_or_none(path: Path, cut: int) -> None:
    """None of them opens a running service: tests of the roll-out say what none is."""
    path.write_text((MODELS + TOKENS)[:cut])
    try:
        tokens = read(path).tokens
    except ConfigError:
        return
    whole = (MODELS + TOKENS)[cut:].strip() == ""
    assert bool(tokens) is whole


def test_settings_that_change_on_and_on_are_refused(path: Path) -> None:
    texts = iter(MODELS + f"replicas: {n}\n" for n in range(1, 100))
    path.write_text(MODELS)
    with pytest.raises(StartRefused, match="change while they are read"):
        _settled(lambda: read(path), lambda s: path.write_text(next(texts)) and None)


def test_a_reload_waits_for_what_play_imports(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It loads models meanwhile, and found half of scikit-learn."""
    monkeypatch.setattr(command, "_SETTLED_S", 0.0)
    path.write_text(MODELS)
    begun, imported, steps = threading.Event(), threading.Event(), list[str]()

    def open_it() -> Any:
        begun.set()
        assert imported.wait(240)
        steps.append("imported")
        raise KeyError

    class Running:
        def reload(self, settings: Settings) -> list[str]:
            steps.append("reloaded")
            raise KeyError

    def play() -> None:
        with contextlib.suppress(KeyError):
            _play_forever(Reached("", None), read(path), open_it, 1.0, threading.Event())

    def reload() -> None:
        with contextlib.suppress(KeyError):
            _reload(Running(), lambda: read(path))

    threads = [threading.Thread(target=target, daemon=True) for target in (play, reload)]
    threads[0].start()
    assert begun.wait(240)
    assert command._importing.locked()
    threads[1].start()
    imported.set()
    for thread in threads:
        thread.join(240)
    assert steps == ["imported", "reloaded"]
    assert not command._importing.locked()
