"""Settings: refused with the field, the value and the remedy; complete when printed."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from online.config import ModelSettings, Settings, load
from online.errors import ConfigError

MODEL = {"name": "m", "task": "binary", "learner": "logreg"}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "online.yaml"


def loaded(
    file: Path, data: Any, environ: Mapping[str, str] | None = None, **overrides: Any
) -> Settings:
    file.write_text(data if isinstance(data, str) else yaml.safe_dump(data))
    return load(file, overrides, environ or {})


def refusal(file: Path, data: Any, environ: Mapping[str, str] | None = None) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        loaded(file, data, environ)
    assert caught.value.definite
    assert caught.value.remedy
    return caught.value


def with_model(**settings: Any) -> dict[str, Any]:
    return {"models": [{**MODEL, **settings}]}


# -- unknown and wrong -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "field", "near"),
    [
        ({"replica": 1}, "replica", "replicas"),
        ({"statedir": "x"}, "statedir", "state_dir"),
        (with_model(learnr="logreg"), "models.0.learnr", "learner"),
        (with_model(sync={"interval": 3}), "models.0.sync.interval", "interval_ms"),
        (with_model(snapshots={"interval": 3}), "models.0.snapshots.interval", "interval_s"),
        ({"limits": {"body_byte_max": 3}}, "limits.body_byte_max", "body_bytes_max"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest(
    file: Path, data: dict[str, Any], field: str, near: str
) -> None:
    error = refusal(file, data)
    assert error.field == field
    assert error.remedy == f"Did you mean `{near}`?"


def test_an_unknown_key_like_none_lists_what_is_known(file: Path) -> None:
    error = refusal(file, {"zzzzzz": 1})
    assert "replicas" in error.remedy
    assert "models" in error.remedy


@pytest.mark.parametrize(
    ("data", "field", "value"),
    [
        ({"port": 70_000}, "port", "70000"),
        ({"port": "http"}, "port", "'http'"),
        ({"replicas": 0}, "replicas", "0"),
        ({"replicas": 65}, "replicas", "65"),
        ({"journal": "redis"}, "journal", "'redis'"),
        ({"models": []}, "models", "[]"),
        ({"models": [{"name": "m", "task": "binary"}]}, "models.0.learner", "required"),
        (with_model(name="a/b"), "models.0.name", "'a/b'"),
        (with_model(name=""), "models.0.name", "''"),
        (with_model(task="ranking"), "models.0.task", "'ranking'"),
        (with_model(token_lifetime="soon"), "models.0.token_lifetime", "'soon'"),
        (with_model(token_lifetime="0s"), "models.0.token_lifetime", "'0s'"),
        (with_model(token_lifetime=-1), "models.0.token_lifetime", "-1"),
        (with_model(sync={"merge": "max"}), "models.0.sync.merge", "'max'"),
        (with_model(sync={"interval_ms": 0}), "models.0.sync.interval_ms", "0"),
        (with_model(snapshots={"keep": 1}), "models.0.snapshots.keep", "1"),
        ({"limits": {"rows_max": 0}}, "limits.rows_max", "0"),
        ({"limits": 3}, "limits", "3"),
    ],
)
def test_a_wrong_value_is_named(file: Path, data: dict[str, Any], field: str, value: str) -> None:
    error = refusal(file, data)
    assert error.field == field
    assert value in str(error)


@pytest.mark.parametrize("text", ["- a\n- b\n", "just text", "3"])
def test_a_file_that_is_no_mapping(file: Path, text: str) -> None:
    assert refusal(file, text).problem == "not a mapping"


def test_a_file_that_is_no_yaml(file: Path) -> None:
    assert "not YAML" in refusal(file, "models: [").problem


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path / "none.yaml", {}, {})
    assert "none.yaml" in caught.value.field


def test_two_models_of_one_name(file: Path) -> None:
    error = refusal(file, {"models": [MODEL, {**MODEL, "task": "regression"}]})
    assert error.field == "models"
    assert "'m'" in error.problem


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org", ""])
def test_a_host_that_others_reach_is_refused(file: Path, host: str) -> None:
    error = refusal(file, {"host": host})
    assert error.field == "host"
    assert "127.0.0.1" in error.remedy


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_a_loopback_host_is_taken(file: Path, host: str) -> None:
    assert loaded(file, {"host": host}).host == host


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"classes": {"negative": "no"}}, "needs `negative` and `positive`"),
        ({"task": "multiclass", "classes": {"negative": 0, "positive": 1}}, "task: binary"),
        ({"classes": {"negative": "no", "maybe": "yes"}}, "maybe"),
        ({"classes": {"negative": 0.5, "positive": 1}}, "0.5"),
        ({"classes": {"negative": "yes", "positive": "yes"}}, "the same"),
        ({"classes": {"negative": 1, "positive": "1"}}, "the same"),
        ({"classes": ["no", "yes"]}, "dictionary"),
    ],
)
def test_classes_refused(file: Path, settings: dict[str, Any], says: str) -> None:
    assert says in str(refusal(file, with_model(**settings)))


@pytest.mark.parametrize(("negative", "positive"), [("no", "yes"), (0, 1), (False, True), (-1, 1)])
def test_classes(file: Path, negative: Any, positive: Any) -> None:
    classes = {"negative": negative, "positive": positive}
    got = loaded(file, with_model(classes=classes)).models[0].classes
    assert got == classes
    assert {type(v) for v in got.values()} == {type(negative)}


# -- units and places ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("1s", 1), ("90s", 90), ("1.5m", 90), ("2h", 7200), ("7d", 604_800), ("1w", 604_800),
     ("3 d", 259_200), (12, 12), (0.5, 0.5), ("30", 30)],
)  # fmt: skip
def test_units(file: Path, text: Any, seconds: float) -> None:
    assert loaded(file, with_model(token_lifetime=text)).models[0].token_lifetime == seconds


def test_later_places_win(file: Path) -> None:
    data = {"port": 1001, "replicas": 3, "state_dir": "from-file"}
    environ = {"ONLINE_PORT": "1002", "ONLINE_STATE_DIR": str(file.parent / "from-environment")}
    settings = loaded(file, data, environ, port=1003)
    assert settings.port == 1003
    assert settings.replicas == 3
    assert settings.state_dir == (file.parent / "from-environment").resolve()
    assert loaded(file, data, environ).port == 1002
    assert loaded(file, data, {}, port=None).port == 1001
    assert loaded(file, data, {"ONLINE_HOST": "::1", "ONLINE_REPLICAS": "5"}).replicas == 5


def test_the_environment_is_checked_too(file: Path) -> None:
    assert refusal(file, {}, {"ONLINE_HOST": "0.0.0.0"}).field == "host"
    assert refusal(file, {}, {"ONLINE_PORT": "many"}).field == "port"


def test_without_a_file_a_model_is_served() -> None:
    settings = load(None, {}, {})
    assert [m.learner for m in settings.models] == ["logreg"]
    assert settings.state_dir.is_absolute()


def test_paths_are_relative_to_the_file_that_names_learners(file: Path) -> None:
    settings = loaded(file, with_model())
    assert settings.base_dir == file.parent.resolve()
    assert settings.key_path == settings.state_dir / "key"


def test_settings_do_not_change(file: Path) -> None:
    settings = loaded(file, with_model())
    with pytest.raises(ValueError, match="frozen"):
        settings.port = 1  # type: ignore[misc]


# -- printing --------------------------------------------------------------------------------


def leaves(tree: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Dotted names of all settings."""
    for name, field in tree.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from leaves(kind, f"{prefix}{name}.")
        elif name == "models":
            yield from leaves(ModelSettings, f"{prefix}models.0.")
        else:
            yield prefix + name


def test_show_prints_every_setting_with_its_value(file: Path) -> None:
    file.write_text(yaml.safe_dump(with_model()))
    run = [sys.executable, "-m", "online", "config", "show", str(file)]
    shown = subprocess.run(run, capture_output=True, text=True, check=True, timeout=60).stdout
    data = yaml.safe_load(shown)
    names = list(leaves(Settings))
    assert len(names) >= 30
    for name in names:
        node = data
        for part in name.split("."):
            node = node[int(part) if part.isdigit() else part]
    assert data["limits"]["body_bytes_max"] == 1_048_576
    # What is printed can be used as a settings file, and means the same.
    assert loaded(file, shown).model_dump() == Settings.model_validate(data).model_dump()
    as_json = subprocess.run(
        [*run, "--json"], capture_output=True, text=True, check=True, timeout=60
    )
    assert json.loads(as_json.stdout).keys() == data.keys()
